//! What the tests of this room share: packages and questions in few words.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{AgentFacts, Arguments, CallerKind, CompiledPackage, DelegationFacts, Evaluation, Query, QueryError};
use super::{Refusal, RefusalCode, Resource, Side, Subject};
use crate::api::{Mapping, PolicyPackageSpec, SourceFile, Tier, Tool};

pub fn spec(policies: &str) -> PolicyPackageSpec {
    PolicyPackageSpec {
        package: "test".into(),
        version: "1.0.0".into(),
        tools: vec![tool("git/log", Tier::Read), tool("git/push", Tier::Write), tool("git/delete", Tier::Admin)],
        policies: vec![SourceFile { name: "test.cedar".into(), text: policies.into() }],
        ..PolicyPackageSpec::default()
    }
}

/// A package with a type of its own, `Doc`, that callers may say things about.
pub fn docs(policies: &str, mapping: Mapping) -> PolicyPackageSpec {
    PolicyPackageSpec {
        schema: Some(
            "entity Folder;
             entity Doc in [Folder] { owner?: User, secret?: Bool, title?: String, labels?: Set<String> };
             action read_doc appliesTo { principal: [Agent], resource: [Doc], context: CallContext };"
                .into(),
        ),
        mapping: Some(mapping),
        ..spec(policies)
    }
}

pub fn tool(name: &str, tier: Tier) -> Tool {
    Tool {
        name: name.into(),
        tier,
        sensitivity: Default::default(),
        groups: Vec::new(),
        description: None,
        schema_digest: None,
    }
}

pub fn compile(spec: &PolicyPackageSpec, side: Side) -> Arc<CompiledPackage> {
    CompiledPackage::compile(spec, "sha256:0", side).unwrap()
}

pub fn refused(spec: &PolicyPackageSpec, side: Side) -> Vec<Refusal> {
    CompiledPackage::compile(spec, "sha256:0", side).unwrap_err()
}

/// The first refusal, with its code.
pub fn first(spec: &PolicyPackageSpec) -> (RefusalCode, String) {
    let refusal = refused(spec, Side::Tenant).remove(0);
    (refusal.code, refusal.message)
}

pub fn agent(trust: i64) -> AgentFacts {
    AgentFacts {
        tenant: "acme".into(),
        name: "coder".into(),
        uid: "1".into(),
        type_: "coder".into(),
        teams: vec!["core".into()],
        trust,
        suspended: false,
        attributes: BTreeMap::new(),
    }
}

/// A question whose parts live here.
pub struct Ask {
    pub agent: AgentFacts,
    pub delegation: Option<DelegationFacts>,
    pub action: String,
    pub resource: (String, String),
    pub properties: Map<String, Value>,
    pub caller: CallerKind,
    pub arguments: Arguments,
    pub tool: Option<Tool>,
    pub session: Option<String>,
    pub risk: i64,
}

impl Ask {
    pub fn tool(name: &str) -> Ask {
        Ask::on("call_tool", "tool", name)
    }

    pub fn on(action: &str, type_: &str, id: &str) -> Ask {
        Ask {
            agent: agent(2),
            delegation: None,
            action: action.into(),
            resource: (type_.into(), id.into()),
            properties: Map::new(),
            caller: CallerKind::Gateway,
            arguments: Arguments::default(),
            tool: None,
            session: None,
            risk: 0,
        }
    }

    pub fn arguments(mut self, arguments: Value) -> Ask {
        self.arguments = Arguments::flatten(arguments.as_object().unwrap()).unwrap();
        self
    }

    pub fn properties(mut self, properties: Value) -> Ask {
        self.properties = properties.as_object().unwrap().clone();
        self
    }

    pub fn query(&self) -> Query<'_> {
        Query {
            subject: Subject::Agent { facts: &self.agent, delegation: self.delegation.as_ref() },
            action: &self.action,
            resource: Resource { type_: &self.resource.0, id: &self.resource.1, properties: &self.properties },
            caller: self.caller,
            tenant: &self.agent.tenant,
            arguments: &self.arguments,
            session: self.session.as_deref(),
            risk: self.risk,
            granted: false,
            hour: 12,
            tool: self.tool.as_ref(),
        }
    }

    /// Evaluates twice (the second time from the cache) and by full scan: all three agree, or the test ends here.
    pub fn of(&self, package: &CompiledPackage) -> Result<Evaluation, QueryError> {
        let slow = package.evaluate_full_scan(&self.query());
        for _ in 0..2 {
            assert_eq!(package.evaluate(&self.query()), slow);
        }
        slow
    }
}

/// Ids without their prefix.
pub fn ids(policies: &[Arc<super::PolicyRef>]) -> Vec<&str> {
    policies.iter().map(|p| p.id.rsplit('/').next().unwrap()).collect()
}
