//! Tests of the admission webhook, over a context whose proof is scripted.

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt as _;
use serde_json::json;
use tower::ServiceExt as _;

use super::*;
use crate::policy::RefusalCode;

/// Refuses a package named `bad`, warns of `odd`, and holds the thread while `slow` is in the name.
struct Scripted {
    profile: Option<TenantProfileSpec>,
    hold: Duration,
    applied: Mutex<Vec<String>>,
}

impl Default for Scripted {
    fn default() -> Self {
        Self { profile: None, hold: Duration::ZERO, applied: Mutex::default() }
    }
}

impl AdmissionContext for Scripted {
    fn prove(&self, spec: &PolicyPackageSpec, tenant: &str) -> (Vec<Refusal>, Vec<Refusal>) {
        if spec.package == "slow" {
            std::thread::sleep(self.hold);
        }
        match spec.package.as_str() {
            "bad" => (
                (0..7)
                    .map(|n| Refusal::new(RefusalCode::CedarSyntax, format!("policies/a.cedar:{n}:1: {tenant}")))
                    .collect(),
                vec![Refusal::new(RefusalCode::Unsigned, "unseen")],
            ),
            "odd" => (vec![], (0..9).map(|_| Refusal::new(RefusalCode::UnknownSigner, "x\ny".repeat(400))).collect()),
            _ => (vec![], vec![]),
        }
    }
    fn applied(&self, spec: &PolicyPackageSpec, tenant: &str, username: &str) {
        self.applied.lock().unwrap().push(format!("{tenant} {} {username}", spec.package));
    }
    fn platform_tenant(&self) -> &str {
        "remit-system"
    }
    fn platform_profile(&self) -> Option<TenantProfileSpec> {
        self.profile.clone()
    }
}

fn body(operation: &str, resource: &str, name: &str, spec: &Value, old: Option<&Value>) -> Value {
    let object = |spec: &Value| json!({"apiVersion": "remit.dev/v1alpha1", "kind": "K", "metadata": {"name": name}, "spec": spec});
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "kind": {"group": "remit.dev", "version": "v1alpha1", "kind": "K"},
            "resource": {"group": "remit.dev", "version": "v1alpha1", "resource": resource},
            "name": name, "namespace": "acme", "operation": operation,
            "userInfo": {"username": "bob"}, "object": object(spec), "oldObject": old.map(object),
        }
    })
}

fn judge_with(context: &Scripted, body: &Value) -> AdmissionResponse {
    review(&read(body.to_string().as_bytes()).unwrap(), context)
}

fn create(resource: &str, name: &str, spec: &Value) -> AdmissionResponse {
    judge_with(&Scripted::default(), &body("CREATE", resource, name, spec, None))
}

#[test]
fn refuse_what_the_bytes_prove_wrong_and_name_a_few() {
    let response = create("policypackages", "p", &json!({"package": "bad", "version": "1.0.0"}));
    assert!(!response.allowed);
    assert_eq!(response.result.code, 422);
    let message = &response.result.message;
    assert!(message.starts_with("CedarSyntax: policies/a.cedar:0:1: acme; "), "{message}");
    assert!(message.ends_with("; and 2 more"), "{message}");
    assert!(!message.contains("Unsigned"), "{message}");
}

#[test]
fn warn_of_what_depends_on_other_objects_in_few_short_lines() {
    let response = create("policypackages", "p", &json!({"package": "odd", "version": "1.0.0"}));
    assert!(response.allowed);
    let warnings = response.warnings.unwrap();
    assert_eq!(warnings.len(), 5);
    assert!(warnings[0].contains("UnknownSigner"));
    assert_eq!(warnings[4], "and 5 more warnings");
    assert!(warnings.iter().all(|w| w.chars().count() <= 256 && !w.contains('\n')), "{warnings:?}");
}

#[test]
fn admit_a_good_package_without_a_word() {
    let response = create("policypackages", "p", &json!({"package": "fine", "version": "1.0.0"}));
    assert!(response.allowed);
    assert_eq!(response.warnings, None);
    assert_eq!(response.uid, "u-1");
}

#[test]
fn who_applied_an_admitted_package_is_noted_and_a_dry_run_is_not() {
    let context = Scripted::default();
    for package in ["fine", "bad", "odd"] {
        judge_with(
            &context,
            &body("CREATE", "policypackages", "p", &json!({"package": package, "version": "1"}), None),
        );
    }
    let mut dry = body("CREATE", "policypackages", "p", &json!({"package": "dry", "version": "1"}), None);
    dry["request"]["dryRun"] = true.into();
    assert!(judge_with(&context, &dry).allowed);
    assert_eq!(*context.applied.lock().unwrap(), ["acme fine bob", "acme odd bob"]);
}

#[test]
fn refuse_a_malformed_object_by_the_field_that_is_wrong() {
    for (spec, field) in [
        (
            json!({"package": "x", "version": "1.0.0", "tools": [{"name": "a/b", "tier": "root"}]}),
            "spec.tools[0].tier: ",
        ),
        (json!({"package": "x", "version": "1.0.0", "polices": []}), "spec.polices: unknown field"),
        (json!({"package": "x"}), "spec: missing field `version`"),
        (json!(null), "spec: "),
    ] {
        let response = create("policypackages", "p", &spec);
        assert!(!response.allowed, "{spec}");
        assert!(response.result.message.starts_with(field), "{spec}: {}", response.result.message);
    }
}

#[test]
fn admit_deletes_status_unchanged_specs_finalizers_and_other_kinds() {
    let bad = json!({"package": "bad", "version": "1.0.0"});
    let admitted = |body: &Value| judge_with(&Scripted::default(), body).allowed;
    assert!(!admitted(&body("CREATE", "policypackages", "p", &bad, None)));
    assert!(!admitted(&body(
        "UPDATE",
        "policypackages",
        "p",
        &bad,
        Some(&json!({"package": "fine", "version": "1.0.0"}))
    )));

    assert!(admitted(&body("UPDATE", "policypackages", "p", &bad, Some(&bad))));
    assert!(admitted(&body("DELETE", "policypackages", "p", &bad, Some(&bad))));
    assert!(admitted(&body("CREATE", "agents", "p", &bad, None)));
    let mut status = body("UPDATE", "policypackages", "p", &bad, Some(&json!({})));
    status["request"]["subResource"] = json!("status");
    assert!(admitted(&status));
    let mut going = body("UPDATE", "policypackages", "p", &bad, Some(&json!({})));
    going["request"]["object"]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(admitted(&going));
}

#[test]
fn rollout_names_the_stage_that_is_wrong() {
    let stages = |percents: &[i64]| {
        let each: Vec<Value> = percents.iter().map(|p| json!({"percent": p})).collect();
        create("tenantrollouts", "default", &json!({"stages": each}))
    };
    assert!(stages(&[5, 25, 100]).allowed && stages(&[100]).allowed);
    for (percents, words) in [
        (&[][..], "spec.stages: must have at least one"),
        (&[0, 100], "spec.stages[0].percent: 0 is not between"),
        (&[5, -1, 100], "spec.stages[1].percent: -1 is not between"),
        (&[5, 250], "spec.stages[1].percent: 250 is not between"),
        (&[5, 5, 100], "spec.stages[1].percent: 5 must be more than"),
        (&[5, 25], "spec.stages[1].percent: 25 must be 100"),
    ] {
        let refused = stages(percents);
        assert!(!refused.allowed && refused.result.message.contains(words), "{percents:?}: {}", refused.result.message);
    }
}

#[test]
fn rollout_names_what_is_wrong_with_its_selector() {
    let d = format!("sha256:{}", "a".repeat(64));
    for (name, spec, expected) in [
        ("default", json!({}), None),
        ("default", json!({"package": {"name": "p", "version": ">=1, <2"}}), None),
        ("default", json!({"package": {"digest": d}}), None),
        ("other", json!({}), Some("metadata.name: must be \"default\"")),
        ("default", json!({"package": {"version": "one"}}), Some("spec.package.version: \"one\" is not a range")),
        ("default", json!({"package": {"digest": d.to_uppercase()}}), Some("spec.package.digest: must be")),
        ("default", json!({"package": {"digest": d, "name": "p"}}), Some("spec.package: digest names exactly one")),
        ("default", json!({"revisionHistoryLimit": 0}), Some("spec.revisionHistoryLimit: 0 is not")),
    ] {
        let response = create("tenantrollouts", name, &spec);
        match expected {
            None => assert!(response.allowed && response.warnings.is_none(), "{spec}: {response:?}"),
            Some(text) => {
                assert!(!response.allowed, "{spec}");
                assert!(response.result.message.starts_with(text), "{spec}: {}", response.result.message);
            }
        }
    }
    let bare = create("tenantrollouts", "default", &json!({"package": {"version": "1.4.0"}}));
    assert!(bare.allowed);
    assert!(bare.warnings.unwrap()[0].contains("write =1.4.0"));
}

#[test]
fn profile_ranges_are_refused_and_loosening_is_warned_of() {
    let platform = TenantProfileSpec {
        session_timeout_seconds: Some(300),
        retention_days: Some(400),
        ..TenantProfileSpec::default()
    };
    let context = Scripted { profile: Some(platform), ..Scripted::default() };
    let judge = |spec: Value| judge_with(&context, &body("CREATE", "tenantprofiles", "default", &spec, None));

    assert!(judge(json!({"sessionTimeoutSeconds": 9})).result.message.starts_with("spec.sessionTimeoutSeconds: 9 "));
    assert!(judge(json!({"retentionDays": 3651})).result.message.starts_with("spec.retentionDays: 3651 "));
    assert_eq!(judge(json!({"sessionTimeoutSeconds": 300, "retentionDays": 400})).warnings, None);
    let loose = judge(json!({"sessionTimeoutSeconds": 301, "retentionDays": 399}));
    assert!(loose.allowed);
    let warnings = loose.warnings.unwrap();
    assert!(warnings[0].contains("platform's 300") && warnings[1].contains("platform's 400"), "{warnings:?}");

    let mut own = body("CREATE", "tenantprofiles", "default", &json!({"retentionDays": 399}), None);
    own["request"]["namespace"] = json!("remit-system");
    assert_eq!(judge_with(&context, &own).warnings, None, "the platform's own profile is the floor");
}

#[test]
fn observing_that_will_not_be_is_warned_of() {
    use crate::api::Enforcement;
    let platform = TenantProfileSpec { enforcement: Some(Enforcement::Enforce), ..TenantProfileSpec::default() };
    let judge = |profile: Option<&TenantProfileSpec>, spec: Value| {
        let context = Scripted { profile: profile.cloned(), ..Scripted::default() };
        judge_with(&context, &body("CREATE", "tenantprofiles", "default", &spec, None))
    };
    let days = |n: i64| jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * n);
    let observe = |n: i64| json!({"enforcement": "Observe", "observeUntil": days(n).to_string()});
    assert_eq!(judge(None, observe(7)).warnings, None);
    for (profile, days, word) in
        [(None, 91, "more than 90 days"), (None, -1, "is over"), (Some(&platform), 7, "platform's")]
    {
        let said = judge(profile, observe(days));
        assert!(said.allowed && said.warnings.clone().unwrap()[0].contains(word), "{word}: {said:?}");
    }
    assert!(!judge(None, json!({"enforcement": "Observe"})).allowed);
    assert!(!judge(None, json!({"observeUntil": days(7).to_string()})).allowed);
}

async fn send(router: &Router, body: impl Into<Body>) -> (StatusCode, Value) {
    let request = Request::post("/validate").header("content-type", "application/json").body(body.into()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into())))
}

#[tokio::test]
async fn answer_as_the_api_server_expects() {
    let router = router(Arc::new(Scripted::default()));
    let (status, answer) = send(
        &router,
        body("CREATE", "policypackages", "p", &json!({"package": "bad", "version": "1.0.0"}), None).to_string(),
    )
    .await;
    assert_eq!(status, 200);
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], "u-1");
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!(answer["response"]["status"]["code"], 422);
}

#[tokio::test]
async fn refuse_what_is_no_review_too_deep_or_too_large() {
    let router = router(Arc::new(Scripted::default()));
    for text in ["", "{}", "[]", r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#] {
        assert_eq!(send(&router, text).await.0, 400, "{text}");
    }
    let mut beta = body("CREATE", "tenantrollouts", "default", &json!({}), None);
    beta["apiVersion"] = json!("admission.k8s.io/v1beta1");
    assert_eq!(send(&router, beta.to_string()).await.0, 400);

    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let template = body("CREATE", "policypackages", "p", &json!("HERE"), None).to_string();
    assert_eq!(send(&router, template.replace("\"HERE\"", &deep)).await.0, 400);
    assert_eq!(send(&router, template.replace("HERE", &"x".repeat(MAX_BODY))).await.0, 413);
    // 900 KiB twice, as in an update of the largest package, fit.
    let text = "x".repeat(900 << 10);
    let spec = json!({"package": "fine", "version": "1.0.0", "schema": text});
    let old = json!({"package": "fine", "version": "1.0.1", "schema": text});
    let (status, answer) = send(&router, body("UPDATE", "policypackages", "p", &spec, Some(&old)).to_string()).await;
    assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bomb_of_one_tenant_holds_up_nobody_else() {
    let router = router(Arc::new(Scripted { hold: Duration::from_secs(6), ..Scripted::default() }));
    let slow = body("CREATE", "policypackages", "p", &json!({"package": "slow", "version": "1.0.0"}), None).to_string();
    let bombs: Vec<_> = (0..6)
        .map(|_| {
            let (router, slow) = (router.clone(), slow.clone());
            tokio::spawn(async move { send(&router, slow).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;

    let start = std::time::Instant::now();
    let mut other = body("CREATE", "policypackages", "p", &json!({"package": "fine", "version": "1.0.0"}), None);
    other["request"]["namespace"] = json!("globex");
    assert_eq!(send(&router, other.to_string()).await.1["response"]["allowed"], true);
    assert_eq!(
        send(&router, body("CREATE", "tenantrollouts", "default", &json!({}), None).to_string()).await.1["response"]["allowed"],
        true
    );
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());

    for bomb in bombs {
        let (status, answer) = bomb.await.unwrap();
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(false)), "late is not admitted");
        assert_eq!(answer["response"]["status"]["code"], 429);
    }
}
