//! `remit tools import` with the real binary and official servers: what it proposes, what it shows, what it leaves alone.

use serde_json::Value;

use crate::support::file;
use crate::support::peers::{Desk, HttpServer, server};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn the_first_import_writes_proposals_beside_what_is_there() {
    let desk = Desk::new();
    let path = desk.policy().join("package.yaml");
    let before = std::fs::read_to_string(&path).unwrap();
    let command = ["node".to_owned(), file("tests/peers/server.mjs").display().to_string(), "stdio".into()];
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let args = [&["--server", "notes", "-o", "json", "--"], &command[..]].concat();
    let done = desk.import(&args, &[]).await;
    let report: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"));
    assert_eq!((done.status.code(), &report["written"]), (Some(0), &Value::Bool(true)), "{report}");
    let tiers: Vec<(&str, &str)> = report["added"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["name"].as_str().unwrap(), t["tier"].as_str().unwrap()))
        .collect();
    let wanted = [
        ("notes/read_note", "read"),
        ("notes/write_note", "write"),
        ("notes/count", "write"),
        ("notes/greet", "write"),
    ];
    assert_eq!(tiers, wanted);
    let after = std::fs::read_to_string(&path).unwrap();
    assert!(after.starts_with(&before), "what was there stays: {after}");
    assert_eq!(after.matches("# review: ").count(), 4, "{after}");
    let tested =
        std::process::Command::new(env!("CARGO_BIN_EXE_remit")).arg("test").arg(desk.policy()).output().unwrap();
    assert!(tested.status.success(), "{tested:?}");

    // The same again: nothing differs, and nothing is written.
    let again = desk.import(&[&["--server", "notes", "--check", "--"], &command[..]].concat(), &[]).await;
    assert_eq!((again.status.code(), text(&again.stdout)), (Some(0), "notes: 4 as reviewed\n".to_owned()));

    // A person has set another tier, and the server has other words.
    let edited = after.replace("tier: write # review: its name says `write`", "tier: admin # no");
    std::fs::write(&path, &edited).unwrap();
    let other = [("DESCRIPTION", "Reads\u{1b}[2J every note.")];
    for (extra, status) in [("--check", 1), ("--server=notes", 0)] {
        let shown = desk
            .import(
                &[&["--server", "notes", extra, "--"][usize::from(status == 0) * 2..], &command[..]].concat(),
                &other,
            )
            .await;
        assert_eq!(shown.status.code(), Some(status), "{shown:?}");
        let said = text(&shown.stdout);
        assert!(
            said.contains("~ notes/read_note   stays read\n    definition sha256:") && said.contains("{+"),
            "{said}"
        );
        assert!(!said.contains('\u{1b}'), "{said:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), edited, "nothing is written without --yes");
    }
    let taken = desk.import(&[&["--server", "notes", "--yes", "--"], &command[..]].concat(), &other).await;
    assert!(taken.status.success(), "{taken:?}");
    let now = std::fs::read_to_string(&path).unwrap();
    assert!(now.contains("tier: admin # no") && now.contains("every note.") && !now.contains('\u{1b}'), "{now}");
    assert_eq!(now.lines().count(), edited.lines().count());
}

#[tokio::test]
async fn an_official_server_is_imported_over_stdio_and_over_http() {
    let desk = Desk::new();
    let over_stdio = desk.import(&["--server", "one", "-o", "json", "--mcp", &server("everything")], &[]).await;
    let upstream = HttpServer::everything().await;
    let over_http = desk.import(&["--server", "two", "-o", "json", "--mcp", &upstream.url], &[]).await;
    let digests = |bytes: &[u8]| -> Vec<(String, String)> {
        let report: Value = serde_json::from_slice(bytes).unwrap();
        let pair = |t: &Value| {
            let name = t["name"].as_str().unwrap();
            (name[4..].to_owned(), t["schemaDigest"].as_str().unwrap().to_owned())
        };
        report["added"].as_array().unwrap().iter().map(pair).collect()
    };
    let (one, two) = (digests(&over_stdio.stdout), digests(&over_http.stdout));
    assert!(one.len() > 10, "{over_stdio:?}");
    assert_eq!(one, two, "the way to the server changes no digest");
    // What it no longer has stays, and is named.
    let gone = desk.import(&["--server", "one", "--check", "--", &server("memory")], &[]).await;
    assert_eq!(gone.status.code(), Some(1));
    assert!(
        text(&gone.stdout).contains("- one/echo   the server has it no longer; it stays until you delete it\n"),
        "{gone:?}"
    );
}

#[tokio::test]
async fn what_can_not_be_imported_is_said_and_nothing_is_written() {
    let desk = Desk::new();
    let path = desk.policy().join("package.yaml");
    let before = std::fs::read_to_string(&path).unwrap();
    for (args, wanted) in [
        (&["--server", "x", "--", "/no/such/server"][..], "can't be started"),
        (&["--server", "x", "--", "false"], "ended before it had listed its tools"),
        (&["--server", "x", "--mcp-url", "http://127.0.0.1:1/mcp"], "can't be reached"),
        (&["--server", "x", "--mcp-url", "http://192.0.2.1/mcp"], "--allow-plain-upstream"),
        (&["--server", "A/B", "--", "true"], "a server's name has"),
        (&["--", "docker", "run", "x"], "--server NAME is missing"),
        (&[], "which MCP server?"),
    ] {
        let failed = desk.import(args, &[]).await;
        assert_eq!(failed.status.code(), Some(2), "{args:?}: {failed:?}");
        assert!(text(&failed.stderr).contains(wanted), "{args:?}: {failed:?}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    std::fs::remove_file(&path).unwrap();
    let failed = desk.import(&["--server", "x", "--", "true"], &[]).await;
    assert!(failed.status.code() == Some(2) && text(&failed.stderr).contains("remit init"), "{failed:?}");
}
