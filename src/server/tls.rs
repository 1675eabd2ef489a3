//! The accept loop: TLS with a certificate that can change, limits on time and number, and a stop that lets requests finish.
//!
//! Must never fall back from TLS to plain text, and never lose a working certificate to a broken new one.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use super::caller::Peer;
use super::metrics::Metrics;
use super::reviews::network;

/// A certificate or key that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or without what is needed.
    #[error("{what}: {why}")]
    Pem { what: &'static str, why: String },
    /// Key and certificate don't belong together, or are of a kind that is not supported.
    #[error("certificate: {0}")]
    Certificate(#[from] rustls::Error),
}

/// The certificate that is served now.
#[derive(Debug)]
pub struct ServingCertificate(ArcSwap<CertifiedKey>);

impl ServingCertificate {
    /// From PEM: the chain, leaf first, and its key.
    pub fn new(chain: &[u8], key: &[u8]) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified(chain, key)?))))
    }

    /// Serves another one from the next handshake on. On error the old one stays.
    pub fn replace(&self, chain: &[u8], key: &[u8]) -> Result<(), TlsError> {
        self.0.store(Arc::new(certified(chain, key)?));
        Ok(())
    }

    /// TLS 1.2 and 1.3, HTTP/1.1, no client certificates.
    pub fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, TlsError> {
    let pem = |what| move |error: rustls::pki_types::pem::Error| TlsError::Pem { what, why: error.to_string() };
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().map_err(pem("certificate"))?;
    if chain.is_empty() {
        return Err(TlsError::Pem { what: "certificate", why: "there is none".into() });
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(pem("key"))?;
    // Also checks that the key is the certificate's.
    Ok(CertifiedKey::from_der(chain, key, &ring::default_provider())?)
}

/// Limits of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Open connections of one address, so that one client can't take every place.
    pub per_address: usize,
    /// For a handshake.
    pub handshake: Duration,
    /// For the head of a request, and between two requests of a connection.
    pub head: Duration,
    /// For the requests under way at stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            per_address: 1024,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(60),
            drain: Duration::from_secs(20),
        }
    }
}

/// Where connections come from.
pub trait Listen: Send + Sync + 'static {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next one, and from where.
    fn next(&self) -> impl Future<Output = std::io::Result<(Self::Io, SocketAddr)>> + Send;
}

impl Listen for TcpListener {
    type Io = TcpStream;

    async fn next(&self) -> std::io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = self.accept().await?;
        // Answers are small and waited for.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        Ok((stream, address))
    }
}

impl Listen for UnixListener {
    type Io = UnixStream;

    async fn next(&self) -> std::io::Result<(UnixStream, SocketAddr)> {
        let (stream, _) = self.accept().await?;
        Ok((stream, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))
    }
}

/// Serves `router` until `stop`, then lets the requests under way finish and closes idle connections.
/// Without `tls` in plain text: for metrics, on a Unix socket, and on loopback.
pub async fn serve(
    listener: impl Listen,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let tls = tls.map(TlsAcceptor::from);
    let places = Arc::new(Semaphore::new(limits.connections));
    let addresses = Arc::new(Addresses::default());
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            // Err: whoever could stop us is gone.
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, peer, place)) = accepted else { continue };
        let Some(seat) = Addresses::seat(&addresses, peer.0.ip(), limits.per_address) else {
            tracing::debug!(from = %peer.0.ip(), "an address has too many connections");
            continue;
        };
        let (router, metrics) = (router.clone(), metrics.clone());
        let connection = Connection { router, peer, limits, metrics, _place: place, _seat: seat };
        let (tls, watcher) = (tls.clone(), graceful.watcher());
        tokio::spawn(connection.run(stream, tls, watcher));
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(seconds = limits.drain.as_secs(), "requests were still under way at the end of the drain");
    }
}

async fn accept<L: Listen>(listener: &L, places: &Arc<Semaphore>) -> Option<(L::Io, Peer, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.next().await {
        Ok((stream, address)) => Some((stream, Peer(address), place)),
        Err(error) => {
            // Out of file descriptors, mostly: it does not get better by trying at once.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

struct Connection {
    router: Router,
    peer: Peer,
    limits: Limits,
    metrics: Arc<Metrics>,
    _place: OwnedSemaphorePermit,
    _seat: Seat,
}

/// Open connections by address.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

impl Addresses {
    fn seat(addresses: &Arc<Self>, from: IpAddr, limit: usize) -> Option<Seat> {
        let address = network(from);
        let mut all = addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = all.entry(address).or_default();
        if *taken >= limit {
            return None;
        }
        *taken += 1;
        Some(Seat { addresses: addresses.clone(), address })
    }
}

/// One connection of an address, until it is dropped.
struct Seat {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = all.get_mut(&self.address) {
            *taken -= 1;
            if *taken == 0 {
                all.remove(&self.address);
            }
        }
    }
}

impl Connection {
    async fn run(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        tls: Option<TlsAcceptor>,
        watcher: Watcher,
    ) {
        self.metrics.connections.inc();
        match tls {
            None => self.http(stream, watcher).await,
            Some(tls) => match tokio::time::timeout(self.limits.handshake, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.http(stream, watcher).await,
                Ok(Err(_)) | Err(_) => {
                    self.metrics.handshakes_failed.inc();
                }
            },
        }
        self.metrics.connections.dec();
    }

    async fn http(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, watcher: Watcher) {
        let (router, peer) = (self.router.clone(), self.peer);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            router.clone().call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use rcgen::{CertifiedKey as Generated, generate_simple_self_signed};
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsConnector;

    use super::*;

    fn pair() -> (String, String) {
        let Generated { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    fn client(ca: &str) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    struct Running {
        address: std::net::SocketAddr,
        certificate: Arc<ServingCertificate>,
        stop: watch::Sender<bool>,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start(chain: &str, key: &str, limits: Limits) -> Running {
        let certificate = ServingCertificate::new(chain.as_bytes(), key.as_bytes()).unwrap();
        let slow = async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "slow"
        };
        let router = Router::new().route("/", get(async || "ok")).route("/slow", get(slow));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let tls = Some(certificate.config().unwrap());
        let task = tokio::spawn(serve(listener, tls, router, limits, Arc::default(), stopped));
        Running { address, certificate, stop, task }
    }

    async fn ask(running: &Running, ca: &str, path: &str) -> std::io::Result<String> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = client(ca).connect(name, TcpStream::connect(running.address).await?).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut out = String::new();
        stream.read_to_string(&mut out).await?;
        Ok(out)
    }

    #[tokio::test]
    async fn a_new_certificate_is_served_and_a_broken_one_is_not() {
        let ((old, old_key), (new, new_key)) = (pair(), pair());
        let running = start(&old, &old_key, Limits::default()).await;
        assert!(ask(&running, &old, "/").await.unwrap().ends_with("ok"));
        assert!(running.certificate.replace(new.as_bytes(), old_key.as_bytes()).is_err(), "not its key");
        assert!(running.certificate.replace(b"", new_key.as_bytes()).is_err());
        assert!(running.certificate.replace(new.as_bytes(), b"garbage").is_err());
        assert!(ask(&running, &old, "/").await.unwrap().ends_with("ok"), "the old one stays");
        running.certificate.replace(new.as_bytes(), new_key.as_bytes()).unwrap();
        assert!(ask(&running, &new, "/").await.unwrap().ends_with("ok"));
        assert!(ask(&running, &old, "/").await.is_err());
    }

    #[tokio::test]
    async fn stop_lets_requests_finish_and_closes_idle_connections() {
        let (ca, key) = pair();
        let running = start(&ca, &key, Limits::default()).await;
        let name = ServerName::try_from("localhost").unwrap();
        let idle = TcpStream::connect(running.address).await.unwrap();
        let mut idle = client(&ca).connect(name, idle).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        idle.read_exact(&mut head).await.unwrap();
        let under_way = ask(&running, &ca, "/slow");
        let stopping = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            running.stop.send(true).unwrap();
        };
        let (answer, ()) = tokio::join!(under_way, stopping);
        assert!(answer.unwrap().ends_with("slow"));
        tokio::time::timeout(Duration::from_secs(5), running.task)
            .await
            .expect("the idle connection does not hold it up")
            .unwrap();
        assert!(TcpStream::connect(running.address).await.is_err());
    }

    #[test]
    fn one_address_does_not_take_every_place() {
        let addresses = Arc::new(Addresses::default());
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = Addresses::seat(&addresses, one, 2).unwrap();
        let _second = Addresses::seat(&addresses, one, 2).unwrap();
        assert!(Addresses::seat(&addresses, one, 2).is_none());
        assert!(Addresses::seat(&addresses, other, 2).is_some());
        drop(first);
        assert!(Addresses::seat(&addresses, one, 2).is_some(), "its place is free again");
        assert_eq!(addresses.0.lock().unwrap().len(), 1, "who left is not remembered");
    }

    #[tokio::test]
    async fn who_does_not_speak_is_cut_off() {
        let (ca, key) = pair();
        let limits = Limits { handshake: Duration::from_millis(100), connections: 1, ..Limits::default() };
        let running = start(&ca, &key, limits).await;
        let mut silent = TcpStream::connect(running.address).await.unwrap();
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_secs(5), silent.read(&mut byte)).await.expect("cut off in time");
        assert!(matches!(read, Ok(0) | Err(_)));
        assert!(ask(&running, &ca, "/").await.unwrap().ends_with("ok"), "and its place is free again");
        let plain = TcpStream::connect(running.address).await.unwrap();
        let mut plain = plain;
        plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut out = Vec::new();
        let _ = plain.read_to_end(&mut out).await;
        assert!(!String::from_utf8_lossy(&out).contains("ok"), "no plain text on the TLS port");
    }
}
