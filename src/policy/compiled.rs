//! A package that parsed, agrees with its schema and can be asked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use cedar_policy_core::ast::{Effect, Entity, EntityType, EntityUID, Expr, PolicyID, PolicySet};
use cedar_policy_core::entities::SchemaType;
use smol_str::SmolStr;

use super::index::Index;
use super::plan::PlanCache;
use super::query::{PolicyRef, Side};
use crate::api::{AttributeSource, Tool};

/// More policies than this that every request of an action meets make a package's cost class `scan`.
const BROAD: usize = 64;

/// One package, compiled. Immutable but for a bounded cache of what was looked up before.
pub struct CompiledPackage {
    pub(super) digest: String,
    pub(super) package: String,
    pub(super) version: semver::Version,
    pub(super) side: Side,
    pub(super) tools: HashMap<String, Tool>,
    pub(super) sensitive: Vec<String>,
    pub(super) rules: Vec<Rule>,
    pub(super) index: Index,
    /// Every policy, for the full scan.
    pub(super) set: PolicySet,
    /// Entities that the package knows, transitively closed, with everything that they and the policies mention.
    pub(super) entities: HashMap<EntityUID, Arc<Entity>>,
    /// Those of them that entities.json lists: of these, only the package says what is true.
    pub(super) listed: HashSet<EntityUID>,
    /// Actions by the name that callers use.
    pub(super) actions: HashMap<String, Action>,
    pub(super) subjects: HashMap<String, Mapped>,
    pub(super) resources: HashMap<String, Mapped>,
    /// The longest text that policies and entities hold themselves.
    pub(super) longest_text: usize,
    /// Elements of all `like` patterns of the package.
    pub(super) pattern: u64,
    pub(super) plans: PlanCache,
}

/// One policy, ready to be evaluated.
pub(super) struct Rule {
    /// `@id`, under which the policy stands in `set`.
    pub id: PolicyID,
    pub reference: Arc<PolicyRef>,
    pub effect: Effect,
    pub asks: bool,
    /// File of the package in which it stands.
    pub file: Arc<str>,
    /// Scope and conditions as one expression.
    pub condition: Expr,
    pub reads: Reads,
}

/// What a policy looks at, found once.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Attributes, also those asked for by `has`.
    pub attributes: Vec<SmolStr>,
    /// Tags by a literal key.
    pub tags: Vec<SmolStr>,
    /// Whether a tag's key is computed: then it may read any.
    pub any_tag: bool,
    /// Whether it can reach `context.arguments` or `context.numbers`.
    pub arguments: bool,
    /// Elements of all `like` patterns.
    pub pattern: u64,
    /// Entities that stand in the policy.
    pub literals: Vec<EntityUID>,
}

/// An action that can be asked about.
#[derive(Clone, Debug)]
pub(super) struct Action {
    pub uid: Arc<EntityUID>,
    pub ancestors: Vec<EntityUID>,
    pub principals: Vec<EntityType>,
    pub resources: Vec<EntityType>,
}

/// An AuthZEN type that the package maps.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    pub ty: EntityType,
    /// Every attribute of the schema: its type, and from whom it may come with a call.
    pub attributes: BTreeMap<String, (SchemaType, Option<AttributeSource>)>,
    /// Ids of an enumerated type.
    pub choices: Option<Vec<String>>,
}

impl CompiledPackage {
    /// Digest of the package, `sha256:` and 64 hex digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Name of the package.
    pub fn package(&self) -> &str {
        &self.package
    }

    /// Version of the package.
    pub fn version(&self) -> &semver::Version {
        &self.version
    }

    /// For which of the two evaluations it was compiled.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Number of policies.
    pub fn policy_count(&self) -> usize {
        self.rules.len()
    }

    /// `indexed`: a check looks at few of the policies; `scan`: many are for every principal and every resource.
    pub fn cost_class(&self) -> &'static str {
        if self.index.broadest() > BROAD { "scan" } else { "indexed" }
    }

    /// A tool that the package knows.
    pub fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.get(name)
    }

    /// Every tool that the package knows, in no order.
    pub fn tools(&self) -> impl Iterator<Item = &Tool> {
        self.tools.values()
    }

    /// Whether any policy asks for an approval.
    pub fn asks(&self) -> bool {
        self.rules.iter().any(|rule| rule.asks)
    }

    /// Names of the actions that a check can ask about, in no order.
    pub fn actions(&self) -> impl Iterator<Item = &str> {
        self.actions.keys().map(String::as_str).filter(|name| *name != "request_grant")
    }

    /// Argument paths whose values no record keeps, of all policies, sorted.
    pub fn sensitive_paths(&self) -> &[String] {
        &self.sensitive
    }
}

impl fmt::Debug for CompiledPackage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledPackage")
            .field("package", &self.package)
            .field("version", &self.version)
            .field("side", &self.side)
            .field("digest", &self.digest)
            .field("policies", &self.rules.len())
            .finish_non_exhaustive()
    }
}
