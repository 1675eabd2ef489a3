//! An issuer's public keys (JWK Set, RFC 7517): fetched, kept, fetched again when a token names one that is not there.
//!
//! Keys come only from where the configuration says, never from a token. A fetch that fails changes nothing: what was there stays
//! until the next one that succeeds. Tokens with invented key ids must not make Remit a client that floods the issuer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::jwt::{Algorithm, Token};
use super::{Issuer, IssuersError, Kind};
use crate::server::authn::AuthnError;
use crate::server::clock::Clock;
use crate::server::ijson;

/// Largest JWK Set, bytes.
const MAX_SET: usize = 1024 * 1024;
/// Keys of one set that are used.
const MAX_KEYS: usize = 256;
/// For one fetch, all of it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two fetches because a token names an unknown key, or because the last one failed.
const APART: Duration = Duration::from_secs(10);
/// After so long the set is fetched again, so that a key that the issuer withdrew does not count for ever.
const AGE: Duration = Duration::from_secs(600);

/// Why keys can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// CA or client.
    #[error("caFile: {0}")]
    Ca(String),
    /// Nothing came.
    #[error("its keys can't be fetched: {0}")]
    Fetch(String),
    /// Not a JWK Set, or without a key that could verify.
    #[error("its keys can't be used: {0}")]
    Set(String),
}

enum Source {
    File(PathBuf),
    Http(Box<Http>),
}

struct Http {
    uri: Uri,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

/// The keys of one issuer.
pub struct Keys {
    name: String,
    kind: Kind,
    source: Source,
    set: ArcSwapOption<Set>,
    /// When a fetch was last begun; held while one is under way.
    fetching: Mutex<Option<Instant>>,
    clock: Arc<dyn Clock>,
}

struct Set {
    keys: Vec<Key>,
    fetched: Instant,
}

impl Keys {
    /// Fetches nothing yet.
    pub fn new(issuer: &Issuer, clock: Arc<dyn Clock>) -> Result<Self, IssuersError> {
        let failed = |error| IssuersError::Keys { issuer: issuer.name().to_owned(), error };
        let source = match (&issuer.jwks_file, &issuer.jwks_uri) {
            (Some(file), _) => Source::File(file.clone()),
            (None, uri) => {
                let uri = uri.as_deref().unwrap_or_default().parse::<Uri>();
                let uri = uri.map_err(|e| failed(KeyError::Fetch(format!("jwksUri: {e}"))))?;
                Source::Http(Box::new(Http { uri, client: client(issuer).map_err(failed)? }))
            }
        };
        let name = issuer.name().to_owned();
        Ok(Self { name, kind: issuer.kind, source, set: ArcSwapOption::empty(), fetching: Mutex::default(), clock })
    }

    /// Verifies the signature with the key that the token names.
    pub async fn verify(self: &Arc<Self>, token: &Token<'_>, algorithm: Algorithm) -> Result<(), AuthnError> {
        let kid = token.key_id().ok_or(AuthnError::Unverified("it names no key (`kid`)"))?;
        let mut set = self.set.load_full();
        if !set.as_ref().is_some_and(|set| set.names(kid)) {
            self.fetch(false).await;
            set = self.set.load_full();
        } else if set.as_ref().is_some_and(|set| self.clock.instant().saturating_duration_since(set.fetched) >= AGE) {
            // In the background: the old set is good enough for this token.
            let keys = self.clone();
            tokio::spawn(async move { keys.fetch(true).await });
        }
        let set = set.ok_or(AuthnError::KeysUnavailable)?;
        let mut named = set.keys.iter().filter(|key| key.id == kid).peekable();
        if named.peek().is_none() {
            return Err(AuthnError::Unverified("its key is not one of the issuer's"));
        }
        match named.any(|key| key.verifies(algorithm, token.signed, &token.signature)) {
            true => Ok(()),
            false => Err(AuthnError::Unverified("its signature is not the issuer's")),
        }
    }

    /// Fetches the set, unless that was just tried.
    pub async fn refresh(&self) {
        self.fetch(false).await;
    }

    /// One at a time; who waits for it finds it done. `idle`: only if nobody is at it.
    async fn fetch(&self, idle: bool) {
        let mut last = match idle {
            true => match self.fetching.try_lock() {
                Ok(last) => last,
                Err(_) => return,
            },
            false => self.fetching.lock().await,
        };
        let now = self.clock.instant();
        if last.is_some_and(|last| now.saturating_duration_since(last) < APART) {
            return;
        }
        *last = Some(now);
        match self.load().await.and_then(|bytes| parse(&bytes, self.kind)) {
            Ok(keys) => {
                tracing::info!(issuer = %self.name, keys = keys.len(), "the issuer's keys were fetched");
                self.set.store(Some(Arc::new(Set { keys, fetched: now })));
            }
            Err(error) => tracing::warn!(issuer = %self.name, %error, "the issuer's keys were not fetched"),
        }
    }

    async fn load(&self) -> Result<Vec<u8>, KeyError> {
        match &self.source {
            Source::File(path) => {
                let failed = |why: String| KeyError::Fetch(format!("jwksFile {}: {why}", path.display()));
                let meta = tokio::fs::metadata(path).await.map_err(|e| failed(e.to_string()))?;
                if meta.len() > MAX_SET as u64 {
                    return Err(failed("is over 1 MiB".into()));
                }
                tokio::fs::read(path).await.map_err(|e| failed(e.to_string()))
            }
            Source::Http(http) => {
                let done = tokio::time::timeout(TIMEOUT, get(&http.client, &http.uri)).await;
                done.map_err(|_| KeyError::Fetch(format!("no answer within {} s", TIMEOUT.as_secs())))?
            }
        }
    }
}

async fn get(client: &Client<HttpsConnector<HttpConnector>, Empty<Bytes>>, uri: &Uri) -> Result<Vec<u8>, KeyError> {
    let failed = |e: &dyn std::error::Error| {
        let cause = e.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        KeyError::Fetch(format!("{e}{cause}"))
    };
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri.clone();
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"));
    let response = client.request(request).await.map_err(|e| failed(&e))?;
    // A redirect is another status than this one, and is not followed.
    if response.status() != StatusCode::OK {
        return Err(KeyError::Fetch(format!("status {}", response.status())));
    }
    let body = Limited::new(response.into_body(), MAX_SET).collect().await;
    body.map(|body| body.to_bytes().to_vec()).map_err(|e| KeyError::Fetch(e.to_string()))
}

fn client(issuer: &Issuer) -> Result<Client<HttpsConnector<HttpConnector>, Empty<Bytes>>, KeyError> {
    let mut roots = rustls::RootCertStore::empty();
    match &issuer.ca_file {
        Some(file) => {
            let failed = |e: &dyn std::fmt::Display| KeyError::Ca(format!("{}: {e}", file.display()));
            for certificate in CertificateDer::pem_file_iter(file).map_err(|e| failed(&e))? {
                roots.add(certificate.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
            }
            if roots.is_empty() {
                return Err(failed(&"no certificate in it"));
            }
        }
        // Without any, every https fetch fails, and says so.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(|e| KeyError::Ca(e.to_string()))?.with_root_certificates(roots).with_no_client_auth();
    // The configuration has no http:// but to loopback.
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
}

impl Set {
    fn names(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.id == kid)
    }
}

/// One public key.
#[derive(Debug)]
pub struct Key {
    id: String,
    /// The only algorithm that the issuer says it is for.
    only: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl Key {
    /// Whether the signature is this key's. A key is never used with an algorithm of another kind of key.
    fn verifies(&self, algorithm: Algorithm, signed: &[u8], sig: &[u8]) -> bool {
        if self.only.as_deref().is_some_and(|only| only != algorithm.as_str()) {
            return false;
        }
        let point = |alg: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(alg, key).verify(signed, sig).is_ok()
        };
        let rsa = |parameters: &signature::RsaParameters, n: &[u8], e: &[u8]| {
            RsaPublicKeyComponents { n, e }.verify(parameters, signed, sig).is_ok()
        };
        match (algorithm, &self.material) {
            (Algorithm::RS256, Material::Rsa { n, e }) => rsa(&signature::RSA_PKCS1_2048_8192_SHA256, n, e),
            (Algorithm::RS384, Material::Rsa { n, e }) => rsa(&signature::RSA_PKCS1_2048_8192_SHA384, n, e),
            (Algorithm::RS512, Material::Rsa { n, e }) => rsa(&signature::RSA_PKCS1_2048_8192_SHA512, n, e),
            (Algorithm::PS256, Material::Rsa { n, e }) => rsa(&signature::RSA_PSS_2048_8192_SHA256, n, e),
            (Algorithm::PS384, Material::Rsa { n, e }) => rsa(&signature::RSA_PSS_2048_8192_SHA384, n, e),
            (Algorithm::PS512, Material::Rsa { n, e }) => rsa(&signature::RSA_PSS_2048_8192_SHA512, n, e),
            (Algorithm::ES256, Material::P256(key)) => point(&signature::ECDSA_P256_SHA256_FIXED, key),
            (Algorithm::ES384, Material::P384(key)) => point(&signature::ECDSA_P384_SHA384_FIXED, key),
            (Algorithm::EdDSA, Material::Ed25519(key)) => point(&signature::ED25519, key),
            _ => false,
        }
    }
}

/// The keys of a set that can verify. Keys of other kinds and for other uses are left out (RFC 7517, 5).
pub fn parse(bytes: &[u8], kind: Kind) -> Result<Vec<Key>, KeyError> {
    let set = ijson::parse_object(bytes).map_err(|e| KeyError::Set(e.to_string()))?;
    let Some(Value::Array(all)) = set.get("keys") else { return Err(KeyError::Set("keys: must be a list".into())) };
    if all.len() > MAX_KEYS {
        return Err(KeyError::Set(format!("keys: {}; at most {MAX_KEYS} are taken", all.len())));
    }
    let keys: Vec<Key> = all.iter().filter_map(Value::as_object).filter_map(|key| read(key, kind)).collect();
    // An empty set would take every key out of force: more likely a mistake than an intention.
    if keys.is_empty() {
        return Err(KeyError::Set("no key with a `kid` that could verify a signature".into()));
    }
    Ok(keys)
}

fn read(key: &Map<String, Value>, kind: Kind) -> Option<Key> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
    match key.get("use").map(|used| used.as_str().unwrap_or_default()) {
        None | Some("sig") => {}
        Some("jwt-svid") if kind == Kind::Spiffe => {}
        Some(_) => return None,
    }
    if let Some(operations) = key.get("key_ops") {
        operations.as_array()?.iter().find(|o| *o == "verify")?;
    }
    let point = |size: usize| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        (x.len() == size && y.len() == size).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
    };
    let material = match (text("kty")?, text("crv")) {
        ("RSA", _) => Material::Rsa { n: unpadded(bytes("n")?), e: unpadded(bytes("e")?) },
        ("EC", Some("P-256")) => Material::P256(point(32)?),
        ("EC", Some("P-384")) => Material::P384(point(48)?),
        ("OKP", Some("Ed25519")) => Material::Ed25519(bytes("x").filter(|x| x.len() == 32)?),
        _ => return None,
    };
    let id = text("kid").filter(|kid| !kid.is_empty())?.to_owned();
    let only = match key.get("alg") {
        None => None,
        Some(only) => Some(only.as_str()?.to_owned()),
    };
    Some(Key { id, only, material })
}

/// Some issuers write a number with a zero in front, which RFC 7518 forbids and the verifier refuses.
fn unpadded(bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    bytes[zeros..].to_vec()
}
