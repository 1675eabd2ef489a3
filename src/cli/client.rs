//! The small client of the commands: JSON to a Remit at an address, or to a folder's, with a token from a file.
//!
//! It never sends a token over plain HTTP to another machine, never follows a redirect with it, and never prints it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::terminal::printable;
use crate::enforce::local::{Local, LocalTransport};
use crate::laptop::{LaptopError, Options};
use crate::transport::{AddressError, Bounds, Https, SendError, Transport, encode};

/// For one request and its answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is read.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// How much of an error's body is shown.
const MAX_MESSAGE: usize = 500;

/// Where Remit is and as whom to ask it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServerArgs {
    /// A folder instead of a server: of `remit serve`, `mcp-proxy` or `hook`
    #[arg(long, value_name = "DIR")]
    pub policy: Option<PathBuf>,
    /// Address of Remit, such as https://remit.example:8443
    #[arg(long, alias = "remit", env = "REMIT_URL", value_name = "URL")]
    pub url: Option<String>,
    /// PEM file of the CA that signed Remit's certificate: `ca.crt` of ConfigMap remit-ca
    #[arg(long, env = "REMIT_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// File of a token with audience `remit-admin`
    #[arg(long, env = "REMIT_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not told.
    #[error(
        "{flag} is missing: give it, or set {env} (`make dev` writes these to .dev/env), or name a folder: --policy DIR"
    )]
    Missing { flag: &'static str, env: &'static str },
    /// The address.
    #[error("--url `{url}`: {why}")]
    Url { url: String, why: String },
    /// The address, or its CA.
    #[error("--url or --ca-file: {0}")]
    Address(#[from] AddressError),
    /// The folder.
    #[error("--policy: {0}")]
    Folder(#[from] LaptopError),
    /// A file.
    #[error("{flag} {path}: {why}", path = path.display())]
    File { flag: &'static str, path: PathBuf, why: String },
    /// No connection, or it broke.
    #[error("{url}: {why}")]
    Connection { url: String, why: String },
    /// No answer in time.
    #[error("{url}: no answer within {} s", TIMEOUT.as_secs())]
    Timeout { url: String },
    /// An answer that is no success.
    #[error("{url}: {status}: {message}")]
    Status { url: String, status: StatusCode, message: String },
    /// A success that can't be read.
    #[error("{url}: the answer can't be read: {why}")]
    Answer { url: String, why: String },
}

/// A client of one Remit.
pub struct Client {
    base: String,
    token: HeaderValue,
    transport: Box<dyn Transport>,
    local: Option<Arc<Local>>,
}

impl Client {
    /// Reads the CA and the token; for a folder, connects to who leads it, or leads it meanwhile.
    pub async fn open(args: &ServerArgs) -> Result<Self, ClientError> {
        let Some(dir) = &args.policy else { return Self::new(args) };
        let options = Options { dir: dir.clone(), ..Options::default() };
        let local = Local::open(options, TIMEOUT).await?;
        let token = bearer(&local.state().admin_token_file())?;
        let transport = Box::new(LocalTransport(local.clone()));
        Ok(Self { base: String::new(), token, transport, local: Some(local) })
    }

    /// Of a Remit at an address.
    fn new(args: &ServerArgs) -> Result<Self, ClientError> {
        let url = args.url.as_deref().ok_or(ClientError::Missing { flag: "--url", env: "REMIT_URL" })?;
        let token = args
            .token_file
            .as_deref()
            .ok_or(ClientError::Missing { flag: "--token-file", env: "REMIT_ADMIN_TOKEN_FILE" });
        let transport = Https::new(url, args.ca_file.as_deref())?;
        Ok(Self {
            base: url.trim_end_matches('/').to_owned(),
            token: bearer(token?)?,
            transport: Box::new(transport),
            local: None,
        })
    }

    /// The tenant, where it is a folder's Remit.
    pub fn tenant(&self) -> Option<String> {
        self.local.as_ref()?.state().tenant().ok().flatten()
    }

    /// Ends leading the folder, where this process does. To be called before the process ends.
    pub async fn close(&self) {
        if let Some(local) = &self.local {
            local.close().await;
        }
    }

    /// GET, JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, ClientError> {
        let (url, body) = self.request(Method::GET, path, query, None).await?;
        read(url, &body)
    }

    /// GET, the answer's bytes.
    pub async fn get_bytes(&self, path: &str, query: &[(&str, String)]) -> Result<Bytes, ClientError> {
        Ok(self.request(Method::GET, path, query, None).await?.1)
    }

    /// POST, JSON both ways.
    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body)
            .map_err(|e| ClientError::Answer { url: path.to_owned(), why: format!("the question: {e}") })?;
        let (url, body) = self.request(Method::POST, path, &[], Some(body.into())).await?;
        read(url, &body)
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<Bytes>,
    ) -> Result<(String, Bytes), ClientError> {
        let mut target = path.to_owned();
        for (i, (name, value)) in query.iter().enumerate() {
            target.push(if i == 0 { '?' } else { '&' });
            target.push_str(&format!("{name}={}", encode(value)));
        }
        let url = format!("{}{target}", self.base);
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(AUTHORIZATION, self.token.clone())
            .header(ACCEPT, "application/json, application/x-ndjson")
            .header(USER_AGENT, concat!("remit/", env!("CARGO_PKG_VERSION")));
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(body.unwrap_or_default())
            .map_err(|e| ClientError::Url { url: url.clone(), why: e.to_string() })?;
        let bounds = Bounds { within: TIMEOUT, answer: MAX_ANSWER };
        let answer = self.transport.send(request, bounds).await.map_err(|error| match error {
            SendError::Unreachable(why) => ClientError::Connection { url: url.clone(), why: printable(&why) },
            SendError::Timeout(_) => ClientError::Timeout { url: url.clone() },
            SendError::TooLarge(_) => ClientError::Answer { url: url.clone(), why: error.to_string() },
        })?;
        let (status, body) = (answer.status(), answer.into_body());
        if !status.is_success() {
            return Err(ClientError::Status { message: message(&body), url, status });
        }
        Ok((url, body))
    }
}

fn bearer(path: &Path) -> Result<HeaderValue, ClientError> {
    let wrong = |why: &str| ClientError::File { flag: "--token-file", path: path.to_owned(), why: why.to_owned() };
    let token = std::fs::read_to_string(path).map_err(|e| wrong(&e.to_string()))?;
    let token = token.trim();
    if token.is_empty() {
        return Err(wrong("no token in it"));
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| wrong("not a token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What the server says in its error, or the beginning of whatever else it sent.
fn message(body: &[u8]) -> String {
    let said = serde_json::from_slice::<serde_json::Value>(body).ok();
    let said = said.as_ref().and_then(|v| v.get("message")).and_then(|v| v.as_str());
    let text = match said {
        Some(text) => text.to_owned(),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    match text.trim() {
        "" => "no message".to_owned(),
        text => printable(&text.chars().take(MAX_MESSAGE).collect::<String>()),
    }
}

fn read<T: DeserializeOwned>(url: String, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|e| ClientError::Answer { url, why: printable(&e.to_string()) })
}

#[cfg(test)]
pub(crate) mod testing {
    //! An HTTPS server with a certificate of its own, for tests of commands.

    use std::sync::Arc;

    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto::Builder;
    use hyper_util::service::TowerToHyperService;

    use super::ServerArgs;

    pub struct Server {
        dir: tempfile::TempDir,
        port: u16,
        task: tokio::task::JoinHandle<()>,
    }

    impl Server {
        pub async fn start(router: axum::Router) -> Self {
            let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("ca.crt"), certified.cert.pem()).unwrap();
            std::fs::write(dir.path().join("token"), "t0ken\n").unwrap();
            let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certified.cert.der().clone()], key)
                .unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let task = tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, router) = (acceptor.clone(), router.clone());
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            let builder = Builder::new(TokioExecutor::new());
                            let service = TowerToHyperService::new(router);
                            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                        }
                    });
                }
            });
            Self { dir, port, task }
        }

        pub fn args(&self) -> ServerArgs {
            ServerArgs {
                policy: None,
                url: Some(format!("https://127.0.0.1:{}", self.port)),
                ca_file: Some(self.dir.path().join("ca.crt")),
                token_file: Some(self.dir.path().join("token")),
            }
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;
    use axum::response::Redirect;
    use axum::routing::get;
    use serde_json::{Value, json};

    use super::testing::Server;
    use super::*;

    #[tokio::test]
    async fn the_token_is_sent_and_redirects_are_not_followed() {
        let router = axum::Router::new()
            .route(
                "/whoami",
                get(|headers: HeaderMap, uri: hyper::Uri| async move {
                    let token = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
                    axum::Json(json!({"token": token, "query": uri.query()}))
                }),
            )
            .route("/away", get(|| async { Redirect::temporary("/whoami") }))
            .route("/denied", get(|| async { (StatusCode::FORBIDDEN, r#"{"code":"x","message":"not you"}"#) }));
        let server = Server::start(router).await;
        let client = Client::new(&server.args()).unwrap();
        let answer: Value = client.get("/whoami", &[("a", "b&c".into())]).await.unwrap();
        assert_eq!(answer, json!({"token": "Bearer t0ken", "query": "a=b%26c"}));
        let error = client.get::<Value>("/away", &[]).await.unwrap_err();
        assert!(matches!(error, ClientError::Status { status: StatusCode::TEMPORARY_REDIRECT, .. }), "{error}");
        let error = client.get::<Value>("/denied", &[]).await.unwrap_err().to_string();
        assert!(error.contains("403") && error.ends_with("not you") && !error.contains("t0ken"), "{error}");
    }

    #[tokio::test]
    async fn another_ca_is_not_trusted() {
        let (server, other) = (Server::start(axum::Router::new()).await, Server::start(axum::Router::new()).await);
        let args = ServerArgs { ca_file: other.args().ca_file, ..server.args() };
        let error = Client::new(&args).unwrap().get::<Value>("/", &[]).await.unwrap_err();
        assert!(matches!(&error, ClientError::Connection { why, .. } if why.contains("certificate")), "{error}");
    }

    #[test]
    fn what_is_missing_is_named_with_its_variable() {
        let error = Client::new(&ServerArgs::default()).err().unwrap().to_string();
        assert!(error.contains("--url") && error.contains("REMIT_URL"), "{error}");
        let args = ServerArgs { url: Some("https://h".into()), token_file: Some("t".into()), ..Default::default() };
        let error = Client::new(&args).err().unwrap().to_string();
        assert!(error.contains("--ca-file") && error.contains("REMIT_CA_FILE"), "{error}");
    }

    #[test]
    fn a_file_that_holds_no_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.crt");
        std::fs::write(&ca, "nothing").unwrap();
        let args =
            ServerArgs { url: Some("https://h".into()), ca_file: Some(ca), token_file: Some("t".into()), policy: None };
        let error = Client::new(&args).err().unwrap().to_string();
        assert!(error.contains("ca.crt: no certificate"), "{error}");
    }

    #[test]
    fn errors_show_the_servers_message_without_control_characters() {
        assert_eq!(message(br#"{"code":"x","message":"no \u001b[31m"}"#), "no \\u{1b}[31m");
        assert_eq!(message(b"<html>"), "<html>");
        assert_eq!(message(b""), "no message");
    }
}
