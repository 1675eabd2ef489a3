//! A folder's Remit, whoever leads it: this process, or another one behind the socket.
//!
//! The first process takes the folder's lock and leads; the others connect. When the leader ends, another takes over. Never two write:
//! the lock says who leads, and it goes with its process. A question that was under way is asked again, of whoever leads then.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{Request, Response};
use tokio::sync::Mutex;

use crate::laptop::state::State;
use crate::laptop::{Laptop, LaptopError, Options};
use crate::store::StoreError;
use crate::transport::{Bounds, InProcess, SendError, SendFuture, Transport, UnixSocket};

/// Between two attempts to find a leader.
const AGAIN: Duration = Duration::from_millis(10);
/// Whether a leader answers at all.
const ALIVE: Bounds = Bounds { within: Duration::from_secs(2), answer: 1024 };

/// A folder's Remit.
pub struct Local {
    options: Options,
    state: State,
    role: Mutex<Option<Arc<Role>>>,
}

/// What this process is to the folder now.
enum Role {
    Leading(Laptop, InProcess),
    Following(Box<UnixSocket>),
}

/// Nobody leads yet, or no longer.
struct NotNow(String);

/// What this process has become; Err: the folder can't be led.
type Elected<T> = Result<Result<T, NotNow>, LaptopError>;

impl Local {
    /// Leads the folder, or connects to who does. `within`: how long to look for one of both.
    pub async fn open(options: Options, within: Duration) -> Result<Arc<Self>, LaptopError> {
        let state = State::prepare(&options.dir)?;
        let local = Arc::new(Self { options, state, role: Mutex::default() });
        let until = Instant::now() + within;
        loop {
            match local.clone().role().await? {
                Ok(_) => return Ok(local),
                Err(NotNow(why)) if Instant::now() >= until => {
                    let path = local.state.socket().display().to_string();
                    return Err(LaptopError::Socket { path, source: std::io::Error::other(why) });
                }
                Err(NotNow(_)) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Where its files are.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether this process leads now.
    pub async fn leads(&self) -> bool {
        matches!(self.role.lock().await.as_deref(), Some(Role::Leading(..)))
    }

    /// Takes over where nobody leads. For processes that live on without asking anything.
    pub async fn keep(self: &Arc<Self>) {
        let role = self.role.lock().await.clone();
        if let Some(Role::Following(socket)) = role.as_deref() {
            if alive(socket).await {
                return;
            }
            self.leave(role.as_ref()).await;
        }
        match self.clone().role().await {
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the folder has no leader, and this process can't lead it"),
        }
    }

    /// Ends leading, if this process leads: what was decided is kept, and another process may take over.
    pub async fn close(&self) {
        if let Some(Role::Leading(laptop, _)) = self.role.lock().await.take().as_deref() {
            laptop.stop().await;
        }
    }

    /// What this process is now; becomes it, where it is nothing. In a task of its own: a caller that gives up must not leave a folder
    /// half led.
    async fn role(self: Arc<Self>) -> Elected<Arc<Role>> {
        if let Some(role) = self.role.lock().await.as_ref() {
            return Ok(Ok(role.clone()));
        }
        let elected = tokio::spawn(Self::become_one(self));
        elected.await.unwrap_or_else(|error| Ok(Err(NotNow(error.to_string()))))
    }

    fn become_one(self: Arc<Self>) -> Pin<Box<dyn Future<Output = Elected<Arc<Role>>> + Send>> {
        Box::pin(async move {
            let mut role = self.role.lock().await;
            if let Some(role) = role.as_ref() {
                return Ok(Ok(role.clone()));
            }
            let found = self.elect().await?;
            Ok(found.map(|found| role.insert(Arc::new(found)).clone()))
        })
    }

    async fn elect(&self) -> Elected<Role> {
        let socket = UnixSocket::new(self.state.socket());
        if self.state.socket().exists() && alive(&socket).await {
            return Ok(Ok(Role::Following(Box::new(socket))));
        }
        match Laptop::lead(&self.options, &self.state).await {
            Ok(laptop) => {
                let router = InProcess(laptop.router());
                Ok(Ok(Role::Leading(laptop, router)))
            }
            // It is on its way up or down: its socket does not answer.
            Err(LaptopError::Store(StoreError::Locked { holder, .. })) => {
                Ok(Err(NotNow(format!("the process that leads the folder{holder} does not answer"))))
            }
            Err(error) => Err(error),
        }
    }

    /// Is no longer what failed, unless it is something else by now.
    async fn leave(&self, failed: Option<&Arc<Role>>) {
        let mut role = self.role.lock().await;
        if let (Some(now), Some(failed)) = (role.as_ref(), failed)
            && Arc::ptr_eq(now, failed)
        {
            *role = None;
        }
    }
}

async fn alive(socket: &UnixSocket) -> bool {
    let Ok(request) = Request::get("/livez").body(Bytes::new()) else { return false };
    socket.send(request, ALIVE).await.is_ok_and(|answer| answer.status().is_success())
}

/// A folder's Remit as a transport.
pub struct LocalTransport(pub Arc<Local>);

impl Transport for LocalTransport {
    fn send(&self, request: Request<Bytes>, bounds: Bounds) -> SendFuture<'_> {
        Box::pin(async move {
            let until = Instant::now() + bounds.within;
            let mut last = SendError::Timeout(bounds.within);
            loop {
                let left = until.saturating_duration_since(Instant::now());
                let bounds = Bounds { within: left, ..bounds };
                match tokio::time::timeout(left, self.attempt(request.clone(), bounds)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(Failed::ForNow(error))) => last = error,
                    Ok(Err(Failed::ForGood(error))) => return Err(error),
                    Err(_) => return Err(last),
                }
                tokio::time::sleep(AGAIN).await;
            }
        })
    }
}

/// Why an attempt gave no answer.
enum Failed {
    /// Another leader may answer.
    ForNow(SendError),
    /// Trying again changes nothing.
    ForGood(SendError),
}

impl LocalTransport {
    async fn attempt(&self, request: Request<Bytes>, bounds: Bounds) -> Result<Response<Bytes>, Failed> {
        let unreachable = |why: String| SendError::Unreachable(why);
        let role = match self.0.clone().role().await {
            Ok(Ok(role)) => role,
            Ok(Err(NotNow(why))) => return Err(Failed::ForNow(unreachable(why))),
            Err(error) => return Err(Failed::ForGood(unreachable(error.to_string()))),
        };
        match role.as_ref() {
            Role::Leading(_, router) => router.send(request, bounds).await.map_err(Failed::ForGood),
            Role::Following(socket) => match socket.send(request, bounds).await {
                Err(error @ SendError::Unreachable(_)) => {
                    self.0.leave(Some(&role)).await;
                    Err(Failed::ForNow(error))
                }
                sent => sent.map_err(Failed::ForGood),
            },
        }
    }
}
