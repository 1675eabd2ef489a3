use std::sync::Mutex;

use serde_json::{Value, json};

use super::*;
use crate::enforce::{CallOutcome, PdpError, PdpFuture, Ruling, Verdict};

/// Answers everything in one way, and keeps the questions.
struct Fixed {
    answer: Option<Result<Verdict, PdpError>>,
    asked: Mutex<Vec<Question>>,
}

impl Pdp for Fixed {
    fn check<'a>(&'a self, question: &'a Question) -> PdpFuture<'a, Result<Verdict, PdpError>> {
        self.asked.lock().unwrap().push(question.clone());
        Box::pin(async move {
            match &self.answer {
                Some(answer) => answer.clone(),
                None => std::future::pending().await,
            }
        })
    }

    fn tools<'a>(&'a self, _: &'a str) -> PdpFuture<'a, Result<Vec<String>, PdpError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn report<'a>(&'a self, _: &'a str, _: CallOutcome, _: Duration) -> PdpFuture<'a, Result<(), PdpError>> {
        Box::pin(async { Ok(()) })
    }
}

fn verdict(ruling: Ruling, asks: &[&str]) -> Verdict {
    Verdict {
        ruling,
        code: match ruling {
            Ruling::Allow => "allowed",
            Ruling::Deny => "denied_by_policy",
            Ruling::ApprovalRequired => "approval_required",
        }
        .into(),
        rule: None,
        reason: "Open a pull request instead.".into(),
        decision_id: "d-1".into(),
        asks: asks.iter().map(|a| (*a).to_owned()).collect(),
    }
}

fn event(tool: &str) -> Value {
    json!({
        "session_id": "s", "transcript_path": "/t", "cwd": "/c", "permission_mode": "default",
        "hook_event_name": "PreToolUse", "tool_name": tool, "tool_input": {"command": "ls"}, "tool_use_id": "toolu_1",
    })
}

fn run(
    agent: CodingAgent,
    input: &str,
    answer: Option<Result<Verdict, PdpError>>,
    defer: bool,
) -> (Reply, Vec<Question>) {
    let pdp = Fixed { answer, asked: Mutex::default() };
    let options = HookOptions { agent: "coder".into(), defer, ..HookOptions::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let reply = runtime.block_on(super::answer(agent, input.as_bytes(), &pdp, &options, Duration::from_millis(20)));
    (reply, pdp.asked.into_inner().unwrap())
}

fn claude(input: &Value, verdict: Verdict) -> Value {
    let (reply, _) = run(CodingAgent::ClaudeCode, &input.to_string(), Some(Ok(verdict)), false);
    assert_eq!((reply.exit, reply.stderr.as_str()), (0, ""));
    serde_json::from_str::<Value>(&reply.stdout).unwrap()["hookSpecificOutput"].clone()
}

#[test]
fn the_call_is_asked_about_with_its_own_arguments_and_without_the_agents_session() {
    let (_, asked) =
        run(CodingAgent::ClaudeCode, &event("Bash").to_string(), Some(Ok(verdict(Ruling::Allow, &[]))), false);
    let wanted = Question {
        agent: "coder".into(),
        tool: "claude-code/Bash".into(),
        arguments: json!({"command": "ls"}).as_object().unwrap().clone(),
        request_id: Some("toolu_1".into()),
        ..Question::default()
    };
    assert_eq!(asked, [wanted]);
}

#[test]
fn each_ruling_has_its_word() {
    let allowed = claude(&event("Bash"), verdict(Ruling::Allow, &[]));
    assert_eq!(allowed["permissionDecision"], "allow");
    let denied = claude(&event("Bash"), verdict(Ruling::Deny, &[]));
    assert_eq!(denied["permissionDecision"], "deny");
    let reason = "denied (denied_by_policy): Open a pull request instead. [decision d-1]";
    assert_eq!(denied["permissionDecisionReason"], reason);
    let coded = claude(&event("Bash"), Verdict { rule: Some("no-force".into()), ..verdict(Ruling::Deny, &[]) });
    assert!(coded["permissionDecisionReason"].as_str().unwrap().starts_with("denied (no-force): "));

    let (reply, _) =
        run(CodingAgent::ClaudeCode, &event("Bash").to_string(), Some(Ok(verdict(Ruling::Allow, &[]))), true);
    assert_eq!(reply, Reply { stdout: String::new(), stderr: String::new(), exit: 0 });
    let (reply, _) =
        run(CodingAgent::ClaudeCode, &event("Bash").to_string(), Some(Ok(verdict(Ruling::Deny, &[]))), true);
    assert!(reply.stdout.contains("\"deny\""), "only allows are left to the user");
}

/// While the tenant observes, everything is let through: an `allow` would answer the prompts of calls that no policy permits.
#[test]
fn what_is_only_observed_is_left_to_the_agents_own_prompts() {
    let observed = || Verdict { code: crate::gate::OBSERVED.into(), ..verdict(Ruling::Allow, &[]) };
    let gemini =
        json!({"hook_event_name": "BeforeTool", "tool_name": "run_shell_command", "tool_input": {"command": "ls"}});
    for (agent, input) in [(CodingAgent::ClaudeCode, event("Bash")), (CodingAgent::GeminiCli, gemini)] {
        let (reply, asked) = run(agent, &input.to_string(), Some(Ok(observed())), false);
        assert_eq!(reply, Reply { stdout: String::new(), stderr: String::new(), exit: 0 });
        assert_eq!(asked.len(), 1, "and it is recorded");
    }
}

#[test]
fn only_what_the_delegator_may_confirm_is_asked_and_only_where_a_human_would_see_it() {
    let decision = |asks: &[&str], mode: Option<&str>| {
        let mut input = event("Bash");
        match mode {
            Some(mode) => input["permission_mode"] = mode.into(),
            None => drop(input.as_object_mut().unwrap().remove("permission_mode")),
        }
        claude(&input, verdict(Ruling::ApprovalRequired, asks))["permissionDecision"].clone()
    };
    assert_eq!(decision(&["delegator"], Some("default")), "ask");
    assert_eq!(decision(&["delegator"], Some("acceptEdits")), "ask");
    for mode in [Some("bypassPermissions"), Some("dontAsk"), Some("auto"), Some("later"), None] {
        assert_eq!(decision(&["delegator"], mode), "deny", "{mode:?}");
    }
    assert_eq!(decision(&["leads"], Some("default")), "deny");
    assert_eq!(decision(&["delegator", "leads"], Some("default")), "deny");
    assert_eq!(decision(&[], Some("default")), "deny");
    let told = claude(&event("Bash"), verdict(Ruling::ApprovalRequired, &["leads"]));
    let reason = told["permissionDecisionReason"].as_str().unwrap();
    assert!(reason.contains("needs approval by \"leads\"") && reason.contains("[decision d-1]"), "{reason}");
}

#[test]
fn whatever_is_no_answer_blocks_with_a_reason_and_nothing_on_stdout() {
    let errors = [
        Some(Err(PdpError::Unreachable("refused".into()))),
        Some(Err(PdpError::Malformed("{\"decision\":\"allow\"}".into()))),
        Some(Err(PdpError::Refused { status: 503, code: "not_synced".into(), message: "later\n{}".into() })),
        None,
    ];
    for agent in [CodingAgent::ClaudeCode, CodingAgent::GeminiCli] {
        for error in &errors {
            let mut input = event("Bash");
            input["hook_event_name"] = agent.event().into();
            let (reply, _) = run(agent, &input.to_string(), error.clone(), true);
            assert_eq!((reply.exit, reply.stdout.as_str()), (BLOCKED, ""), "{error:?}");
            assert!(reply.stderr.starts_with("remit: this call is blocked: "), "{}", reply.stderr);
            assert_eq!(reply.stderr.lines().count(), 1, "one line that is no JSON: {}", reply.stderr);
        }
    }
}

#[test]
fn hostile_input_blocks_before_anybody_is_asked() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let mut wrong = vec![
        String::new(),
        "{".into(),
        "[]".into(),
        "null".into(),
        "{} {}".into(),
        deep,
        format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_INPUT)),
        event("Bash").to_string().replace("\"tool_name\":\"Bash\"", "\"tool_name\":\"Read\",\"tool_name\":\"Bash\""),
        event("Bash").to_string().replace("\"command\":\"ls\"", "\"command\":\"ls\",\"command\":\"rm\""),
        event("Bash").to_string().replace("\"ls\"", "1e400"),
        event("Bash").to_string().trim_end_matches('}').to_owned(),
    ];
    for (field, value) in [
        ("hook_event_name", json!("PostToolUse")),
        ("hook_event_name", json!("UserPromptSubmit")),
        ("hook_event_name", json!("pretooluse")),
        ("hook_event_name", json!("BeforeTool")),
        ("hook_event_name", Value::Null),
        ("tool_name", json!("")),
        ("tool_name", json!(["Bash"])),
        ("tool_name", json!("a/b")),
        ("tool_name", json!("Bash ")),
        ("tool_name", json!("Bаsh")),
        ("tool_name", json!("x".repeat(300))),
        ("tool_name", json!("mcp__claude-code__Bash")),
        ("tool_name", json!("mcp__Claude-Code__Bash")),
        ("tool_name", json!("mcp__x")),
        ("tool_name", json!("mcp____x")),
        ("tool_name", json!("mcp__x__")),
        ("tool_name", json!("mcp__a__b__c")),
        ("tool_name", json!("mcp__a___b")),
        ("tool_input", json!("ls")),
        ("tool_input", json!([])),
        ("tool_input", Value::Null),
    ] {
        let mut input = event("Bash");
        input[field] = value;
        wrong.push(input.to_string());
    }
    for field in ["hook_event_name", "tool_name", "tool_input"] {
        let mut input = event("Bash");
        input.as_object_mut().unwrap().remove(field);
        wrong.push(input.to_string());
    }
    for input in wrong {
        let (reply, asked) = run(CodingAgent::ClaudeCode, &input, Some(Ok(verdict(Ruling::Allow, &[]))), false);
        let shown: String = input.chars().take(200).collect();
        assert_eq!((reply.exit, reply.stdout.as_str(), asked.len()), (BLOCKED, "", 0), "{shown}");
        assert!(reply.stderr.len() < 600, "{shown}");
    }
}

#[test]
fn tools_of_mcp_servers_have_their_servers_name() {
    let tool = |agent, input: Value| read(agent, input.to_string().as_bytes()).map(|call| call.tool);
    let of = |name: &str| tool(CodingAgent::ClaudeCode, event(name));
    assert_eq!(of("mcp__github__create_issue").unwrap(), "github/create_issue");
    assert_eq!(of("mcp__plugin_a_b__do").unwrap(), "plugin_a_b/do");
    assert_eq!(of("MCP__github__x").unwrap(), "claude-code/MCP__github__x", "an unknown tool of its own");
    let with = |name: &str, server: &str| {
        let mut input = event(name);
        input["mcp_server"] = json!({"name": server, "source": "user"});
        tool(CodingAgent::ClaudeCode, input)
    };
    assert_eq!(with("mcp__a__b__c", "a").unwrap(), "a/b__c");
    assert_eq!(with("mcp__a__b__c", "a__b").unwrap(), "a__b/c");
    assert_eq!(with("mcp__my_files__read", "my files").unwrap(), "my_files/read");
    assert_eq!(with("mcp__claude_ai_Drive_x__read", "claude.ai Drive (x)").unwrap(), "claude_ai_Drive_x/read");
    assert!(with("mcp__a__b", "b").is_err(), "the two names disagree");
    assert!(with("mcp__claude-code__Bash", "claude-code").is_err());

    let gemini = |name: &str, context: Option<Value>| {
        let mut input = event(name);
        input["hook_event_name"] = "BeforeTool".into();
        context.into_iter().for_each(|context| input["mcp_context"] = context);
        tool(CodingAgent::GeminiCli, input)
    };
    assert_eq!(gemini("run_shell_command", None).unwrap(), "gemini-cli/run_shell_command");
    let context = json!({"server_name": "github", "tool_name": "create_issue"});
    assert_eq!(gemini("mcp_github_create_issue", Some(context)).unwrap(), "github/create_issue");
    assert!(gemini("mcp_github_create_issue", None).is_err(), "nothing says where the server's name ends");
    assert!(gemini("mcp_x_y", Some(json!({"server_name": "gemini-cli", "tool_name": "y"}))).is_err());
    assert!(gemini("mcp_x_y", Some(json!({"server_name": "", "tool_name": "y"}))).is_err());
}

#[test]
fn gemini_has_no_word_for_asking() {
    let mut input = event("write_file");
    input["hook_event_name"] = "BeforeTool".into();
    let said = |verdict: Verdict| {
        let (reply, _) = run(CodingAgent::GeminiCli, &input.to_string(), Some(Ok(verdict)), false);
        serde_json::from_str::<Value>(&reply.stdout).unwrap()
    };
    assert_eq!(said(verdict(Ruling::Allow, &[])), json!({"decision": "allow"}));
    assert_eq!(said(verdict(Ruling::Deny, &[]))["decision"], "deny");
    assert_eq!(said(verdict(Ruling::ApprovalRequired, &["delegator"]))["decision"], "deny");
}

mod installing {
    use std::path::PathBuf;

    use super::*;
    use crate::enforce::hook::install::Outcome;

    fn plan(agent: CodingAgent) -> Installation {
        Installation {
            agent,
            program: PathBuf::from("/opt/it's/remit"),
            flags: ["--policy", "/home/u/policy", "--agent", "coder"].map(str::to_owned).to_vec(),
            settings: PathBuf::from("/home/u/.claude/settings.json"),
            policy: Some(PathBuf::from("/home/u/policy")),
        }
    }

    fn changed(outcome: Result<Outcome, InstallError>) -> String {
        match outcome.unwrap() {
            Outcome::Changed(text) => text,
            Outcome::Unchanged => panic!("unchanged"),
        }
    }

    const FILES: &[&str] = &[
        "{}\n",
        "{\n  \"model\": \"opus\"\n}\n",
        "\n{\n\t\"z\": 1.50,\n\t\"hooks\": {\n\t\t\"Stop\": [],\n\t\t\"PreToolUse\": [\n\t\t\t{\"matcher\": \"Bash\", \"hooks\": [{\"type\":\"command\",\"command\":\"x\"}]}\n\t\t]\n\t},\n\t\"a\": {\"b\": [1,  2]}\n}",
        "{\n    \"permissions\": {\n        \"allow\": [\"Bash(ls)\"],\n        \"deny\": [\n            \"Read(./.env)\"\n        ]\n    },\n    \"env\": {\"N\": 12345678901234567890123}\n}\n",
    ];

    #[test]
    fn what_was_installed_is_taken_out_again_to_the_byte() {
        for agent in [CodingAgent::ClaudeCode, CodingAgent::GeminiCli] {
            for file in FILES {
                let with = changed(install(Some(file), &plan(agent)));
                assert!(with.contains(agent.event()));
                assert_eq!(install(Some(&with), &plan(agent)).unwrap(), Outcome::Unchanged, "{with}");
                assert_eq!(changed(uninstall(&with, &plan(agent))), *file);
                assert_eq!(uninstall(file, &plan(agent)).unwrap(), Outcome::Unchanged);
            }
        }
    }

    #[test]
    fn a_second_installation_replaces_the_first_and_its_rules() {
        let first = changed(install(None, &plan(CodingAgent::ClaudeCode)));
        let mut other = plan(CodingAgent::ClaudeCode);
        other.flags = ["--policy", "/srv/p"].map(str::to_owned).to_vec();
        other.policy = Some(PathBuf::from("/srv/p"));
        let second = changed(install(Some(&first), &other));
        assert_eq!(second.matches("hook' 'claude-code'").count(), 1);
        assert!(!second.contains("/home/u/policy") && second.contains("Edit(//srv/p/**)"), "{second}");
        // Whoever uninstalls need not know the flags.
        let bare = Installation { flags: Vec::new(), policy: None, ..other };
        assert_eq!(changed(uninstall(&second, &bare)), "{}\n");
    }

    #[test]
    fn the_entry_closes_what_the_contract_leaves_open() {
        let text = changed(install(None, &plan(CodingAgent::ClaudeCode)));
        let settings: Value = serde_json::from_str(&text).unwrap();
        let group = &settings["hooks"]["PreToolUse"][0];
        assert_eq!(group["matcher"], "*");
        let hook = &group["hooks"][0];
        assert_eq!((&hook["onFailure"], &hook["timeout"]), (&json!("block"), &json!(600)));
        let command = hook["command"].as_str().unwrap();
        assert!(
            command.starts_with(r"'/opt/it'\''s/remit' 'hook' 'claude-code' '--policy' '/home/u/policy' "),
            "{command}"
        );
        let denied = settings["permissions"]["deny"].as_array().unwrap();
        let wanted =
            ["Edit(//home/u/.claude/settings.json)", "Edit(//home/u/policy/**)", "Read(//home/u/policy/.remit/**)"];
        assert_eq!(denied, &wanted.map(Value::from));
        let text = changed(install(None, &plan(CodingAgent::GeminiCli)));
        let settings: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(settings["hooks"]["BeforeTool"][0]["hooks"][0]["timeout"], 600_000);
        assert!(settings.get("permissions").is_none());
    }

    #[test]
    fn a_file_that_cannot_be_kept_whole_is_left_alone() {
        let claude = plan(CodingAgent::ClaudeCode);
        for file in [
            "{",
            "[]",
            "{\"a\":1,\"a\":2}",
            "{\"hooks\":{\"PreToolUse\":[],\"PreToolUse\":[]}}",
            "// c\n{}",
            "{\"hooks\":[]}",
            "{\"hooks\":{\"PreToolUse\":{}}}",
            "{\"permissions\":{\"deny\":\"x\"}}",
            "{\"disableAllHooks\":true}",
            "{\"hooks\":{\"PreToolUse\":[1]}}",
        ] {
            assert!(install(Some(file), &claude).is_err(), "{file}");
        }
        for file in ["{\"hooksConfig\":{\"enabled\":false}}", "{\"hooksConfig\":{\"disabled\":[\"remit\"]}}"] {
            assert!(install(Some(file), &plan(CodingAgent::GeminiCli)).is_err(), "{file}");
        }
        for word in ["$HOME/p", "a`b", "a\nb"] {
            let plan = Installation { flags: vec![word.into()], ..claude.clone() };
            assert!(matches!(install(None, &plan), Err(InstallError::Word(_))), "{word}");
        }
    }

    #[test]
    fn hooks_of_others_that_look_alike_stay() {
        let other = r#"{"hooks":{"PreToolUse":[{"matcher":"*","hooks":[{"type":"command","command":"remit hook claude-code"}]}]}}"#;
        assert_eq!(uninstall(other, &plan(CodingAgent::ClaudeCode)).unwrap(), Outcome::Unchanged);
        let mine = changed(install(None, &plan(CodingAgent::GeminiCli)));
        assert_eq!(uninstall(&mine, &plan(CodingAgent::ClaudeCode)).unwrap(), Outcome::Unchanged);
    }
}
