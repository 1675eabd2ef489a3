//! Weaker human gates: calls of which people are asked on both sides, and the candidate asks less of them. To the solver an ask is an ask;
//! who is asked, and how many of them, is put to it here, one demand after the other.

use std::collections::BTreeSet;

use cedar_policy_core::ast::Expr;

use super::call::{self, Call};
use super::environment::Environment;
use super::half::{Half, Kind, Rule, Symbols};
use super::prove::{Case, Findings, Prover, reason};
use super::rewrite::join;
use super::solver::{Ask as Question, Session};
use super::{CounterExample, Proof};
use crate::gate::Outcome;
use crate::policy::Ask;

impl Prover<'_> {
    /// Whether the candidate lets a call through with less of a human's say.
    pub(super) async fn weaker_gates(
        &self,
        environment: &Environment,
        symbols: &Symbols,
        case: &mut Case,
        session: &mut Session,
        proof: &mut Proof,
    ) -> Findings {
        let mut findings = Findings::default();
        let demands: BTreeSet<Ask> = case.baseline.rules.iter().filter_map(|r| r.ask.clone()).collect();
        for demand in demands {
            match self.weaker(environment, symbols, case, &demand, session).await {
                Ok(None) => {}
                Ok(Some(example)) => {
                    findings.more = true;
                    proof.counter_examples.push(*example);
                }
                Err(why) => {
                    findings.open = true;
                    let asking = case.baseline.rules.iter().filter(|r| r.ask.as_ref() == Some(&demand));
                    let names: Vec<&str> = asking.map(|r| r.id.as_str()).take(3).collect();
                    let why = format!("whether people are asked less than by {} is not known: {why}", names.join(", "));
                    reason(case, proof, why);
                }
            }
        }
        findings
    }

    /// A call of which this is demanded under the baseline, and only less under the candidate.
    async fn weaker(
        &self,
        environment: &Environment,
        symbols: &Symbols,
        case: &Case,
        demand: &Ask,
        session: &mut Session,
    ) -> Result<Option<Box<CounterExample>>, String> {
        let covers = |rule: &Rule| rule.ask.as_ref().is_some_and(|ask| ask.covers(demand));
        let demands = |rule: &Rule| rule.ask.as_ref() == Some(demand);
        let kept = |by: &Rule| case.candidate.rules.iter().any(|rule| rule.key == by.key && covers(rule));
        let less: Vec<&Rule> = case.candidate.rules.iter().filter(|r| r.kind == Kind::Ask && !covers(r)).collect();
        // Where nobody else is asked, a call is either asked of the same people, or of none: that is found elsewhere.
        if less.is_empty() || case.baseline.rules.iter().filter(|r| demands(r)).all(kept) {
            return Ok(None);
        }
        let asked: Vec<Expr> = less
            .iter()
            .map(|r| r.expr.clone().map_err(|why| format!("{} has to be left open: {}", r.id, why.0)))
            .collect::<Result<_, _>>()?;
        let asked = join(asked, Expr::or, false);
        let without = |half: &Half, stays: &dyn Fn(&Rule) -> bool| Half {
            rules: half.rules.iter().filter(|r| r.kind != Kind::Ask || stays(r)).cloned().collect(),
        };
        let (lets, stops) = (without(&case.candidate, &covers), without(&case.baseline, &demands));
        let weaker = |call: &Call| {
            let ((before, old), (after, new)) = (self.decided(call, false), self.decided(call, true));
            (before, after) == (Outcome::ApprovalRequired, Outcome::ApprovalRequired)
                && old.iter().any(|p| p.ask.as_ref() == Some(demand))
                && !new.iter().any(|p| p.ask.as_ref().is_some_and(|ask| ask.covers(demand)))
        };
        for (attempt, given) in symbols.simpler_calls().into_iter().enumerate() {
            let asked_too: Vec<Expr> = given.iter().cloned().chain([asked.clone()]).collect();
            let (a, b) = (symbols.set(&lets, false, &asked_too)?, symbols.set(&stops, false, &given)?);
            match session.ask(Question::Implies(&a, &b)).await.map_err(|e| e.to_string())? {
                // Of all calls, the first time.
                None if attempt == 0 => return Ok(None),
                None => {}
                Some(model) => {
                    let tenant = &self.input.tenant;
                    let calls = call::of_model(&model, environment, tenant, case.tool(), symbols.number_keys());
                    if let Some(call) = calls.into_iter().find(&weaker) {
                        let call = call.simplified(weaker);
                        let asks: Vec<String> = self
                            .decided(&call, true)
                            .1
                            .iter()
                            .filter_map(|p| p.ask.clone())
                            .map(|a| a.words())
                            .collect();
                        let mut example = self.example(call, case, true, true);
                        example.sentence.push_str(&format!("; {} before, {} now", demand.words(), asks.join(" and ")));
                        return Ok(Some(Box::new(example)));
                    }
                }
            }
        }
        Err(format!("the solver sees a difference in {} that no call confirms", environment.words()))
    }
}
