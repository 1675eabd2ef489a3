//! Which parts of a condition read something that is not known, and what such a condition can come to: the known parts are
//! evaluated with Cedar itself, the unknown ones can be anything.
//!
//! Only ever errs on the side of "it could": a part that is taken for known although it is not would hide what an agent may do, or
//! explain a decision with a value that nobody has.

use cedar_policy_core::ast::{BinaryOp, EntityType, Expr, ExprKind, Literal, SlotEnv, UnaryOp, Value, ValueKind, Var};
use cedar_policy_core::evaluator::Evaluator;

use super::schema::{TYPES, one_line};

/// A condition is shown up to this many characters.
const MAX_TEXT: usize = 200;

/// What a condition can come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// It can hold.
    pub holds: bool,
    /// It can fail to hold.
    pub fails: bool,
    /// It can end in an error.
    pub errs: bool,
}

impl Outcomes {
    /// It holds, whatever the unknown is.
    pub const HOLDS: Self = Self { holds: true, fails: false, errs: false };
    /// It does not hold, whatever the unknown is.
    pub const FAILS: Self = Self { holds: false, fails: true, errs: false };
    /// It errs, whatever the unknown is.
    pub const ERRS: Self = Self { holds: false, fails: false, errs: true };
    /// Nothing can be said.
    pub const ANY: Self = Self { holds: true, fails: true, errs: true };
}

/// What of a question is not known.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    /// Members of `context`.
    pub context: Vec<&'static str>,
    /// Flattened keys of arguments whose values nobody kept: neither what stands under such a key or below it, nor whether anything does.
    pub hidden: Vec<String>,
}

impl Unknown {
    /// Whether nothing is unknown.
    fn is_empty(&self) -> bool {
        self.context.is_empty() && self.hidden.is_empty()
    }

    /// Whether the value of an expression depends on what is not known.
    pub fn reads(&self, e: &Expr) -> bool {
        if self.is_empty() {
            return false;
        }
        match e.expr_kind() {
            ExprKind::GetAttr { expr, attr } | ExprKind::HasAttr { expr, attr } if is_context(expr) => {
                self.member(attr)
            }
            ExprKind::ExtHasAttr { expr, attrs } if is_context(expr) => attrs.iter().any(|attr| self.member(attr)),
            // The whole of it is compared or passed on.
            ExprKind::Var(Var::Context) => !self.context.is_empty(),
            ExprKind::BinaryApp { op: BinaryOp::GetTag | BinaryOp::HasTag, arg1, arg2 } => {
                self.reads(arg1) || self.reads(arg2) || self.tag(arg1, arg2)
            }
            ExprKind::Lit(Literal::EntityUID(uid)) => self.member("arguments") && carries_call(uid.entity_type()),
            ExprKind::Lit(_) | ExprKind::Var(_) => false,
            _ => children(e).is_none_or(|all| all.into_iter().any(|child| self.reads(child))),
        }
    }

    fn member(&self, name: &str) -> bool {
        self.context.contains(&name)
    }

    /// Whether a tag that is not known may be read here: one of the call's arguments, by whatever way they are reached.
    fn tag(&self, of: &Expr, key: &Expr) -> bool {
        // Agents have tags of their own, and these are known.
        if matches!(of.expr_kind(), ExprKind::Var(Var::Principal | Var::Resource)) {
            return false;
        }
        if self.member("arguments") {
            return true;
        }
        let ExprKind::Lit(Literal::String(key)) = key.expr_kind() else { return !self.hidden.is_empty() };
        // What was an object or a list had its parts below the key, and nothing under it.
        let covers =
            |hidden: &String| key.strip_prefix(hidden.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        self.hidden.iter().any(covers)
    }
}

fn is_context(e: &Expr) -> bool {
    matches!(e.expr_kind(), ExprKind::Var(Var::Context))
}

/// Whether entities of this type carry the call's arguments.
pub(super) fn carries_call(ty: &EntityType) -> bool {
    [&TYPES.arguments, &TYPES.numbers].contains(&ty)
}

/// The parts of an expression; None where this version of Remit does not know its kind.
pub(super) fn children(e: &Expr) -> Option<Vec<&Expr>> {
    Some(match e.expr_kind() {
        ExprKind::Lit(_) | ExprKind::Var(_) => vec![],
        ExprKind::If { test_expr, then_expr, else_expr } => vec![test_expr, then_expr, else_expr],
        ExprKind::And { left, right } | ExprKind::Or { left, right } => vec![left, right],
        ExprKind::UnaryApp { arg, .. } => vec![arg],
        ExprKind::BinaryApp { arg1, arg2, .. } => vec![arg1, arg2],
        ExprKind::ExtensionFunctionApp { args, .. } => args.iter().collect(),
        ExprKind::GetAttr { expr, .. }
        | ExprKind::HasAttr { expr, .. }
        | ExprKind::ExtHasAttr { expr, .. }
        | ExprKind::Like { expr, .. }
        | ExprKind::Is { expr, .. } => vec![expr],
        ExprKind::Set(items) => items.iter().collect(),
        ExprKind::Record(members) => members.values().collect(),
        _ => return None,
    })
}

/// Evaluates conditions of which parts are not known.
pub(super) struct Split<'a> {
    pub evaluator: &'a Evaluator<'a>,
    pub unknown: &'a Unknown,
}

impl Split<'_> {
    /// What an expression can come to. The parts that are not known, as far as they matter, are added to `open`.
    pub fn outcomes<'e>(&self, e: &'e Expr, open: &mut Vec<&'e Expr>) -> Outcomes {
        if !self.unknown.reads(e) {
            return self.known(e);
        }
        match e.expr_kind() {
            ExprKind::And { left, right } => {
                let first = self.outcomes(left, open);
                if !first.holds {
                    return first;
                }
                let second = self.outcomes(right, open);
                Outcomes { holds: second.holds, fails: first.fails || second.fails, errs: first.errs || second.errs }
            }
            ExprKind::Or { left, right } => {
                let first = self.outcomes(left, open);
                if !first.fails {
                    return first;
                }
                let second = self.outcomes(right, open);
                Outcomes { holds: first.holds || second.holds, fails: second.fails, errs: first.errs || second.errs }
            }
            ExprKind::UnaryApp { op: UnaryOp::Not, arg } => {
                let Outcomes { holds, fails, errs } = self.outcomes(arg, open);
                Outcomes { holds: fails, fails: holds, errs }
            }
            ExprKind::If { test_expr, then_expr, else_expr } => {
                let test = self.outcomes(test_expr, open);
                let mut all = Outcomes { errs: test.errs, ..Outcomes::default() };
                for (taken, branch) in [(test.holds, then_expr), (test.fails, else_expr)] {
                    if taken {
                        let branch = self.outcomes(branch, open);
                        all.holds |= branch.holds;
                        all.fails |= branch.fails;
                        all.errs |= branch.errs;
                    }
                }
                all
            }
            _ => {
                open.push(e);
                Outcomes::ANY
            }
        }
    }

    fn known(&self, e: &Expr) -> Outcomes {
        match self.evaluator.interpret(e, &SlotEnv::new()) {
            Ok(value) => match as_bool(&value) {
                Some(true) => Outcomes::HOLDS,
                Some(false) => Outcomes::FAILS,
                None => Outcomes::ERRS,
            },
            Err(_) => Outcomes::ERRS,
        }
    }
}

/// The value, where it is a truth value.
pub(super) fn as_bool(value: &Value) -> Option<bool> {
    match value.value_kind() {
        ValueKind::Lit(Literal::Bool(b)) => Some(*b),
        _ => None,
    }
}

/// The source text of an expression in one line, shortened.
pub(super) fn text(e: &Expr) -> String {
    let text = e.source_loc().and_then(|l| l.snippet()).map_or_else(|| one_line(&e.to_string()), one_line);
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Side;
    use crate::policy::support::{compile, spec};

    /// Whether the condition of a policy reads what is not known.
    fn reads(condition: &str, unknown: &Unknown) -> bool {
        let text = format!(
            "@id(\"p\") permit(principal is Agent, action == Action::\"call_tool\", resource) when {{ {condition} }};"
        );
        let package = compile(&spec(&text), Side::Tenant);
        unknown.reads(&package.rules[0].condition)
    }

    #[test]
    fn what_a_call_brings_is_not_known_by_whatever_way_it_is_reached() {
        let unknown = Unknown { context: vec!["arguments", "numbers", "hour", "session"], hidden: vec![] };
        for (condition, expected) in [
            ("principal.trust > 2", false),
            ("principal.hasTag(\"region\") && principal.getTag(\"region\") == \"eu\"", false),
            ("context.risk > 2 || context.granted", false),
            ("context has session", true),
            ("context has session && context.session == \"s\"", true),
            ("context.hour > 2", true),
            ("context.arguments.hasTag(\"a\")", true),
            ("context.numbers.hasTag(\"a\") && context.numbers.getTag(\"a\") > 3", true),
            ("Arguments::\"call\".hasTag(\"a\")", true),
            ("(if principal.trust > 1 then context.arguments else Arguments::\"x\").hasTag(\"a\")", true),
            ("[context.hour].contains(3)", true),
            ("{a: context.hour}.a == 3", true),
            ("context == context", true),
        ] {
            assert_eq!(reads(condition, &unknown), expected, "{condition}");
        }
        assert!(!reads("context.hour > 2", &Unknown::default()));
    }

    #[test]
    fn values_that_nobody_kept_are_not_known() {
        let unknown = Unknown { context: vec![], hidden: vec!["password".into()] };
        for (condition, expected) in [
            ("context.arguments.hasTag(\"password\")", true),
            ("context.arguments.hasTag(\"branch\")", false),
            ("context.arguments.hasTag(\"password\") && context.arguments.getTag(\"password\") == \"x\"", true),
            ("context.arguments.hasTag(\"password.old\")", true),
            ("context.numbers.hasTag(\"password\")", true),
            ("context.arguments.hasTag(\"passwords\")", false),
            ("context.arguments.hasTag(principal.type)", true),
        ] {
            assert_eq!(reads(condition, &unknown), expected, "{condition}");
        }
    }
}
