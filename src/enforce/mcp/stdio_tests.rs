//! The transport with a real child process and a decision point that does what the test says.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream, Lines as TokioLines, ReadHalf, WriteHalf, split};
use tokio::sync::oneshot;

use super::*;
use crate::enforce::mcp::Settings;
use crate::enforce::{CallOutcome, Pdp, PdpError, PdpFuture, Question, Ruling, Verdict};

/// Allows `fs/read`, and `fs/write` when it is let.
#[derive(Default)]
struct Scripted {
    /// `fs/write` is answered when this is done.
    gate: Mutex<Option<oneshot::Receiver<()>>>,
    reports: Mutex<Vec<CallOutcome>>,
}

impl Pdp for Scripted {
    fn check<'a>(&'a self, question: &'a Question) -> PdpFuture<'a, Result<Verdict, PdpError>> {
        let gate = if question.tool == "fs/write" { self.gate.lock().unwrap().take() } else { None };
        let ruling = if question.tool == "fs/read" || gate.is_some() { Ruling::Allow } else { Ruling::Deny };
        Box::pin(async move {
            if let Some(gate) = gate {
                let _ = gate.await;
            }
            let decision_id = question.tool.clone();
            Ok(Verdict {
                ruling,
                code: "no_permit".into(),
                rule: None,
                reason: "No.".into(),
                decision_id,
                asks: Vec::new(),
            })
        })
    }
    fn tools<'a>(&'a self, _: &'a str) -> PdpFuture<'a, Result<Vec<String>, PdpError>> {
        Box::pin(async { Ok(vec!["fs/read".into(), "fs/write".into()]) })
    }
    fn report<'a>(&'a self, _: &'a str, outcome: CallOutcome, _: Duration) -> PdpFuture<'a, Result<(), PdpError>> {
        self.reports.lock().unwrap().push(outcome);
        Box::pin(async { Ok(()) })
    }
}

struct Client {
    to: WriteHalf<DuplexStream>,
    from: TokioLines<BufReader<ReadHalf<DuplexStream>>>,
    pdp: Arc<Scripted>,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<io::Result<Ended>>,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Client {
    fn start(mode: &str, pdp: Scripted) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/fake_server.py");
        let command = [
            "python3".into(),
            server.into_os_string(),
            "--mode".into(),
            mode.into(),
            "--log".into(),
            log.clone().into(),
        ];
        Self::command(&command.map(|word: OsString| word), pdp, log, dir)
    }

    fn command(command: &[OsString], pdp: Scripted, log: PathBuf, dir: tempfile::TempDir) -> Self {
        let pdp = Arc::new(pdp);
        let (courier, answers) = Courier::new(pdp.clone(), "coder".into(), Duration::from_secs(60));
        let settings = Settings { server: "fs".into(), agent: "coder".into(), ..Settings::default() };
        let connection = Connection::new(Relay::new(settings), courier, answers);
        let server = Server::start(command).unwrap();
        let (here, there) = tokio::io::duplex(1 << 16);
        let (stop, stopped) = oneshot::channel::<()>();
        let ended =
            tokio::spawn(async move { connection.run(split(there), server, async { drop(stopped.await) }).await });
        let (from, to) = split(here);
        Self { to, from: BufReader::new(from).lines(), pdp, stop: Some(stop), ended, log, _dir: dir }
    }

    async fn send(&mut self, message: Value) {
        self.to.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn call(&mut self, id: i64, tool: &str) {
        self.send(
            json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": {}}}),
        )
        .await;
    }

    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(Duration::from_secs(60), self.from.next_line()).await.expect("in time");
        serde_json::from_str(&line.unwrap().expect("a message")).unwrap()
    }

    fn received(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn end(self) -> (Ended, Vec<CallOutcome>, String) {
        let Self { to, from, pdp, stop, ended, log, _dir } = self;
        drop((to, from, stop));
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("ends").unwrap().unwrap();
        let reports = pdp.reports.lock().unwrap().clone();
        (ended, reports, std::fs::read_to_string(log).unwrap_or_default())
    }
}

#[tokio::test]
async fn calls_pass_when_they_are_allowed() {
    let mut client = Client::start("honest", Scripted::default());
    client.call(1, "read").await;
    assert_eq!(client.next().await["result"]["content"][0]["text"], "done read");
    client.call(2, "write").await;
    assert_eq!(client.next().await["result"]["isError"], true);
    let (ended, reports, log) = client.end().await;
    assert!(matches!(ended, Ended::ByClient));
    assert_eq!(reports, [CallOutcome::Success]);
    assert!(log.contains("# end of input") && !log.contains("write"), "{log}");
}

#[tokio::test]
async fn a_server_that_ends_leaves_nobody_waiting() {
    let mut client = Client::start("dies", Scripted::default());
    client.call(1, "read").await;
    assert_eq!(client.next().await["error"]["code"], -32603);
    assert!(client.from.next_line().await.unwrap().is_none(), "the client sees the end");
    let (ended, reports, _) = client.end().await;
    assert!(matches!(ended, Ended::ByServer(status) if status.code() == Some(7)), "{ended:?}");
    assert_eq!(reports, [CallOutcome::Failed]);
}

#[tokio::test]
async fn what_is_allowed_after_the_client_has_gone_is_not_sent() {
    let (open, gate) = oneshot::channel();
    let mut client = Client::start("honest", Scripted { gate: Mutex::new(Some(gate)), ..Scripted::default() });
    client.call(1, "read").await;
    client.next().await;
    client.call(2, "write").await;
    client.send(json!({"jsonrpc": "2.0", "id": 3, "method": "ping"})).await;
    assert_eq!(client.next().await["id"], 3, "the call is held, everything else goes on");
    client.stop.take();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let _ = open.send(());
    });
    let (ended, reports, log) = client.end().await;
    assert!(matches!(ended, Ended::ByClient));
    assert_eq!(reports, [CallOutcome::Success, CallOutcome::NotSent]);
    assert!(!log.contains("write"), "{log}");
}

#[tokio::test]
async fn a_server_that_does_not_want_to_end_is_ended_with_all_that_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/fake_server.py");
    // As npx does: the process that Remit starts is not the server.
    let script = format!("trap '' TERM; python3 {} --mode stubborn --log {}; true", server.display(), log.display());
    let mut client = Client::command(&["sh".into(), "-c".into(), script.into()], Scripted::default(), log, dir);
    client.call(1, "read").await;
    client.next().await;
    let pid = client.received().lines().next().and_then(|l| l.rsplit(' ').next()?.parse::<u32>().ok()).unwrap();
    let (ended, _, log) = client.end().await;
    assert!(matches!(ended, Ended::ByClient));
    assert!(log.contains("# end of input"), "it was asked first: {log}");
    let gone = || std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    for _ in 0..600 {
        if gone() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("process {pid} is still there");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_only_itself() {
    let mut client = Client::start("flood", Scripted::default());
    client.call(1, "read").await;
    for id in 2..200 {
        client.send(json!({"jsonrpc": "2.0", "id": id, "method": "ping"})).await;
    }
    let mut answers = 0;
    while answers < 199 {
        answers += usize::from(client.next().await.get("id").is_some());
    }
    client.end().await;
}

/// Two bytes that can't be read are answered with a hundred.
#[tokio::test]
async fn a_client_that_never_reads_is_not_read_for_ever() {
    let mut client = Client::start("honest", Scripted::default());
    let garbage = b"x\n".repeat(1 << 15);
    let mut taken = 0;
    // As soon as the proxy stops reading, nothing is taken any more.
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(5), client.to.write_all(&garbage)).await {
        written.unwrap();
        taken += garbage.len();
        assert!(taken < OWN_HIGH_WATER / 16, "{taken} bytes, each answered with fifty");
    }
    let (ended, _, _) = client.end().await;
    assert!(matches!(ended, Ended::ByClient));
}
