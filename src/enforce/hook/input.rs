//! What a coding agent says on stdin: one JSON object, strictly read, mapped to one call of a tool.
//!
//! Must never guess which tool is meant: a name that two tools could have is refused, and no MCP server can be called like the
//! coding agent itself.

use serde_json::{Map, Value};

use super::CodingAgent;
use crate::server::{JsonError, parse_json};

/// Bytes of stdin that are read. More is refused, not cut.
pub const MAX_INPUT: usize = 10 * 1024 * 1024;
/// Bytes of a tool's name, `server/name`, as packages limit it.
const MAX_TOOL: usize = 256;
/// `X-Request-ID` at most.
const MAX_ID: usize = 128;

/// One call that waits for its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct HookCall {
    /// `server/name`.
    pub tool: String,
    /// The tool's input, unchanged.
    pub arguments: Map<String, Value>,
    /// The coding agent's id of the call, where it can be a request id.
    pub id: Option<String>,
    /// Whether an `ask` would reach a human now.
    pub prompts: bool,
}

/// Input that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Too much of it.
    #[error("the hook's input is over {MAX_INPUT} bytes")]
    TooLarge,
    /// Not JSON, or JSON that two readers could read differently.
    #[error("the hook's input can't be read: {}{}", at(.0), .0.message)]
    Json(JsonError),
    /// A member is missing or of another type.
    #[error("the hook's input: {field}: {why}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Installed for another event.
    #[error("this hook answers {wanted} and was called for {got:?}: correct the settings")]
    Event {
        /// What it is for.
        wanted: &'static str,
        /// What it got.
        got: String,
    },
}

fn at(error: &JsonError) -> String {
    if error.field.is_empty() { String::new() } else { format!("{}: ", error.field) }
}

/// Reads one event.
pub fn read(agent: CodingAgent, bytes: &[u8]) -> Result<HookCall, InputError> {
    if bytes.len() > MAX_INPUT {
        return Err(InputError::TooLarge);
    }
    let mut input = match parse_json(bytes).map_err(InputError::Json)? {
        Value::Object(map) => map,
        _ => return Err(InputError::Field { field: "(all)", why: "must be a JSON object".into() }),
    };
    let event = text(&input, "hook_event_name")?;
    if event != agent.event() {
        let got = event.chars().take(64).collect();
        return Err(InputError::Event { wanted: agent.event(), got });
    }
    let tool = tool(agent, &input)?;
    let prompts = agent == CodingAgent::ClaudeCode && prompts(&input);
    let id = input.get("tool_use_id").and_then(Value::as_str).filter(|id| is_request_id(id)).map(str::to_owned);
    let arguments = match input.swap_remove("tool_input") {
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return Err(wrong("tool_input", "must be an object")),
        None => return Err(wrong("tool_input", "is missing")),
    };
    Ok(HookCall { tool, arguments, id, prompts })
}

fn wrong(field: &'static str, why: impl Into<String>) -> InputError {
    InputError::Field { field, why: why.into() }
}

fn text<'a>(input: &'a Map<String, Value>, field: &'static str) -> Result<&'a str, InputError> {
    match input.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        Some(_) => Err(wrong(field, "must be a text that is not empty")),
        None => Err(wrong(field, "is missing")),
    }
}

fn is_request_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= MAX_ID
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Whether Claude Code shows `ask` to a human: `bypassPermissions` and `dontAsk` have nobody to ask, in `auto` a model answers,
/// and of a mode that is not known nothing is believed.
fn prompts(input: &Map<String, Value>) -> bool {
    let mode = input.get("permission_mode").and_then(Value::as_str);
    matches!(mode, Some("default" | "manual" | "acceptEdits" | "plan"))
}

/// `server/name` of the tool that is about to be used.
fn tool(agent: CodingAgent, input: &Map<String, Value>) -> Result<String, InputError> {
    let name = text(input, "tool_name")?;
    let (server, tool) = match agent {
        CodingAgent::ClaudeCode => claude(name, input)?,
        CodingAgent::GeminiCli => gemini(name, input)?,
    };
    let full = format!("{}/{tool}", server.unwrap_or(agent.name()));
    // The coding agent's own tools are not for a server to define.
    if server.is_some_and(|server| server.eq_ignore_ascii_case(agent.name())) {
        return Err(wrong("tool_name", format!("an MCP server may not be called {:?}", agent.name())));
    }
    if full.len() > MAX_TOOL || full.matches('/').count() != 1 || !full.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong("tool_name", "is not a name that a tool can have"));
    }
    Ok(full)
}

type Named<'a> = (Option<&'a str>, &'a str);

/// `mcp__SERVER__TOOL`, where each name may itself contain `__`: with more than one way to cut, only `mcp_server` says which.
fn claude<'a>(name: &'a str, input: &Map<String, Value>) -> Result<Named<'a>, InputError> {
    let Some(rest) = name.strip_prefix("mcp__") else { return Ok((None, name)) };
    let shape = || wrong("tool_name", "begins like an MCP server's tool and is not mcp__SERVER__TOOL");
    let (server, tool) = match input.get("mcp_server") {
        Some(Value::Object(server)) => {
            let configured = server.get("name").and_then(Value::as_str);
            let configured = configured.ok_or_else(|| wrong("mcp_server", "has no name"))?;
            let spelt = |name: &str| {
                let tool = rest.strip_prefix(name)?.strip_prefix("__")?;
                Some((&rest[..name.len()], tool))
            };
            let normal = normal(configured);
            let named = spelt(&normal).or_else(|| {
                // Connectors of claude.ai are spelt with single underscores.
                let single: Vec<&str> = normal.split('_').filter(|part| !part.is_empty()).collect();
                spelt(&single.join("_")).filter(|_| configured.starts_with("claude.ai "))
            });
            named.ok_or_else(|| wrong("mcp_server", "names another server than tool_name"))?
        }
        Some(_) => return Err(wrong("mcp_server", "must be an object")),
        None => {
            let (server, tool) = rest.split_once("__").ok_or_else(shape)?;
            // `___` can be cut before or after its middle, so an underscore next to the cut is as ambiguous as a second cut.
            if tool.contains("__") || tool.starts_with('_') {
                let why = "could be a tool of several MCP servers: give the server or the tool a name without `__`";
                return Err(wrong("tool_name", why));
            }
            (server, tool)
        }
    };
    if server.is_empty() || tool.is_empty() { Err(shape()) } else { Ok((Some(server), tool)) }
}

/// As Claude Code spells a server's name in the names of its tools.
fn normal(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect()
}

/// The name alone does not say where the server's ends; `mcp_context` does.
fn gemini<'a>(name: &'a str, input: &'a Map<String, Value>) -> Result<Named<'a>, InputError> {
    let context = match input.get("mcp_context") {
        None if name.starts_with("mcp_") => return Err(wrong("mcp_context", "is missing of an MCP server's tool")),
        None => return Ok((None, name)),
        Some(Value::Object(context)) => context,
        Some(_) => return Err(wrong("mcp_context", "must be an object")),
    };
    let part = |key: &str| context.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (part("server_name"), part("tool_name")) {
        (Some(server), Some(tool)) => Ok((Some(server), tool)),
        _ => Err(wrong("mcp_context", "needs server_name and tool_name")),
    }
}
