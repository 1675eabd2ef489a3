//! Which connection a request belongs to: a session by its id, or in the newer era one that all requests share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue};
use rand_core::{OsRng, RngCore as _};
use tokio::sync::mpsc;

use super::connection::{Connection, Out, Shared};
use super::guard::Client;
use crate::enforce::mcp::Id;

/// Sessions of one proxy.
const MAX_SESSIONS: usize = 256;
/// A session that nobody has used for so long makes room for another, or ends.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// Requests of the newer era under one id at a time.
const MAX_LANES: usize = 64;

struct Session {
    connection: Arc<Connection>,
    client: Client,
    used: Instant,
}

/// All connections of a proxy.
pub struct Sessions {
    shared: Shared,
    table: Mutex<HashMap<String, Session>>,
    /// Clients of the newer era don't know each other's ids, so a request whose id is taken goes to the next connection.
    lanes: Mutex<Vec<Arc<Connection>>>,
}

/// A session's id as a client must send it.
pub type SessionId = HeaderValue;

impl Sessions {
    /// None yet.
    pub fn new(shared: Shared) -> Self {
        Self { shared, table: Mutex::default(), lanes: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new session. None: there are too many, and all of them in use.
    pub fn open(&self, client: Client, now: Instant) -> Option<(SessionId, Arc<Connection>)> {
        let mut random = [0; 32];
        OsRng.try_fill_bytes(&mut random).ok()?;
        let id: String = random.iter().map(|b| format!("{b:02x}")).collect();
        let value = HeaderValue::from_str(&id).ok()?;
        self.sweep(now);
        let mut table = self.table();
        if table.len() >= MAX_SESSIONS {
            return None;
        }
        let connection = Connection::new(self.shared.clone());
        table.insert(id, Session { connection: connection.clone(), client, used: now });
        Some((value, connection))
    }

    /// The session with this id, if it is this client's.
    pub fn find(&self, id: &HeaderValue, client: Client, now: Instant) -> Option<Arc<Connection>> {
        let mut table = self.table();
        let id = id.to_str().ok()?;
        let session = table.get_mut(id).filter(|session| session.client == client)?;
        if session.connection.is_gone() {
            table.remove(id);
            return None;
        }
        session.used = now;
        Some(session.connection.clone())
    }

    /// Takes a session out.
    pub fn close(&self, id: &HeaderValue, client: Client) -> Option<Arc<Connection>> {
        let mut table = self.table();
        let id = id.to_str().ok()?;
        table.get(id).filter(|session| session.client == client)?;
        table.remove(id).map(|session| session.connection)
    }

    /// Ends what nobody has used for long.
    fn sweep(&self, now: Instant) {
        let mut ended = Vec::new();
        self.table().retain(|_, session| {
            let old = now.saturating_duration_since(session.used) > IDLE && session.connection.is_idle();
            let stays = !old && !session.connection.is_gone();
            if !stays {
                ended.push(session.connection.clone());
            }
            stays
        });
        for connection in ended {
            tokio::spawn(async move { connection.end().await });
        }
    }

    /// A request of the newer era. None: too many of this id at once.
    pub async fn ask(
        &self,
        id: &Id,
        method: &str,
        line: &[u8],
        headers: HeaderMap,
    ) -> Option<(Arc<Connection>, mpsc::Receiver<Out>)> {
        for lane in 0..MAX_LANES {
            let connection = self.lane(lane);
            if let Some(answers) = connection.request(id.clone(), method, line, headers.clone()).await {
                return Some((connection, answers));
            }
        }
        None
    }

    fn lane(&self, at: usize) -> Arc<Connection> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        // What one of them has listed is news to the others.
        let listed: Vec<bool> = lanes.iter().map(|lane| lane.has_listed()).collect();
        for (i, lane) in lanes.iter().enumerate() {
            if listed.iter().enumerate().any(|(j, listed)| *listed && i != j) {
                lane.outdated();
            }
        }
        if at >= lanes.len() {
            lanes.push(Connection::new(self.shared.clone()));
        }
        lanes[at.min(lanes.len() - 1)].clone()
    }

    /// Ends all of them.
    pub async fn end(&self) {
        let all: Vec<Arc<Connection>> = self.table().drain().map(|(_, session)| session.connection).collect();
        let lanes: Vec<Arc<Connection>> = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        futures::future::join_all(all.iter().chain(&lanes).map(|connection| connection.end())).await;
    }
}
