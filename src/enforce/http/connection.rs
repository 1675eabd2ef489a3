//! One relay over HTTP: what it wants done is done here, and every request of the client gets its answer on its own response.
//!
//! Decides nothing. Each message to the server is a POST of its own; what comes back on it goes to the request that it answers, or
//! to the response of the request that it came with.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::headers::Repeated;
use super::upstream::{Reply, Route, Stream, Upstream, UpstreamError};
use crate::enforce::Pdp;
use crate::enforce::mcp::courier::{Answer, Courier};
use crate::enforce::mcp::{Action, Id, Kind, Message, Relay, Settings, error_line};

/// Messages that may wait for a client that reads slowly.
const BACKLOG: usize = 64;
/// Attempts to read on where a stream broke, one after the other without a message between.
const RESUMES: u32 = 5;
/// Notes of one connection that are logged.
const MAX_NOTES: u32 = 100;
/// For questions and reports on their way when a session ends.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Not reachable, or no answer: JSON-RPC's internal error.
const INTERNAL_ERROR: i64 = -32603;

/// What goes to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// Something on the way to the answer.
    Message(Vec<u8>),
    /// The answer, the last of its response.
    Answer {
        /// The message.
        line: Vec<u8>,
        /// What the server's own status was, where it refused.
        status: Option<StatusCode>,
    },
    /// The server has ended the session.
    Gone,
}

/// Where a message came from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum From {
    /// From the response to this request, or from the client that made it.
    Request(Id),
    /// From the server, unasked.
    Unasked,
}

/// What every connection of a proxy shares.
#[derive(Clone)]
pub struct Shared {
    /// The server.
    pub upstream: Arc<Upstream>,
    /// The decision point.
    pub pdp: Arc<dyn Pdp>,
    /// How long it may take to answer.
    pub limit: Duration,
    /// How calls are judged.
    pub settings: Settings,
}

/// A request of the client that is not answered yet.
struct Waiter {
    out: mpsc::Sender<Out>,
    /// Headers that go to the server with it.
    headers: HeaderMap,
    method: String,
    status: Option<StatusCode>,
    exchange: Option<AbortHandle>,
}

/// What the server said of itself.
#[derive(Clone, Debug, Default)]
struct Agreed {
    session: Option<HeaderValue>,
    version: Option<String>,
}

/// One relay and who waits at it.
pub struct Connection {
    shared: Shared,
    relay: Mutex<Relay>,
    courier: Courier,
    waiters: Mutex<HashMap<Id, Waiter>>,
    unasked: Mutex<Option<mpsc::Sender<Out>>>,
    agreed: Mutex<Agreed>,
    gone: AtomicBool,
    /// A list of tools went to the client: other relays of the same server may know an older one.
    listed: AtomicBool,
    notes: AtomicU32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Performed<'a> = Pin<Box<dyn Future<Output = Result<(), UpstreamError>> + Send + 'a>>;

impl Connection {
    /// A new one.
    pub fn new(shared: Shared) -> Arc<Self> {
        let relay = Mutex::new(Relay::new(shared.settings.clone()));
        let (courier, answers) = Courier::new(shared.pdp.clone(), shared.settings.agent.clone(), shared.limit);
        let courier = courier.in_session(shared.settings.session.clone());
        let connection = Arc::new(Self {
            shared,
            relay,
            courier,
            waiters: Mutex::default(),
            unasked: Mutex::default(),
            agreed: Mutex::default(),
            gone: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            notes: AtomicU32::new(0),
        });
        tokio::spawn(hear(Arc::downgrade(&connection), answers));
        connection
    }

    /// The revision that both sides agreed on in `initialize`.
    pub fn version(&self) -> Option<String> {
        lock(&self.agreed).version.clone()
    }

    /// The server has ended the session.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        lock(&self.waiters).is_empty() && lock(&self.unasked).as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// Whether a list of tools has passed since this was asked.
    pub fn has_listed(&self) -> bool {
        self.listed.swap(false, Ordering::AcqRel)
    }

    /// The next call is judged by a new list.
    pub fn outdated(&self) {
        lock(&self.relay).outdated();
    }

    /// One request of the client. None: another with this id is not answered yet.
    pub async fn request(
        self: &Arc<Self>,
        id: Id,
        method: &str,
        line: &[u8],
        headers: HeaderMap,
    ) -> Option<mpsc::Receiver<Out>> {
        let (out, answers) = mpsc::channel(BACKLOG);
        {
            let mut waiters = lock(&self.waiters);
            if waiters.contains_key(&id) {
                return None;
            }
            let waiter = Waiter { out, headers, method: method.to_owned(), status: None, exchange: None };
            waiters.insert(id.clone(), waiter);
        }
        let actions = lock(&self.relay).from_client(line, Instant::now());
        // What goes wrong on the way to the server becomes the answer.
        let _ = self.perform(actions, From::Request(id.clone())).await;
        Some(answers)
    }

    /// A notification or an answer of the client.
    pub async fn tell(self: &Arc<Self>, line: &[u8]) -> Result<(), UpstreamError> {
        let actions = lock(&self.relay).from_client(line, Instant::now());
        let told = self.perform(actions, From::Unasked).await;
        // A request that is taken back before the server has it is answered by nobody: its response ends.
        if let Some(id) = taken_back(line) {
            let mut waiters = lock(&self.waiters);
            if waiters.get(&id).is_some_and(|waiter| waiter.exchange.is_none()) {
                waiters.remove(&id);
            }
        }
        told
    }

    /// The client has closed the response to this request. In the newer era that takes the request back.
    pub fn left(self: &Arc<Self>, id: &Id) {
        let Some(waiter) = lock(&self.waiters).remove(id) else { return };
        let (told, actions) = lock(&self.relay).cancel(id, Instant::now());
        // Closing the server's response tells it.
        if told && let Some(exchange) = waiter.exchange {
            exchange.abort();
        }
        let connection = self.clone();
        tokio::spawn(async move {
            let _ = connection.perform(actions, From::Unasked).await;
        });
    }

    /// Listens to what the server says unasked. `Ok(None)`: it does not offer that; `Err(None)`: somebody listens already.
    pub async fn listen(self: &Arc<Self>) -> Result<Option<mpsc::Receiver<Out>>, Option<UpstreamError>> {
        let (out, messages) = mpsc::channel(BACKLOG);
        {
            let mut unasked = lock(&self.unasked);
            if unasked.as_ref().is_some_and(|there| !there.is_closed()) {
                return Err(None);
            }
            *unasked = Some(out.clone());
        }
        let stream = match self.shared.upstream.listen(&self.route(HeaderMap::new()), None).await {
            Ok(Some(stream)) => stream,
            Ok(None) => {
                *lock(&self.unasked) = None;
                return Ok(None);
            }
            Err(error) => {
                *lock(&self.unasked) = None;
                return Err(Some(error));
            }
        };
        let connection = self.clone();
        tokio::spawn(async move {
            let read = connection.read(stream, &From::Unasked, None);
            tokio::select! {
                () = out.closed() => {}
                ended = read => if let Err(error) = ended {
                    tracing::debug!(%error, "the server's own stream ended");
                }
            }
            let mut unasked = lock(&connection.unasked);
            if unasked.as_ref().is_some_and(|there| there.same_channel(&out)) {
                *unasked = None;
            }
        });
        Ok(Some(messages))
    }

    /// The client has ended the session: nothing more is sent for it, and the server is told.
    pub async fn end(self: &Arc<Self>) {
        lock(&self.relay).client_ended();
        *lock(&self.unasked) = None;
        let route = self.route(HeaderMap::new());
        if route.session.is_some()
            && let Err(error) = self.shared.upstream.delete(&route).await
        {
            tracing::debug!(%error, "the server was not told that a session has ended");
        }
        let waiters: Vec<Waiter> = lock(&self.waiters).drain().map(|(_, waiter)| waiter).collect();
        for waiter in waiters {
            let _ = waiter.out.try_send(Out::Gone);
            if let Some(exchange) = waiter.exchange {
                exchange.abort();
            }
        }
        let actions = lock(&self.relay).server_ended(&[], Instant::now());
        let _ = self.perform(actions, From::Unasked).await;
        // What Remit allows now is not sent any more, and that is reported.
        let decided = async {
            while lock(&self.relay).undecided() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, decided).await;
        self.courier.finish(LAST_WORDS).await;
    }

    fn route(&self, headers: HeaderMap) -> Route {
        let Agreed { session, version } = lock(&self.agreed).clone();
        Route { session, version, headers }
    }

    /// The headers of a message: derived from its bytes, and in the newer era the arguments that its client repeated.
    fn headers_of(&self, line: &[u8], id: Option<&Id>) -> Result<Route, UpstreamError> {
        let repeated = Repeated::read(line);
        let mut headers = HeaderMap::new();
        repeated.write(&mut headers).map_err(|e| UpstreamError::Answer(e.to_string()))?;
        if let Some(id) = id
            && let Some(waiter) = lock(&self.waiters).get(id)
        {
            headers.extend(waiter.headers.clone());
        }
        let mut route = self.route(headers);
        if repeated.version.is_some() {
            route = Route { session: None, version: None, ..route };
        }
        Ok(route)
    }

    fn perform(self: &Arc<Self>, actions: Vec<Action>, from: From) -> Performed<'_> {
        Box::pin(async move {
            let mut outcome = Ok(());
            for action in actions {
                match action {
                    Action::ToClient { line, answers: Some(id) } => self.answer(&id, line).await,
                    Action::ToClient { line, answers: None } => self.pass(line, &from).await,
                    Action::ToServer { line, id: Some(id), .. } => self.exchange(line, id),
                    Action::ToServer { line, id: None, .. } => {
                        if let Err(error) = self.send(line).await {
                            tracing::warn!(%error, "a message did not reach the MCP server");
                            outcome = Err(error);
                        }
                    }
                    Action::Check { ticket, question } => self.courier.check(ticket, *question),
                    Action::Tools { ticket } => self.courier.tools(ticket),
                    Action::Report { decision_id, outcome, took } => self.courier.report(decision_id, outcome, took),
                    Action::Note(note) => self.note(&note),
                }
            }
            outcome
        })
    }

    fn note(&self, note: &str) {
        match self.notes.fetch_add(1, Ordering::Relaxed).cmp(&MAX_NOTES) {
            std::cmp::Ordering::Less => tracing::warn!("{note}"),
            std::cmp::Ordering::Equal => tracing::warn!("{note}; more of this connection is not logged"),
            std::cmp::Ordering::Greater => {}
        }
    }

    /// The answer to a request of the client.
    async fn answer(&self, id: &Id, line: Vec<u8>) {
        let Some(waiter) = lock(&self.waiters).remove(id) else { return };
        if waiter.method == "initialize"
            && let Ok(serde_json::Value::Object(message)) = serde_json::from_slice(&line)
            && let Some(version) = message.get("result").and_then(|r| r.get("protocolVersion")).and_then(|v| v.as_str())
        {
            lock(&self.agreed).version = Some(version.to_owned());
        }
        let _ = waiter.out.send(Out::Answer { line, status: waiter.status }).await;
    }

    /// Something that answers nothing: to where it came from.
    async fn pass(&self, line: Vec<u8>, from: &From) {
        let request = match from {
            From::Request(id) => lock(&self.waiters).get(id).map(|waiter| waiter.out.clone()),
            From::Unasked => None,
        };
        let to = request.or_else(|| lock(&self.unasked).clone());
        match to {
            Some(to) => drop(to.send(Out::Message(line)).await),
            None => tracing::debug!("nobody listens to what the server says unasked: a message is dropped"),
        }
    }

    /// A request to the server, and what comes back on its response. One that its client has taken back since it was allowed, or whose
    /// session has ended, is not sent any more.
    fn exchange(self: &Arc<Self>, line: Vec<u8>, id: Id) {
        let connection = self.clone();
        let asked = id.clone();
        let mut waiters = lock(&self.waiters);
        if !Relay::is_own(&id) && !waiters.contains_key(&id) {
            tracing::debug!(%id, "nobody waits for this request any more: it is not sent");
            return;
        }
        let task = tokio::spawn(async move {
            let why = match connection.exchanged(line, &asked).await {
                Ok(true) => return,
                Ok(false) => "the MCP server's response ended without an answer".to_owned(),
                Err(error) => {
                    // A server of the older era refuses the newer one's first request: how a client finds out.
                    tracing::info!(%error, id = %asked, "a request to the MCP server failed");
                    brief(&error)
                }
            };
            let line = error_line(Some(&asked), INTERNAL_ERROR, &why);
            let actions = lock(&connection.relay).from_server(&line, Instant::now());
            connection.settle(&asked, &actions);
            let _ = connection.perform(actions, From::Request(asked)).await;
        });
        if let Some(waiter) = waiters.get_mut(&id) {
            waiter.exchange = Some(task.abort_handle());
        }
    }

    /// What the relay makes of the server's answer to a request. If nothing, the request was taken back, and whoever still waits for
    /// it gets nothing more.
    fn settle(&self, id: &Id, actions: &[Action]) {
        let answers = |action: &Action| match action {
            // A list is filtered before it is the answer.
            Action::Tools { .. } => true,
            Action::ToClient { answers, .. } => answers.as_ref() == Some(id),
            _ => false,
        };
        if !actions.iter().any(answers) {
            lock(&self.waiters).remove(id);
        }
    }

    /// True: the request was answered.
    async fn exchanged(self: &Arc<Self>, line: Vec<u8>, id: &Id) -> Result<bool, UpstreamError> {
        let route = self.headers_of(&line, Some(id))?;
        let sessionful = route.session.is_some();
        let answered = self.shared.upstream.post(line, &route).await?;
        if lock(&self.waiters).get(id).is_some_and(|w| w.method == "initialize") {
            lock(&self.agreed).session = answered.session;
        }
        let from = From::Request(id.clone());
        match answered.reply {
            Reply::Accepted => Ok(false),
            Reply::Message(body) => self.take(body.trim_ascii(), &from, Some(id)).await,
            Reply::Stream(stream) => self.read(*stream, &from, Some(id)).await,
            Reply::Refused(StatusCode::NOT_FOUND, _) if sessionful => {
                self.gone.store(true, Ordering::Release);
                let waiters: Vec<Waiter> = lock(&self.waiters).drain().map(|(_, waiter)| waiter).collect();
                for waiter in waiters {
                    let _ = waiter.out.send(Out::Gone).await;
                }
                Ok(false)
            }
            Reply::Refused(status, body) => {
                if status.is_client_error()
                    && let Some(waiter) = lock(&self.waiters).get_mut(id)
                {
                    // Not 401 or 403: the credentials that were refused are not the client's.
                    waiter.status =
                        Some(if status == StatusCode::NOT_FOUND { status } else { StatusCode::BAD_REQUEST });
                }
                if answers(body.trim_ascii(), id) {
                    return self.take(body.trim_ascii(), &from, Some(id)).await;
                }
                Err(UpstreamError::Answer(format!("it answered {}", status.as_u16())))
            }
        }
    }

    /// A notification or an answer to the server.
    async fn send(&self, line: Vec<u8>) -> Result<(), UpstreamError> {
        let route = self.headers_of(&line, None)?;
        match self.shared.upstream.post(line, &route).await?.reply {
            Reply::Refused(status, _) => Err(UpstreamError::Answer(format!("it answered {}", status.as_u16()))),
            Reply::Accepted | Reply::Message(_) | Reply::Stream(_) => Ok(()),
        }
    }

    /// Reads a stream to its end, or to the answer to `id`; where it breaks before that and the server lets one, from there on.
    async fn read(self: &Arc<Self>, mut stream: Stream, from: &From, id: Option<&Id>) -> Result<bool, UpstreamError> {
        let mut resumes = 0;
        loop {
            let ended = loop {
                match stream.next().await {
                    Ok(Some(message)) => {
                        resumes = 0;
                        if self.take(message.as_bytes(), from, id).await? {
                            return Ok(true);
                        }
                    }
                    Ok(None) => break Ok(false),
                    Err(error) => break Err(error),
                }
            };
            // Only the older era has streams that go on.
            let resumable = stream.resumable().filter(|_| resumes < RESUMES && self.version().is_some());
            let Some((after, wait)) = resumable else { return ended };
            resumes += 1;
            tokio::time::sleep(wait).await;
            match self.shared.upstream.listen(&self.route(HeaderMap::new()), Some(&after)).await {
                Ok(Some(more)) => stream = more,
                Ok(None) | Err(_) => return ended,
            }
        }
    }

    /// One message of the server. True: it answers `id`.
    async fn take(self: &Arc<Self>, message: &[u8], from: &From, id: Option<&Id>) -> Result<bool, UpstreamError> {
        let answered = id.is_some_and(|id| answers(message, id));
        let actions = lock(&self.relay).from_server(message, Instant::now());
        if let Some(id) = id.filter(|_| answered) {
            self.settle(id, &actions);
        }
        let _ = self.perform(actions, from.clone()).await;
        Ok(answered)
    }
}

/// Gives the decision point's answers to the relay, for as long as there is one.
async fn hear(connection: Weak<Connection>, mut answers: mpsc::UnboundedReceiver<Answer>) {
    while let Some(answer) = answers.recv().await {
        let Some(connection) = connection.upgrade() else { return };
        let actions = match answer {
            Answer::Decided(ticket, verdict) => lock(&connection.relay).decided(ticket, verdict, Instant::now()),
            Answer::Listed(ticket, tools) => {
                connection.listed.store(true, Ordering::Release);
                lock(&connection.relay).listed(ticket, tools)
            }
        };
        // A client that reads slowly holds up nobody else's answer.
        tokio::spawn(async move { drop(connection.perform(actions, From::Unasked).await) });
    }
}

/// The request that a client takes back with this message.
fn taken_back(line: &[u8]) -> Option<Id> {
    let message: serde_json::Value = serde_json::from_slice(line).ok()?;
    if message.get("method")?.as_str()? != "notifications/cancelled" {
        return None;
    }
    match message.get("params")?.get("requestId")? {
        serde_json::Value::String(text) => Some(Id::Text(text.clone())),
        number => number.as_i64().map(Id::Number),
    }
}

/// Whether a message is the answer to this request.
fn answers(message: &[u8], id: &Id) -> bool {
    let message = std::str::from_utf8(message).ok().and_then(|text| Message::read(text).ok());
    matches!(message.map(|m| m.kind), Some(Kind::Response { id: answered, .. }) if answered == *id)
}

/// For the client: without addresses and files.
fn brief(error: &UpstreamError) -> String {
    match error {
        UpstreamError::Connection(_) => "the MCP server can't be reached".into(),
        UpstreamError::Timeout(_) => error.to_string(),
        UpstreamError::Answer(why) => format!("the MCP server's answer does not pass: {why}"),
        UpstreamError::Stream(why) => format!("the MCP server's answer does not pass: {why}"),
        UpstreamError::Address { .. } | UpstreamError::File { .. } | UpstreamError::Tls(_) => {
            "the proxy can't ask the MCP server: its log says why".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::enforce::http::UpstreamArgs;
    use crate::enforce::{CallOutcome, PdpError, PdpFuture, Question, Verdict};

    struct Nobody;

    impl Pdp for Nobody {
        fn check<'a>(&'a self, _: &'a Question) -> PdpFuture<'a, Result<Verdict, PdpError>> {
            Box::pin(std::future::pending())
        }
        fn tools<'a>(&'a self, _: &'a str) -> PdpFuture<'a, Result<Vec<String>, PdpError>> {
            Box::pin(std::future::pending())
        }
        fn report<'a>(&'a self, _: &'a str, _: CallOutcome, _: Duration) -> PdpFuture<'a, Result<(), PdpError>> {
            Box::pin(std::future::pending())
        }
    }

    /// The client may go away between the allow and its sending: the record then says `cancelled`, and so it must be.
    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_sent() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", server.local_addr().unwrap());
        let upstream = Arc::new(Upstream::new(&url, &UpstreamArgs::default()).unwrap());
        let shared =
            Shared { upstream, pdp: Arc::new(Nobody), limit: Duration::from_secs(60), settings: Settings::default() };
        let connection = Connection::new(shared);
        let send = |id: Id, body: &str| connection.exchange(body.as_bytes().to_vec(), id);
        send(Id::Number(1), "taken back");
        // The relay's own requests have nobody who waits.
        send(Id::Text("remit:1".into()), "the relay's");
        let (out, _answers) = mpsc::channel(1);
        let waiter = Waiter { out, headers: HeaderMap::new(), method: "x".into(), status: None, exchange: None };
        lock(&connection.waiters).insert(Id::Number(2), waiter);
        send(Id::Number(2), "waited for");
        let mut sent = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) =
                tokio::time::timeout(Duration::from_secs(60), server.accept()).await.unwrap().unwrap();
            let (mut request, mut chunk) = (String::new(), [0; 1024]);
            while !["taken back", "the relay's", "waited for"].iter().any(|body| request.ends_with(body)) {
                let n = stream.read(&mut chunk).await.unwrap();
                assert!(n > 0, "{request}");
                request.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
            }
            sent.push(request.rsplit("\r\n").next().unwrap().to_owned());
        }
        sent.sort_unstable();
        assert_eq!(sent, ["the relay's", "waited for"]);
    }
}
