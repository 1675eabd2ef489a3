//! HTTPS to the operator, as an agent speaks it.

use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::HeaderMap;
use hyper::{Method, Request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON; Null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }
}

/// A client that keeps its connections. Made in the test that uses it.
#[derive(Clone)]
pub struct Http {
    base: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Http {
    /// Trusts only the CA that is given.
    pub fn new(base: &str, ca_pem: &str) -> Http {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate.expect("CA certificate")).expect("CA certificate");
        }
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        Http { base: base.to_owned(), client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// One request; Err when there was no answer at all (refused, reset, timed out).
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("request");
        let answer = tokio::time::timeout(std::time::Duration::from_secs(30), async {
            let response =
                self.client.request(request).await.map_err(|e| format!("{e}: {:?}", std::error::Error::source(&e)))?;
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
            Ok(Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                text: String::from_utf8_lossy(&bytes).into_owned(),
            })
        });
        answer.await.unwrap_or_else(|_| Err("no answer within 30 s".into()))
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, token: &str, body: &Value) -> Result<Answer, String> {
        self.send(Method::POST, path, Some(token), &[("content-type", "application/json")], body.to_string()).await
    }

    /// GET.
    pub async fn get(&self, path: &str, token: &str) -> Result<Answer, String> {
        self.send(Method::GET, path, Some(token), &[], "").await
    }

    /// One AuthZEN evaluation.
    pub async fn check(&self, token: &str, tenant: &str, body: &Value) -> Result<Answer, String> {
        self.post(&format!("/tenants/{tenant}/access/v1/evaluation"), token, body).await
    }
}

/// AuthZEN body of an agent's call of a tool.
pub fn call(agent: &str, tool: &str, arguments: Value) -> Value {
    json!({
        "subject": {"type": "agent", "id": agent},
        "action": {"name": "call_tool"},
        "resource": {"type": "tool", "id": tool},
        "context": {"arguments": arguments},
    })
}
