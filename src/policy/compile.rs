//! From a package's bytes to something that can be asked, or to the reasons why not.
//!
//! The order is a contract: sizes, then a scan without recursion, and only then Cedar, on a thread whose stack holds the deepest
//! text that the scan lets through. Nothing unscanned reaches a parser, signed or not.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{self, Entity, EntityUID, ExprKind, Literal, PolicyID, PolicySet};
use cedar_policy_core::parser::parse_policyset;
use cedar_policy_core::validator::{ValidationMode, Validator, ValidatorSchema};
use smol_str::SmolStr;

use super::compiled::{Action, CompiledPackage, Reads, Rule};
use super::index::Index;
use super::plan::PlanCache;
use super::query::{PolicyRef, Side};
use super::refusal::{Refusal, RefusalCode};
use super::schema::{self, TYPES};
use super::{annotations, catalogue, domain, scan};
use crate::api::{PolicyPackageSpec, SourceFile};

/// Stack for parsing, validating and dropping what does not validate. Only touched pages cost memory.
const STACK: usize = 256 * 1024 * 1024;
const MAX_POLICIES: usize = 20_000;
/// Bytes of all policies together.
const MAX_POLICY_TEXT: usize = 8 * 1024 * 1024;
/// A `like` pattern costs its length times that of the text.
const MAX_PATTERN: usize = 1024;
/// Validation types every policy once in every environment (action x principal type x resource type).
const MAX_VALIDATIONS: usize = 4_000_000;

impl CompiledPackage {
    /// Compiles a package for one side, or says everything that is wrong with it, the most important first.
    ///
    /// Safe for any bytes: nothing is parsed that is nested or chained deeper than [`scan`] allows.
    pub fn compile(spec: &PolicyPackageSpec, digest: &str, side: Side) -> Result<Arc<CompiledPackage>, Vec<Refusal>> {
        let version = header(spec)?;
        let declared = scan_all(spec)?;
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("remit-compile".into()).stack_size(STACK);
            let handle = builder
                .spawn_scoped(scope, || build(spec, digest, side, version, &declared))
                .map_err(|e| vec![Refusal::new(RefusalCode::Quarantined, format!("no thread to compile on: {e}"))])?;
            handle.join().unwrap_or_else(|_| {
                Err(vec![Refusal::new(
                    RefusalCode::Quarantined,
                    "the Cedar parser gave up on this package; it is not tried again",
                )])
            })
        })
        .map(Arc::new)
    }
}

/// Name and version: what identifies the package in every message and id.
fn header(spec: &PolicyPackageSpec) -> Result<semver::Version, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let name = spec.package.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    if !(1..=63).contains(&name.len()) || !inner || !edge(name.first()) || !edge(name.last()) {
        refusals.push(Refusal::new(
            RefusalCode::Malformed,
            format!("package: {:?}: 1 to 63 of `a-z 0-9 -`, with a letter or digit at both ends", spec.package),
        ));
    }
    let version = match semver::Version::parse(&spec.version) {
        Ok(version) if version.build.is_empty() => Some(version),
        Ok(_) => {
            refusals
                .push(Refusal::new(RefusalCode::NotSemver, format!("version: {:?}: without `+build`", spec.version)));
            None
        }
        Err(e) => {
            refusals.push(Refusal::new(RefusalCode::NotSemver, format!("version: {:?}: {e}", spec.version)));
            None
        }
    };
    match version {
        Some(version) if refusals.is_empty() => Ok(version),
        _ => Err(refusals),
    }
}

/// Everything that is checked before a parser runs.
fn scan_all(spec: &PolicyPackageSpec) -> Result<Vec<scan::Declaration>, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let total: usize = spec.policies.iter().map(|f| f.text.len()).sum();
    if total > MAX_POLICY_TEXT {
        return Err(vec![Refusal::new(
            RefusalCode::TooLarge,
            format!("policies: {total} bytes together; a package holds at most {MAX_POLICY_TEXT}"),
        )]);
    }
    let mut count = 0;
    let mut names = HashSet::new();
    for file in &spec.policies {
        if !names.insert(file.name.as_str()) {
            refusals
                .push(Refusal::new(RefusalCode::DuplicateId, format!("policies: two files are named {:?}", file.name)));
        }
        match scan::policies(&file.name, &file.text) {
            Ok(n) => count += n,
            Err(refusal) => refusals.push(refusal),
        }
    }
    if count > MAX_POLICIES {
        refusals.push(Refusal::new(
            RefusalCode::TooLarge,
            format!("policies: {count}; a package holds at most {MAX_POLICIES}"),
        ));
    }
    let mut declared = Vec::new();
    if let Some(text) = &spec.schema {
        match scan::schema(schema::SCHEMA_FILE, text) {
            Ok(found) => declared = found,
            Err(refusal) => refusals.push(refusal),
        }
    }
    if let Some(text) = &spec.entities {
        refusals.extend(catalogue::scan(text).err());
    }
    if refusals.is_empty() {
        return Ok(declared);
    }
    // What could end the process is named before what could not be read.
    refusals.sort_by_key(|r| match r.code {
        RefusalCode::TooDeep => 0,
        RefusalCode::TooLarge => 1,
        RefusalCode::TooCostly => 2,
        _ => 3,
    });
    Err(refusals)
}

/// Runs on the large stack.
fn build(
    spec: &PolicyPackageSpec,
    digest: &str,
    side: Side,
    version: semver::Version,
    declared: &[scan::Declaration],
) -> Result<CompiledPackage, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let files = parse(spec, &mut refusals);
    let core = schema::build(side, spec.schema.as_deref(), declared);
    let schema = match core {
        Ok(schema) => Some(schema),
        Err(found) => {
            refusals.extend(found);
            None
        }
    };
    let mut rules = Vec::new();
    let mut index = Index::default();
    let mut set = PolicySet::new();
    let mut sensitive = BTreeSet::new();
    let mut ids: HashMap<String, String> = HashMap::new();
    for (file, policies) in &files {
        for policy in policies {
            match rule(spec, side, file, policy) {
                Ok((id, named, rule, paths)) => {
                    let at = scan::place(&file.name, &file.text, start(&named));
                    if let Some(first) = ids.insert(id.clone(), at.clone()) {
                        let message = format!("{at}: policy `{id}` is there already, at {first}");
                        refusals.push(Refusal::new(RefusalCode::DuplicateId, message));
                        continue;
                    }
                    index.add(u32::try_from(rules.len()).unwrap_or(u32::MAX), &named);
                    if let Err(e) = set.add(named) {
                        refusals.push(Refusal::new(RefusalCode::DuplicateId, format!("{at}: {e}")));
                    }
                    sensitive.extend(paths);
                    rules.push(rule);
                }
                Err(found) => refusals.extend(found),
            }
        }
    }
    let tools = catalogue::tools(spec, &mut refusals);
    let Some(schema) = schema else { return Err(refusals) };
    validate(&files, &schema, &mut refusals);
    let (subjects, resources) = catalogue::mapping(spec, &schema, &mut refusals);
    let listed = catalogue::entities(spec, &schema, &mut refusals);
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let actions = actions(&schema);
    let names = listed.iter().map(|e| e.uid().clone()).collect();
    let entities = close(listed, &schema, &tools, &rules);
    let longest_text =
        entities.values().map(|e| catalogue::longest_text(e)).chain(rules.iter().map(longest_literal)).max();
    Ok(CompiledPackage {
        digest: digest.to_owned(),
        package: spec.package.clone(),
        version,
        side,
        tools,
        sensitive: sensitive.into_iter().collect(),
        pattern: rules.iter().fold(0, |sum: u64, r| sum.saturating_add(r.reads.pattern)),
        rules,
        index,
        set,
        entities,
        listed: names,
        actions,
        subjects,
        resources,
        longest_text: longest_text.unwrap_or(0),
        plans: PlanCache::default(),
    })
}

type Parsed<'a> = Vec<(&'a SourceFile, Vec<ast::Policy>)>;

/// Parses every file; policies in the order of their text.
fn parse<'a>(spec: &'a PolicyPackageSpec, refusals: &mut Vec<Refusal>) -> Parsed<'a> {
    let mut files = Vec::new();
    for file in &spec.policies {
        match parse_policyset(&file.text) {
            Ok(set) => {
                for template in set.templates() {
                    let at = scan::place(&file.name, &file.text, template.loc().map_or(0, |l| l.start()));
                    let message =
                        format!("{at}: `?principal` and `?resource` make this a template; packages hold policies only");
                    refusals.push(Refusal::new(RefusalCode::Malformed, message));
                }
                let mut policies: Vec<_> = set.into_policies().collect();
                policies.sort_by_key(start);
                files.push((file, policies));
            }
            Err(errors) => {
                let mut found: Vec<_> =
                    errors.iter().map(|e| (schema::first_label(e).unwrap_or(0), e.to_string())).collect();
                found.sort();
                refusals.extend(found.into_iter().map(|(offset, message)| {
                    let at = scan::place(&file.name, &file.text, offset);
                    Refusal::new(RefusalCode::CedarSyntax, format!("{at}: {}", schema::one_line(&message)))
                }));
            }
        }
    }
    files
}

fn start(policy: &ast::Policy) -> usize {
    policy.loc().map_or(0, |l| l.start())
}

/// Reads one policy: its `@id`, the policy under that id, what it looks at, and its sensitive paths.
fn rule(
    spec: &PolicyPackageSpec,
    side: Side,
    file: &SourceFile,
    policy: &ast::Policy,
) -> Result<(String, ast::Policy, Rule, Vec<String>), Vec<Refusal>> {
    let (reads, mut refusals) = reads(file, policy);
    let annotations = match annotations::read(&file.name, &file.text, policy.template(), side) {
        Ok(annotations) => annotations,
        Err(found) => {
            refusals.splice(0..0, found);
            return Err(refusals);
        }
    };
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let text = policy.loc().and_then(|l| file.text.get(l.start()..l.end())).unwrap_or_default();
    let prefix = if side == Side::Platform { "platform" } else { "tenant" };
    let named = policy.new_id(PolicyID::from_string(&annotations.id));
    let rule = Rule {
        id: named.id().clone(),
        asks: annotations.ask.is_some(),
        reference: Arc::new(PolicyRef {
            id: format!("{prefix}/{}/{}", spec.package, annotations.id),
            reason: annotations.reason,
            code: annotations.code,
            text_hash: super::sha256_text(text.as_bytes()).split_off("sha256:".len()),
            ask: annotations.ask,
            grants_tenants: annotations.grants_tenants,
        }),
        effect: named.effect(),
        file: file.name.as_str().into(),
        condition: named.condition(),
        reads,
    };
    Ok((annotations.id, named, rule, annotations.sensitive))
}

/// What a policy looks at; and patterns and names in it that Remit refuses.
fn reads(file: &SourceFile, policy: &ast::Policy) -> (Reads, Vec<Refusal>) {
    let mut reads = Reads::default();
    let mut refusals = Vec::new();
    let condition = policy.condition();
    let at = |e: &ast::Expr| {
        scan::place(&file.name, &file.text, e.source_loc().map_or_else(|| start(policy), |l| l.start()))
    };
    for expr in condition.subexpressions() {
        match expr.expr_kind() {
            ExprKind::GetAttr { attr, .. } | ExprKind::HasAttr { attr, .. } => note(&mut reads, attr),
            ExprKind::ExtHasAttr { attrs, .. } => attrs.iter().for_each(|attr| note(&mut reads, attr)),
            ExprKind::BinaryApp { op: ast::BinaryOp::GetTag | ast::BinaryOp::HasTag, arg1, arg2 } => {
                // An attribute of an entity may lead to the call's arguments, too.
                reads.arguments |= !matches!(arg1.expr_kind(), ExprKind::Var(ast::Var::Principal | ast::Var::Resource));
                match arg2.expr_kind() {
                    ExprKind::Lit(Literal::String(key)) => reads.tags.push(key.clone()),
                    _ => reads.any_tag = true,
                }
            }
            ExprKind::Like { pattern, .. } => {
                reads.pattern = reads.pattern.saturating_add(pattern.len() as u64);
                if pattern.len() > MAX_PATTERN {
                    let message = format!("{}: this pattern is over {MAX_PATTERN} characters", at(expr));
                    refusals.push(Refusal::new(RefusalCode::TooCostly, message));
                }
            }
            ExprKind::Lit(Literal::EntityUID(uid)) => {
                reads.arguments |= [&TYPES.arguments, &TYPES.numbers].contains(&uid.entity_type());
                if *uid.entity_type() == TYPES.domain {
                    let id: &str = uid.eid().as_ref();
                    if !domain::parse(id).is_ok_and(|d| d.name() == id) {
                        let message = format!(
                            "{}: Domain::{id:?} never matches: names are ASCII, lower case, no last dot",
                            at(expr)
                        );
                        refusals.push(Refusal::new(RefusalCode::Malformed, message));
                    }
                }
                reads.literals.push(uid.as_ref().clone());
            }
            _ => {}
        }
    }
    (reads, refusals)
}

fn note(reads: &mut Reads, attr: &SmolStr) {
    reads.arguments |= matches!(attr.as_str(), "arguments" | "numbers");
    if !reads.attributes.contains(attr) {
        reads.attributes.push(attr.clone());
    }
}

fn longest_literal(rule: &Rule) -> usize {
    let text = |e: &ast::Expr| match e.expr_kind() {
        ExprKind::Lit(Literal::String(text)) => text.len(),
        _ => 0,
    };
    rule.condition.subexpressions().map(text).max().unwrap_or(0)
}

/// Strict validation, file by file, so that every error has its place.
fn validate(files: &Parsed<'_>, schema: &ValidatorSchema, refusals: &mut Vec<Refusal>) {
    let policies: usize = files.iter().map(|(_, p)| p.len()).sum();
    let environments: usize =
        schema.action_ids().map(|a| a.applies_to_principals().count() * a.applies_to_resources().count()).sum();
    if policies.saturating_mul(environments) > MAX_VALIDATIONS {
        refusals.push(Refusal::new(
            RefusalCode::TooCostly,
            format!(
                "{}: {policies} policies times {environments} pairs of principal and resource types, summed over the actions: \
                 at most {MAX_VALIDATIONS} are checked",
                schema::SCHEMA_FILE
            ),
        ));
        return;
    }
    let validator = Validator::new(schema.clone());
    for (file, policies) in files {
        let Ok(set) = PolicySet::try_from_iter(policies.iter().cloned()) else { continue };
        let result = validator.validate(&set, ValidationMode::Strict);
        let mut found: Vec<(usize, String)> =
            result.validation_errors().map(|e| (schema::first_label(e).unwrap_or(0), e.to_string())).collect();
        found.sort();
        found.dedup();
        refusals.extend(found.into_iter().map(|(offset, message)| {
            let at = scan::place(&file.name, &file.text, offset);
            let policy = policies.iter().find(|p| p.loc().is_some_and(|l| (l.start()..l.end()).contains(&offset)));
            let id =
                policy.and_then(|p| p.annotations().find(|(k, _)| k.as_ref() == "id").map(|(_, v)| v.val.to_string()));
            // Cedar names the policy by the number that its parser gave it.
            let message =
                message.split_once("`, ").filter(|_| message.starts_with("for policy `")).map_or(&*message, |(_, m)| m);
            let message = schema::one_line(message);
            Refusal::new(
                RefusalCode::SchemaViolation,
                format!("{at}: policy `{}`: {message}", id.as_deref().unwrap_or("?")),
            )
        }));
    }
}

/// Actions that apply to something, by the name that callers use: `read`, or `Docs::read` in a namespace.
fn actions(schema: &ValidatorSchema) -> HashMap<String, Action> {
    let ancestors: HashMap<EntityUID, Vec<EntityUID>> = schema
        .action_entities()
        .map(|all| all.iter().map(|a| (a.uid().clone(), a.ancestors().cloned().collect())).collect())
        .unwrap_or_default();
    schema
        .action_ids()
        .map(|action| {
            let uid = action.name();
            let id: &str = uid.eid().as_ref();
            let namespace = uid.entity_type().name().as_ref().namespace();
            let name = if namespace.is_empty() { id.to_owned() } else { format!("{namespace}::{id}") };
            let resolved = Action {
                uid: Arc::new(uid.clone()),
                ancestors: ancestors.get(uid).cloned().unwrap_or_default(),
                principals: action.applies_to_principals().cloned().collect(),
                resources: action.applies_to_resources().cloned().collect(),
            };
            (name, resolved)
        })
        .collect()
}

/// Everything that policies can meet without a request: listed entities, tools with their groups, actions, and, bare, whatever
/// those and the policies mention. So a reference never dangles, and no policy errors for that.
fn close(
    listed: Vec<Entity>,
    schema: &ValidatorSchema,
    tools: &HashMap<String, crate::api::Tool>,
    rules: &[Rule],
) -> HashMap<EntityUID, Arc<Entity>> {
    let mut entities: HashMap<EntityUID, Arc<Entity>> = HashMap::new();
    let actions = schema.action_entities().map(|all| all.iter().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let tools = tools.values().map(|t| catalogue::tool_entity(t, &t.groups));
    for entity in listed.into_iter().chain(actions).chain(tools) {
        entities.insert(entity.uid().clone(), Arc::new(entity));
    }
    let mut mentioned: Vec<EntityUID> = entities.values().flat_map(|e| catalogue::references(e)).collect();
    mentioned.extend(rules.iter().flat_map(|r| r.reads.literals.iter().cloned()));
    // The call's own arguments come with each question.
    for uid in mentioned.into_iter().filter(|uid| !super::evaluate::is_of_call(uid)) {
        entities.entry(uid).or_insert_with_key(|uid| Arc::new(catalogue::bare(uid)));
    }
    entities
}
