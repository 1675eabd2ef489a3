//! The stdio transport: a client on this process's standard streams, a server in a child process.
//!
//! One task owns the relay, so that messages keep their order; two tasks write. A side is read only while the other side takes
//! what it gets, and while it takes itself what it is answered, so that nobody can fill the memory, and neither direction can hold
//! up the other. Must never write anything but
//! messages to the client, nor send a call after the client or the server has gone.

use std::io;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::child::Server;
use super::courier::{Answer, Courier};
use super::frame::{Frame, Lines, MAX_CLIENT_LINE, MAX_SERVER_LINE};
use super::{Action, Id, Relay};

/// Bytes that may wait for a reader before the other side is not read any more.
const HIGH_WATER: usize = 8 << 20;
/// Bytes that may wait for a side before itself is not read any more: what it sends is answered here, too, and it may never read that.
const OWN_HIGH_WATER: usize = 4 * HIGH_WATER;
/// Bytes of one read.
const CHUNK: usize = 64 << 10;
/// Lines in the log about what was refused; a hostile peer could fill a disk with more.
const MAX_NOTES: u32 = 200;
/// How long the last reports and answers may take when the connection is over.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a connection came to its end.
#[derive(Debug)]
pub enum Ended {
    /// The client closed it, or Remit was told to stop.
    ByClient,
    /// The server ended, or closed its output.
    ByServer(ExitStatus),
}

/// Messages on their way to one side.
struct Outbox {
    lines: mpsc::UnboundedSender<(Vec<u8>, Option<Id>)>,
    queued: Arc<AtomicUsize>,
    /// Something was written, or nothing can be any more.
    moved: Arc<Notify>,
    /// Ids of the requests that were never written as a whole.
    writer: JoinHandle<Vec<Id>>,
}

impl Outbox {
    fn new(mut to: impl AsyncWrite + Unpin + Send + 'static) -> Self {
        let (lines, mut queue) = mpsc::unbounded_channel::<(Vec<u8>, Option<Id>)>();
        let (queued, moved) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, notify) = (queued.clone(), moved.clone());
        let writer = tokio::spawn(async move {
            while let Some((mut line, id)) = queue.recv().await {
                let bytes = line.len();
                line.push(b'\n');
                let written = match to.write_all(&line).await {
                    Ok(()) => to.flush().await,
                    Err(error) => Err(error),
                };
                count.fetch_sub(bytes, Ordering::Relaxed);
                notify.notify_one();
                if written.is_err() {
                    queue.close();
                    let mut unsent: Vec<Id> = id.into_iter().collect();
                    while let Some((_, id)) = queue.recv().await {
                        unsent.extend(id);
                    }
                    return unsent;
                }
            }
            // Dropping the writer closes the stream, which is how the reader learns of the end.
            Vec::new()
        });
        Self { lines, queued, moved, writer }
    }

    /// False if nobody reads any more.
    fn send(&self, line: Vec<u8>, id: Option<Id>) -> bool {
        let bytes = line.len();
        self.queued.fetch_add(bytes, Ordering::Relaxed);
        self.lines.send((line, id)).is_ok()
    }

    fn has_room(&self) -> bool {
        self.queued.load(Ordering::Relaxed) < HIGH_WATER
    }

    /// Whether the side that reads here may go on talking.
    fn is_read(&self) -> bool {
        self.queued.load(Ordering::Relaxed) < OWN_HIGH_WATER
    }

    /// Writes what is queued, at most so long, and closes the stream.
    async fn close(self, at_most: Duration) -> Vec<Id> {
        drop(self.lines);
        let abort = self.writer.abort_handle();
        match tokio::time::timeout(at_most, self.writer).await {
            Ok(unsent) => unsent.unwrap_or_default(),
            Err(_) => {
                abort.abort();
                Vec::new()
            }
        }
    }
}

/// A connection and everything that it needs.
pub struct Connection {
    relay: Relay,
    courier: Courier,
    answers: mpsc::UnboundedReceiver<Answer>,
    /// Requests that were to be sent when the server no longer took anything.
    unsent: Vec<Id>,
    notes: u32,
}

/// Reads a stream line by line.
struct Inbox<R> {
    from: R,
    lines: Lines,
    chunk: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Inbox<R> {
    fn new(from: R, longest: usize) -> Self {
        Self { from, lines: Lines::new(longest), chunk: vec![0; CHUNK] }
    }

    /// Reads on; false at the end. A last line that does not end is no message. Safe to drop and call again.
    async fn read(&mut self) -> bool {
        match self.from.read(&mut self.chunk).await {
            Ok(n) if n > 0 => {
                self.lines.push(&self.chunk[..n]);
                true
            }
            Ok(_) | Err(_) => false,
        }
    }
}

impl Connection {
    /// A connection that asks through this courier.
    pub fn new(relay: Relay, courier: Courier, answers: mpsc::UnboundedReceiver<Answer>) -> Self {
        Self { relay, courier, answers, unsent: Vec::new(), notes: 0 }
    }

    /// Passes messages until one side ends or `stop` is done, and ends the other.
    pub async fn run(
        mut self,
        client: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin + Send + 'static),
        (mut server, server_in, server_out): (Server, ChildStdin, ChildStdout),
        stop: impl Future<Output = ()>,
    ) -> io::Result<Ended> {
        let mut client_in = Inbox::new(client.0, MAX_CLIENT_LINE);
        let mut server_out = Inbox::new(server_out, MAX_SERVER_LINE);
        let (to_client, to_server) = (Outbox::new(client.1), Outbox::new(server_in));
        let by_client = self.pass(&mut client_in, &mut server_out, &to_client, &to_server, &mut server, stop).await?;
        let status = if by_client {
            self.relay.client_ended();
            // Whoever closes its input may still read: what the server answers before it ends is passed on.
            let ending = async {
                to_server.close(LAST_WORDS).await;
                server.end().await
            };
            tokio::pin!(ending);
            let mut open = true;
            loop {
                let actions = tokio::select! {
                    status = &mut ending => break status?,
                    more = server_out.read(), if open && to_client.has_room() => {
                        open = more;
                        self.server_lines(&mut server_out.lines)
                    }
                    Some(answer) = self.answers.recv() => self.answered(answer),
                };
                self.act(actions, &to_client, None);
            }
        } else {
            let status = server.end().await?;
            self.unsent.extend(to_server.close(LAST_WORDS).await);
            status
        };
        let actions = self.relay.server_ended(&std::mem::take(&mut self.unsent), Instant::now());
        self.act(actions, &to_client, None);
        self.last_answers(&to_client).await;
        to_client.close(LAST_WORDS).await;
        self.courier.finish(LAST_WORDS).await;
        Ok(if by_client { Ended::ByClient } else { Ended::ByServer(status) })
    }

    /// Passes messages until one side ends: true if it was the client, or `stop`.
    async fn pass(
        &mut self,
        client_in: &mut Inbox<impl AsyncRead + Unpin>,
        server_out: &mut Inbox<ChildStdout>,
        to_client: &Outbox,
        to_server: &Outbox,
        server: &mut Server,
        stop: impl Future<Output = ()>,
    ) -> io::Result<bool> {
        tokio::pin!(stop);
        // A server that has ended may have left something in the pipe; but who else holds its other end is not waited for.
        let mut late = None;
        loop {
            let (client_room, server_room, exited) = (to_client.has_room(), to_server.has_room(), late.is_some());
            let overdue = async {
                match &mut late {
                    Some(late) => Pin::as_mut(late).await,
                    None => std::future::pending().await,
                }
            };
            let actions = tokio::select! {
                more = client_in.read(), if server_room && to_client.is_read() => match more {
                    true => self.client_lines(&mut client_in.lines),
                    false => return Ok(true),
                },
                more = server_out.read(), if client_room && to_server.is_read() => match more {
                    true => self.server_lines(&mut server_out.lines),
                    false => return Ok(false),
                },
                Some(answer) = self.answers.recv() => self.answered(answer),
                () = to_client.moved.notified(), if !client_room => Vec::new(),
                () = to_server.moved.notified(), if !server_room => Vec::new(),
                () = &mut stop => return Ok(true),
                () = overdue => return Ok(false),
                status = server.ended(), if !exited => {
                    status?;
                    late = Some(Box::pin(tokio::time::sleep(LAST_WORDS)));
                    Vec::new()
                }
            };
            if !self.act(actions, to_client, Some(to_server)) {
                return Ok(true);
            }
        }
    }

    fn client_lines(&mut self, lines: &mut Lines) -> Vec<Action> {
        let mut out = Vec::new();
        while let Some(frame) = lines.next_line() {
            out.extend(match frame {
                Frame::Line(line) => self.relay.from_client(&line, Instant::now()),
                Frame::TooLong => self.relay.client_too_long(),
            });
        }
        out
    }

    fn server_lines(&mut self, lines: &mut Lines) -> Vec<Action> {
        let mut out = Vec::new();
        while let Some(frame) = lines.next_line() {
            out.extend(match frame {
                Frame::Line(line) => self.relay.from_server(&line, Instant::now()),
                Frame::TooLong => self.relay.server_too_long(),
            });
        }
        out
    }

    fn answered(&mut self, answer: Answer) -> Vec<Action> {
        match answer {
            Answer::Decided(ticket, answer) => self.relay.decided(ticket, answer, Instant::now()),
            Answer::Listed(ticket, answer) => self.relay.listed(ticket, answer),
        }
    }

    /// Does what the relay wants; false if the client reads no more. Without a server nothing is sent to it.
    fn act(&mut self, actions: Vec<Action>, to_client: &Outbox, to_server: Option<&Outbox>) -> bool {
        let mut reads = true;
        for action in actions {
            match action {
                Action::ToClient { line, .. } => reads &= to_client.send(line, None),
                Action::ToServer { line, id, .. } => {
                    if !to_server.is_some_and(|server| server.send(line, id.clone())) {
                        self.unsent.extend(id);
                    }
                }
                Action::Check { ticket, question } => self.courier.check(ticket, *question),
                Action::Tools { ticket } => self.courier.tools(ticket),
                Action::Report { decision_id, outcome, took } => self.courier.report(decision_id, outcome, took),
                Action::Note(note) => self.note(&note),
            }
        }
        reads
    }

    fn note(&mut self, note: &str) {
        self.notes = self.notes.saturating_add(1);
        match self.notes.cmp(&MAX_NOTES) {
            std::cmp::Ordering::Less => tracing::warn!("{note}"),
            std::cmp::Ordering::Equal => tracing::warn!("{note}; more of this connection is not logged"),
            std::cmp::Ordering::Greater => {}
        }
    }

    /// What Remit allows now is not sent any more, and that is reported.
    async fn last_answers(&mut self, to_client: &Outbox) {
        let late = tokio::time::sleep(LAST_WORDS);
        tokio::pin!(late);
        while self.relay.undecided() {
            let actions = tokio::select! {
                Some(answer) = self.answers.recv() => self.answered(answer),
                () = &mut late => return,
            };
            self.act(actions, to_client, None);
        }
    }
}

#[cfg(test)]
#[path = "stdio_tests.rs"]
mod tests;
