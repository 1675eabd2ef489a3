//! Gate 2, second half: may this identity do that here? Asked of the API server's authorizers by SubjectAccessReview.
//!
//! Must never decide by a name or a group itself: RBAC does, so that one place says who may what.

use std::sync::Arc;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReviewSpec};

use super::authn::{BoxFuture, Identity};
use super::clock::Clock;
use super::metrics::Metrics;
use super::reviews::{Answer, NoVerdict, Reviews};

/// Questions whose answer is remembered.
const ANSWERS: usize = 8192;

/// What somebody wants to do to a (virtual) resource of group `remit.dev`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    /// Verb: `check`, `get`, …
    pub verb: &'static str,
    /// Resource: `agents`, `decisions`, …
    pub resource: &'static str,
    /// Namespace.
    pub namespace: String,
}

/// Says whether an identity may.
pub trait Authorizer: Send + Sync {
    /// Whether `who` may do `ask`; Err when nobody can say.
    fn allowed<'a>(&'a self, who: &'a Identity, ask: Ask) -> BoxFuture<'a, Result<bool, NoVerdict>>;
}

/// Asks the API server. Each call has a time limit.
pub trait AccessReviewer: Send + Sync {
    /// One SubjectAccessReview.
    fn review(&self, spec: SubjectAccessReviewSpec) -> BoxFuture<'_, Result<bool, NoVerdict>>;
}

/// Everything of an identity that an authorizer may look at: all of it is part of the question.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    username: String,
    uid: Option<String>,
    groups: Vec<String>,
    extra: Vec<(String, Vec<String>)>,
    ask: Ask,
}

/// SubjectAccessReviews, remembered for ten seconds, yes and no alike.
pub struct ReviewedAccess {
    reviewer: Arc<dyn AccessReviewer>,
    reviews: Reviews<Question, bool>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl ReviewedAccess {
    /// Over a reviewer.
    pub fn new(reviewer: Arc<dyn AccessReviewer>, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { reviewer, reviews: Reviews::new(ANSWERS), clock, metrics }
    }

    async fn review(&self, who: &Identity, ask: Ask) -> Result<Answer<bool>, NoVerdict> {
        let spec = SubjectAccessReviewSpec {
            user: Some(who.username.clone()),
            uid: who.uid.clone(),
            groups: Some(who.groups.clone()),
            extra: Some(who.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                group: Some(crate::api::GROUP.to_owned()),
                resource: Some(ask.resource.to_owned()),
                verb: Some(ask.verb.to_owned()),
                namespace: Some(ask.namespace),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        };
        let value = self.reviewer.review(spec).await.inspect_err(|error| {
            self.metrics.review("access", "unreachable");
            tracing::warn!(%error, "a SubjectAccessReview got no answer");
        })?;
        self.metrics.review("access", if value { "accepted" } else { "refused" });
        Ok(Answer { value, ends: None })
    }
}

impl Authorizer for ReviewedAccess {
    fn allowed<'a>(&'a self, who: &'a Identity, ask: Ask) -> BoxFuture<'a, Result<bool, NoVerdict>> {
        Box::pin(async move {
            let question = Question {
                username: who.username.clone(),
                uid: who.uid.clone(),
                groups: who.groups.clone(),
                extra: who.extra.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
                ask: ask.clone(),
            };
            let verdict = self.reviews.get(&question, self.clock.instant(), || self.review(who, ask)).await?;
            Ok(verdict.value)
        })
    }
}
