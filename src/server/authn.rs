//! Gate 2, first half: who calls. A bearer token becomes an identity by a TokenReview with Remit's own audience.
//!
//! Must never believe a token by itself: the local look at it only sorts out what can't be good, so that garbage reaches
//! neither the API server nor the record. Must never log or keep a token: the cache knows only its SHA-256.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::clock::Clock;
use super::metrics::Metrics;
use super::reviews::{Answer, Failures, Reviews, NoVerdict};

/// Longest token that is looked at, bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// Tokens whose verdict is remembered.
const TOKENS: usize = 8192;
/// TokenReviews under way at once.
const AT_ONCE: usize = 16;
/// How long a request waits for its turn to be reviewed.
const TURN: Duration = Duration::from_secs(2);

/// Boxed future of the traits of this room.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// For whom a token must have been issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Agents and gateways: `remit`.
    Checks,
    /// Humans, at `/admin`: `remit-admin`.
    Admin,
}

impl Audience {
    /// As tokens and TokenReviews write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Audience::Checks => "remit",
            Audience::Admin => "remit-admin",
        }
    }
}

/// Who calls, as the API server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `system:serviceaccount:NAMESPACE:NAME`, or another user's name.
    pub username: String,
    /// UID, where there is one.
    pub uid: Option<String>,
    /// Groups.
    pub groups: Vec<String>,
    /// Further facts that authorizers may look at.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// Namespace of the ServiceAccount; None for other users.
    pub fn namespace(&self) -> Option<&str> {
        let (namespace, name) = self.username.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        (!namespace.is_empty() && !name.is_empty()).then_some(namespace)
    }
}

/// An identity that is believed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// Who.
    pub identity: Arc<Identity>,
    /// Reviewed longer ago than usual, because the API server is out of reach.
    pub stale: bool,
}

/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthnError {
    /// No `Authorization: Bearer`.
    #[error("send `Authorization: Bearer TOKEN`")]
    Missing,
    /// Not a token that the API server could have issued.
    #[error("the token is not a signed JWT: {0}")]
    Malformed(&'static str),
    /// Past its expiry.
    #[error("the token has expired")]
    Expired,
    /// Issued for somebody else.
    #[error("the token is not for audience `{0}`")]
    Audience(&'static str),
    /// Of another issuer.
    #[error("the token is not from this cluster's issuer")]
    Issuer,
    /// The API server says no.
    #[error("the API server does not accept the token")]
    Rejected,
    /// Too many failing tokens from this address.
    #[error("too many tokens from this address were not accepted: wait a moment")]
    Throttled,
    /// The API server can't be asked, and this token was not reviewed before.
    #[error("the API server can't be asked about the token now")]
    Unavailable,
}

impl AuthnError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            AuthnError::Missing => "token_missing",
            AuthnError::Malformed(_) => "token_malformed",
            AuthnError::Expired => "token_expired",
            AuthnError::Audience(_) => "token_audience",
            AuthnError::Issuer => "token_issuer",
            AuthnError::Rejected => "token_rejected",
            AuthnError::Throttled => "too_many_failures",
            AuthnError::Unavailable => "authentication_unavailable",
        }
    }
}

/// Says who calls. JWTs of configured issuers will be another implementation, before this one.
pub trait Authenticator: Send + Sync {
    /// The identity behind the token, for this audience. `from` is the remote address.
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        audience: Audience,
        from: IpAddr,
    ) -> BoxFuture<'a, Result<Authenticated, AuthnError>>;
}

/// Asks the API server. Each call has a time limit.
pub trait TokenReviewer: Send + Sync {
    /// One TokenReview.
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, NoVerdict>>;
}

/// What a TokenReview's answer is worth: the pure heart of this gate.
///
/// An empty `status.audiences` means that the API server did not look at the audience (the token may be one for the API
/// server itself): refused.
pub fn accept(status: &TokenReviewStatus, audience: Audience) -> Result<Identity, AuthnError> {
    if status.authenticated != Some(true) || status.error.as_ref().is_some_and(|e| !e.is_empty()) {
        return Err(AuthnError::Rejected);
    }
    if !status.audiences.iter().flatten().any(|a| a == audience.as_str()) {
        return Err(AuthnError::Audience(audience.as_str()));
    }
    let user = status.user.as_ref().ok_or(AuthnError::Rejected)?;
    let username = user.username.clone().filter(|name| !name.is_empty()).ok_or(AuthnError::Rejected)?;
    Ok(Identity {
        username,
        uid: user.uid.clone(),
        groups: user.groups.clone().unwrap_or_default(),
        extra: user.extra.clone().unwrap_or_default(),
    })
}

#[derive(Deserialize)]
struct JwtHeader {
    alg: String,
}

#[derive(Deserialize)]
struct JwtClaims {
    #[serde(default)]
    aud: Option<OneOrMany>,
    #[serde(default)]
    exp: Option<f64>,
    #[serde(default)]
    iss: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A cheap look at a token: could the API server accept it? Says when it expires. Proves nothing.
pub fn prefilter(token: &str, audience: Audience, issuer: Option<&str>, now: Timestamp) -> Result<Timestamp, AuthnError> {
    if token.len() > MAX_TOKEN {
        return Err(AuthnError::Malformed("too long"));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(AuthnError::Malformed("it has not three parts"));
    };
    let header: JwtHeader = decode(header).ok_or(AuthnError::Malformed("its header can't be read"))?;
    if header.alg.eq_ignore_ascii_case("none") || signature.is_empty() {
        return Err(AuthnError::Malformed("it is not signed"));
    }
    let claims: JwtClaims = decode(claims).ok_or(AuthnError::Malformed("its claims can't be read"))?;
    let exp = claims.exp.and_then(|seconds| Timestamp::from_second(seconds as i64).ok());
    let exp = exp.ok_or(AuthnError::Malformed("it has no expiry"))?;
    if exp <= now {
        return Err(AuthnError::Expired);
    }
    let ours = match claims.aud {
        Some(OneOrMany::One(one)) => one == audience.as_str(),
        Some(OneOrMany::Many(many)) => many.iter().any(|a| a == audience.as_str()),
        None => false,
    };
    if !ours {
        return Err(AuthnError::Audience(audience.as_str()));
    }
    if issuer.is_some_and(|issuer| claims.iss.as_deref() != Some(issuer)) {
        return Err(AuthnError::Issuer);
    }
    Ok(exp)
}

fn decode<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

type Reviewed = Result<Arc<Identity>, AuthnError>;

/// TokenReviews, few of them: looked at locally first, remembered, asked once at a time, throttled by address.
pub struct ReviewedTokens {
    reviewer: Arc<dyn TokenReviewer>,
    issuer: Option<String>,
    reviews: Reviews<(Audience, [u8; 32]), Reviewed>,
    failures: Failures,
    turns: Semaphore,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl ReviewedTokens {
    /// `issuer` is the API server's, where it is known: tokens of others then don't reach it.
    pub fn new(
        reviewer: Arc<dyn TokenReviewer>,
        issuer: Option<String>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            reviewer,
            issuer,
            reviews: Reviews::new(TOKENS),
            failures: Failures::default(),
            turns: Semaphore::new(AT_ONCE),
            clock,
            metrics,
        }
    }

    async fn review(&self, token: &str, audience: Audience, exp: Timestamp) -> Result<Answer<Reviewed>, NoVerdict> {
        let turn = tokio::time::timeout(TURN, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            self.metrics.review("token", "unreachable");
            return Err(NoVerdict::Refused("too many TokenReviews are under way".into()));
        };
        let status = self.reviewer.review(token, audience.as_str()).await.inspect_err(|error| {
            self.metrics.review("token", "unreachable");
            tracing::warn!(%error, "a TokenReview got no answer");
        })?;
        let value = accept(&status, audience).map(Arc::new);
        self.metrics.review("token", if value.is_ok() { "accepted" } else { "refused" });
        let left = exp.duration_since(self.clock.now());
        let ends = self.clock.instant() + Duration::try_from(left).unwrap_or_default();
        Ok(Answer { value, ends: Some(ends) })
    }
}

impl Authenticator for ReviewedTokens {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        audience: Audience,
        from: IpAddr,
    ) -> BoxFuture<'a, Result<Authenticated, AuthnError>> {
        Box::pin(async move {
            if token.len() > MAX_TOKEN {
                return Err(AuthnError::Malformed("too long"));
            }
            let key = (audience, <[u8; 32]>::from(Sha256::digest(token.as_bytes())));
            let now = self.clock.instant();
            let verdict = match self.reviews.look(&key, now) {
                Some(verdict) => verdict,
                None => {
                    let exp = prefilter(token, audience, self.issuer.as_deref(), self.clock.now())?;
                    // A token that was good a moment ago is asked about again whatever its neighbours send.
                    let known = self.reviews.knows(&key, now, Result::is_ok);
                    if !known && !self.failures.take(from, now) {
                        return Err(AuthnError::Throttled);
                    }
                    let verdict = self.reviews.get(&key, now, || self.review(token, audience, exp)).await;
                    if !known && !matches!(&verdict, Ok(verdict) if verdict.value.is_err()) {
                        self.failures.give_back(from);
                    }
                    verdict.map_err(|_| AuthnError::Unavailable)?
                }
            };
            Ok(Authenticated { identity: verdict.value?, stale: verdict.stale })
        })
    }
}
