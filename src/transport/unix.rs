//! The Unix socket of a Remit on this machine.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tower::Service;

use super::{Bounds, SendError, SendFuture, Transport, at, bounded, causes, whole};

/// The longest path that every system takes for a socket, bytes.
const MAX_PATH: usize = 100;

/// A path by which the socket can be bound and reached: the system takes short ones only. What is given back besides keeps it good.
pub fn reachable(socket: &Path) -> std::io::Result<(PathBuf, Option<std::fs::File>)> {
    if socket.as_os_str().len() <= MAX_PATH {
        return Ok((socket.to_owned(), None));
    }
    let too_long =
        || std::io::Error::other(format!("the path is over {MAX_PATH} bytes, which is too long for a socket"));
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else { return Err(too_long()) };
    let opened = std::fs::File::open(folder)?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&opened);
    let short = PathBuf::from(format!("/proc/self/fd/{number}"));
    if !short.exists() {
        return Err(too_long());
    }
    Ok((short.join(name), Some(opened)))
}

/// A Remit behind a socket.
pub struct UnixSocket {
    client: Client<Connector, Full<Bytes>>,
}

impl UnixSocket {
    /// Connects at the first request.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build(Connector(path.into())) }
    }
}

impl Transport for UnixSocket {
    fn send(&self, request: Request<Bytes>, bounds: Bounds) -> SendFuture<'_> {
        Box::pin(bounded(bounds, async move {
            let request = at(request, "http://localhost")?;
            let answer = self.client.request(request).await;
            whole(answer.map_err(|e| SendError::Unreachable(causes(&e)))?, bounds.answer).await
        }))
    }
}

#[derive(Clone)]
struct Connector(PathBuf);

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move {
            let (short, _held) = reachable(&path)?;
            let connected = UnixStream::connect(short).await;
            let connected = connected.map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
            Ok(Stream(TokioIo::new(connected)))
        })
    }
}

struct Stream(TokioIo<UnixStream>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
