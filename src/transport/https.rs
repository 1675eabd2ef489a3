//! HTTPS with the installation's own CA, and plain HTTP to loopback addresses only.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{AddressError, Bounds, SendError, SendFuture, Transport, at, bounded, causes, whole};

/// A Remit at an address.
pub struct Https {
    base: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Https {
    /// `https://HOST[:PORT]` under this CA (the PEM file's certificates and no others), or `http://` to a loopback address.
    pub fn new(url: &str, ca: Option<&Path>) -> Result<Self, AddressError> {
        let base = base(url)?;
        let wrong = |why: &str| AddressError::Address { url: url.to_owned(), why: why.to_owned() };
        let connector = if base.starts_with("https://") {
            let ca = ca.ok_or_else(|| wrong("needs the CA of its certificate: --ca-file, or REMIT_CA_FILE"))?;
            HttpsConnectorBuilder::new().with_tls_config(tls(ca)?).https_only().enable_http1().build()
        } else {
            // No certificate is believed: the connector is never asked for TLS.
            let roots = rustls::RootCertStore::empty();
            let config = config(roots).map_err(|e| wrong(&e.to_string()))?;
            HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build()
        };
        Ok(Self { base, client: Client::builder(TokioExecutor::new()).build(connector) })
    }
}

impl Transport for Https {
    fn send(&self, request: Request<Bytes>, bounds: Bounds) -> SendFuture<'_> {
        Box::pin(bounded(bounds, async move {
            let request = at(request, &self.base)?;
            let answer = self.client.request(request).await;
            whole(answer.map_err(|e| SendError::Unreachable(causes(&e)))?, bounds.answer).await
        }))
    }
}

/// The address without a trailing slash, if a token may be sent there.
fn base(url: &str) -> Result<String, AddressError> {
    let wrong = |why: &str| AddressError::Address { url: url.escape_debug().to_string(), why: why.to_owned() };
    let uri: Uri = url.parse().map_err(|_| wrong("not an address such as https://remit.example:8443"))?;
    let host = uri.host().unwrap_or_default();
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if is_loopback(host) => {}
        Some("http") => {
            return Err(wrong("a token would be sent there in plain text: use https://, or a loopback address"));
        }
        _ => return Err(wrong("must begin with https:// because a token is sent there")),
    }
    if host.is_empty() || uri.query().is_some() || url.contains('@') || !matches!(uri.path(), "" | "/") {
        return Err(wrong("must be scheme, host and port only"));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

/// `localhost` and addresses of this machine's loopback network: names may be resolved to anything.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// TLS that believes the certificates of this file only.
pub fn tls(ca: &Path) -> Result<rustls::ClientConfig, AddressError> {
    let wrong = |why: String| AddressError::Ca { path: ca.display().to_string(), why };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| wrong(e.to_string()))? {
        let certificate = certificate.map_err(|e| wrong(e.to_string()))?;
        roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("no certificate in it".into()));
    }
    config(roots).map_err(|e| wrong(e.to_string()))
}

fn config(roots: rustls::RootCertStore) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for good in ["https://remit.example:8443/", "http://127.0.0.1:80", "http://[::1]:80", "http://localhost"] {
            assert_eq!(base(good).unwrap(), good.trim_end_matches('/'), "{good}");
        }
        for wrong in [
            "http://remit.example",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
            "http://10.0.0.1",
            "ftp://127.0.0.1",
            "https://user@remit.example",
            "http://127.0.0.1@evil.example",
            "https://remit.example/path",
            "https://remit.example?x=y",
            "remit.example",
            "",
        ] {
            assert!(base(wrong).is_err(), "{wrong}");
        }
    }
}
