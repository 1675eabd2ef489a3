//! Gate 2 for identities from elsewhere: JWTs of configured issuers, by OpenID Connect or SPIFFE.
//!
//! A token is routed by the issuer that it names, before anything in it is believed, and from there on only that issuer's keys,
//! algorithms, audiences and tenants count: a token that names a configured issuer is never shown to the API server, and one that
//! names another is never verified here. Must never take an algorithm from the token, a key from the token, or a name that could
//! be a Kubernetes user's.

mod config;
mod jwt;
mod keys;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

pub use config::{Issuer, IssuersError, Kind, MAX_SKEW, read};
pub use jwt::Algorithm;
pub use keys::KeyError;

use super::authn::{Audience, Authenticated, Authenticator, AuthnError, BoxFuture, Identity, MAX_TOKEN};
use super::clock::Clock;
use super::metrics::Metrics;
use super::reviews::{Answer, Failures, NoVerdict, Reviews};
use jwt::Token;
use keys::Keys;

/// Tokens whose verdict is remembered.
const TOKENS: usize = 8192;

type Verified = Result<Arc<Identity>, AuthnError>;

/// The configured issuers, in front of whoever knows all other tokens.
pub struct Issuers {
    issuers: Vec<Arc<Trusted>>,
    others: Arc<dyn Authenticator>,
    verdicts: Reviews<(Audience, [u8; 32]), Verified>,
    failures: Failures,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// One issuer and its keys.
struct Trusted {
    issuer: Issuer,
    tenants: Arc<[String]>,
    keys: Arc<Keys>,
}

impl Issuers {
    /// `others` answers for every token that names none of the issuers.
    pub fn new(
        issuers: Vec<Issuer>,
        others: Arc<dyn Authenticator>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, IssuersError> {
        let trusted = issuers.into_iter().map(|issuer| {
            let keys = Arc::new(Keys::new(&issuer, clock.clone())?);
            Ok(Arc::new(Trusted { tenants: issuer.tenants.clone().into(), issuer, keys }))
        });
        let issuers = trusted.collect::<Result<_, IssuersError>>()?;
        Ok(Self { issuers, others, verdicts: Reviews::new(TOKENS), failures: Failures::default(), clock, metrics })
    }

    /// The authenticator of a process: `others` alone where no issuer is configured. Their keys begin to be fetched.
    pub fn in_front_of(
        others: Arc<dyn Authenticator>,
        issuers: Vec<Issuer>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<dyn Authenticator>, IssuersError> {
        if issuers.is_empty() {
            return Ok(others);
        }
        let issuers = Arc::new(Self::new(issuers, others, clock, metrics)?);
        let warm = issuers.clone();
        tokio::spawn(async move { warm.warm().await });
        Ok(issuers)
    }

    /// Fetches every issuer's keys, so that the first call does not wait for them. A failure is logged and tried again when a
    /// token comes.
    async fn warm(&self) {
        for trusted in &self.issuers {
            trusted.keys.refresh().await;
        }
    }

    /// The issuer that the token names. Nothing in it is verified yet.
    fn route(&self, token: &Token<'_>) -> Option<&Arc<Trusted>> {
        self.issuers.iter().find(|t| match (&t.issuer.issuer, token.issuer()) {
            (Some(configured), Some(named)) => configured == named,
            // A JWT-SVID need not name an issuer: its trust domain does.
            (None, None) => t.issuer.trust_domain.as_deref().is_some_and(|domain| in_domain(token.subject(), domain)),
            _ => false,
        })
    }

    /// `from` is where failures count; None for a token that was good a moment ago.
    async fn verify(
        &self,
        trusted: &Trusted,
        token: &Token<'_>,
        from: Option<IpAddr>,
    ) -> Result<Answer<Verified>, NoVerdict> {
        if from.is_some_and(|from| self.failures.exhausted(from, self.clock.instant())) {
            return Err(NoVerdict::Throttled);
        }
        let value = match trusted.verify(token, self.clock.now()).await {
            Err(AuthnError::KeysUnavailable) => {
                self.metrics.review("jwt", "unreachable");
                return Err(NoVerdict::Away("the issuer's keys can't be had".into()));
            }
            value => value,
        };
        if let (Some(from), Err(_)) = (from, &value) {
            self.failures.count(from, self.clock.instant());
        }
        self.metrics.review("jwt", if value.is_ok() { "accepted" } else { "refused" });
        let left = token.expires().map_or(Duration::ZERO, |expires| {
            Duration::try_from((expires + trusted.issuer.skew()).duration_since(self.clock.now())).unwrap_or_default()
        });
        Ok(Answer { value, ends: Some(self.clock.instant() + left) })
    }
}

impl Authenticator for Issuers {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        audience: Audience,
        from: IpAddr,
    ) -> BoxFuture<'a, Result<Authenticated, AuthnError>> {
        Box::pin(async move {
            // What can't be read here is the others' to refuse, in their words.
            let read = if token.len() <= MAX_TOKEN { Token::read(token) } else { None };
            let Some((trusted, read)) = read.as_ref().and_then(|read| Some((self.route(read)?, read))) else {
                return self.others.authenticate(token, audience, from).await;
            };
            if audience != Audience::Checks {
                // An issuer speaks for agents; who may read records is for the cluster to say.
                return Err(AuthnError::Audience(audience.as_str()));
            }
            let key = (audience, <[u8; 32]>::from(Sha256::digest(token.as_bytes())));
            let now = self.clock.instant();
            let known = self.verdicts.knows(&key, now, Result::is_ok);
            let from = (!known).then_some(from);
            let verdict = self.verdicts.get(&key, now, || self.verify(trusted, read, from)).await;
            let verdict = verdict.map_err(|none| match none {
                NoVerdict::Throttled => AuthnError::Throttled,
                NoVerdict::Away(_) | NoVerdict::Refused(_) => AuthnError::KeysUnavailable,
            })?;
            Ok(Authenticated { identity: verdict.value?, stale: verdict.stale })
        })
    }
}

impl Trusted {
    async fn verify(&self, token: &Token<'_>, now: Timestamp) -> Verified {
        let issuer = &self.issuer;
        let algorithm = token.algorithm(&issuer.algorithms)?;
        token.timely(now, issuer)?;
        token.meant_for(&issuer.audiences)?;
        let username = self.username(token)?;
        self.keys.verify(token, algorithm).await?;
        Ok(Arc::new(Identity { username, tenants: Some(self.tenants.clone()), ..Identity::default() }))
    }

    /// A name that no Kubernetes user can have: those are refused by TokenReview's reader.
    fn username(&self, token: &Token<'_>) -> Result<String, AuthnError> {
        let subject = token.subject().ok_or(AuthnError::Unverified("it names no subject"))?;
        match (self.issuer.kind, &self.issuer.trust_domain, &self.issuer.issuer) {
            (Kind::Spiffe, Some(domain), _) => {
                if !in_domain(Some(subject), domain) || !crate::api::is_spiffe_id(subject) {
                    return Err(AuthnError::Unverified("its subject is no SPIFFE id of the issuer's trust domain"));
                }
                Ok(subject.to_owned())
            }
            (Kind::Oidc, _, Some(issuer)) => {
                if subject.len() > crate::api::MAX_SUBJECT || subject.chars().any(char::is_control) {
                    return Err(AuthnError::Unverified("its subject is not one that an Agent can name"));
                }
                Ok(crate::api::oidc_username(issuer, subject))
            }
            _ => Err(AuthnError::Issuer),
        }
    }
}

/// Whether a configured issuer may speak for an identity in a tenant.
pub fn may_speak(issuers: &[Issuer], username: &str, tenant: &str) -> bool {
    issuers.iter().any(|issuer| {
        let its = match (issuer.kind, &issuer.issuer, &issuer.trust_domain) {
            (Kind::Spiffe, _, Some(domain)) => in_domain(Some(username), domain),
            (Kind::Oidc, Some(name), _) => username
                .strip_prefix("oidc:")
                .and_then(|u| u.strip_prefix(name.as_str()))
                .is_some_and(|u| u.starts_with('#')),
            _ => false,
        };
        its && issuer.tenants.iter().any(|t| t == tenant)
    })
}

/// Whether a SPIFFE id is of a trust domain: all of its name, not its beginning.
fn in_domain(subject: Option<&str>, domain: &str) -> bool {
    let rest = subject.and_then(|s| s.strip_prefix("spiffe://")).and_then(|s| s.strip_prefix(domain));
    rest.is_some_and(|rest| rest.starts_with('/'))
}
