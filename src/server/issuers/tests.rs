use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::server::testing::FakeClock;

#[path = "../../../tests/support/jwt.rs"]
mod jwt_support;
use jwt_support::{Signer, hs256, unsigned};

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
/// What FakeClock begins with.
const NOW: i64 = 1_800_000_000;
const IDP: &str = "https://idp.example";

/// Counts what is left to it.
#[derive(Default)]
struct Others(AtomicUsize);

impl Authenticator for Others {
    fn authenticate<'a>(
        &'a self,
        _: &'a str,
        _: Audience,
        _: IpAddr,
    ) -> BoxFuture<'a, Result<Authenticated, AuthnError>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Err(AuthnError::Issuer) })
    }
}

struct World {
    issuers: Issuers,
    others: Arc<Others>,
    clock: Arc<FakeClock>,
    set: PathBuf,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(keys: &[Value], yaml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let set = folder.path().join("jwks.json");
        std::fs::write(&set, json!({"keys": keys}).to_string()).unwrap();
        let file = folder.path().join("issuers.yaml");
        std::fs::write(&file, yaml).unwrap();
        let (others, clock) = (Arc::new(Others::default()), Arc::new(FakeClock::default()));
        let issuers = Issuers::new(read(&file).unwrap(), others.clone(), clock.clone(), Arc::new(Metrics::default()));
        Self { issuers: issuers.unwrap(), others, clock, set, _folder: folder }
    }

    fn oidc(keys: &[Value]) -> Self {
        Self::new(keys, "- {issuer: https://idp.example, jwksFile: jwks.json, tenants: [acme]}")
    }

    async fn ask(&self, token: &str) -> Result<String, AuthnError> {
        let from = HERE;
        self.issuers.authenticate(token, Audience::Checks, from).await.map(|a| a.identity.username.clone())
    }

    async fn code(&self, token: &str) -> &'static str {
        self.ask(token).await.unwrap_err().code()
    }
}

fn claims() -> Value {
    json!({"iss": IDP, "sub": "repo:acme/app", "aud": "remit", "iat": NOW, "exp": NOW + 600})
}

fn with(field: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[field] = value;
    claims
}

#[tokio::test]
async fn every_kind_of_key_verifies_its_own_tokens_only() {
    let (es, ed, rs) = (Signer::es256(), Signer::eddsa(), Signer::rs256());
    let world = World::oidc(&[es.jwk("e"), ed.jwk("d"), rs.jwk("r")]);
    for (signer, kid) in [(&es, "e"), (&ed, "d"), (&rs, "r")] {
        let name = world.ask(&signer.token(kid, &claims())).await.unwrap();
        assert_eq!(name, "oidc:https://idp.example#repo:acme/app");
        for other in ["e", "d", "r"].iter().filter(|other| **other != kid) {
            assert_eq!(world.code(&signer.token(other, &claims())).await, "token_rejected", "{kid} as {other}");
        }
    }
    assert_eq!(world.others.0.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_token_never_chooses_how_it_is_verified() {
    let (es, rs) = (Signer::es256(), Signer::rs256());
    let world = World::oidc(&[es.jwk("e"), rs.jwk("r")]);
    let jwk = rs.jwk("r");
    for secret in [jwk.to_string(), jwk["n"].as_str().unwrap().to_owned()] {
        assert_eq!(world.code(&hs256("r", &claims(), secret.as_bytes())).await, "token_rejected");
    }
    assert_eq!(world.code(&unsigned(&claims())).await, "token_rejected");
    for header in [
        json!({"alg": "none", "kid": "e"}),
        json!({"alg": "es256", "kid": "e"}),
        json!({"alg": "ES384", "kid": "e"}),
        json!({"alg": "RS256", "kid": "e"}),
        json!({"kid": "e"}),
        json!({"alg": "ES256"}),
        json!({"alg": "ES256", "kid": ""}),
        json!({"alg": "ES256", "kid": "e", "crit": ["exp"]}),
        json!({"alg": "ES256", "kid": "e", "crit": []}),
        json!({"alg": "ES256", "kid": "e", "typ": "logout+jwt"}),
        json!({"alg": "ES256", "kid": "e", "typ": 1}),
        json!({"alg": "ES256", "kid": "gone", "jwk": es.jwk("gone")}),
    ] {
        assert_eq!(world.code(&es.with_header(&header, &claims())).await, "token_rejected", "{header}");
    }
    world.ask(&es.with_header(&json!({"alg": "ES256", "kid": "e", "typ": "at+jwt"}), &claims())).await.unwrap();

    // An algorithm that the configuration leaves out, with a key that is there.
    let yaml = "- {issuer: https://idp.example, jwksFile: jwks.json, tenants: [acme], algorithms: [RS256]}";
    let world = World::new(&[es.jwk("e"), rs.jwk("r")], yaml);
    assert_eq!(world.code(&es.token("e", &claims())).await, "token_rejected");
    world.ask(&rs.token("r", &claims())).await.unwrap();
}

#[tokio::test]
async fn another_byte_is_another_signature() {
    let es = Signer::es256();
    let world = World::oidc(&[es.jwk("e")]);
    let token = es.token("e", &claims());
    let parts: Vec<&str> = token.split('.').collect();
    let other = es.token("e", &with("sub", "admin".into()));
    let swapped = format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap(), parts[2]);
    assert_eq!(world.code(&swapped).await, "token_rejected");
    assert_eq!(world.code(&Signer::es256().token("e", &claims())).await, "token_rejected");
    // A claim that stands twice, each reader with another: not read at all, so nobody's.
    let twice = json!({"iss": IDP}).to_string().replace("{", "{\"sub\":\"a\",\"sub\":\"b\",");
    let token = format!("{}.{}.{}", parts[0], jwt_support::b64(twice), parts[2]);
    assert_eq!(world.code(&token).await, "token_issuer");
}

#[tokio::test]
async fn times_count_with_the_configured_skew() {
    let es = Signer::es256();
    let world = World::oidc(&[es.jwk("e")]);
    let token = |claims: &Value| es.token("e", claims);
    for (field, at, code) in [
        ("exp", NOW - 61, "token_expired"),
        ("exp", NOW - 60, "token_expired"),
        ("nbf", NOW + 61, "token_rejected"),
        ("iat", NOW + 61, "token_rejected"),
    ] {
        assert_eq!(world.code(&token(&with(field, at.into()))).await, code, "{field} {at}");
    }
    for (field, at) in [("exp", NOW - 59), ("nbf", NOW + 60), ("iat", NOW + 60)] {
        world.ask(&token(&with(field, at.into()))).await.unwrap_or_else(|e| panic!("{field} {at}: {e}"));
    }
    for (field, wrong) in [("exp", json!("later")), ("exp", Value::Null), ("nbf", json!("x")), ("iat", json!(-1))] {
        assert_eq!(world.code(&token(&with(field, wrong.clone()))).await, "token_malformed", "{field} {wrong}");
    }
    let mut endless = claims();
    endless.as_object_mut().unwrap().remove("exp");
    assert_eq!(world.code(&token(&endless)).await, "token_malformed");

    let yaml = "- {issuer: https://idp.example, jwksFile: jwks.json, tenants: [acme], clockSkewSeconds: 0, maxTokenLifetimeSeconds: 600}";
    let world = World::new(&[es.jwk("e")], yaml);
    assert_eq!(world.code(&token(&with("exp", NOW.into()))).await, "token_expired");
    assert_eq!(world.code(&token(&with("exp", (NOW + 601).into()))).await, "token_rejected");
    let mut undated = claims();
    undated.as_object_mut().unwrap().remove("iat");
    assert_eq!(world.code(&token(&undated)).await, "token_rejected");
    let good = token(&claims());
    world.ask(&good).await.unwrap();
    // What is remembered does not outlive the token.
    world.clock.forward(Duration::from_secs(595));
    world.ask(&good).await.unwrap();
    world.clock.forward(Duration::from_secs(6));
    assert_eq!(world.code(&good).await, "token_expired");
}

#[tokio::test]
async fn audience_subject_and_issuer_are_compared_whole() {
    let es = Signer::es256();
    let world = World::oidc(&[es.jwk("e")]);
    let code = async |claims: Value| world.code(&es.token("e", &claims)).await;
    for aud in
        [json!("remit-admin"), json!("Remit"), json!(["a", "remit2"]), json!([]), Value::Null, json!({"remit": 1})]
    {
        assert_eq!(code(with("aud", aud.clone())).await, "token_audience", "{aud}");
    }
    world.ask(&es.token("e", &with("aud", json!(["a", "remit"])))).await.unwrap();
    for sub in [json!(""), json!(1), Value::Null, json!("a\nb"), json!("x".repeat(256))] {
        assert_eq!(code(with("sub", sub.clone())).await, "token_rejected", "{sub}");
    }
    assert_eq!(world.others.0.load(Ordering::SeqCst), 0, "what names a configured issuer is nobody else's to judge");
    for iss in
        [json!("https://idp.example/"), json!("https://IDP.example"), json!(["https://idp.example"]), Value::Null]
    {
        assert_eq!(code(with("iss", iss.clone())).await, "token_issuer", "{iss}");
    }
    let admin =
        world.issuers.authenticate(&es.token("e", &with("aud", "remit-admin".into())), Audience::Admin, HERE).await;
    assert_eq!(admin.unwrap_err().code(), "token_audience");

    let spoof = world.ask(&es.token("e", &with("sub", "system:serviceaccount:acme:coder".into()))).await.unwrap();
    assert_eq!(spoof, "oidc:https://idp.example#system:serviceaccount:acme:coder");
    let identity =
        world.issuers.authenticate(&es.token("e", &claims()), Audience::Checks, HERE).await.unwrap().identity;
    assert!(identity.counts_in("acme") && !identity.counts_in("other") && identity.namespace().is_none());
    assert_eq!(identity.key("acme"), "acme\0oidc:https://idp.example#repo:acme/app");
}

#[tokio::test]
async fn an_unknown_key_is_looked_for_again_but_not_for_every_token() {
    let (old, new) = (Signer::es256(), Signer::eddsa());
    let world = World::oidc(&[old.jwk("1")]);
    world.ask(&old.token("1", &claims())).await.unwrap();
    std::fs::write(&world.set, json!({"keys": [old.jwk("1"), new.jwk("2")]}).to_string()).unwrap();
    assert_eq!(world.code(&new.token("2", &claims())).await, "token_rejected", "the set was fetched a moment ago");
    world.clock.forward(Duration::from_secs(10));
    world.ask(&new.token("2", &claims())).await.unwrap();
    // A fetch that fails, and one that brings nothing, leave what was there.
    for broken in ["", "{}", "{\"keys\":[]}", "{\"keys\":[{\"kty\":\"oct\",\"kid\":\"1\",\"k\":\"AA\"}]}"] {
        std::fs::write(&world.set, broken).unwrap();
        world.clock.forward(Duration::from_secs(11));
        assert_eq!(world.code(&old.token("3", &claims())).await, "token_rejected");
        world.ask(&old.token("1", &with("jti", broken.into()))).await.unwrap();
    }
    // The old key is withdrawn.
    std::fs::write(&world.set, json!({"keys": [new.jwk("2")]}).to_string()).unwrap();
    world.clock.forward(Duration::from_secs(11));
    assert_eq!(world.code(&new.token("3", &claims())).await, "token_rejected");
    assert_eq!(world.code(&old.token("1", &with("jti", "last".into()))).await, "token_rejected");
}

#[tokio::test]
async fn without_any_keys_nobody_is_known_and_it_is_said_so() {
    let es = Signer::es256();
    let world = World::oidc(&[]);
    assert_eq!(world.code(&es.token("e", &claims())).await, "authentication_unavailable");
}

#[tokio::test]
async fn an_address_that_sends_bad_tokens_is_slowed_and_good_tokens_go_on() {
    let es = Signer::es256();
    let world = World::oidc(&[es.jwk("e")]);
    let good = es.token("e", &claims());
    world.ask(&good).await.unwrap();
    let mut last = "";
    for n in 0..30 {
        last = world.code(&Signer::es256().token("e", &with("jti", n.into()))).await;
    }
    assert_eq!(last, "too_many_failures");
    world.ask(&good).await.unwrap();
}

#[tokio::test]
async fn spiffe_ids_are_of_the_trust_domain_of_their_issuer() {
    let es = Signer::es256();
    let yaml = "
- {kind: spiffe, trustDomain: prod.example, jwksFile: jwks.json, tenants: [acme]}
- {kind: spiffe, issuer: https://spire.example, trustDomain: dev.example, jwksFile: jwks.json, tenants: [dev]}";
    let mut svid_key = es.jwk("e");
    svid_key["use"] = "jwt-svid".into();
    let world = World::new(&[svid_key], yaml);
    let svid = |iss: Option<&str>, sub: &str| {
        let mut claims = json!({"sub": sub, "aud": ["remit"], "exp": NOW + 300});
        iss.into_iter().for_each(|iss| claims["iss"] = iss.into());
        es.token("e", &claims)
    };
    let id = "spiffe://prod.example/ns/acme/sa/coder";
    assert_eq!(world.ask(&svid(None, id)).await.unwrap(), id);
    let dev = "spiffe://dev.example/x";
    assert_eq!(world.ask(&svid(Some("https://spire.example"), dev)).await.unwrap(), dev);
    assert_eq!(world.code(&svid(Some("https://spire.example"), id)).await, "token_rejected", "another's trust domain");
    for other in ["spiffe://prod.example.evil/x", "spiffe://prod.exampl/x", "spiffe://dev.example/x", "prod.example/x"]
    {
        assert_eq!(world.code(&svid(None, other)).await, "token_issuer", "{other}");
    }
    for odd in ["spiffe://prod.example/", "spiffe://prod.example/a/../b", "spiffe://prod.example/a b"] {
        assert_eq!(world.code(&svid(None, odd)).await, "token_rejected", "{odd}");
    }
    let configured: Vec<Issuer> = world.issuers.issuers.iter().map(|t| t.issuer.clone()).collect();
    assert!(may_speak(&configured, id, "acme") && !may_speak(&configured, id, "dev"));
    assert!(!may_speak(&configured, "spiffe://prod.example.evil/x", "acme"));
}

#[test]
fn the_file_is_read_strictly_and_its_mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("issuers.yaml");
    let why = |yaml: &str| {
        std::fs::write(&file, yaml).unwrap();
        read(&file).map(|_| ()).unwrap_err().to_string()
    };
    let one = |more: &str| format!("- {{issuer: https://a, jwksUri: https://a/jwks, tenants: [acme]{more}}}");
    for (yaml, named) in [
        ("- {jwksUri: https://a/jwks, tenants: [acme]}".to_owned(), "issuers[0].issuer"),
        ("- {issuer: a, jwksUri: https://a/jwks, tenants: [acme]}".into(), "issuers[0].issuer"),
        ("- {issuer: 'https://a#b', jwksUri: https://a/jwks, tenants: [acme]}".into(), "issuers[0].issuer"),
        ("- {issuer: https://a, jwksUri: https://a/jwks}".into(), "tenants"),
        ("- {issuer: https://a, tenants: [acme]}".into(), "issuers[0].jwksUri"),
        ("- {issuer: https://a, jwksUri: http://a/jwks, tenants: [acme]}".into(), "issuers[0].jwksUri"),
        ("- {issuer: https://a, jwksUri: http://localhost/jwks, tenants: [acme]}".into(), "issuers[0].jwksUri"),
        ("- {issuer: https://a, jwksUri: https://a/jwks, tenants: []}".into(), "issuers[0].tenants"),
        ("- {issuer: https://a, jwksUri: https://a/jwks, tenants: ['*']}".into(), "issuers[0].tenants"),
        (one(", jwksFile: x"), "issuers[0].jwksFile"),
        (one(", audiences: []"), "issuers[0].audiences"),
        (one(", audiences: [remit-admin]"), "issuers[0].audiences"),
        (one(", algorithms: []"), "issuers[0].algorithms"),
        (one(", algorithms: [HS256]"), "HS256"),
        (one(", algorithms: [none]"), "none"),
        (one(", clockSkewSeconds: 301"), "issuers[0].clockSkewSeconds"),
        (one(", maxTokenLifetimeSeconds: 0"), "issuers[0].maxTokenLifetimeSeconds"),
        (one(", audience: remit"), "audience"),
        (one(", trustDomain: a"), "issuers[0].trustDomain"),
        (one(", kind: spiffe"), "issuers[0].trustDomain"),
        (one(", kind: spiffe, trustDomain: 'spiffe://a'"), "issuers[0].trustDomain"),
        (format!("{}\n{}", one(""), one("")), "issuers[1].issuer"),
        ("{}".into(), "issuers"),
    ] {
        let why = why(&yaml);
        assert!(why.contains(named), "{yaml}: {why}");
    }
    std::fs::write(&file, one("") + "\n- {issuer: https://b, jwksUri: 'http://127.0.0.1:1/k', tenants: [b]}").unwrap();
    assert_eq!(read(&file).unwrap()[0].algorithms, [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]);
}
