//! `remit hook`: recorded inputs of the coding agents' contracts, through the real binary.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::file;

/// A command without what the test's own environment says of Remit.
fn remit(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REMIT_")) {
        command.env_remove(name);
    }
    command.env_remove("CLAUDE_CONFIG_DIR");
    command
}

fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_remit"))
}

fn feed(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the hook");
    // A hook that does not read all of its input closes the pipe.
    let _ = child.stdin.take().expect("stdin").write_all(input);
    child.wait_with_output().expect("the hook")
}

fn recorded(path: &str) -> Vec<u8> {
    std::fs::read(file("tests/data/hooks").join(path)).expect(path)
}

/// A folder of its own with the policies.
fn policy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    for name in ["package.yaml", "main.cedar", "agents.yaml"] {
        std::fs::copy(file("tests/data/hooks/policy").join(name), folder.path().join(name)).expect(name);
    }
    folder
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exit code 2, a reason on stderr that no agent takes for JSON, nothing on stdout.
#[track_caller]
fn assert_blocks(output: &Output, why: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{why}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{why}");
    assert!(stderr.starts_with("remit: ") || stderr.starts_with("error: "), "{why}: {stderr}");
    assert!(serde_json::from_str::<Value>(stderr.trim()).is_err(), "{why}: {stderr}");
}

/// The whole answer, which is one JSON object and nothing else.
#[track_caller]
fn answer(output: &Output, why: &str) -> Value {
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{why}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{why}: {e}: {}", text(&output.stdout)))
}

#[test]
fn hook_answers_recorded_calls_of_claude_code() {
    let policy = policy();
    let dir = policy.path().to_str().expect("path");
    let ask = |input: &str, more: &[&str]| {
        let args = [&["hook", "claude-code", "--policy", dir, "--timeout", "60"], more].concat();
        feed(&mut remit(&binary(), &args), &recorded(&format!("claude-code/{input}.json")))
    };
    for (input, decision, reason) in [
        ("bash", "allow", ""),
        ("bash-force", "deny", "denied (no-force): Open a pull request instead."),
        ("edit", "allow", ""),
        ("write", "allow", ""),
        ("read", "allow", ""),
        ("subagent-read", "allow", ""),
        ("agent-task", "deny", "denied (unknown_tool)"),
        ("webfetch", "ask", "Is this page wanted?"),
        ("webfetch-bypass", "deny", "the person for whom you act"),
        ("notebook", "deny", "needs approval by \"leads\""),
        ("mcp", "allow", ""),
    ] {
        let said = answer(&ask(input, &[]), input);
        let output = &said["hookSpecificOutput"];
        assert_eq!(said.as_object().expect("object").len(), 1, "{input}: nothing else is said");
        assert_eq!(
            (&output["hookEventName"], &output["permissionDecision"]),
            (&json!("PreToolUse"), &json!(decision)),
            "{said}"
        );
        let told = output["permissionDecisionReason"].as_str().expect("reason");
        assert!(told.contains(reason) && told.contains("[decision "), "{input}: {told}");
        assert!(!told.contains("tenant/laptop"), "no policy ids: {told}");
    }
    assert_blocks(&ask("mcp-spoof", &[]), "a server that is called like the agent");
    assert_blocks(&ask("post-tool-use", &[]), "another event");
    assert_blocks(&ask("user-prompt-submit", &[]), "another event");

    let deferred = ask("bash", &["--defer"]);
    assert_eq!((deferred.status.code(), text(&deferred.stdout)), (Some(0), String::new()));
    assert_eq!(answer(&ask("bash-force", &["--defer"]), "deny")["hookSpecificOutput"]["permissionDecision"], "deny");
    let nobody = answer(&ask("bash", &["--agent", "nobody"]), "an agent that is not there");
    assert_eq!(nobody["hookSpecificOutput"]["permissionDecision"], "deny", "{nobody}");
    assert_blocks(&ask("bash", &["--no-such-flag"]), "usage");
}

#[test]
fn hook_answers_recorded_calls_of_gemini_cli() {
    let policy = policy();
    let dir = policy.path().to_str().expect("path");
    let ask = |input: &str| {
        let args = ["hook", "gemini-cli", "--policy", dir, "--timeout", "60"];
        feed(&mut remit(&binary(), &args), &recorded(&format!("gemini-cli/{input}.json")))
    };
    for (input, decision) in [("shell", "allow"), ("shell-force", "deny"), ("web", "deny"), ("mcp", "allow")] {
        assert_eq!(answer(&ask(input), input)["decision"], decision, "{input}");
    }
    assert!(answer(&ask("shell-force"), "reason")["reason"].as_str().expect("reason").contains("Open a pull request"));
    assert_blocks(&ask("after-tool"), "another event");
}

#[test]
fn hook_blocks_what_it_cannot_read() {
    let policy = policy();
    let dir = policy.path().to_str().expect("path");
    let whole = text(&recorded("claude-code/bash.json"));
    let huge = format!("{{\"hook_event_name\":\"PreToolUse\",\"a\":\"{}\"}}", "x".repeat(11 * 1024 * 1024));
    let deep = format!("{{\"hook_event_name\":\"PreToolUse\",\"a\":{}1{}}}", "[".repeat(200_000), "]".repeat(200_000));
    let mut inputs: Vec<(String, String)> = vec![
        ("nothing".into(), String::new()),
        ("huge".into(), huge),
        ("deep".into(), deep),
        ("a list".into(), format!("[{whole}]")),
        ("two events".into(), whole.repeat(2)),
        ("a key twice".into(), whole.replace("\"tool_name\"", "\"tool_name\": \"Read\", \"tool_name\"")),
        ("an argument twice".into(), whole.replace("\"command\"", "\"command\": \"ls\", \"command\"")),
        ("escaped twice".into(), whole.replace("\"command\"", "\"comm\\u0061nd\": \"ls\", \"command\"")),
        ("a number of no reader".into(), whole.replace("120000", "1e999")),
        ("wrong type".into(), whole.replace("\"Bash\"", "{\"Bash\": 1}")),
        ("event in another case".into(), whole.replace("PreToolUse", "preToolUse")),
        ("tool with a space".into(), whole.replace("\"Bash\"", "\"Bash \"")),
        ("tool with a homoglyph".into(), whole.replace("\"Bash\"", "\"B\u{430}sh\"")),
        ("tool of another server".into(), whole.replace("\"Bash\"", "\"../claude-code/Read\"")),
    ];
    for cut in [1, whole.len() / 3, whole.len() / 2, whole.trim_end().len() - 1] {
        inputs.push((format!("cut at {cut}"), whole[..cut].to_owned()));
    }
    for (why, input) in &inputs {
        let args = ["hook", "claude-code", "--policy", dir, "--timeout", "60"];
        assert_blocks(&feed(&mut remit(&binary(), &args), input.as_bytes()), why);
    }
    let mut broken = whole.into_bytes();
    broken[40] = 0xff;
    let args = ["hook", "claude-code", "--policy", dir, "--timeout", "60"];
    assert_blocks(&feed(&mut remit(&binary(), &args), &broken), "not UTF-8");
}

#[test]
fn hook_blocks_when_there_is_no_answer() {
    let folder = tempfile::tempdir().expect("folder");
    let token = folder.path().join("token");
    std::fs::write(&token, "x.y.z").expect("token");
    let token = token.to_str().expect("path");
    let input = recorded("claude-code/bash.json");
    let ask = |url: &str, more: &[&str]| {
        let args = [&["hook", "claude-code", "--remit", url, "--token-file", token, "--agent", "coder"], more].concat();
        feed(&mut remit(&binary(), &args), &input)
    };
    let silent = TcpListener::bind("127.0.0.1:0").expect("port");
    let closed = {
        let gone = TcpListener::bind("127.0.0.1:0").expect("port");
        gone.local_addr().expect("address").port()
    };
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    assert_blocks(&ask(&url(closed), &[]), "nobody there");
    assert_blocks(&ask(&url(silent.local_addr().expect("address").port()), &["--timeout", "0.3"]), "no answer");
    assert_blocks(&ask("unix:///nowhere/remit.sock", &[]), "no socket");
    assert_blocks(&ask("http://192.0.2.1:1", &[]), "plain text to another machine");
    let missing = ["hook", "claude-code", "--policy", "/nowhere"];
    assert_blocks(&feed(&mut remit(&binary(), &missing), &input), "no folder");
    assert_blocks(&feed(&mut remit(&binary(), &["hook", "claude-code"]), &input), "nowhere to ask");
    // An answer that is none: an HTML page, an allow without a record, a redirect.
    for body in ["<html>", "{\"decision\":true}", "{\"decision\":\"true\",\"context\":{}}", "true"] {
        let port = serve_once(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ));
        assert_blocks(&ask(&url(port), &["--timeout", "60"]), body);
    }
    let port = serve_once("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into());
    assert_blocks(&ask(&url(port), &["--timeout", "60"]), "a redirect");

    // Input that never ends.
    let mut command = remit(&binary(), &["hook", "claude-code", "--policy", "/nowhere", "--timeout", "0.2"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hook");
    let held = child.stdin.take();
    assert_blocks(&child.wait_with_output().expect("hook"), "stdin stays open");
    drop(held);
}

/// Answers one connection with these bytes.
fn serve_once(answer: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("connection");
        let mut buffer = [0; 65536];
        let _ = std::io::Read::read(&mut stream, &mut buffer);
        let _ = stream.write_all(answer.as_bytes());
    });
    port
}

#[test]
fn hook_installs_itself_and_leaves_no_trace() {
    let policy = policy();
    let dir = policy.path().to_str().expect("path");
    let home = tempfile::tempdir().expect("home");
    let settings = home.path().join(".claude/settings.json");
    std::fs::create_dir_all(settings.parent().expect("folder")).expect("folder");
    let before =
        "{\n\t\"model\": \"opus\",\n\t\"permissions\": {\n\t\t\"allow\": [\"Bash(ls:*)\"]\n\t},\n\t\"x\": 1.50\n}\n";
    std::fs::write(&settings, before).expect("settings");
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&settings, std::fs::Permissions::from_mode(0o640)).expect("mode");
    let install = |more: &[&str]| {
        let args = [&["hook", "install", "claude-code"], more].concat();
        let output = remit(&binary(), &args).env("HOME", home.path()).output().expect("remit");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let shown = install(&["--policy", dir, "--print"]);
    assert_eq!(std::fs::read_to_string(&settings).expect("settings"), before, "--print writes nothing");
    install(&["--policy", dir, "--timeout", "60"]);
    let installed = std::fs::read_to_string(&settings).expect("settings");
    assert_eq!(installed.replace(" '--timeout' '60'", ""), shown);
    assert!(install(&["--policy", dir, "--timeout", "60"]).contains("installed already"));
    assert_eq!(std::fs::read_to_string(&settings).expect("settings"), installed);
    let backup = settings.with_file_name("settings.json.remit-backup-1");
    assert_eq!(std::fs::read_to_string(&backup).expect("backup"), before);
    for file in [&settings, &backup] {
        assert_eq!(std::fs::metadata(file).expect("file").permissions().mode() & 0o777, 0o640, "{}", file.display());
    }

    // The line that the agent runs, as it runs it: by a shell, in another folder.
    let parsed: Value = serde_json::from_str(&installed).expect("JSON");
    let line = parsed["hooks"]["PreToolUse"][0]["hooks"][0]["command"].as_str().expect("command").to_owned();
    let sh =
        |line: &str, input: &str| feed(remit(Path::new("/bin/sh"), &["-c", line]).current_dir("/"), &recorded(input));
    let said = answer(&sh(&line, "claude-code/bash-force.json"), "installed");
    assert_eq!(said["hookSpecificOutput"]["permissionDecision"], "deny");
    assert_blocks(&sh(&line, "claude-code/post-tool-use.json"), "its own exit code stays");
    // Its binary is gone, can't be started, crashes, or fails in a way that agents let pass.
    let program = format!("'{}'", binary().canonicalize().expect("binary").display());
    assert!(line.starts_with(&program), "{line}");
    for other in
        ["/nowhere/remit", "/etc/hostname", "false", "sh -c 'kill -SEGV $$'", "sh -c 'kill $$'", "sh -c 'exit 101'"]
    {
        let broken = line.replace(&program, other);
        let output = sh(&broken, "claude-code/bash.json");
        let stderr = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()), "{other}: {stderr}");
        assert!(stderr.contains("remit: the hook ended without an answer"), "{other}: {stderr}");
    }

    install(&["--uninstall"]);
    assert_eq!(std::fs::read_to_string(&settings).expect("settings"), before);
    assert!(install(&["--uninstall"]).contains("no hook"));

    // Refused, and left as it is.
    std::fs::write(&settings, "{ // mine\n}").expect("settings");
    let args = ["hook", "install", "claude-code", "--policy", dir];
    let refused = remit(&binary(), &args).env("HOME", home.path()).output().expect("remit");
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("settings.json"), "{}", text(&refused.stderr));
    assert_eq!(std::fs::read_to_string(&settings).expect("settings"), "{ // mine\n}");
    // An agent of whose tools the package knows none would only ever be denied.
    std::fs::write(&settings, before).expect("settings");
    let bare = home.path().join("policy");
    let bare = bare.to_str().expect("path");
    assert!(remit(&binary(), &["init", bare]).output().expect("remit").status.success());
    for (folder, warned) in [(dir, false), (bare, true)] {
        let args = ["hook", "install", "claude-code", "--policy", folder, "--print"];
        let output = remit(&binary(), &args).env("HOME", home.path()).output().expect("remit");
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.contains("every call will be denied"), warned, "{folder}: {said}");
    }
    let nowhere = ["hook", "install", "claude-code", "--policy", "/nowhere"];
    let refused = remit(&binary(), &nowhere).env("HOME", home.path()).output().expect("remit");
    assert_eq!(refused.status.code(), Some(2), "a hook that can't answer is not installed");
}
