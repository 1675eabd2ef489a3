//! How authors write a test: who asks, for whom, what, and what they expect.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::api::{DelegationMode, Delegator, DelegatorKind, SessionMode};
use crate::gate::{ActionRef, AgentEntry, Caller, CheckRequest, EntityRef, Outcome};
use crate::policy::{AgentFacts, CallerKind};

/// Tenant of every test.
pub(super) const TENANT: &str = "test";
/// Trust of an agent of which the test says none: the least with which anything is allowed.
const DEFAULT_TRUST: i64 = 1;
/// When a test asks, unless it says so.
const NOON: Timestamp = Timestamp::constant(1_767_268_800, 0);

/// One test.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub name: String,
    #[serde(default, deserialize_with = "text_or_map")]
    agent: Option<AgentCase>,
    #[serde(default)]
    subject: Option<EntityCase>,
    #[serde(default, deserialize_with = "text_or_map")]
    on_behalf_of: Option<DelegatorCase>,
    #[serde(default)]
    caller: CallerCase,
    #[serde(default)]
    at: Option<Timestamp>,
    call: Call,
    pub expect: Expect,
}

/// An agent: a bare name, or with facts.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentCase {
    #[serde(default = "agent_name")]
    name: String,
    #[serde(default = "default_trust")]
    trust: i64,
    #[serde(default, rename = "type")]
    type_: String,
    #[serde(default)]
    teams: Vec<String>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    #[serde(default)]
    suspended: bool,
    #[serde(default, deserialize_with = "text_or_map")]
    on_behalf_of: Option<Box<DelegatorCase>>,
}

/// A delegator: a user's bare name, `{user: NAME}` or `{agent: …}`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct DelegatorCase {
    #[serde(default)]
    user: Option<String>,
    #[serde(default, deserialize_with = "text_or_map")]
    agent: Option<AgentCase>,
}

/// AuthZEN subject or resource.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct EntityCase {
    #[serde(rename = "type")]
    type_: String,
    id: String,
    #[serde(default)]
    properties: Map<String, Value>,
}

/// What is asked: a tool's call, or an action on a resource.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    #[serde(default)]
    tool: Option<String>,
    #[serde(default)]
    action: Option<String>,
    #[serde(default)]
    resource: Option<EntityCase>,
    #[serde(default)]
    arguments: Map<String, Value>,
}

/// Who is believed for attributes.
#[derive(Clone, Copy, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum CallerCase {
    #[default]
    Gateway,
    Agent,
}

/// What is expected; what is not named is not compared.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    pub decision: Outcome,
    #[serde(default)]
    pub code: Option<String>,
    #[serde(default)]
    pub policies: Option<Vec<String>>,
}

/// What the gates are asked.
pub(super) struct Question {
    pub agents: HashMap<String, Arc<AgentEntry>>,
    pub caller: Caller,
    pub request: CheckRequest,
    pub now: Timestamp,
}

impl Case {
    /// The question that the test asks; Err: the field that makes no sense.
    pub fn question(self) -> Result<(String, Question, Expect), String> {
        if self.name.trim().is_empty() {
            return Err("name is empty".into());
        }
        let mut agents = HashMap::new();
        let (subject, on_behalf_of) = match (self.agent, self.subject) {
            (Some(agent), None) => {
                let name = agent.name.clone();
                let delegator = agent.put_into(self.on_behalf_of, &mut agents)?;
                (EntityRef { type_: "agent".into(), id: name, properties: Map::new() }, delegator)
            }
            (None, Some(_)) if self.on_behalf_of.is_some() => {
                return Err("on_behalf_of: only an agent acts on behalf of others".into());
            }
            (None, Some(subject)) => (subject.into(), None),
            _ => return Err("expected one of agent and subject".into()),
        };
        let kind = match self.caller {
            CallerCase::Gateway => CallerKind::Gateway,
            CallerCase::Agent => CallerKind::Agent,
        };
        let caller = Caller {
            username: format!("system:serviceaccount:{TENANT}:{}", subject.id),
            kind,
            agent: (kind == CallerKind::Agent).then(|| (TENANT.to_string(), subject.id.clone())),
            stale: false,
        };
        let (action, resource, arguments) = self.call.parts()?;
        let request = CheckRequest { subject, action, resource, arguments, on_behalf_of, ..CheckRequest::default() };
        let question = Question { agents, caller, request, now: self.at.unwrap_or(NOON) };
        Ok((self.name, question, self.expect))
    }
}

impl Call {
    fn parts(self) -> Result<(ActionRef, EntityRef, Map<String, Value>), String> {
        let (action, resource) = match (self.tool, self.action, self.resource) {
            (Some(tool), None, None) => {
                ("call_tool".into(), EntityRef { type_: "tool".into(), id: tool, properties: Map::new() })
            }
            (None, Some(action), Some(resource)) => (action, resource.into()),
            _ => return Err("call: expected either tool, or action and resource".into()),
        };
        Ok((ActionRef { name: action, properties: Map::new() }, resource, self.arguments))
    }
}

impl AgentCase {
    /// Puts the agent, and those that it acts for, among the tenant's; gives its delegator.
    fn put_into(
        mut self,
        outer: Option<DelegatorCase>,
        agents: &mut HashMap<String, Arc<AgentEntry>>,
    ) -> Result<Option<Delegator>, String> {
        if !(0..=4).contains(&self.trust) {
            return Err(format!("agent {:?}: trust is {}, expected 0 to 4", self.name, self.trust));
        }
        let delegator = match (outer, self.on_behalf_of.take()) {
            (Some(_), Some(_)) => return Err("on_behalf_of stands both beside agent and in it".into()),
            (Some(outer), None) => Some(outer),
            (None, inner) => inner.map(|d| *d),
        };
        let fixed = match delegator {
            None => None,
            Some(DelegatorCase { user: Some(user), agent: None }) => {
                Some(Delegator { kind: DelegatorKind::User, name: user })
            }
            Some(DelegatorCase { user: None, agent: Some(agent) }) => {
                let name = agent.name.clone();
                agent.put_into(None, agents)?;
                Some(Delegator { kind: DelegatorKind::Agent, name })
            }
            Some(_) => return Err("on_behalf_of: expected one of user and agent".into()),
        };
        let entry = AgentEntry {
            facts: AgentFacts {
                tenant: TENANT.into(),
                uid: format!("test-{}", self.name),
                name: self.name.clone(),
                type_: self.type_,
                teams: self.teams,
                trust: self.trust,
                suspended: self.suspended,
                attributes: self.attributes,
            },
            session: SessionMode::Optional,
            delegation: if fixed.is_some() { DelegationMode::Optional } else { DelegationMode::None },
            fixed_delegator: fixed.clone(),
        };
        match agents.insert(self.name.clone(), Arc::new(entry)) {
            None => Ok(fixed),
            Some(_) => Err(format!("agent {:?} stands twice in the chain of delegators", self.name)),
        }
    }
}

impl From<EntityCase> for EntityRef {
    fn from(entity: EntityCase) -> Self {
        EntityRef { type_: entity.type_, id: entity.id, properties: entity.properties }
    }
}

impl From<String> for AgentCase {
    fn from(name: String) -> Self {
        Self {
            name,
            trust: DEFAULT_TRUST,
            type_: String::new(),
            teams: Vec::new(),
            attributes: BTreeMap::new(),
            suspended: false,
            on_behalf_of: None,
        }
    }
}

impl From<String> for DelegatorCase {
    fn from(user: String) -> Self {
        Self { user: Some(user), agent: None }
    }
}

impl From<String> for Box<DelegatorCase> {
    fn from(user: String) -> Self {
        Box::new(user.into())
    }
}

fn agent_name() -> String {
    "agent".into()
}

fn default_trust() -> i64 {
    DEFAULT_TRUST
}

/// A bare name or a mapping. Not serde's `untagged`, which would lose the place of a mistake inside.
fn text_or_map<'de, D: Deserializer<'de>, T: From<String> + Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    struct TextOrMap<T>(PhantomData<T>);
    impl<'de, T: From<String> + Deserialize<'de>> Visitor<'de> for TextOrMap<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name or a mapping")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            Ok(text.to_string().into())
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_any(TextOrMap(PhantomData)).map(Some)
}
