//! Observe through the front door: who may switch it on, what it lets through, what still stops, and that it ends.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::support::folder::{Folder, remit as binary};
use crate::support::{Cluster, PLATFORM, call, cluster, eventually, eventually_blocking};

const POLICIES: &str = r#"
@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("no-force") @reason("Open a pull request instead.") forbid(principal, action == Action::"call_tool", resource)
when { context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" };
"#;

pub fn object(kind: &str, name: &str, spec: Value) -> String {
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
}

fn observe_until(until: Timestamp) -> String {
    object("TenantProfile", "default", json!({"enforcement": "Observe", "observeUntil": until.to_string()}))
}

fn in_days(days: i64) -> Timestamp {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    now + SignedDuration::from_hours(24 * days)
}

/// A tenant whose agents `coder` (trust 2) and `fresh` (trust 0) are asked about by a gateway; its token.
async fn tenant(c: &Cluster) -> (String, String) {
    let tenant = c.namespace("observe").await;
    let package = json!({
        "package": "first", "version": "1.0.0",
        "tools": [{"name": "git/log", "tier": "read"}, {"name": "git/push", "tier": "write"}],
        "policies": [{"name": "main.cedar", "text": POLICIES}],
    });
    c.apply(&tenant, &object("PolicyPackage", "first-1.0.0", package)).unwrap();
    for (name, trust) in [("coder", 2), ("fresh", 0)] {
        let spec = json!({"identities": [{"serviceAccount": name}], "trustLevel": trust, "type": "coder"});
        c.apply(&tenant, &object("Agent", name, spec)).unwrap();
    }
    let gateway = c.token_for(&tenant, "gateway", "remit").await;
    c.bind(&tenant, "remit-gateway", "gateway");
    c.answered(&gateway, &tenant, &call("coder", "git/log", json!({})), "allowed").await;
    c.answered(&gateway, &tenant, &call("fresh", "git/log", json!({})), "denied_by_policy").await;
    (tenant, gateway)
}

fn observing(c: &Cluster, tenant: &str) -> Value {
    let text = c.kubectl(&["get", "tenantprofile", "default", "-n", tenant, "-o", "json"]).unwrap();
    let profile: Value = serde_json::from_str(&text).unwrap();
    let conditions = profile["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == "Observing").unwrap_or_default()
}

fn becomes(c: &Cluster, tenant: &str, reason: &str) -> Value {
    eventually_blocking(&format!("Observing is {reason}"), || match observing(c, tenant) {
        found if found["reason"] == reason => Ok(found),
        found => Err(found.to_string()),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn observe_lets_the_tenants_own_denies_through_and_nothing_else() {
    let c = cluster();
    let (tenant, gateway) = tenant(c).await;
    let agent = c.token_for(&tenant, "coder", "remit").await;
    let push = call("coder", "git/push", json!({}));
    c.answered(&gateway, &tenant, &push, "no_permit").await;
    c.apply(&tenant, &observe_until(in_days(7))).unwrap();

    let answer = c.answered(&gateway, &tenant, &push, "observed").await;
    assert_eq!(answer["decision"], true, "{answer}");
    assert_eq!(answer["context"]["would_be"]["outcome"], "deny", "{answer}");
    assert_eq!(answer["context"]["would_be"]["code"], "no_permit", "{answer}");
    let forced = call("coder", "git/log", json!({"command": "push --force"}));
    let answer = c.answered(&gateway, &tenant, &forced, "observed").await;
    assert_eq!(answer["context"]["would_be"]["policies"], json!(["tenant/first/no-force"]), "{answer}");
    let to_agent = c.answered(&agent, &tenant, &forced, "observed").await;
    let would_be = json!({"outcome": "deny", "code": "denied_by_policy", "reason": "Open a pull request instead."});
    assert_eq!(to_agent["context"]["would_be"], would_be, "an agent never hears policy ids");
    c.answered(&gateway, &tenant, &call("coder", "shell/run", json!({})), "observed").await;
    c.answered(&gateway, &tenant, &call("coder", "git/log", json!({})), "allowed").await;

    // The platform's own forbid, a suspended agent and a wrong question still stop.
    for tool in ["git/log", "git/push", "shell/run"] {
        let answer = c.call(&gateway, &tenant, "fresh", tool, json!({})).await;
        assert_eq!((&answer["decision"], &answer["context"]["code"]), (&json!(false), &json!("denied_by_policy")));
        assert!(answer["context"]["policies"][0].as_str().unwrap().starts_with("platform/base/"), "{answer}");
    }
    let mut wrong = push.clone();
    wrong["subject"]["properties"] = json!({"trust": 4});
    assert_eq!(c.check(&gateway, &tenant, &wrong).await.0, 400);
    let suspended =
        json!({"identities": [{"serviceAccount": "coder"}], "trustLevel": 2, "type": "coder", "suspend": true});
    c.apply(&tenant, &object("Agent", "coder", suspended)).unwrap();
    for tool in ["git/log", "shell/run"] {
        c.answered(&gateway, &tenant, &call("coder", tool, json!({})), "paused").await;
    }

    // Condition, Event, column, record, filter and metrics say it.
    let found = becomes(c, &tenant, "Observing");
    assert_eq!(found["status"], "True", "{found}");
    let columns = c.kubectl(&["get", "tenantprofile", "-n", &tenant]).unwrap();
    let words: Vec<_> = columns.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words[3], "True", "{columns}");
    eventually_blocking("the Event is there", || {
        let events = c.kubectl(&["get", "events", "-n", &tenant])?;
        if events.contains("ObservingBegan") { Ok(()) } else { Err(events) }
    });
    let found = eventually("the record is there", || async {
        let found = crate::checks::list(c, &tenant, "would_be=deny&limit=1000").await;
        let forced = found.iter().find(|d| d["record"]["would_be"]["code"] == "denied_by_policy").cloned();
        match forced.filter(|_| found.iter().all(|d| d["record"]["outcome"] == "allow")) {
            Some(forced) => Ok(forced["record"].clone()),
            None => Err(format!("{found:?}")),
        }
    })
    .await;
    assert_eq!((&found["observed"], &found["code"]), (&json!(true), &json!("observed")));
    let (_, metrics) = c.operator.get("/metrics").unwrap();
    let line = |start: &str| metrics.lines().find(|l| l.starts_with(start)).unwrap_or_default().to_owned();
    assert!(!line(r#"remit_decisions_total{outcome="allow",code="observed",would_be="deny"}"#).is_empty(), "{metrics}");
    let tenants: f64 = line("remit_tenants_observing ").rsplit(' ').next().unwrap().parse().unwrap();
    assert!(tenants >= 1.0, "{tenants}");
}

/// The profile beside the package counts as in the cluster: the tenant's own denies are let through, the platform's stay.
#[test]
fn observe_in_a_folder() {
    let agents = [("coder", 2), ("fresh", 0)].map(|(name, trust)| object("Agent", name, json!({"trustLevel": trust})));
    let [coder, fresh] = agents.each_ref().map(String::as_str);
    let folder = Folder::new(&[("main.cedar", POLICIES), ("coder.json", coder), ("fresh.json", fresh)]);
    let check = |agent: &str| {
        let args = ["check", "--agent", agent, "--tool", "git/push", "-o", "json", "--policy"];
        let out = binary().args(args).arg(folder.path()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let document: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text} {out:?}"));
        (out.status.code(), document["code"].as_str().unwrap_or_default().to_owned(), document["would_be"].clone())
    };
    assert_eq!(check("coder"), (Some(1), "no_permit".into(), Value::Null));
    folder.write("profile.json", &observe_until(in_days(7)));
    let (status, code, would_be) = check("coder");
    assert_eq!((status, code.as_str(), &would_be["code"]), (Some(0), "observed", &json!("no_permit")));
    assert_eq!(check("fresh"), (Some(1), "denied_by_policy".into(), Value::Null));
    // Too far ahead is refused here, not ignored.
    folder.write("profile.json", &observe_until(in_days(91)));
    let out =
        binary().args(["check", "--agent", "coder", "--tool", "git/push", "--policy"]).arg(folder.path()).output();
    assert_eq!(out.unwrap().status.code(), Some(2));
    folder.write("profile.json", &observe_until(in_days(-1)));
    assert_eq!(check("coder"), (Some(1), "no_permit".into(), Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn observe_ends_by_itself_without_any_write() {
    let c = cluster();
    let (tenant, gateway) = tenant(c).await;
    let push = call("coder", "git/push", json!({}));
    let until = Timestamp::from_second(Timestamp::now().as_second()).unwrap() + SignedDuration::from_secs(12);
    c.apply(&tenant, &observe_until(until)).unwrap();
    c.answered(&gateway, &tenant, &push, "observed").await;
    let version =
        || c.kubectl(&["get", "tenantprofile", "default", "-n", &tenant, "-o", "jsonpath={.metadata.generation}"]);
    let before = version().unwrap();
    let answer = c.answered(&gateway, &tenant, &push, "no_permit").await;
    assert_eq!(answer["decision"], false);
    assert!(Timestamp::now() >= until, "not before its instant");
    assert_eq!(version().unwrap(), before, "nobody wrote the spec");
    assert_eq!(becomes(c, &tenant, "Ended")["status"], "False");
    eventually_blocking("the Event is there", || {
        let events = c.kubectl(&["get", "events", "-n", &tenant])?;
        if events.contains("ObservingEnded") { Ok(()) } else { Err(events) }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn observing_needs_its_verb() {
    let c = cluster();
    let tenant = c.namespace("observe").await;
    for (user, role) in
        [("editor", "remit-tenant-editor"), ("chief", "remit-tenant-editor"), ("chief", "remit-observer")]
    {
        let (user, name) = (format!("--user={user}"), format!("{user}-{role}"));
        c.kubectl(&["create", "rolebinding", &name, "-n", &tenant, &format!("--clusterrole={role}"), &user]).unwrap();
    }
    let apply = |user: &str, yaml: &str| {
        eventually_blocking("RBAC knows the user", || match c.apply_as(user, &[], &tenant, yaml) {
            Err(why) if !why.contains("needs verb observe") && why.contains("orbidden") => Err(why),
            done => Ok(done),
        })
    };
    let plain = object("TenantProfile", "default", json!({"retentionDays": 100}));
    let refused = |yaml: &str, field: &str| {
        let why = apply("editor", yaml).unwrap_err();
        assert!(why.contains(field) && why.contains("needs verb observe on tenantprofiles.remit.dev"), "{why}");
    };
    refused(&observe_until(in_days(7)), "spec.enforcement: Observe");
    apply("editor", &plain).unwrap();
    refused(&observe_until(in_days(7)), "spec.enforcement: Observe");
    refused(&observe_until(in_days(-7)), "spec.enforcement: Observe");
    // The API server learns of a RoleBinding a moment later.
    let week = in_days(7);
    eventually_blocking("who has the verb may", || c.apply_as("chief", &[], &tenant, &observe_until(week)));
    refused(&observe_until(in_days(8)), "spec.observeUntil: prolonging it");
    // The same instant in other words, an earlier one, and the end are for every editor.
    let elsewhere = week.to_string().replace('Z', "+00:00");
    let again = object("TenantProfile", "default", json!({"enforcement": "Observe", "observeUntil": elsewhere}));
    apply("editor", &again).unwrap();
    apply("editor", &observe_until(in_days(6))).unwrap();
    refused(&observe_until(in_days(7)), "spec.observeUntil: prolonging it");
    apply("editor", &plain).unwrap();
    refused(&observe_until(in_days(6)), "spec.enforcement: Observe");
}

#[tokio::test(flavor = "multi_thread")]
async fn platform_forbids_observing_and_too_far_is_never() {
    // One of its own: the platform's profile is everybody's.
    let c = Cluster::start_own();
    let (tenant, gateway) = tenant(&c).await;
    let push = call("coder", "git/push", json!({}));
    c.apply(&tenant, &observe_until(in_days(91))).unwrap();
    assert_eq!(becomes(&c, &tenant, "TooFarAhead")["status"], "False");
    assert_eq!(c.call(&gateway, &tenant, "coder", "git/push", json!({})).await["context"]["code"], "no_permit");
    c.apply(&tenant, &observe_until(in_days(7))).unwrap();
    c.answered(&gateway, &tenant, &push, "observed").await;

    c.apply(PLATFORM, &object("TenantProfile", "default", json!({"enforcement": "Enforce"}))).unwrap();
    c.answered(&gateway, &tenant, &push, "no_permit").await;
    assert_eq!(becomes(&c, &tenant, "PlatformEnforces")["status"], "False");
    // A platform that observes limits the others, and makes none of them observe.
    c.apply(PLATFORM, &observe_until(in_days(1))).unwrap();
    c.answered(&gateway, &tenant, &push, "observed").await;
    c.apply(&tenant, &object("TenantProfile", "default", json!({"retentionDays": 100}))).unwrap();
    c.answered(&gateway, &tenant, &push, "no_permit").await;

    // A restart changes no answer.
    c.apply(&tenant, &observe_until(in_days(1))).unwrap();
    c.answered(&gateway, &tenant, &push, "observed").await;
    c.operator.kill();
    c.operator.start();
    c.answered(&gateway, &tenant, &push, "observed").await;
}

/// `remit` with these arguments: exit code, standard output, standard error.
fn remit(args: &[&str]) -> (Option<i32>, String, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_remit")).args(args).env("NO_COLOR", "1").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

/// From observing to a package under which the same calls are allowed, and those that were not made are not.
#[tokio::test(flavor = "multi_thread")]
async fn suggest_turns_what_was_observed_into_a_package() {
    let c = cluster();
    let (tenant, gateway) = tenant(c).await;
    c.apply(&tenant, &observe_until(in_days(7))).unwrap();
    c.answered(&gateway, &tenant, &call("coder", "git/push", json!({"remote": "origin"})), "observed").await;
    for n in 0..5 {
        let arguments = json!({"path": format!("/srv/a{}/f{n}", n % 2)});
        assert_eq!(c.call(&gateway, &tenant, "coder", "files/read_file", arguments).await["decision"], true);
        c.call(&gateway, &tenant, "coder", "git/push", json!({"remote": "origin"})).await;
    }
    c.call(&gateway, &tenant, "coder", "git/log", json!({"command": "x --force"})).await;
    c.call(&gateway, &tenant, "coder", "db/drop_table", json!({"token": "hunter2"})).await;
    c.call(&gateway, &tenant, "fresh", "git/log", json!({})).await;
    eventually("all of it is recorded", || async {
        let found = crate::checks::list(c, &tenant, "agent=coder&limit=1000").await;
        if found.len() >= 13 { Ok(()) } else { Err(found.len().to_string()) }
    })
    .await;

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("ca.crt"), c.ca()).unwrap();
    std::fs::write(path("token"), c.token_for(&tenant, "auditor", "remit-admin").await).unwrap();
    let package = c.kubectl(&["get", "policypackage", "first-1.0.0", "-n", &tenant, "-o", "yaml"]).unwrap();
    std::fs::write(path("first.yaml"), package).unwrap();
    let (url, ca, token) = (c.url(), path("ca.crt"), path("token"));
    let server = ["--url", &url, "--ca-file", &ca, "--token-file", &token, "-n", &tenant];
    let (first, out) = (path("first.yaml"), path("out"));
    let (code, said, error) =
        remit(&[&["suggest", "--since", "7d", "--package", &first, "--out", &out][..], &server].concat());
    assert_eq!(code, Some(0), "{said}{error}");
    assert!(said.contains("0 unexplained"), "{said}");
    let (code, tested, error) = remit(&["test", &out]);
    assert_eq!(code, Some(0), "{tested}{error}");
    let permits = std::fs::read_to_string(format!("{out}/permits.cedar")).unwrap();
    assert!(
        permits.contains(r#""coder" calls "git/log" (1×): a forbid stops it and stays (tenant/first/no-force)"#),
        "{permits}"
    );
    assert!(permits.contains(r#""coder" calls "db/drop_table" (1×): seen 1 times, 3 are needed"#), "{permits}");
    assert!(!permits.contains("hunter2"), "what is not needed is not written down");

    // The same from the file that `decisions list` prints, byte for byte; never into a folder that is not empty.
    let (code, listed, error) = remit(&[&["decisions", "list", "--limit", "1000", "-o", "json"][..], &server].concat());
    assert_eq!(code, Some(0), "{error}");
    std::fs::write(path("decisions.json"), listed).unwrap();
    let (decisions, again) = (path("decisions.json"), path("again"));
    let args = |out: &str| {
        let args = ["suggest", "--decisions", &decisions, "--package", &first, "--out", out, "-o", "json"];
        remit(&args)
    };
    let (code, said, error) = args(&again);
    assert_eq!(code, Some(0), "{said}{error}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["passed"], &said["summary"]["replay"]["unexplained"]), (&json!(true), &json!([])), "{said}");
    for name in ["package.yaml", "permits.cedar", "forbids.cedar", "tests/allowed.yaml", "tests/boundaries.yaml"] {
        let read = |dir: &str| std::fs::read_to_string(format!("{dir}/{name}")).unwrap();
        assert_eq!(read(&out), read(&again), "{name}");
    }
    assert_eq!(args(&again).0, Some(2), "the folder is not empty");

    // In force, without observing: what was done is allowed, and nothing else.
    let (code, built, error) = remit(&["package", "build", &out]);
    assert_eq!(code, Some(0), "{error}");
    c.rolls_out_at_once(&tenant);
    c.apply(&tenant, &built).unwrap();
    c.apply(&tenant, &object("TenantProfile", "default", json!({"enforcement": "Enforce"}))).unwrap();
    let read = |path: &str| call("coder", "files/read_file", json!({"path": path}));
    c.answered(&gateway, &tenant, &read("/srv/other/x"), "allowed").await;
    c.answered(&gateway, &tenant, &call("coder", "git/push", json!({"remote": "origin"})), "allowed").await;
    for (question, code) in [
        (read("/etc/passwd"), "no_permit"),
        (read("/srv/../etc/passwd"), "no_permit"),
        (call("coder", "git/push", json!({"remote": "evil"})), "no_permit"),
        (call("coder", "git/push", json!({"remote": "origin", "command": "--force"})), "denied_by_policy"),
        (call("coder", "git/log", json!({})), "no_permit"),
        (call("coder", "db/drop_table", json!({})), "unknown_tool"),
    ] {
        let (_, answer) = c.check(&gateway, &tenant, &question).await;
        assert_eq!(answer["context"]["code"], code, "{question} {answer}");
    }
}
