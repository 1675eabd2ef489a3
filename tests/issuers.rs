//! Agents whose identities other issuers vouch for, through the front door of a real operator.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::jwt::{Signer, hs256, unsigned};
use crate::support::{Cluster, call, eventually, eventually_blocking, free_port};

/// An issuer on loopback: serves its JWK Set, and counts how often.
struct Idp {
    port: u16,
    set: Arc<Mutex<(Value, usize)>>,
}

impl Idp {
    async fn start(keys: &[Value]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let port = listener.local_addr().expect("address").port();
        let set = Arc::new(Mutex::new((json!({"keys": keys}), 0)));
        let served = set.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("connection");
                let body = {
                    let mut set = served.lock().expect("lock");
                    set.1 += 1;
                    set.0.to_string()
                };
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        Self { port, set }
    }

    fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn publish(&self, keys: &[Value]) {
        self.set.lock().expect("lock").0 = json!({"keys": keys});
    }

    fn fetched(&self) -> usize {
        self.set.lock().expect("lock").1
    }
}

fn object(kind: &str, name: &str, spec: Value) -> String {
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
}

fn package() -> String {
    let permit = r#"@id("all") permit(principal, action == Action::"call_tool", resource);"#;
    let spec = json!({
        "package": "first", "version": "1.0.0", "tools": [{"name": "git/log", "tier": "read"}],
        "policies": [{"name": "main.cedar", "text": permit}],
    });
    object("PolicyPackage", "first-1.0.0", spec)
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_configured_issuers_are_who_their_tokens_say_and_nobody_else() {
    let (first, second, svid) = (Signer::es256(), Signer::eddsa(), Signer::rs256());
    let idp = Idp::start(&[first.jwk("1")]).await;
    let spire = Idp::start(&[svid.jwk("s")]).await;
    let issuer = idp.issuer();
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("issuers.yaml");
    let issuers = json!([
        {"issuer": issuer, "jwksUri": format!("{issuer}/jwks"), "tenants": ["acme", "empty"]},
        {"kind": "spiffe", "trustDomain": "prod.example", "jwksUri": format!("{}/jwks", spire.issuer()), "tenants": ["acme"]},
    ]);
    std::fs::write(&file, issuers.to_string()).expect("issuers");
    let flag = format!("--issuers={}", file.display());
    let c = tokio::task::spawn_blocking(move || Cluster::start_own_with(&[&flag])).await.expect("cluster");

    let oidc = |subject: &str| json!({"oidc": {"issuer": issuer, "subject": subject}});
    let id = "spiffe://prod.example/ns/acme/sa/mesh";
    for tenant in ["acme", "other"] {
        c.kubectl(&["create", "namespace", tenant]).expect("namespace");
        let identities = json!([{"serviceAccount": "coder"}, oidc("repo:acme/app")]);
        c.apply(tenant, &object("Agent", "coder", json!({"identities": identities, "trustLevel": 2}))).expect("agent");
        c.apply(tenant, &object("Agent", "mesh", json!({"identities": [{"spiffe": id}], "trustLevel": 2})))
            .expect("agent");
        c.apply(tenant, &package()).expect("package");
        c.wait_for(tenant, "tenantrollout/default", "Ready");
    }
    let claims = |sub: &str| json!({"iss": issuer, "sub": sub, "aud": "remit", "iat": now(), "exp": now() + 900});
    let with = |field: &str, value: Value| {
        let mut claims = claims("repo:acme/app");
        claims[field] = value;
        claims
    };
    let body = |agent: &str| call(agent, "git/log", json!({}));

    // A good token allows, in the tenant that it is for; without a tenant in the path that is the one with the Agent.
    let good = first.token("1", &claims("repo:acme/app"));
    c.answered(&good, "acme", &body("coder"), "allowed").await;
    let unnamed = c.http().post("/access/v1/evaluation", &good, &body("coder")).await.expect("answer");
    assert_eq!((unnamed.status, &unnamed.json()["decision"]), (200, &json!(true)), "{}", unnamed.text);
    let mesh = |sub: &str| svid.token("s", &json!({"sub": sub, "aud": ["remit"], "exp": now() + 900}));
    c.answered(&mesh(id), "acme", &body("mesh"), "allowed").await;
    // It is that agent, and no other, and no gateway.
    let refused = async |token: &str, tenant: &str, agent: &str| {
        let (status, answer) = c.check(token, tenant, &body(agent)).await;
        (status, answer["code"].as_str().unwrap_or_default().to_owned())
    };
    let said = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(refused(&good, "acme", "mesh").await, said(403, "not_your_identity"));
    // A tenant that its issuer does not name: its claim is worth nothing, and takes nothing from the other's.
    assert_eq!(refused(&good, "other", "coder").await, said(403, "not_allowed"));
    assert_eq!(refused(&mesh(id), "other", "mesh").await, said(403, "not_allowed"));
    assert_eq!(refused(&good, "empty", "coder").await, said(403, "not_allowed"));

    let secret = first.jwk("1").to_string();
    for (why, token, code) in [
        ("HS256 with the public key", hs256("1", &claims("repo:acme/app"), secret.as_bytes()), "token_rejected"),
        ("none", unsigned(&claims("repo:acme/app")), "token_rejected"),
        ("another's key", second.token("1", &claims("repo:acme/app")), "token_rejected"),
        ("another audience", first.token("1", &with("aud", "kubernetes".into())), "token_audience"),
        ("expired beyond the skew", first.token("1", &with("exp", (now() - 120).into())), "token_expired"),
        ("not valid yet", first.token("1", &with("nbf", (now() + 600).into())), "token_rejected"),
        (
            "an issuer that is not configured",
            first.token("1", &with("iss", "https://evil.example".into())),
            "token_issuer",
        ),
        ("another trust domain", mesh("spiffe://dev.example/ns/acme/sa/mesh"), "token_issuer"),
        ("a trust domain that only begins so", mesh("spiffe://prod.example.evil/ns/acme/sa/mesh"), "token_issuer"),
    ] {
        assert_eq!(refused(&token, "acme", "coder").await, said(401, code), "{why}");
    }
    // Within the skew it counts.
    let late = first.token("1", &with("exp", (now() - 20).into()));
    assert_eq!(c.check(&late, "acme", &body("coder")).await.0, 200);

    // A subject that is spelt like a ServiceAccount is not that ServiceAccount.
    let spoof = first.token("1", &claims("system:serviceaccount:acme:coder"));
    assert_eq!(refused(&spoof, "acme", "coder").await, said(403, "not_allowed"));
    let own = c.token_for("acme", "coder", "remit").await;
    c.answered(&own, "acme", &body("coder"), "allowed").await;

    // A key that comes by rotation: unknown, then fetched; many invented ones don't flood the issuer.
    let fetched = idp.fetched();
    for n in 0..10 {
        let invented = first.token(&format!("invented-{n}"), &claims("repo:acme/app"));
        let (status, _) = c.check(&invented, "acme", &body("coder")).await;
        assert!(matches!(status, 401 | 429), "{status}");
    }
    assert!(idp.fetched() <= fetched + 2, "{} fetches for ten invented keys", idp.fetched() - fetched);
    idp.publish(&[second.jwk("2")]);
    eventually("the new key is known", || async {
        let token = second.token("2", &claims("repo:acme/app"));
        let (status, answer) = c.check(&token, "acme", &body("coder")).await;
        if status == 200 { Ok(()) } else { Err(format!("{status} {answer}")) }
    })
    .await;
    let withdrawn = first.token("1", &with("jti", "withdrawn".into()));
    eventually("the withdrawn key is not", || async {
        let (status, answer) = c.check(&withdrawn, "acme", &body("coder")).await;
        if status == 401 { Ok(()) } else { Err(format!("{status} {answer}")) }
    })
    .await;

    // Humans' endpoints are not theirs.
    let admin = second.token("2", &with("aud", json!(["remit", "remit-admin"])));
    let read = c.http().get("/admin/tenants/acme/decisions", &admin).await.expect("answer");
    assert_eq!((read.status, &read.json()["code"]), (401, &json!("token_audience")), "{}", read.text);

    // The status says what is in force, and why something is not.
    let status = |tenant: &'static str| c.kubectl(&["get", "agent", "coder", "-n", tenant, "-o", "jsonpath={.status}"]);
    eventually("the status of the named tenant", || async {
        let status = status("acme")?;
        let wanted = format!("oidc:{issuer}#repo:acme/app");
        if status.contains(&wanted) { Ok(()) } else { Err(status) }
    })
    .await;
    eventually("the status of the other tenant", || async {
        let status = status("other")?;
        if status.contains("IssuerUnknown") && status.contains(r#""identities":["system:serviceaccount:other:coder"]"#)
        {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
}

#[test]
fn a_folder_takes_tokens_of_configured_issuers_too() {
    let (key, other) = (Signer::es256(), Signer::es256());
    let folder = tempfile::tempdir().expect("folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("file");
    std::fs::create_dir(folder.path().join("policy")).expect("folder");
    write("policy/package.yaml", "package: first\nversion: 1.0.0\ntools: [{name: git/log, tier: read}]\n");
    write("policy/main.cedar", r#"@id("all") permit(principal, action == Action::"call_tool", resource);"#);
    let identity = json!({"oidc": {"issuer": "https://idp.example", "subject": "ci"}});
    let object = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "coder", "namespace": "acme"},
        "spec": {"trustLevel": 2, "identities": [identity]},
    });
    write("agents.json", &object.to_string());
    let aside = tempfile::tempdir().expect("folder");
    std::fs::write(aside.path().join("jwks.json"), json!({"keys": [key.jwk("1")]}).to_string()).expect("keys");
    let issuers = aside.path().join("issuers.yaml");
    let text = "- {issuer: https://idp.example, jwksFile: jwks.json, tenants: [acme]}\n";
    std::fs::write(&issuers, text).expect("issuers");

    let port = free_port();
    let server = std::process::Command::new(env!("CARGO_BIN_EXE_remit"))
        .arg("serve")
        .arg(folder.path())
        .arg(format!("--issuers={}", issuers.display()))
        .arg(format!("--listen=127.0.0.1:{port}"))
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("remit serve");
    let _server = Ended(server);
    let ask = |token: &str| -> Result<(u16, Value), String> {
        use std::io::{Read as _, Write as _};
        let body = call("coder", "git/log", json!({})).to_string();
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
        write!(
            stream,
            "POST /access/v1/evaluation HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
        .map_err(|e| e.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status")?;
        Ok((status, serde_json::from_str(body).unwrap_or_default()))
    };
    let claims =
        |sub: &str| json!({"iss": "https://idp.example", "sub": sub, "aud": "remit", "iat": now(), "exp": now() + 900});
    let answer = eventually_blocking("remit serve answers", || match ask(&key.token("1", &claims("ci")))? {
        (200, answer) => Ok(answer),
        (status, answer) => Err(format!("{status} {answer}")),
    });
    assert_eq!((&answer["decision"], &answer["context"]["code"]), (&json!(true), &json!("allowed")), "{answer}");
    for (why, token, status, code) in [
        ("another key", other.token("1", &claims("ci")), 401, "token_rejected"),
        ("another subject", key.token("1", &claims("cj")), 403, "not_allowed"),
        ("the name of the folder's own token", key.token("1", &claims("local-token")), 403, "not_allowed"),
        ("nobody signed it", unsigned(&claims("ci")), 401, "token_rejected"),
    ] {
        let (got, answer) = ask(&token).expect("answer");
        assert_eq!((got, &answer["code"]), (status, &json!(code)), "{why}: {answer}");
    }
}

/// A process that ends with its test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
