//! Which methods pass, in which direction, in which era of the protocol. What is not listed does not pass.
//!
//! From the schemas of 2024-11-05, 2025-03-26, 2025-06-18, 2025-11-25 (legacy: one `initialize` a connection) and 2026-07-28
//! (modern: every request says its revision and capabilities), and the extension `io.modelcontextprotocol/tasks`.

use serde_json::{Map, Value};

/// Revisions that begin with `initialize`.
pub const LEGACY: &[&str] = &["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// Revisions whose requests stand for themselves.
pub const MODERN: &[&str] = &["2026-07-28"];
/// Where a modern request says its revision.
pub const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// Where a modern request says who sends it.
pub const META_CLIENT: &str = "io.modelcontextprotocol/clientInfo";
/// Where a modern request says what its client can do.
pub const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

/// How a request says its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// By the connection's `initialize`.
    Legacy,
    /// In its own `_meta`.
    Modern,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum In {
    Both,
    Legacy,
    Modern,
}

impl In {
    fn holds(self, era: Era) -> bool {
        self == Self::Both || (self == Self::Legacy) == (era == Era::Legacy)
    }
}

const CLIENT_REQUESTS: &[(&str, In)] = &[
    ("initialize", In::Legacy),
    ("ping", In::Legacy),
    ("logging/setLevel", In::Legacy),
    ("resources/subscribe", In::Legacy),
    ("resources/unsubscribe", In::Legacy),
    ("tasks/list", In::Legacy),
    ("tasks/result", In::Legacy),
    ("server/discover", In::Modern),
    ("subscriptions/listen", In::Modern),
    ("tasks/update", In::Modern),
    ("tools/list", In::Both),
    ("tools/call", In::Both),
    ("resources/list", In::Both),
    ("resources/templates/list", In::Both),
    ("resources/read", In::Both),
    ("prompts/list", In::Both),
    ("prompts/get", In::Both),
    ("completion/complete", In::Both),
    ("tasks/get", In::Both),
    ("tasks/cancel", In::Both),
];

const CLIENT_NOTIFICATIONS: &[&str] = &[
    "notifications/initialized",
    "notifications/cancelled",
    "notifications/progress",
    "notifications/roots/list_changed",
    "notifications/tasks/status",
];

const SERVER_NOTIFICATIONS: &[&str] = &[
    "notifications/cancelled",
    "notifications/progress",
    "notifications/message",
    "notifications/resources/list_changed",
    "notifications/resources/updated",
    "notifications/tools/list_changed",
    "notifications/prompts/list_changed",
    "notifications/elicitation/complete",
    "notifications/tasks/status",
    "notifications/tasks",
    "notifications/subscriptions/acknowledged",
];

/// Whether a client's request passes in this era.
pub fn client_request(method: &str, era: Era) -> bool {
    CLIENT_REQUESTS.iter().any(|(name, eras)| *name == method && eras.holds(era))
}

/// Whether a client's notification passes.
pub fn client_notification(method: &str) -> bool {
    CLIENT_NOTIFICATIONS.contains(&method)
}

/// Whether a server's notification passes.
pub fn server_notification(method: &str) -> bool {
    SERVER_NOTIFICATIONS.contains(&method)
}

/// What the client has said that it can do for the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Asks its model.
    pub sampling: bool,
    /// Asks its user.
    pub elicitation: bool,
    /// Names folders.
    pub roots: bool,
    /// Does these later, as tasks of its own (2025-11-25).
    pub tasks: bool,
}

impl Capabilities {
    /// From the object that the client sends.
    pub fn of(announced: Option<&Map<String, Value>>) -> Self {
        let has = |name| announced.and_then(|c| c.get(name)).is_some_and(Value::is_object);
        Self { sampling: has("sampling"), elicitation: has("elicitation"), roots: has("roots"), tasks: has("tasks") }
    }

    /// Whether a server may ask this of the client. Servers ask nothing else.
    pub fn answer(self, method: &str) -> bool {
        match method {
            "ping" => true,
            "sampling/createMessage" => self.sampling,
            "elicitation/create" => self.elicitation,
            "roots/list" => self.roots,
            "tasks/get" | "tasks/result" | "tasks/list" | "tasks/cancel" => self.tasks,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_pass_by_their_exact_name_in_their_era() {
        assert!(client_request("tools/call", Era::Legacy) && client_request("tools/call", Era::Modern));
        assert!(client_request("initialize", Era::Legacy) && !client_request("initialize", Era::Modern));
        assert!(!client_request("server/discover", Era::Legacy) && client_request("server/discover", Era::Modern));
        for method in ["Tools/Call", "tools/call ", "tools\u{2044}call", "tools/\u{441}all", "tools//call", "", "rpc.x"]
        {
            assert!(!client_request(method, Era::Legacy) && !client_request(method, Era::Modern), "{method:?}");
        }
        assert!(!client_request("sampling/createMessage", Era::Legacy), "the other direction's");
        assert!(!client_notification("tools/call") && !server_notification("notifications/initialized"));
    }

    #[test]
    fn a_server_asks_only_what_the_client_offers() {
        let none = Capabilities::default();
        let offers = serde_json::json!({"sampling": {}, "roots": false});
        let some = Capabilities::of(offers.as_object());
        assert!(some.answer("sampling/createMessage") && some.answer("ping") && none.answer("ping"));
        for method in ["roots/list", "elicitation/create", "tools/call", "Sampling/createMessage"] {
            assert!(!some.answer(method) && !none.answer(method), "{method}");
        }
    }
}
