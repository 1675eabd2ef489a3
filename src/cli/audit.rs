//! `remit audit verify`: checks a chain of records, from a database file or from a running Remit, with the same code.
//!
//! It verifies here, never on the server, and writes nothing, not even beside the database.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePublicKey;
use serde::Deserialize;

use super::client::{Client, ClientError, ServerArgs};
use super::terminal::{self, failed, json, printable};
use crate::api::Envelope;
use crate::laptop::state::{State, StateError};
use crate::store::audit::{Finding, Report, Verifier};
use crate::store::{Anchor, AuditRow, AuditStatements, ChainReader, DATABASE_FILE, StoreError, statement};

/// Rows asked for at once.
const ROWS: u32 = 2000;
/// How often a chain is read again that retention changes meanwhile.
const TRIES: u32 = 3;

/// The record of records.
#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verifies the hash chain, anchors and tombstones. Exit 0: nothing is wrong, 1: something is, 2: could not verify
    Verify(Verify),
}

#[derive(Debug, Args)]
struct Verify {
    /// Database file (remit.db), or a copy; opened read-only. Without it, the running Remit is asked
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
    /// An anchor kept elsewhere: its JSON, or the ConfigMap remit-anchor-WRITER as YAML or JSON. May be repeated
    #[arg(long, value_name = "FILE")]
    anchor: Vec<PathBuf>,
    /// The installation's public key, PEM. Without it the one beside the anchor in its ConfigMap counts; without both,
    /// signatures are not verified
    #[arg(long, value_name = "PEM")]
    key: Option<PathBuf>,
    /// Only the chain of this writer. Without it, the running Remit is asked for the chains of all its replicas, those that are gone
    /// included
    #[arg(long, value_name = "ID", conflicts_with = "db")]
    writer: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{flag} {path}: {why}", path = path.display())]
    File { flag: &'static str, path: PathBuf, why: String },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("--policy: {0}")]
    Folder(#[from] StateError),
    #[error("--db {path}: {source}", path = path.display())]
    Store { path: PathBuf, source: StoreError },
    #[error("retention changed the chain while it was read, {TRIES} times; try again later")]
    Changing,
    #[error("/admin/audit/records: line {line} of the answer can't be read: {why}")]
    Row { line: usize, why: String },
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command.
pub async fn run(args: AuditArgs) -> ExitCode {
    let Command::Verify(args) = args.command;
    let printed = async {
        let reports = verify(&args).await?;
        let ok = reports.iter().all(|r| r.ok);
        let mut out = terminal::stdout();
        match (args.output, reports.as_slice()) {
            (Format::Json, [one]) => json(&mut out, one)?,
            (Format::Json, all) => json(&mut out, &serde_json::json!({"ok": ok, "writers": all}))?,
            (Format::Text, all) => {
                for (n, report) in all.iter().enumerate() {
                    if n > 0 {
                        writeln!(out)?;
                    }
                    print(&mut out, report, !args.anchor.is_empty())?;
                }
            }
        }
        out.flush()?;
        Ok::<_, Error>(ok)
    };
    match printed.await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => failed(&error),
    }
}

/// A report a writer.
async fn verify(args: &Verify) -> Result<Vec<Report>, Error> {
    let key = args.key.as_deref().map(read_key).transpose()?;
    let (mut anchors, mut published) = (Vec::new(), None);
    for path in &args.anchor {
        let (found, key) = read_anchors(path)?;
        anchors.extend(found);
        published = published.or(key);
    }
    let key = key.or(published);
    // A folder's records are read as they lie there: nobody has to be asked.
    let folder = args.server.policy.as_deref().filter(|_| args.db.is_none());
    if let Some(state) = folder.map(State::prepare).transpose()? {
        let key = key.or(state.verifying_key()?);
        return Ok(vec![offline(&state.root().join(DATABASE_FILE), anchors, key.as_ref()).await?]);
    }
    match &args.db {
        Some(path) => Ok(vec![offline(path, anchors, key.as_ref()).await?]),
        None => {
            let client = Client::open(&args.server).await?;
            online(&client, &anchors, key.as_ref(), args.writer.as_deref()).await
        }
    }
}

async fn offline(path: &Path, anchors: Vec<Envelope>, key: Option<&VerifyingKey>) -> Result<Report, Error> {
    let read = async {
        let mut chain = ChainReader::open(path).await?;
        let mut said = chain.statements().await?;
        said.anchors.extend(anchors);
        let mut verifier = Verifier::new(&said, key);
        let mut after = 0;
        loop {
            let rows = chain.rows(after, ROWS).await?;
            let Some(last) = rows.last() else { break };
            after = last.seq;
            rows.iter().for_each(|row| verifier.row(row));
        }
        chain.close().await?;
        Ok(whole(verifier.finish()))
    };
    read.await.map_err(|source| Error::Store { path: path.to_owned(), source })
}

/// A file that lacks the beginning of its chain is no proof of it: whoever may write the file may cut it there.
fn whole(mut report: Report) -> Report {
    if let Some(after) = report.begins_after.filter(|after| *after > 0) {
        let what = format!(
            "records up to {after} are not in this file: a replica's journal lets go of what PostgreSQL has; verify the chain there"
        );
        report.findings.insert(0, Finding { seq: None, what });
        report.problems += 1;
        report.ok = false;
    }
    report
}

/// The chains of all writers that the manifest or an anchor names: a chain that is gone as a whole is found by its anchor.
async fn online(
    client: &Client,
    anchors: &[Envelope],
    key: Option<&VerifyingKey>,
    only: Option<&str>,
) -> Result<Vec<Report>, Error> {
    #[derive(Deserialize)]
    struct Manifest {
        writers: BTreeSet<String>,
    }
    let mut anchored: BTreeMap<String, Vec<Envelope>> = BTreeMap::new();
    for anchor in anchors {
        // Whose it is, as it says itself; its signature is verified with the chain.
        let said = statement::open::<Anchor>(anchor, None).map(|a| a.writer).unwrap_or_default();
        anchored.entry(said).or_default().push(anchor.clone());
    }
    let writers: BTreeSet<String> = match only {
        Some(only) => BTreeSet::from([only.to_owned()]),
        None => {
            let manifest: Manifest = client.get("/admin/audit/writers", &[]).await?;
            manifest.writers.into_iter().chain(anchored.keys().cloned()).collect()
        }
    };
    let mut reports = Vec::with_capacity(writers.len());
    for writer in &writers {
        let anchors = anchored.get(writer).map_or(&[][..], Vec::as_slice);
        reports.push(chain(client, writer, anchors, key).await?);
    }
    Ok(reports)
}

async fn chain(
    client: &Client,
    writer: &str,
    anchors: &[Envelope],
    key: Option<&VerifyingKey>,
) -> Result<Report, Error> {
    for _ in 0..TRIES {
        let mut said = statements(client, writer).await?;
        let tombstones = said.tombstones.len();
        said.anchors.extend(anchors.iter().cloned());
        let mut verifier = Verifier::new(&said, key);
        let mut after = 0;
        loop {
            let query = [("after", after.to_string()), ("limit", ROWS.to_string()), ("writer", writer.to_owned())];
            let body = client.get_bytes("/admin/audit/records", &query).await?;
            let mut rows = 0;
            for (i, line) in body.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
                let row: AuditRow = serde_json::from_slice(line)
                    .map_err(|e| Error::Row { line: i + 1, why: printable(&e.to_string()) })?;
                // Rows that go back would be asked for without end; the verifier says what is wrong with them.
                after = after.max(row.seq);
                rows += 1;
                verifier.row(&row);
            }
            if rows == 0 {
                break;
            }
        }
        // What retention took meanwhile would look like a loss.
        if statements(client, writer).await?.tombstones.len() == tombstones {
            return Ok(verifier.finish());
        }
    }
    Err(Error::Changing)
}

async fn statements(client: &Client, writer: &str) -> Result<AuditStatements, Error> {
    let of = [("writer", writer.to_owned())];
    let anchors: AuditStatements = client.get("/admin/audit/anchors", &of).await?;
    let tombstones: AuditStatements = client.get("/admin/audit/tombstones", &of).await?;
    Ok(AuditStatements { tombstones: tombstones.tombstones, ..anchors })
}

fn read(flag: &'static str, path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|e| Error::File { flag, path: path.to_owned(), why: e.to_string() })
}

fn read_key(path: &Path) -> Result<VerifyingKey, Error> {
    let wrong = |why: &str| Error::File { flag: "--key", path: path.to_owned(), why: why.to_owned() };
    parse_key(&read("--key", path)?).map_err(wrong)
}

fn parse_key(pem: &str) -> Result<VerifyingKey, &'static str> {
    let key = VerifyingKey::from_public_key_pem(pem.trim())
        .map_err(|_| "not an ed25519 public key in PEM (-----BEGIN PUBLIC KEY-----)")?;
    if key.is_weak() { Err("a key of small order, under which anybody can sign") } else { Ok(key) }
}

/// Anchors from an envelope, a ConfigMap that holds envelopes, or a list of such; and the key that a ConfigMap holds beside them.
fn read_anchors(path: &Path) -> Result<(Vec<Envelope>, Option<VerifyingKey>), Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum File {
        Envelope(Envelope),
        ConfigMap { data: std::collections::BTreeMap<String, String> },
        List { items: Vec<File> },
    }
    fn envelopes(file: File, out: &mut Vec<Envelope>, keys: &mut Vec<String>) {
        match file {
            File::Envelope(envelope) => out.push(envelope),
            File::ConfigMap { data } => {
                out.extend(data.values().filter_map(|v| serde_json::from_str(v).ok()));
                keys.extend(data.get("key.pem").cloned());
            }
            File::List { items } => items.into_iter().for_each(|item| envelopes(item, out, keys)),
        }
    }
    let wrong = |why: String| Error::File { flag: "--anchor", path: path.to_owned(), why };
    let text = read("--anchor", path)?;
    // JSON is YAML too.
    let file: File = serde_saphyr::from_str(&text)
        .map_err(|_| wrong("neither an anchor (JSON) nor a ConfigMap that holds one".into()))?;
    let (mut out, mut keys) = (Vec::new(), Vec::new());
    envelopes(file, &mut out, &mut keys);
    if out.is_empty() {
        return Err(wrong("the ConfigMap holds no anchor".into()));
    }
    let key = keys.first().map(|pem| parse_key(pem)).transpose().map_err(|why| wrong(format!("key.pem: {why}")))?;
    Ok((out, key))
}

fn print(out: &mut impl Write, r: &Report, anchored_elsewhere: bool) -> io::Result<()> {
    writeln!(out, "Writer       {}", printable(&r.writer))?;
    match (r.from_seq, r.to_seq) {
        (Some(from), Some(to)) => writeln!(out, "Records      {}, from {from} to {to}", r.records)?,
        _ => writeln!(out, "Records      none")?,
    }
    writeln!(out, "Head         {}", r.head)?;
    match (r.anchored_seq, r.anchored_at) {
        (Some(seq), Some(at)) => {
            writeln!(out, "Anchored     up to {seq}, signed {at}; {} after it are not anchored yet", r.not_anchored)?;
        }
        _ if !r.signatures_verified => {
            writeln!(
                out,
                "Anchored     unknown: no --key was given, so signatures were not verified ({} anchors agree)",
                r.anchors
            )?;
        }
        _ => writeln!(out, "Anchored     nothing: no anchor was found")?,
    }
    if !anchored_elsewhere {
        writeln!(
            out,
            "             Only an anchor kept outside the database shows that its end was not cut: --anchor FILE"
        )?;
    }
    if r.taken_away > 0 || !r.tombstones.is_empty() {
        writeln!(out, "Taken away   {} records, by {} tombstones:", r.taken_away, r.tombstones.len())?;
        for t in &r.tombstones {
            writeln!(
                out,
                "             #{} {}: {} of {}, within {} to {}, older than {}, by {} on {}",
                t.number,
                printable(&t.reason),
                t.records,
                printable(&t.tenant),
                t.from_seq,
                t.to_seq,
                t.before,
                printable(&t.by),
                t.time
            )?;
        }
    }
    for finding in &r.findings {
        match finding.seq {
            Some(seq) => writeln!(out, "WRONG        record {seq}: {}", printable(&finding.what))?,
            None => writeln!(out, "WRONG        {}", printable(&finding.what))?,
        }
    }
    let more = r.problems.saturating_sub(r.findings.len() as u64);
    if more > 0 {
        writeln!(out, "WRONG        and {more} more")?;
    }
    writeln!(out, "{}", if r.ok { "OK: the chain is whole." } else { "FAILED: the chain is not what was written." })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::Json;
    use ed25519_dalek::SigningKey;
    use ed25519_dalek::pkcs8::EncodePublicKey;
    use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
    use serde_json::json;

    use super::*;
    use crate::cli::client::testing::Server;
    use crate::store::testing::record;
    use crate::store::{AnchorSink, FileSink, Journal, SqliteOptions, SqliteStore, Store};

    struct Written {
        dir: tempfile::TempDir,
        store: Arc<SqliteStore>,
    }

    impl Written {
        async fn records(n: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let key = SigningKey::from_bytes(&[3; 32]);
            let pem = key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
            std::fs::write(dir.path().join("key.pem"), pem).unwrap();
            let sink: Arc<dyn AnchorSink> = Arc::new(FileSink::new(dir.path().join("anchor.json")));
            let options = SqliteOptions { signing_key: Some(key), sinks: vec![sink], ..Default::default() };
            let store = SqliteStore::open(dir.path(), options).await.unwrap();
            for n in 1..=n {
                store.append(record("acme", n)).unwrap().await.unwrap();
            }
            Self { dir, store }
        }

        fn file(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn args(&self, anchor: Option<&str>) -> Verify {
            Verify {
                db: Some(self.file("remit.db")),
                anchor: anchor.map(|name| self.file(name)).into_iter().collect(),
                key: Some(self.file("key.pem")),
                writer: None,
                server: ServerArgs::default(),
                output: Format::Json,
            }
        }
    }

    /// The three routes, as the server has them, over HTTPS; it can forge a record.
    async fn serve(written: &Written, forge: Arc<AtomicBool>) -> Server {
        use axum::extract::RawQuery;
        use axum::routing::get;
        let [a, b, c, d] = [0; 4].map(|_| written.store.clone());
        let writers =
            get(move || async move { Json(json!({"writer": d.audit_writer(), "writers": [d.audit_writer()]})) });
        let records = get(move |RawQuery(query): RawQuery| async move {
            let after = query.unwrap().split(['=', '&']).nth(1).unwrap().parse().unwrap();
            let rows = a.audit_rows(&a.audit_writer(), after, 2).await.unwrap();
            let lines: Vec<_> = rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
            let forged = forge.load(Ordering::Relaxed) && after == 2;
            if forged { lines.concat().replacen("git/status", "git/push", 2) } else { lines.concat() }
        });
        let anchors = get(move || async move {
            Json(json!({"writer": b.audit_writer(), "anchors": b.audit_anchors(&b.audit_writer()).await.unwrap()}))
        });
        let tombstones = get(move || async move {
            Json(
                json!({"writer": c.audit_writer(), "tombstones": c.audit_tombstones(&c.audit_writer()).await.unwrap()}),
            )
        });
        let router = axum::Router::new()
            .route("/admin/audit/writers", writers)
            .route("/admin/audit/records", records)
            .route("/admin/audit/anchors", anchors)
            .route("/admin/audit/tombstones", tombstones);
        Server::start(router).await
    }

    /// The one report.
    async fn verify(args: &Verify) -> Result<Report, Error> {
        let mut reports = super::verify(args).await?;
        assert_eq!(reports.len(), 1);
        Ok(reports.remove(0))
    }

    #[tokio::test]
    async fn a_file_is_verified_while_it_is_written_and_at_rest() {
        let written = Written::records(5).await;
        assert!(verify(&written.args(None)).await.unwrap().ok, "while the operator runs");
        written.store.close().await;
        assert!(verify(&written.args(Some("anchor.json"))).await.unwrap().ok);
        let copy = written.file("copy.db");
        std::fs::copy(written.file("remit.db"), &copy).unwrap();
        let args = Verify { db: Some(copy), ..written.args(Some("anchor.json")) };
        assert!(verify(&args).await.unwrap().ok);
        assert!(!written.file("copy.db-wal").exists(), "nothing is written beside it");
    }

    #[tokio::test]
    async fn an_older_copy_passes_for_itself_and_fails_against_the_anchor() {
        let written = Written::records(3).await;
        written.store.close().await;
        std::fs::copy(written.file("remit.db"), written.file("old.db")).unwrap();
        let store = SqliteStore::open(
            written.dir.path(),
            SqliteOptions {
                signing_key: Some(SigningKey::from_bytes(&[3; 32])),
                sinks: vec![Arc::new(FileSink::new(written.file("anchor.json")))],
                ..Default::default()
            },
        )
        .await
        .unwrap();
        store.append(record("acme", 4)).unwrap().await.unwrap();
        store.close().await;
        let old = |anchor| Verify { db: Some(written.file("old.db")), ..written.args(anchor) };
        assert!(verify(&old(None)).await.unwrap().ok);
        assert!(!verify(&old(Some("anchor.json"))).await.unwrap().ok, "its end is missing");
    }

    #[tokio::test]
    async fn a_running_remit_is_verified_from_afar() {
        let written = Written::records(5).await;
        written.store.retain("acme", record("acme", 3).time, 10).await.unwrap();
        let forge = Arc::new(AtomicBool::new(false));
        let server = serve(&written, forge.clone()).await;
        let args = || Verify { db: None, server: server.args(), ..written.args(None) };
        let report = verify(&args()).await.unwrap();
        assert!(report.ok, "{:?}", report.findings);
        assert_eq!((report.records, report.taken_away), (5, 2));
        forge.store(true, Ordering::Relaxed);
        let report = verify(&args()).await.unwrap();
        assert_eq!(report.findings[0].seq, Some(3), "the server is not believed: {:?}", report.findings);
        forge.store(false, Ordering::Relaxed);
        // The manifest is not believed either: a writer that only an anchor names has lost its chain.
        let other = Written::records(2).await;
        other.store.close().await;
        let with = Verify { anchor: vec![other.file("anchor.json")], ..args() };
        let reports = super::verify(&with).await.unwrap();
        // This server answers with the one chain that it has, which is not the other's.
        assert_eq!((reports.len(), reports.iter().filter(|r| !r.ok).count()), (2, 1));
        let only = Verify { writer: Some(written.store.audit_writer()), ..with };
        assert!(verify(&only).await.unwrap().ok);
        written.store.close().await;
    }

    #[tokio::test]
    async fn an_anchor_is_read_from_a_config_map_too() {
        let written = Written::records(2).await;
        written.store.close().await;
        let anchor = std::fs::read_to_string(written.file("anchor.json")).unwrap();
        let yaml = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: remit-anchor-x\ndata:\n  anchor.json: '{anchor}'\n"
        );
        std::fs::write(written.file("map.yaml"), &yaml).unwrap();
        assert_eq!(read_anchors(&written.file("map.yaml")).unwrap().0, [serde_json::from_str(&anchor).unwrap()]);
        std::fs::write(written.file("map.yaml"), "kind: ConfigMap\ndata: {a: b}\n").unwrap();
        assert!(read_anchors(&written.file("map.yaml")).unwrap_err().to_string().contains("holds no anchor"));
        std::fs::write(written.file("map.yaml"), "hello").unwrap();
        assert!(read_anchors(&written.file("map.yaml")).is_err());
    }

    #[tokio::test]
    async fn a_missing_file_is_an_error_and_no_verdict() {
        let written = Written::records(0).await;
        let args = Verify { db: Some(written.file("nothing.db")), ..written.args(None) };
        assert!(verify(&args).await.unwrap_err().to_string().contains("nothing.db"));
        assert!(!written.file("nothing.db").exists());
        std::fs::write(written.file("key.pem"), "no key").unwrap();
        assert!(verify(&written.args(None)).await.unwrap_err().to_string().contains("--key"));
    }

    #[test]
    fn a_file_without_its_beginning_is_no_proof() {
        let shipped = |begins_after| whole(Report { ok: true, begins_after, ..Report::default() });
        assert!(shipped(None).ok && shipped(Some(0)).ok);
        let report = shipped(Some(7));
        assert!(!report.ok && report.problems == 1 && report.findings[0].what.contains("up to 7"));
    }

    #[test]
    fn the_text_names_what_is_wrong() {
        let mut report =
            Report { ok: false, problems: 21, records: 3, from_seq: Some(1), to_seq: Some(3), ..Default::default() };
        report.findings.push(crate::store::audit::Finding { seq: Some(2), what: "bad".into() });
        let mut out = Vec::new();
        print(&mut out, &report, false).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("WRONG        record 2: bad") && text.contains("and 20 more") && text.contains("FAILED"),
            "{text}"
        );
    }
}
