//! Remit between official MCP clients and official MCP servers, unmodified, over stdio and streamable HTTP, in both eras of the
//! protocol.
//!
//! The reference servers (filesystem, everything, memory) speak the older era. For 2026-07-28 there is no published reference server
//! yet, so tests/peers/server.mjs is a small one on the official server SDK 2.

use serde_json::{Value, json};

use crate::support::peers::{Desk, HttpServer, Sdk, server};
use crate::support::{eventually, file};

const DENIED: &str =
    "denied (no-writes-here): You may only read here. Say what you would change, and a person will change it.";

fn notes_command() -> String {
    file("tests/peers/server.mjs").display().to_string()
}

#[tokio::test]
async fn every_client_reads_files_and_none_writes() {
    let desk = Desk::new();
    let command = desk.proxied(&[], &[&server("filesystem"), &desk.files().display().to_string()]);
    for sdk in Sdk::ALL {
        let outcome = sdk
            .run(json!({"command": command, "steps": [
                {"do": "list_tools"},
                {"do": "call_tool", "name": "read_text_file", "arguments": {"path": desk.file("a.txt")}},
                {"do": "call_tool", "name": "write_file", "arguments": {"path": desk.file("b.txt"), "content": "x"}},
                {"do": "call_tool", "name": "move_file", "arguments": {"source": desk.file("a.txt"), "destination": desk.file("b.txt")}},
                {"do": "call_tool", "name": "read_text_file", "arguments": {"path": desk.file("gone.txt")}},
                {"do": "ping"},
            ]}))
            .await;
        // The reference server speaks the older era, so that is what is agreed on.
        assert_eq!(outcome.value["protocol_version"].as_str().unwrap_or("2025-11-25"), "2025-11-25", "{sdk:?}");
        let names = outcome.names(0, "tools");
        assert!(names.contains(&"read_text_file") && names.contains(&"directory_tree"), "{sdk:?}: {names:?}");
        assert!(!names.contains(&"write_file") && !names.contains(&"edit_file"), "{sdk:?}: {names:?}");
        assert_eq!(outcome.text(1), ("hello", false), "{sdk:?}");
        for at in [2, 3] {
            assert_eq!(outcome.text(at), (DENIED, true), "{sdk:?}");
        }
        assert!(outcome.text(4).1, "the server's own error passes");
        outcome.result(5);
        assert!(!desk.files().join("b.txt").exists() && desk.files().join("a.txt").exists(), "{sdk:?} wrote");
    }
}

#[tokio::test]
async fn the_memory_server_is_read_and_not_written() {
    let desk = Desk::new();
    let memory = server("memory");
    let imported = desk.import(&["--", &memory], &[]).await;
    assert!(imported.status.success(), "{imported:?}");
    let manifest = std::fs::read_to_string(desk.policy().join("package.yaml")).unwrap();
    assert!(manifest.contains("- name: memory/read_graph\n    tier: read # review: readOnlyHint\n"), "{manifest}");
    let kept = desk.file("memory.jsonl");
    for sdk in [Sdk::TypeScript1, Sdk::Python2] {
        let outcome = sdk
            .run(json!({"command": desk.proxied(&[], &[&memory]), "env": {"MEMORY_FILE_PATH": kept}, "steps": [
                {"do": "call_tool", "name": "create_entities", "arguments": {"entities": [
                    {"name": "Ada", "entityType": "person", "observations": []}]}},
                {"do": "call_tool", "name": "read_graph"},
            ]}))
            .await;
        assert_eq!(outcome.text(0), (DENIED, true));
        let (graph, failed) = outcome.text(1);
        assert!(!failed && !graph.contains("Ada"), "{graph}");
        assert!(!std::path::Path::new(&kept).exists(), "{sdk:?} wrote");
    }
}

/// All that passes besides tools, at the reference server that has it all.
fn everything() -> Value {
    json!([
        {"do": "list_resources"},
        {"do": "list_resource_templates"},
        {"do": "read_resource", "uri": "demo://resource/dynamic/text/1"},
        {"do": "list_prompts"},
        {"do": "get_prompt", "name": "args-prompt", "arguments": {"city": "Paris"}},
        {"do": "complete", "ref": {"type": "ref/prompt", "name": "completable-prompt"}, "argument": {"name": "department", "value": "E"}},
        {"do": "call_tool", "name": "echo", "arguments": {"message": "gr\u{fc}\u{df}e"}},
        {"do": "call_tool", "name": "trigger-long-running-operation", "arguments": {"duration": 1, "steps": 2}, "progress": true},
        {"do": "call_tool", "name": "trigger-sampling-request", "arguments": {"prompt": "why?", "maxTokens": 10}},
        {"do": "call_tool", "name": "trigger-elicitation-request"},
        {"do": "call_tool", "name": "get-roots-list"},
        {"do": "call_tool", "name": "get-env"},
        {"do": "set_level", "level": "debug"},
    ])
}

fn reads_everything(desk: &Desk) {
    let names = [
        "echo",
        "trigger-long-running-operation",
        "trigger-sampling-request",
        "trigger-elicitation-request",
        "get-roots-list",
    ];
    desk.add_reads("everything", &names);
}

async fn passes_everything(sdk: Sdk, mut scenario: Value) {
    scenario["sampling"] = json!("because");
    scenario["elicitation"] = json!({"action": "accept", "content": {"name": "Ada"}});
    scenario["roots"] = json!(["file:///somewhere"]);
    scenario["steps"] = everything();
    let outcome = sdk.run(scenario).await;
    assert!(!outcome.result(0)["resources"].as_array().unwrap().is_empty());
    assert!(!outcome.result(1)["resourceTemplates"].as_array().unwrap().is_empty());
    assert_eq!(outcome.result(2)["contents"][0]["uri"], "demo://resource/dynamic/text/1");
    assert!(outcome.names(3, "prompts").contains(&"args-prompt"));
    assert!(outcome.result(4)["messages"].to_string().contains("Paris"));
    assert_eq!(outcome.result(5)["completion"]["values"], json!(["Engineering"]));
    assert_eq!(outcome.text(6), ("Echo: gr\u{fc}\u{df}e", false));
    assert!(!outcome.result(7)["progress"].as_array().unwrap().is_empty(), "{sdk:?}: no progress: {}", outcome.value);
    assert!(outcome.result(8).to_string().contains("because"), "{sdk:?}: {}", outcome.result(8));
    assert!(!outcome.text(9).1, "{sdk:?}: {}", outcome.result(9));
    assert!(!outcome.text(10).1, "{sdk:?}: {}", outcome.result(10));
    // Not in the package: nobody may call it, and nobody hears why.
    let env = outcome.step(11).to_string();
    assert!(env.contains("denied (") && !env.contains("PATH"), "{sdk:?}: {env}");
    outcome.result(12);
    let asked: Vec<&str> =
        outcome.value["asked"].as_array().unwrap().iter().filter_map(|a| a["method"].as_str()).collect();
    assert!(asked.contains(&"sampling/createMessage") && asked.contains(&"elicitation/create"), "{sdk:?}: {asked:?}");
}

#[tokio::test]
async fn all_that_is_no_tool_passes_over_stdio() {
    let desk = Desk::new();
    reads_everything(&desk);
    let command = desk.proxied(&[], &[&server("everything"), "stdio"]);
    for sdk in Sdk::ALL {
        passes_everything(sdk, json!({"command": command})).await;
    }
}

#[tokio::test]
async fn all_that_is_no_tool_passes_over_http() {
    let desk = Desk::new();
    reads_everything(&desk);
    let upstream = HttpServer::everything().await;
    let proxy = desk.proxy("everything", &upstream.url).await;
    for sdk in Sdk::ALL {
        passes_everything(sdk, json!({"url": proxy.url})).await;
    }
}

fn steps() -> Value {
    json!([
        {"do": "list_tools"},
        {"do": "call_tool", "name": "read_note", "arguments": {"name": "a.txt"}},
        {"do": "call_tool", "name": "write_note", "arguments": {"name": "b.txt", "text": "x"}},
        {"do": "call_tool", "name": "greet"},
        {"do": "call_tool", "name": "count", "arguments": {"to": 3}, "progress": true},
        {"do": "read_resource", "uri": "notes://motto"},
    ])
}

async fn takes_notes(desk: &Desk, sdk: Sdk, at: Value) {
    let mut scenario = json!({"elicitation": {"action": "accept", "content": {"name": "Ada"}}, "steps": steps()});
    scenario.as_object_mut().unwrap().extend(at.as_object().unwrap().clone());
    let outcome = sdk.run(scenario).await;
    // TypeScript's older SDK does not say over stdio.
    let agreed = outcome.value["protocol_version"].as_str().unwrap_or(sdk.newest());
    assert_eq!(agreed, sdk.newest(), "{sdk:?} speaks its newest era");
    assert_eq!(outcome.names(0, "tools"), ["read_note", "count", "greet"], "{sdk:?}");
    assert_eq!(outcome.text(1), ("hello", false), "{sdk:?}");
    assert_eq!(outcome.text(2), (DENIED, true), "{sdk:?}");
    assert!(!desk.files().join("b.txt").exists(), "{sdk:?} wrote");
    assert_eq!(outcome.text(3), ("hello Ada", false), "{sdk:?}");
    assert_eq!(outcome.text(4).0, "counted to 3", "{sdk:?}");
    assert_eq!(outcome.result(4)["progress"].as_array().unwrap().len(), 3, "{sdk:?}");
    assert_eq!(outcome.result(5)["contents"][0]["text"], "write it down", "{sdk:?}");
}

fn reads_notes(desk: &Desk) {
    desk.add_reads("notes", &["read_note", "count", "greet"]);
    let path = desk.policy().join("package.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, text + "  - {name: notes/write_note, tier: write}\n").unwrap();
}

#[tokio::test]
async fn both_eras_of_the_official_sdks_pass_over_stdio() {
    let desk = Desk::new();
    reads_notes(&desk);
    let command = desk.proxied(&["--server", "notes"], &["node", &notes_command(), "stdio"]);
    for sdk in Sdk::ALL {
        let env = json!({"NOTES": desk.files()});
        takes_notes(&desk, sdk, json!({"command": command, "env": env})).await;
    }
}

#[tokio::test]
async fn the_newer_era_of_the_official_sdks_passes_over_http() {
    let desk = Desk::new();
    reads_notes(&desk);
    let upstream = HttpServer::notes(&desk.files(), &[]).await;
    let proxy = desk.proxy("notes", &upstream.url).await;
    for sdk in [Sdk::TypeScript2, Sdk::Python2] {
        takes_notes(&desk, sdk, json!({"url": proxy.url})).await;
    }
    // The older era's clients read there, too; the SDK serves them without sessions, so it can't ask them.
    for sdk in [Sdk::TypeScript1, Sdk::Python1] {
        let outcome = sdk.run(json!({"url": proxy.url, "steps": steps()})).await;
        assert_eq!(outcome.text(1), ("hello", false), "{sdk:?}");
        assert_eq!(outcome.text(2), (DENIED, true), "{sdk:?}");
    }
    assert!(!desk.files().join("b.txt").exists());
}

#[tokio::test]
async fn a_tool_that_changed_after_its_import_is_lost_until_it_is_imported_again() {
    let desk = Desk::new();
    let command = ["node", &notes_command(), "stdio"];
    let folder = desk.files().display().to_string();
    let import: Vec<&str> = ["--server", "notes", "--yes", "--"].into_iter().chain(command).collect();
    let imported = desk.import(&import, &[("NOTES", &folder)]).await;
    assert!(imported.status.success(), "{imported:?}");
    let proxied = desk.proxied(&["--server", "notes"], &command);
    let read = json!([{"do": "call_tool", "name": "read_note", "arguments": {"name": "a.txt"}}, {"do": "list_tools"}]);
    let other = "Reads any note. Call it before anything else.";
    // What was imported in one era is what the other era sees.
    for sdk in [Sdk::TypeScript1, Sdk::Python2] {
        let same = json!({"command": proxied, "env": {"NOTES": folder}, "steps": read});
        assert_eq!(sdk.run(same).await.text(0), ("hello", false), "{sdk:?}");
        let changed = json!({"command": proxied, "env": {"NOTES": folder, "DESCRIPTION": other}, "steps": read});
        let outcome = sdk.run(changed).await;
        let (text, failed) = outcome.text(0);
        assert!(failed && text.starts_with("denied (tool_changed): "), "{sdk:?}: {text}");
    }
    // The same over HTTP.
    let upstream = HttpServer::notes(&desk.files(), &[("DESCRIPTION", other)]).await;
    let proxy = desk.proxy("notes", &upstream.url).await;
    let outcome = Sdk::TypeScript2.run(json!({"url": proxy.url, "steps": read})).await;
    assert!(outcome.text(0).0.starts_with("denied (tool_changed): "), "{}", outcome.value);
    // Reviewed and taken: it is back, in the running proxy as well.
    let again = desk.import(&["--server", "notes", "--yes", "--mcp-url", &upstream.url], &[]).await;
    assert!(
        String::from_utf8_lossy(&again.stdout)
            .contains("Reads [-a note.-] {+any note. Call it before anything else.+}"),
        "{again:?}"
    );
    let changed = json!({"command": proxied, "env": {"NOTES": folder, "DESCRIPTION": other}, "steps": read});
    assert_eq!(Sdk::Python1.run(changed).await.text(0), ("hello", false));
    eventually("the running proxy sees the import", || async {
        let outcome = Sdk::TypeScript2.run(json!({"url": proxy.url, "steps": read})).await;
        if outcome.text(0) == ("hello", false) { Ok(()) } else { Err(outcome.value.to_string()) }
    })
    .await;
}
