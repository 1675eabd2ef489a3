//! Who may hear why, and from which texts.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::{PackageSelector, PolicyPackageSpec, SourceFile};
use crate::gate::{self, CheckInput, DecisionRecord, MAX_PATTERN_COST, SessionState, Tenant};
use crate::policy::{CompiledPackage, Side, base_platform};
use crate::server::testing::{World, agent, question, with_packages};
use crate::source::past::{FoundPackage, PastPackages};
use crate::store::Journal as _;

const QUIET: &str = r#"@id("quiet") @reason("Not on this cluster.")
forbid(principal is Agent, action == Action::"call_tool", resource) when { resource.server == "redserver" };"#;

fn platform() -> Arc<CompiledPackage> {
    let spec = PolicyPackageSpec {
        package: "house".into(),
        version: "1.0.0".into(),
        policies: vec![SourceFile { name: "house.cedar".into(), text: QUIET.into() }],
        ..PolicyPackageSpec::default()
    };
    CompiledPackage::compile(&spec, "sha256:11", Side::Platform).unwrap()
}

/// A world whose platform has a package of its own, and one tool that it forbids.
async fn world() -> World {
    let mut snapshot = with_packages();
    snapshot.platform = Some(Ok(vec![base_platform(), platform()]));
    let spec = PolicyPackageSpec {
        package: "first".into(),
        version: "1.0.0".into(),
        tools: serde_json::from_value(
            json!([{"name": "git/log", "tier": "read"}, {"name": "redserver/log", "tier": "read"},
            {"name": "git/push", "tier": "write"}]),
        )
        .unwrap(),
        policies: vec![SourceFile {
            name: "main.cedar".into(),
            text: r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#
                .into(),
        }],
        ..PolicyPackageSpec::default()
    };
    let package = CompiledPackage::compile(&spec, "sha256:00", Side::Tenant).unwrap();
    let acme = Tenant { package: Some(package), ..Tenant::clone(&snapshot.tenants["acme"]) };
    let acme = Tenant { agents: [("coder".to_owned(), Arc::new(agent("acme", "coder")))].into(), ..acme };
    snapshot.tenants.insert("acme".into(), Arc::new(acme));
    let w = World::with(gate::check, snapshot).await;
    w.rights.0.lock().unwrap().insert("alice get decisions acme".into());
    w
}

/// Decides as the server would, and keeps the record in the store.
async fn decided(w: &World, id: &str, tool: &str) -> DecisionRecord {
    let caller =
        gate::Caller { username: "g".into(), kind: crate::policy::CallerKind::Gateway, agent: None, stale: false };
    let request = question("coder", tool);
    let request = serde_json::from_value(request).unwrap();
    let snapshot = w.state.snapshot.load_full();
    let record = gate::check(&CheckInput {
        snapshot: &snapshot,
        tenant: "acme",
        caller: &caller,
        request: &request,
        session: SessionState::NotNamed,
        now: w.state.clock.now(),
        id,
        request_id: None,
        redaction_key: b"key",
        pattern_budget: MAX_PATTERN_COST,
    })
    .record;
    w.store.append(record.clone()).unwrap().await.unwrap();
    record
}

fn path(id: &str) -> String {
    format!("/admin/tenants/acme/decisions/{id}/why")
}

#[tokio::test]
async fn a_reader_hears_why_and_an_agent_or_a_stranger_does_not() {
    let w = world().await;
    decided(&w, "d-1", "git/push").await;
    let found = w.get("admin", &path("d-1")).await;
    assert_eq!((found.status, &found.body["code"]), (200, &json!("no_permit")), "{}", found.text);
    let nearest = &found.body["nearest"][0];
    assert_eq!(nearest["policy"], "tenant/first/reads");
    assert_eq!(nearest["failed"]["source"]["file"], "main.cedar");
    assert_eq!(w.get("acme:coder", &path("d-1")).await.status, 401, "the agent's audience is another");
    assert_eq!(w.get("admin", &path("d-2")).await.code(), (404, "unknown_decision"));
    w.rights.0.lock().unwrap().clear();
    assert_eq!(w.get("admin", &path("d-1")).await.code(), (403, "not_allowed"));
}

#[tokio::test]
async fn the_platforms_text_is_shown_to_the_platforms_readers_only() {
    let w = world().await;
    decided(&w, "d-1", "redserver/log").await;
    let tenants = w.get("admin", &path("d-1")).await;
    assert_eq!(tenants.body["determining"][0]["policy"], "platform/house/quiet", "{}", tenants.text);
    assert_eq!(tenants.body["determining"][0]["reason"], "Not on this cluster.");
    assert!(!tenants.text.contains("house.cedar") && !tenants.text.contains("resource.server"), "{}", tenants.text);
    w.rights.0.lock().unwrap().insert("alice get decisions remit-system".into());
    let platforms = w.get("admin", &path("d-1")).await;
    assert!(platforms.text.contains("house.cedar") && platforms.text.contains("resource.server"), "{}", platforms.text);
}

/// Keeps the tenant's package after it left force.
struct Kept(Arc<CompiledPackage>);

impl PastPackages for Kept {
    fn find<'a>(&'a self, tenant: &'a str, digest: &'a str, side: Side) -> FoundPackage<'a> {
        let found = tenant == "acme" && side == Side::Tenant && digest == self.0.digest();
        Box::pin(async move { found.then(|| self.0.clone()) })
    }

    fn digest_of(&self, _: &str, _: &PackageSelector) -> Result<String, String> {
        Err("nothing here is asked for by name".into())
    }
}

#[tokio::test]
async fn the_text_that_decided_is_explained_or_is_said_to_be_gone() {
    let w = world().await;
    decided(&w, "d-1", "git/push").await;
    let old = w.state.snapshot.load().tenants["acme"].package.clone().unwrap();
    let mut snapshot = (*w.state.snapshot.load_full()).clone();
    let next = PolicyPackageSpec {
        package: "first".into(),
        version: "2.0.0".into(),
        policies: vec![SourceFile {
            name: "other.cedar".into(),
            text: r#"@id("all") permit(principal, action, resource);"#.into(),
        }],
        ..PolicyPackageSpec::default()
    };
    let next = CompiledPackage::compile(&next, "sha256:22", Side::Tenant).unwrap();
    let acme = Tenant { package: Some(next), ..Tenant::clone(&snapshot.tenants["acme"]) };
    snapshot.tenants.insert("acme".into(), Arc::new(acme));
    w.state.snapshot.store(Arc::new(snapshot));
    let gone = w.get("admin", &path("d-1")).await;
    assert!(gone.text.contains("is gone") && !gone.text.contains("other.cedar"), "{}", gone.text);
    assert!(gone.body.get("nearest").is_none());
    let text = |body: &Value| {
        let packages = body["packages"].as_array().unwrap();
        packages.iter().find(|p| p["side"] == "tenant").unwrap()["text"].clone()
    };
    assert_eq!(text(&gone.body), "gone");
    // What a revision keeps is found again.
    let w = w.remembering(Arc::new(Kept(old)));
    let found = w.get("admin", &path("d-1")).await;
    assert_eq!(
        (text(&found.body), &found.body["nearest"][0]["policy"]),
        (json!("shown"), &json!("tenant/first/reads"))
    );
}
