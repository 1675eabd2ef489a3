//! Carries questions and reports to the decision point, each in a task of its own, and brings back the answers.
//!
//! Every ticket comes back exactly once, and in time: a decision point that hangs, panics or is dropped is an error, which is a
//! refusal. Reports never hold up a call, and are lost rather than piled up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use crate::enforce::{CallOutcome, ListedTool, Pdp, PdpError, Question, Verdict};

/// Reports on their way at once.
const MAX_REPORTS: usize = 256;

/// What comes back.
#[derive(Debug)]
pub enum Answer {
    /// For [`super::Relay::decided`].
    Decided(u64, Result<Verdict, PdpError>),
    /// For [`super::Relay::listed`].
    Listed(u64, Result<Vec<ListedTool>, PdpError>),
}

/// One connection's way to the decision point.
pub struct Courier {
    pdp: Arc<dyn Pdp>,
    agent: String,
    session: Option<String>,
    /// After so long there is no answer.
    limit: Duration,
    answers: mpsc::UnboundedSender<Answer>,
    reports: Arc<Semaphore>,
}

impl Courier {
    /// A courier, and where its answers arrive.
    pub fn new(pdp: Arc<dyn Pdp>, agent: String, limit: Duration) -> (Self, mpsc::UnboundedReceiver<Answer>) {
        let (answers, receiver) = mpsc::unbounded_channel();
        let reports = Arc::new(Semaphore::new(MAX_REPORTS));
        (Self { pdp, agent, session: None, limit, answers, reports }, receiver)
    }

    /// Asks for the tools of this session.
    pub fn in_session(self, session: Option<String>) -> Self {
        Self { session, ..self }
    }

    /// Asks about a call.
    pub fn check(&self, ticket: u64, question: Question) {
        let (pdp, limit) = (self.pdp.clone(), self.limit);
        let asked = tokio::spawn(async move { in_time(limit, pdp.check(&question)).await });
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let answer = asked.await.unwrap_or_else(|_| Err(PdpError::Malformed("the question was lost".into())));
            // Nobody listens any more only when the connection is over.
            let _ = answers.send(Answer::Decided(ticket, answer));
        });
    }

    /// Asks for the agent's tools.
    pub fn tools(&self, ticket: u64) {
        let (pdp, limit, agent, session) = (self.pdp.clone(), self.limit, self.agent.clone(), self.session.clone());
        let asked = tokio::spawn(async move { in_time(limit, pdp.listed(&agent, session.as_deref())).await });
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let answer = asked.await.unwrap_or_else(|_| Err(PdpError::Malformed("the question was lost".into())));
            let _ = answers.send(Answer::Listed(ticket, answer));
        });
    }

    /// Reports what became of a call.
    pub fn report(&self, decision_id: String, outcome: CallOutcome, took: Duration) {
        let Ok(permit) = self.reports.clone().try_acquire_owned() else {
            tracing::warn!(decision_id, "the call's outcome is not reported: too many reports wait");
            return;
        };
        let (pdp, limit) = (self.pdp.clone(), self.limit);
        tokio::spawn(async move {
            if let Err(error) = in_time(limit, pdp.report(&decision_id, outcome, took)).await {
                tracing::warn!(decision_id, %error, "the call's outcome is not reported");
            }
            drop(permit);
        });
    }

    /// Waits until all reports have arrived, at most so long.
    pub async fn finish(&self, at_most: Duration) {
        let all = u32::try_from(MAX_REPORTS).unwrap_or(u32::MAX);
        if tokio::time::timeout(at_most, self.reports.acquire_many(all)).await.is_err() {
            tracing::warn!("the outcomes of some calls are not reported: Remit took too long");
        }
    }
}

async fn in_time<T>(limit: Duration, asked: impl Future<Output = Result<T, PdpError>>) -> Result<T, PdpError> {
    tokio::time::timeout(limit, asked).await.unwrap_or(Err(PdpError::Timeout(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforce::PdpFuture;

    enum Bad {
        Hangs,
        Panics,
    }

    impl Pdp for Bad {
        fn check<'a>(&'a self, _: &'a Question) -> PdpFuture<'a, Result<Verdict, PdpError>> {
            Box::pin(async {
                match self {
                    Self::Hangs => std::future::pending().await,
                    Self::Panics => panic!("by design"),
                }
            })
        }
        fn tools<'a>(&'a self, _: &'a str) -> PdpFuture<'a, Result<Vec<String>, PdpError>> {
            Box::pin(async {
                match self {
                    Self::Hangs => std::future::pending().await,
                    Self::Panics => panic!("by design"),
                }
            })
        }
        fn report<'a>(&'a self, _: &'a str, _: CallOutcome, _: Duration) -> PdpFuture<'a, Result<(), PdpError>> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test]
    async fn every_ticket_comes_back() {
        for bad in [Bad::Hangs, Bad::Panics] {
            let (courier, mut answers) = Courier::new(Arc::new(bad), "coder".into(), Duration::from_millis(10));
            courier.check(1, Question::default());
            courier.tools(2);
            let mut back = Vec::new();
            for _ in 0..2 {
                let answer = tokio::time::timeout(Duration::from_secs(60), answers.recv()).await.expect("in time");
                match answer.unwrap() {
                    Answer::Decided(ticket, answer) => back.push((ticket, answer.is_err())),
                    Answer::Listed(ticket, answer) => back.push((ticket, answer.is_err())),
                }
            }
            back.sort_unstable();
            assert_eq!(back, [(1, true), (2, true)]);
        }
    }

    #[tokio::test]
    async fn reports_hold_nobody_up() {
        let (courier, _answers) = Courier::new(Arc::new(Bad::Hangs), "coder".into(), Duration::from_secs(600));
        for _ in 0..=MAX_REPORTS {
            courier.report("d".into(), CallOutcome::Success, Duration::ZERO);
        }
        courier.finish(Duration::from_millis(10)).await;
    }
}
