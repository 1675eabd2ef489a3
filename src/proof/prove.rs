//! The proof itself: kind of call by kind of call, class of tools by class of tools.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use cedar_policy_core::ast::{Expr, ExprKind, Literal};
use cedar_policy_core::validator::ValidatorSchema;

use super::call::{self, Call};
use super::environment::{Askable, Environment, ToolClass, environments, tool_classes};
use super::half::{Half, Symbols, TypedRule, add_rules, typed_rules};
use super::rewrite::{Listing, ToolFacts, World};
use super::solver::{Ask, Limits, Session};
use super::{CanErr, CounterExample, EnvironmentProof, Input, Proof, invariants};
use crate::api::{PolicyPackageSpec, Tier};
use crate::gate::Outcome;
use crate::lifecycle::evidence::ProofVerdict;
use crate::policy::portrait::{self, ActionPortrait};
use crate::policy::{CompiledPackage, PolicyRef, Side, TYPES, base_platform, digest, sha256_text, uid};

/// Stack for type checking, rewriting and symbolic compilation.
const STACK: usize = 256 * 1024 * 1024;
/// Policies that are looked at one by one, for whether they can ever apply and which of them err.
const MAX_ONE_BY_ONE: usize = 512;
/// Reasons that are kept.
const MAX_REASONS: usize = 16;
/// Counter-examples that are kept.
const MAX_EXAMPLES: usize = 64;

/// Compares two packages over all calls. Err: one of them does not compile. Blocks; starts the solver, and ends it.
pub fn prove(input: &Input, solver: PathBuf, limits: Limits) -> Result<Proof, String> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("remit-prove".into()).stack_size(STACK);
        let handle = builder
            .spawn_scoped(scope, || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|e| format!("no runtime to prove in: {e}"))?;
                runtime.block_on(async {
                    let mut session = Session::new(solver, limits);
                    let proof = Prover::new(input)?.prove(&mut session).await;
                    session.close().await;
                    Ok(proof)
                })
            })
            .map_err(|e| format!("no thread to prove on: {e}"))?;
        handle
            .join()
            .unwrap_or_else(|_| Ok(Proof::unknown(input, "the proof was given up: it met something unexpected")))
    })
}

/// A package with what a proof needs of it.
struct Package {
    compiled: Arc<CompiledPackage>,
    schema: ValidatorSchema,
    listing: Listing,
    actions: BTreeMap<String, ActionPortrait>,
    /// Everything that its policies can look at besides the call.
    facts: String,
}

impl Package {
    fn new(spec: &PolicyPackageSpec, side: Side, what: &str) -> Result<Self, String> {
        let compiled = CompiledPackage::compile(spec, &digest(spec), side).map_err(|refusals| {
            let all: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            format!("{what}: {}", all.join("; "))
        })?;
        Self::of(compiled, spec, side).map_err(|e| format!("{what}: {e}"))
    }

    fn of(compiled: Arc<CompiledPackage>, spec: &PolicyPackageSpec, side: Side) -> Result<Self, String> {
        let schema = portrait::schema_of(side, spec.schema.as_deref())?;
        let looked_at = serde_json::json!([spec.schema, spec.entities, spec.mapping, spec.tools]).to_string();
        Ok(Self {
            listing: Listing::of(&compiled),
            actions: compiled.action_portraits(),
            facts: sha256_text(looked_at.as_bytes()),
            compiled,
            schema,
        })
    }
}

/// One direction of a comparison.
enum Direction {
    /// There is no such call.
    Proved,
    /// Here is one.
    Refuted(Box<CounterExample>),
    /// Not known.
    Open(String),
}

/// What is known so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// A confirmed call that is let through newly.
    pub more: bool,
    /// One that no more is.
    pub fewer: bool,
    /// Something is not known.
    pub open: bool,
}

impl Findings {
    fn add(&mut self, other: Findings) {
        self.more |= other.more;
        self.fewer |= other.fewer;
        self.open |= other.open;
    }

    fn verdict(self) -> ProofVerdict {
        match self {
            // A confirmed call is one, whatever else is not known.
            Findings { more: true, fewer: true, .. } => ProofVerdict::Incomparable,
            Findings { more: true, .. } => ProofVerdict::Expands,
            Findings { open: true, .. } => ProofVerdict::Unknown,
            Findings { fewer: true, .. } => ProofVerdict::Restricts,
            _ => ProofVerdict::Equivalent,
        }
    }
}

/// One class of calls within an environment: both halves, and what was found.
pub(super) struct Case {
    /// Tools that no policy tells apart; empty where no tool is acted on.
    pub tools: Vec<String>,
    pub baseline: Half,
    pub candidate: Half,
    pub alone: Findings,
    pub lifted: Findings,
    pub because: Vec<String>,
}

impl Case {
    pub(super) fn tool(&self) -> Option<&str> {
        self.tools.first().map(String::as_str)
    }
}

/// Everything that stays the same during one proof.
pub(super) struct Prover<'a> {
    pub input: &'a Input,
    baseline: Package,
    candidate: Package,
    platform: Vec<Package>,
    /// The same, as the gates take them.
    gates: Vec<Arc<CompiledPackage>>,
    classes: Vec<ToolClass>,
    sides: [Askable; 2],
}

/// Which policies may err.
#[derive(Default)]
struct Erring {
    /// Keys of policies that err for some call, or may.
    keys: BTreeSet<String>,
    /// Why it is not known of all.
    open: Option<String>,
}

impl<'a> Prover<'a> {
    fn new(input: &'a Input) -> Result<Self, String> {
        let baseline = Package::new(&input.baseline, Side::Tenant, "baseline")?;
        let candidate = Package::new(&input.candidate, Side::Tenant, "candidate")?;
        let mut platform = vec![Package::of(base_platform(), &PolicyPackageSpec::default(), Side::Platform)?];
        for spec in &input.platform {
            platform.push(Package::new(spec, Side::Platform, "platform")?);
        }
        let gates: Vec<_> = platform.iter().map(|p| p.compiled.clone()).collect();
        Ok(Self {
            input,
            classes: tool_classes(&baseline.compiled, &candidate.compiled, &gates),
            sides: [Askable::of(&baseline.compiled), Askable::of(&candidate.compiled)],
            baseline,
            candidate,
            platform,
            gates,
        })
    }

    async fn prove(&self, session: &mut Session) -> Proof {
        let mut proof = Proof::unknown(self.input, "");
        proof.unknown_because.clear();
        proof.invariants.clear();
        proof.notes = self.notes();
        let (mut alone, mut lifted) = (Findings::default(), Findings::default());
        let mut may_apply: BTreeSet<String> = BTreeSet::new();
        let mut judged = invariants::Judged::new(&self.input.invariants);
        let mut looked_at = Vec::new();
        let [baseline, candidate] = &self.sides;
        for environment in environments(baseline, candidate) {
            let mut cases = self.cases(&environment);
            let halves: Vec<&Half> = cases.iter().flat_map(|c| [&c.baseline, &c.candidate]).collect();
            let schemas = [self.input.baseline.schema.as_deref(), self.input.candidate.schema.as_deref()];
            let symbols = Symbols::new(&environment, schemas, &halves);
            let erring = match &symbols {
                Ok(symbols) => self.erring(symbols, &halves, &environment, session, &mut proof).await,
                Err(why) => Erring { keys: BTreeSet::new(), open: Some(why.clone()) },
            };
            for case in &mut cases {
                self.compare(&environment, &symbols, &erring, case, session, &mut proof).await;
                alone.add(case.alone);
                lifted.add(case.lifted);
                proof.environments.push(EnvironmentProof {
                    environment: environment.words(),
                    tools: case.tools.clone(),
                    alone: case.alone.verdict(),
                    with_approval: case.lifted.verdict(),
                    unknown_because: case.because.clone(),
                });
            }
            judged.environment(self, &environment, &symbols, &cases, session).await;
            looked_at.push((symbols, cases));
        }
        for (symbols, cases) in &looked_at {
            self.applying(symbols, cases, &mut may_apply, session).await;
        }
        proof.alone = alone.verdict();
        proof.with_approval = lifted.verdict();
        proof.invariants = judged.results();
        let all = self.candidate.compiled.rule_portraits().map(|r| r.reference.id.clone());
        proof.never_apply = all.filter(|id| !may_apply.contains(id)).collect();
        proof.counter_examples.sort_by_key(|c| (!c.expands, c.with_approval));
        proof.can_err.sort();
        proof.can_err.dedup();
        proof.solver_millis = u64::try_from(session.spent.as_millis()).unwrap_or(u64::MAX);
        proof.queries = session.queries;
        proof
    }

    /// What differs and is no question of policy.
    fn notes(&self) -> Vec<String> {
        let pins = self.baseline.compiled.tools().filter_map(|old| {
            let new = self.candidate.compiled.tool(&old.name)?;
            (old.schema_digest != new.schema_digest).then(|| {
                format!(
                    "tool {}: another definition is pinned; which calls are `tool_changed` is not part of the proof",
                    old.name
                )
            })
        });
        let mut notes: Vec<String> = pins.collect();
        notes.sort();
        notes
    }

    /// Both halves for every class of calls of this kind.
    fn cases(&self, environment: &Environment) -> Vec<Case> {
        let typed = |package: &Package| -> Option<Vec<TypedRule>> {
            let own = package.compiled.side() == Side::Platform && !portrait::is_core_action(&environment.action);
            if own {
                let subject = if environment.has_agent() { &TYPES.agent } else { &TYPES.tenant_subject };
                let action = uid(&TYPES.action, portrait::TENANT_ACTION);
                return typed_rules(&package.compiled, &package.schema, subject, &action, &TYPES.tenant_resource);
            }
            let (principal, resource) = (&environment.principal, &environment.resource);
            typed_rules(&package.compiled, &package.schema, principal, &environment.action_uid, resource)
        };
        let platform: Vec<_> = self.platform.iter().map(typed).collect();
        let sides = [(&self.baseline, &self.sides[0]), (&self.candidate, &self.sides[1])];
        let tenants: Vec<Option<Vec<TypedRule>>> = sides
            .iter()
            .map(|(package, askable)| askable.takes(environment).then(|| typed(package)).flatten())
            .collect();
        let classes: Vec<Vec<String>> = if environment.has_tool() {
            self.classes.iter().map(|c| c.names.clone()).collect()
        } else {
            vec![Vec::new()]
        };
        let half = |n: usize, tool: Option<&str>| -> Half {
            let (package, _) = sides[n];
            let mut half = Half::default();
            let Some(own) = &tenants[n] else { return half };
            let listed = tool.and_then(|name| package.compiled.tool(name));
            // A tool that the tenant's package does not list is denied before any policy is asked.
            if tool.is_some() && listed.is_none() {
                return half;
            }
            for (of, rules) in self.platform.iter().zip(&platform) {
                let Some(rules) = rules else { continue };
                let facts = listed.map(|t| match portrait::is_core_action(&environment.action) {
                    true => ToolFacts::of(&of.compiled, t),
                    false => ToolFacts::given(t),
                });
                self.add(&mut half, of, rules, environment, facts.as_ref());
            }
            let facts = listed.map(ToolFacts::listed);
            self.add(&mut half, package, own, environment, facts.as_ref());
            half
        };
        classes
            .into_iter()
            .map(|tools| {
                let tool = tools.first().map(String::as_str);
                let (baseline, candidate) = (half(0, tool), half(1, tool));
                Case {
                    baseline,
                    candidate,
                    tools,
                    alone: Findings::default(),
                    lifted: Findings::default(),
                    because: Vec::new(),
                }
            })
            .collect()
    }

    fn add(
        &self,
        to: &mut Half,
        package: &Package,
        rules: &[TypedRule],
        environment: &Environment,
        tool: Option<&ToolFacts>,
    ) {
        let own = package.compiled.side() == Side::Platform && !portrait::is_core_action(&environment.action);
        let name = if own { portrait::TENANT_ACTION } else { environment.action.as_str() };
        let Some(action) = package.actions.get(name) else { return };
        let world = World {
            package: &package.compiled,
            listing: &package.listing,
            tenant: &self.input.tenant,
            action,
            called: &environment.action,
            tool,
        };
        let facts = format!("{}{tool:?}", package.facts);
        add_rules(&mut to.rules, rules, &world, &facts);
    }

    /// Which of the policies err: one question for all, and one for each only where that says so.
    async fn erring(
        &self,
        symbols: &Symbols,
        halves: &[&Half],
        environment: &Environment,
        session: &mut Session,
        proof: &mut Proof,
    ) -> Erring {
        let mut distinct: BTreeMap<&str, (&Expr, BTreeSet<&str>)> = BTreeMap::new();
        for rule in halves.iter().flat_map(|h| &h.rules) {
            if let Ok(expr) = &rule.expr {
                distinct.entry(&rule.key).or_insert_with(|| (expr, BTreeSet::new())).1.insert(&rule.id);
            }
        }
        let mut erring = Erring::default();
        let exprs: Vec<&Expr> = distinct.values().map(|(e, _)| *e).collect();
        match never_errs(symbols, &exprs, session).await {
            Ok(true) => return erring,
            Ok(false) if distinct.len() <= MAX_ONE_BY_ONE => {}
            Ok(false) => {
                erring.open = Some("one of very many policies can err".to_owned());
                return erring;
            }
            Err(why) => {
                erring.open = Some(why);
                return erring;
            }
        }
        for (key, (expr, ids)) in distinct {
            match never_errs(symbols, &[expr], session).await {
                Ok(true) => continue,
                Ok(false) => {
                    let environment = environment.words();
                    proof.can_err.extend(
                        ids.into_iter().map(|id| CanErr { policy: id.to_owned(), environment: environment.clone() }),
                    );
                }
                Err(why) => erring.open = Some(why),
            }
            erring.keys.insert(key.to_owned());
        }
        erring
    }

    /// Fills in what is known of one class of calls.
    async fn compare(
        &self,
        environment: &Environment,
        symbols: &Result<Symbols, String>,
        erring: &Erring,
        case: &mut Case,
        session: &mut Session,
        proof: &mut Proof,
    ) {
        let permits = case.baseline.permits() || case.candidate.permits();
        if !permits || case.baseline.signature() == case.candidate.signature() {
            return;
        }
        let symbols = match symbols {
            Ok(symbols) => symbols,
            Err(why) => {
                return unknown(case, proof, why.clone());
            }
        };
        let may_err: BTreeSet<&str> = case
            .baseline
            .rules
            .iter()
            .chain(&case.candidate.rules)
            .filter(|r| erring.keys.contains(&r.key))
            .map(|r| r.id.as_str())
            .collect();
        if !may_err.is_empty() {
            let policies: Vec<&str> = may_err.into_iter().take(5).collect();
            unknown(case, proof, format!("{} can err in {}", policies.join(", "), environment.words()));
        } else if let Some(why) = &erring.open {
            unknown(case, proof, format!("it is not known whether a policy can err: {why}"));
        }
        let asks = case.baseline.asks() || case.candidate.asks();
        let alone = self.both_ways(environment, symbols, case, false, session, proof).await;
        case.alone.add(alone);
        let lifted = if asks { self.both_ways(environment, symbols, case, true, session, proof).await } else { alone };
        case.lifted.add(lifted);
        let gates = self.weaker_gates(environment, symbols, case, session, proof).await;
        case.lifted.add(gates);
    }

    async fn both_ways(
        &self,
        environment: &Environment,
        symbols: &Symbols,
        case: &mut Case,
        lifted: bool,
        session: &mut Session,
        proof: &mut Proof,
    ) -> Findings {
        let mut findings = Findings::default();
        for expands in [true, false] {
            match self.direction(environment, symbols, case, lifted, expands, session).await {
                Direction::Proved => {}
                Direction::Refuted(example) => {
                    if expands {
                        findings.more = true;
                    } else {
                        findings.fewer = true;
                    }
                    if proof.counter_examples.len() < MAX_EXAMPLES
                        && !proof.counter_examples.iter().any(|c| c.call == example.call && c.expands == expands)
                    {
                        proof.counter_examples.push(*example);
                    }
                }
                Direction::Open(why) => {
                    findings.open = true;
                    reason(case, proof, why);
                }
            }
        }
        findings
    }

    /// Looks for a call that one side lets through and the other does not.
    async fn direction(
        &self,
        environment: &Environment,
        symbols: &Symbols,
        case: &Case,
        lifted: bool,
        expands: bool,
        session: &mut Session,
    ) -> Direction {
        let (lets, stops) = if expands { (&case.candidate, &case.baseline) } else { (&case.baseline, &case.candidate) };
        let differs = |call: &Call| {
            let (before, after) = (self.outcome(call, false).0, self.outcome(call, true).0);
            let (lets, stops) = if expands { (after, before) } else { (before, after) };
            passes(lets, lifted) && !passes(stops, lifted)
        };
        for (attempt, given) in symbols.simpler_calls().into_iter().enumerate() {
            let sets = symbols.set(lets, lifted, &given).and_then(|a| Ok((a, symbols.set(stops, lifted, &given)?)));
            let (lets, stops) = match sets {
                Ok(sets) => sets,
                Err(why) => return Direction::Open(why),
            };
            match session.ask(Ask::Implies(&lets, &stops)).await {
                // Of all calls, the first time.
                Ok(None) if attempt == 0 => return Direction::Proved,
                Ok(None) => {}
                Ok(Some(model)) => {
                    let calls =
                        call::of_model(&model, environment, &self.input.tenant, case.tool(), symbols.number_keys());
                    if let Some(call) = calls.into_iter().find(|c| differs(c)) {
                        let call = call.simplified(differs);
                        return Direction::Refuted(Box::new(self.example(call, case, lifted, expands)));
                    }
                }
                Err(why) => return Direction::Open(why.to_string()),
            }
        }
        let open: BTreeSet<String> =
            lets.open().chain(stops.open()).map(|(id, why)| format!("{id}: {why}")).take(5).collect();
        let at = case.tool().map(|t| format!(" of {t}")).unwrap_or_default();
        let mut why = format!("the solver sees a difference in {}{at} that no call confirms", environment.words());
        if !open.is_empty() {
            why.push_str(&format!(" ({})", open.into_iter().collect::<Vec<_>>().join("; ")));
        }
        Direction::Open(why)
    }

    /// What Remit's gates make of a call under one of the two packages.
    pub fn decided(&self, call: &Call, candidate: bool) -> (Outcome, Vec<Arc<PolicyRef>>) {
        let package = if candidate { &self.candidate } else { &self.baseline };
        call.decide(&self.input.tenant, &self.gates, &package.compiled)
    }

    /// The same with the names of the policies.
    pub fn outcome(&self, call: &Call, candidate: bool) -> (Outcome, Vec<String>) {
        let (outcome, policies) = self.decided(call, candidate);
        (outcome, policies.into_iter().map(|p| p.id.clone()).collect())
    }

    /// The tier that the candidate gives the tools of a class.
    pub fn tier(&self, case: &Case) -> Option<Tier> {
        self.tiers(case)[1]
    }

    /// The tier on both sides.
    pub fn tiers(&self, case: &Case) -> [Option<Tier>; 2] {
        let of = |p: &Package| case.tool().and_then(|tool| p.compiled.tool(tool)).map(|t| t.tier);
        [of(&self.baseline), of(&self.candidate)]
    }

    pub(super) fn example(&self, call: Call, case: &Case, lifted: bool, expands: bool) -> CounterExample {
        let (baseline, baseline_policies) = self.outcome(&call, false);
        let (candidate, candidate_policies) = self.outcome(&call, true);
        let side = |outcome: Outcome, policies: &[String]| match outcome {
            Outcome::Allow => format!("allowed by {}", policies.join(", ")),
            Outcome::ApprovalRequired => format!("asked about by {}", policies.join(", ")),
            _ if policies.is_empty() => "denied, no policy permits it".to_owned(),
            _ => format!("denied by {}", policies.join(", ")),
        };
        let mut sentence = format!(
            "{}: before {}, now {}",
            call.words(),
            side(baseline, &baseline_policies),
            side(candidate, &candidate_policies)
        );
        if let Some(tool) = case.tool() {
            let tier = |p: &Package| p.compiled.tool(tool).map(|t| t.tier.as_str());
            match (tier(&self.baseline), tier(&self.candidate)) {
                (Some(old), Some(new)) if old != new => sentence.push_str(&format!(" ({tool} was {old} and is {new})")),
                (None, Some(new)) => sentence.push_str(&format!(" ({tool} is new, {new})")),
                (Some(_), None) => sentence.push_str(&format!(" ({tool} is not listed any more)")),
                _ => {}
            }
            match case.tools.len() {
                0 | 1 => {}
                2..=4 => sentence.push_str(&format!("; so are {}", case.tools[1..].join(", "))),
                n => sentence.push_str(&format!("; so are {} and {} tools more", case.tools[1..4].join(", "), n - 4)),
            }
        }
        CounterExample {
            expands,
            with_approval: lifted,
            call,
            baseline,
            candidate,
            baseline_policies,
            candidate_policies,
            sentence,
        }
    }

    /// Notes which of the candidate's policies can apply to some call of this kind.
    async fn applying(
        &self,
        symbols: &Result<Symbols, String>,
        cases: &[Case],
        may_apply: &mut BTreeSet<String>,
        session: &mut Session,
    ) {
        let one_by_one = self.candidate.compiled.policy_count() <= MAX_ONE_BY_ONE;
        let none = symbols.as_ref().ok().and_then(|s| s.set(&Half::default(), false, &[]).ok());
        let mut asked: BTreeMap<&str, bool> = BTreeMap::new();
        for rule in cases.iter().flat_map(|c| &c.candidate.rules) {
            if may_apply.contains(&rule.id) {
                continue;
            }
            let applies = match (asked.get(rule.key.as_str()), &rule.expr, symbols) {
                (Some(known), _, _) => *known,
                // The verdict comes first: this is for the author, and gets what is left of the first half of the time.
                (None, Ok(expr), Ok(symbols)) if one_by_one && !is_true(expr) && session.is_early() => {
                    match (symbols.alone(expr), &none) {
                        // What is not known is not called useless.
                        (Ok(one), Some(none)) => !matches!(session.ask(Ask::Implies(&one, none)).await, Ok(None)),
                        _ => true,
                    }
                }
                _ => true,
            };
            asked.insert(&rule.key, applies);
            if applies {
                may_apply.insert(rule.id.clone());
            }
        }
    }
}

fn is_true(expr: &Expr) -> bool {
    matches!(expr.expr_kind(), ExprKind::Lit(Literal::Bool(true)))
}

/// Whether an outcome lets a call through: alone, or once humans say so.
pub(super) fn passes(outcome: Outcome, lifted: bool) -> bool {
    outcome == Outcome::Allow || lifted && outcome == Outcome::ApprovalRequired
}

async fn never_errs(symbols: &Symbols, exprs: &[&Expr], session: &mut Session) -> Result<bool, String> {
    let policy = symbols.errs(exprs)?;
    match session.ask(Ask::NeverErrs(&policy)).await {
        Ok(found) => Ok(found.is_none()),
        Err(why) => Err(why.to_string()),
    }
}

fn unknown(case: &mut Case, proof: &mut Proof, why: String) {
    case.alone.open = true;
    case.lifted.open = true;
    reason(case, proof, why);
}

pub(super) fn reason(case: &mut Case, proof: &mut Proof, why: String) {
    if !proof.unknown_because.contains(&why) && proof.unknown_because.len() < MAX_REASONS {
        proof.unknown_because.push(why.clone());
    }
    if !case.because.contains(&why) {
        case.because.push(why);
    }
}
