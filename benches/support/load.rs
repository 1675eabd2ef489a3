//! A small closed-loop HTTP/1.1 client on loopback, and what a process has used, read from /proc.
// A client that cannot connect or read has nothing to measure.
#![allow(clippy::expect_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What one run saw.
pub struct Run {
    /// Requests answered.
    pub requests: u64,
    /// Wall time, seconds.
    pub seconds: f64,
    /// Latencies, microseconds, sorted.
    pub latencies: Vec<u32>,
}

impl Run {
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// Latency that a share `p` (0 to 1) of the requests stayed under, microseconds.
    pub fn percentile(&self, p: f64) -> u32 {
        let at = ((self.latencies.len() as f64 * p) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).copied().unwrap_or(0)
    }
}

/// Sends `request` again and again over `connections` connections for `time`; every answer must contain `expect`.
pub async fn run(
    port: u16,
    tls: Option<CertificateDer<'static>>,
    request: Arc<Vec<u8>>,
    expect: &'static str,
    connections: usize,
    time: Duration,
) -> Run {
    let start = Instant::now();
    let end = start + time;
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let (request, tls) = (request.clone(), tls.clone());
            tokio::spawn(async move {
                let tcp = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
                tcp.set_nodelay(true).expect("nodelay");
                match tls {
                    None => one(tcp, &request, expect, end).await,
                    Some(ca) => {
                        let mut roots = rustls::RootCertStore::empty();
                        roots.add(ca).expect("CA");
                        let config =
                            rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
                        let name = ServerName::try_from("localhost").expect("name");
                        let stream =
                            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS");
                        one(stream, &request, expect, end).await
                    }
                }
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("client task"));
    }
    let seconds = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Run { requests: latencies.len() as u64, seconds, latencies }
}

async fn one<S>(mut stream: S, request: &[u8], expect: &str, end: Instant) -> Vec<u32>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut out = Vec::with_capacity(1 << 18);
    let mut buffer = vec![0u8; 64 << 10];
    while Instant::now() < end {
        let sent = Instant::now();
        stream.write_all(request).await.expect("write");
        let mut filled = 0;
        loop {
            let n = stream.read(&mut buffer[filled..]).await.expect("read");
            assert!(n > 0, "the server closed the connection");
            filled += n;
            if let Some(length) = whole(&buffer[..filled])
                && filled >= length
            {
                break;
            }
        }
        out.push(sent.elapsed().as_micros() as u32);
        let answer = std::str::from_utf8(&buffer[..filled]).expect("text");
        assert!(answer.contains(expect), "unexpected answer: {answer}");
    }
    out
}

/// Length of head and body, once the head is there.
fn whole(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let length = text
        .lines()
        .find_map(|l| l.split_once(':').filter(|(k, _)| k.eq_ignore_ascii_case("content-length")).map(|(_, v)| v))?;
    Some(head + length.trim().parse::<usize>().ok()?)
}

/// CPU time that a process has used so far, seconds (user and system), and its resident memory, MiB.
pub fn usage(pid: u32) -> (f64, f64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    // Fields 14 and 15 of proc(5), counted in ticks of 1/100 s; the comm field and those before it are cut off.
    let ticks: f64 = fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let rss: f64 = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0.0);
    (ticks / 100.0, rss / 1024.0)
}
