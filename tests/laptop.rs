//! `remit serve DIR` through the front door: the binary over a folder, asked as an enforcement point asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use remit::cli::pdp::PdpArgs;
use remit::enforce::{CallOutcome, PdpError, Ruling};
use serde_json::{Value, json};

use crate::support::folder::{Folder, Serve, ask, call, remit};
use crate::support::{eventually, free_port};

const READS: &str =
    "@id(\"reads\") permit(principal, action == Action::\"call_tool\", resource in ToolGroup::\"read\");\n";
const NO_READS: &str =
    "@id(\"stop\") @code(\"no-reads-now\") @reason(\"Not now.\") forbid(principal, action, resource);\n";

fn agents(agents: &[(&str, i64)]) -> String {
    let one = |(name, trust): &(&str, i64)| {
        format!(
            "apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {name}}}\nspec: {{trustLevel: {trust}}}\n"
        )
    };
    agents.iter().map(one).collect::<Vec<_>>().join("---\n")
}

fn folder() -> Folder {
    Folder::new(&[("main.cedar", READS), ("agents.yaml", &agents(&[("coder", 2)]))])
}

/// Polls until the answer has this code.
async fn answered(serve: &Serve, folder: &Folder, agent: &str, code: &str) -> Value {
    let (http, token) = (serve.http(), folder.token("token"));
    eventually(&format!("the answer is {code}"), || async {
        let (status, body) = call(&http, &token, agent, "git/log").await?;
        if body["context"]["code"] == code { Ok(body) } else { Err(format!("{status} {body}")) }
    })
    .await
}

fn decisions(folder: &Folder) -> Vec<Value> {
    let out = folder.remit(&["decisions", "list", "-o", "json", "--policy"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let page: Value = serde_json::from_slice(&out.stdout).unwrap();
    page["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn laptop_checks_over_socket_and_loopback_and_keeps_the_records() {
    let folder = folder();
    let serve = folder.serve();
    let (socket, http, token) = (folder.socket(), serve.http(), folder.token("token"));
    let (status, body) = call(&socket, &token, "coder", "git/log").await.unwrap();
    assert_eq!((status, &body["decision"]), (200, &json!(true)), "{body}");
    let (status, body) = call(&http, &token, "coder", "git/push").await.unwrap();
    assert_eq!((status, &body["context"]["code"]), (200, &json!("no_permit")), "{body}");
    // The tenant may be named, and no other can be.
    let question = crate::support::call("coder", "git/log", json!({}));
    let named = ask(&http, &token, "/tenants/default/access/v1/evaluation", Some(&question)).await.unwrap();
    assert_eq!(named.1["decision"], true);
    let other = ask(&http, &token, "/tenants/other/access/v1/evaluation", Some(&question)).await.unwrap();
    assert_eq!((other.0, &other.1["code"]), (403, &json!("not_allowed")), "{}", other.1);

    // Neither no token, nor a wrong one, nor the right one for something else.
    let admin = folder.token("admin-token");
    for (token, code) in [("", "token_missing"), ("wrong", "token_rejected"), (&admin, "token_audience")] {
        let (status, body) = call(&http, token, "coder", "git/log").await.unwrap();
        assert_eq!((status, &body["code"]), (401, &json!(code)), "{body}");
    }
    let list = "/admin/tenants/default/decisions";
    assert_eq!(ask(&http, &token, list, None).await.unwrap().0, 401);
    assert_eq!(ask(&http, &admin, list, None).await.unwrap().0, 200);

    let codes =
        |items: Vec<Value>| items.iter().map(|i| i["record"]["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    // The refusal for another tenant is kept, too, in the own one.
    let expected = ["not_allowed", "allowed", "no_permit", "allowed"];
    assert_eq!(codes(decisions(&folder)), expected);
    assert_eq!(serve.stop(), Some(0));
    assert!(!folder.state("remit.sock").exists());
    assert_eq!(codes(decisions(&folder)), expected, "read by leading the folder for a moment");
    let out = folder.remit(&["audit", "verify", "--policy"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("OK") && text.contains("signed"), "{text}");
}

#[tokio::test]
async fn laptop_takes_edits_and_keeps_the_last_good_set_of_a_broken_one() {
    let folder = folder();
    let serve = folder.serve();
    answered(&serve, &folder, "coder", "allowed").await;
    answered(&serve, &folder, "planner", "unknown_agent").await;
    folder.write("agents.yaml", &agents(&[("coder", 2), ("planner", 1)]));
    answered(&serve, &folder, "planner", "allowed").await;

    // An edit needs no new version.
    folder.write("main.cedar", &format!("{READS}{NO_READS}"));
    let deny = answered(&serve, &folder, "coder", "denied_by_policy").await;
    assert_eq!((&deny["context"]["rule"], &deny["context"]["reason"]), (&json!("no-reads-now"), &json!("Not now.")));

    // Broken: nothing of it is taken, and it is said.
    folder.write("agents.yaml", &agents(&[("coder", 2)]));
    folder.write("main.cedar", "this is not Cedar");
    let http = serve.http();
    let body = eventually("/readyz says what is wrong", || async {
        let (status, body) = ask(&http, "", "/readyz", None).await?;
        let body = body.as_str().unwrap_or_default().to_owned();
        if status == 200 && body.contains("main.cedar") { Ok(body) } else { Err(format!("{status} {body}")) }
    })
    .await;
    assert!(body.contains("last good set (tools 1.0.0) stays in force"), "{body}");
    answered(&serve, &folder, "planner", "denied_by_policy").await;
    let metrics = ask(&http, "", "/metrics", None).await.unwrap().1;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("remit_folder_faulty 1") && metrics.contains("remit_folder_reloads_refused_total 1"));
    assert!(serve.log().contains("the last good set stays"), "{}", serve.log());

    // A misspelt field is named with its place.
    folder.write("agents.yaml", &agents(&[("coder", 2)]).replace("trustLevel", "trustLevl"));
    eventually("the misspelt field is said", || async {
        let body = ask(&http, "", "/readyz", None).await?.1;
        let said = body.as_str().unwrap_or_default().contains("agents.yaml:4:8: spec.trustLevl: is no field");
        if said { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    folder.write("agents.yaml", &agents(&[("coder", 2)]));
    folder.write("main.cedar", READS);
    answered(&serve, &folder, "planner", "unknown_agent").await;
    answered(&serve, &folder, "coder", "allowed").await;
    assert_eq!(ask(&http, "", "/readyz", None).await.unwrap().1, "ok\n");
}

/// The policies of one set permit only the agent of the same set: half of a change denies.
#[tokio::test(flavor = "multi_thread")]
async fn laptop_never_shows_half_of_a_change_of_two_files() {
    let policy = |n: usize| READS.replace("principal,", &format!("principal in AgentType::\"t{n}\","));
    let agent = |n: usize| agents(&[("coder", 2)]).replace("{trustLevel", &format!("{{type: t{n}, trustLevel"));
    let folder = Arc::new(Folder::new(&[("main.cedar", &policy(0)), ("agents.yaml", &agent(0))]));
    let serve = folder.serve();
    let done = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = (0..8)
        .map(|_| {
            let (folder, http, done) = (folder.clone(), serve.http(), done.clone());
            tokio::spawn(async move {
                let (mut asked, token) = (0, folder.token("token"));
                while !done.load(Ordering::Relaxed) {
                    let (status, body) = call(&http, &token, "coder", "git/log").await.unwrap();
                    assert_eq!(body["context"]["code"], "allowed", "{status} after {asked}: {body}");
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    let digest = || async {
        let (_, body) = call(&serve.http(), &folder.token("token"), "coder", "git/log").await?;
        Ok::<_, String>(body["context"]["digests"]["tenant"][0].as_str().unwrap_or_default().to_owned())
    };
    let mut before = digest().await.unwrap();
    for n in 1..=8 {
        // Stopped, so that both files are written between two of its looks, however slow this machine is.
        serve.signal("STOP");
        if n % 2 == 0 {
            folder.write("main.cedar", &policy(n));
            folder.write("agents.yaml", &agent(n));
        } else {
            folder.write("agents.yaml", &agent(n));
            folder.write("main.cedar", &policy(n));
        }
        serve.signal("CONT");
        before = eventually("the new set is in force", || async {
            let now = digest().await?;
            if now == before { Err("the old one is".into()) } else { Ok(now) }
        })
        .await;
    }
    done.store(true, Ordering::Relaxed);
    let mut asked = 0;
    for asker in askers {
        asked += asker.await.unwrap();
    }
    assert!(asked > 8, "{asked} questions were asked meanwhile");
}

#[tokio::test]
async fn laptop_listens_to_this_machine_only_and_answers_to_its_own_name_only() {
    let folder = folder();
    let refused = |args: &[&str]| {
        let out = remit().arg("serve").arg(folder.path()).args(args).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        String::from_utf8(out.stderr).unwrap()
    };
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let said = refused(&["--listen", address]);
        assert!(said.contains("only loopback addresses"), "{said}");
    }
    let serve = folder.serve();
    let token = folder.token("token");
    let question = crate::support::call("coder", "git/log", json!({})).to_string();
    let ask_as = |host: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", serve.port)).unwrap();
        write!(
            stream,
            "POST /access/v1/evaluation HTTP/1.1\r\n{host}authorization: Bearer {token}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{question}",
            question.len()
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(ask_as("host: localhost\r\n").contains("\"decision\":true"));
    for host in
        ["host: evil.example\r\n", "host: 127.0.0.1.evil.example\r\n", "host: localhost\r\nhost: evil.example\r\n"]
    {
        let answer = ask_as(host);
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("host_not_local"), "{host}: {answer}");
    }
    assert!(!ask_as("").contains("\"decision\":true"));
}

#[test]
fn laptop_does_not_start_with_nothing_good_to_serve() {
    let refused = |files: &[(&str, &str)], words: &[&str]| {
        let folder = Folder::new(files);
        let out = folder.remit(&["serve"]);
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    refused(&[("main.cedar", "permit(")], &["tools 1.0.0 is refused", "main.cedar:1:"]);
    refused(
        &[("main.cedar", READS), ("agents.yaml", "apiVersion: remit.dev/v1alpha1\nkind: Agnet\n")],
        &["agents.yaml:1: kind: remit.dev/v1alpha1 has no kind \"Agnet\""],
    );
    let failing = "- {name: writes, agent: coder, call: {tool: git/push}, expect: {decision: allow}}\n";
    refused(&[("main.cedar", READS), ("tests/a.yaml", failing)], &["TestFailed", "tests/a.yaml:1:", "writes"]);
    let empty = tempfile::tempdir().unwrap();
    let out = remit().arg("serve").arg(empty.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("no policy package"), "{out:?}");
    assert_eq!(out.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn laptop_another_process_takes_over_when_the_leader_is_killed() {
    let folder = Arc::new(folder());
    let first = folder.serve();
    let (second, third) = (folder.serve(), folder.serve());
    assert!(second.log().contains("another process serves"), "{}", second.log());
    let token = folder.token("token");
    let (_, body) = call(&second.http(), &token, "coder", "git/log").await.unwrap();
    assert_eq!(body["decision"], true, "{body}");

    // Questions that are under way meanwhile are answered, by whoever leads then.
    let done = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = [second.http(), third.http()]
        .into_iter()
        .map(|http| {
            let (token, done) = (token.clone(), done.clone());
            tokio::spawn(async move {
                let mut asked = 0;
                while !done.load(Ordering::Relaxed) {
                    let (status, body) = call(&http, &token, "coder", "git/log").await.unwrap();
                    assert_eq!((status, &body["decision"]), (200, &json!(true)), "{body}");
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    let holder = || std::fs::read_to_string(folder.state("remit.lock")).unwrap_or_default().trim().to_owned();
    assert_eq!(holder(), first.pid().to_string());
    first.kill();
    let leader = eventually("another process leads", || async {
        let now = holder();
        let other = [&second, &third].into_iter().find(|s| s.pid().to_string() == now);
        other.map(Serve::pid).ok_or(now)
    })
    .await;
    // Its lock comes first, then its socket.
    let asked = || async { call(&folder.socket(), &token, "coder", "git/push").await };
    let (_, body) = eventually("the new leader's socket answers", asked).await;
    assert_eq!(body["context"]["code"], "no_permit", "{body}");
    done.store(true, Ordering::Relaxed);
    for asker in askers {
        assert!(asker.await.unwrap() > 0);
    }
    assert_eq!(holder(), leader.to_string(), "one leads, and goes on leading");
    let kept = decisions(&folder);
    assert!(kept.iter().any(|d| d["record"]["code"] == "no_permit"));
    assert_eq!(kept.last().unwrap()["seq"], 1, "what the killed one allowed is kept");
    // In good order: the other one follows again, or leads.
    let (stopped, left) = if second.pid() == leader { (second, third) } else { (third, second) };
    assert_eq!(stopped.stop(), Some(0));
    let (_, body) = call(&left.http(), &token, "coder", "git/log").await.unwrap();
    assert_eq!(body["decision"], true, "{body}");
    let out = folder.remit(&["audit", "verify", "--policy"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    pdp: PdpArgs,
}

fn flags(args: &[&str]) -> PdpArgs {
    let args = ["test", "--timeout", "30"].into_iter().chain(args.iter().copied());
    <Flags as clap::Parser>::parse_from(args).pdp
}

/// As commands use it: in their own process.
#[tokio::test(flavor = "multi_thread")]
async fn laptop_embedded_decision_points_share_a_folder() {
    let folder = folder();
    let dir = folder.path().to_str().unwrap();
    let args = flags(&["--policy", dir]);
    let (first, agent) = args.open().await.unwrap();
    let (second, _) = args.open().await.unwrap();
    assert_eq!(agent, "coder", "the folder's only one");
    let question = |tool: &str| remit::enforce::Question { tool: tool.into(), ..args.question("coder") };
    for pdp in [&first, &second] {
        let verdict = pdp.check(&question("git/log")).await.unwrap();
        assert_eq!((verdict.ruling, verdict.decision_id.is_empty()), (Ruling::Allow, false));
        assert_eq!(pdp.check(&question("git/push")).await.unwrap().ruling, Ruling::Deny);
        assert_eq!(pdp.tools("coder").await.unwrap(), ["git/log"]);
    }
    first.close().await;
    assert_eq!(second.check(&question("git/log")).await.unwrap().ruling, Ruling::Allow, "the other one took over");
    second.close().await;
    assert_eq!(decisions(&folder).len(), 5);
    assert!(!folder.state("remit.sock").exists());

    folder.write("more.yaml", &agents(&[("planner", 1)]));
    let error = args.open().await.err().unwrap().to_string();
    assert!(error.contains("several Agents: coder, planner"), "{error}");
    folder.write("more.yaml", "kind: Agent\n");
    let error = args.open().await.err().unwrap().to_string();
    assert!(error.contains("more.yaml:1:"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn laptop_a_leader_that_hangs_is_a_timeout_and_no_answer_is_no_allow() {
    let folder = folder();
    let serve = folder.serve();
    let dir = folder.path().to_str().unwrap();
    let args = PdpArgs { timeout: Duration::from_millis(300), ..flags(&["--policy", dir, "--agent", "coder"]) };
    let (pdp, agent) = PdpArgs { timeout: Duration::from_secs(30), ..args.clone() }.open().await.unwrap();
    let question = remit::enforce::Question { tool: "git/log".into(), ..args.question(&agent) };
    assert_eq!(pdp.check(&question).await.unwrap().ruling, Ruling::Allow);
    let socket = format!("unix://{}", folder.state("remit.sock").display());
    let token = folder.state("token");
    let token = token.to_str().unwrap();
    let short = ["--remit", &socket, "--token-file", token, "--agent", "coder"];
    let (short, _) = PdpArgs { timeout: Duration::from_millis(300), ..flags(&short) }.open().await.unwrap();
    serve.signal("STOP");
    assert_eq!(short.check(&question).await, Err(PdpError::Timeout(Duration::from_millis(300))));
    serve.signal("CONT");
    serve.kill();
    assert!(matches!(short.check(&question).await, Err(PdpError::Unreachable(_) | PdpError::Timeout(_))));

    // Over loopback, and where nobody listens.
    let serve = folder.serve();
    let url = format!("http://127.0.0.1:{}", serve.port);
    let (http, _) = flags(&["--remit", &url, "--token-file", token, "--agent", "coder"]).open().await.unwrap();
    assert_eq!(http.check(&question).await.unwrap().ruling, Ruling::Allow);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let (http, _) = flags(&["--remit", &nobody, "--token-file", token, "--agent", "coder"]).open().await.unwrap();
    assert!(matches!(http.check(&question).await, Err(PdpError::Unreachable(_))));
    let plain = flags(&["--remit", "http://192.0.2.1:80", "--token-file", token, "--agent", "coder"]).open().await;
    assert!(plain.err().unwrap().to_string().contains("plain text"));
    pdp.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn laptop_outcomes_are_shown_with_their_decision() {
    let folder = folder();
    let args = flags(&["--policy", folder.path().to_str().unwrap()]);
    let (pdp, agent) = args.open().await.unwrap();
    let question = |tool: &str| remit::enforce::Question { tool: tool.into(), ..args.question(&agent) };
    let allowed = pdp.check(&question("git/log")).await.unwrap();
    let took = Duration::from_millis(12);
    pdp.report(&allowed.decision_id, CallOutcome::ToolError, took).await.unwrap();
    pdp.report(&allowed.decision_id, CallOutcome::ToolError, took).await.unwrap();
    let error = pdp.report(&allowed.decision_id, CallOutcome::Success, took).await.unwrap_err();
    assert!(matches!(&error, PdpError::Refused { status: 409, code, .. } if code == "outcome_reported"), "{error}");
    let denied = pdp.check(&question("git/push")).await.unwrap();
    let error = pdp.report(&denied.decision_id, CallOutcome::NotSent, took).await.unwrap_err();
    assert!(matches!(&error, PdpError::Refused { status: 409 | 404, .. }), "{error}");
    pdp.close().await;
    let out = folder.remit(&["decisions", "get", &allowed.decision_id, "--policy"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("tool_error after 12 ms"), "{text} {}", String::from_utf8_lossy(&out.stderr));
}
