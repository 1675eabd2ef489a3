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
use super::reviews::{Answer, Failures, NoVerdict, Reviews};
use crate::api::is_federated;
use crate::gate::federated_key;

/// Longest token that is looked at, bytes.
pub(super) const MAX_TOKEN: usize = 16 * 1024;
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
    /// Tenants that its issuer may speak for; None: the cluster's own, for all.
    pub tenants: Option<Arc<[String]>>,
}

impl Identity {
    /// Whether the identity counts in a tenant at all.
    pub fn counts_in(&self, tenant: &str) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|t| t == tenant))
    }

    /// Under which an Agent of the tenant claims it.
    pub fn key(&self, tenant: &str) -> String {
        match &self.tenants {
            None => self.username.clone(),
            Some(_) => federated_key(tenant, &self.username),
        }
    }

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
    /// Issued by a configured issuer for somebody else.
    #[error("the token is not for an audience that its issuer is configured with")]
    ForeignAudience,
    /// Of another issuer.
    #[error("the token is not from this cluster's issuer, nor from another that is configured")]
    Issuer,
    /// A configured issuer's token that is not good.
    #[error("the token is not accepted: {0}")]
    Unverified(&'static str),
    /// The API server says no.
    #[error("the API server does not accept the token")]
    Rejected,
    /// Neither a token of this folder nor of an issuer that it knows.
    #[error("the token is not known here")]
    Unknown,
    /// Too many failing tokens from this address.
    #[error("too many tokens from this address were not accepted: wait a moment")]
    Throttled,
    /// The API server can't be asked, and this token was not reviewed before.
    #[error("the API server can't be asked about the token now")]
    Unavailable,
    /// The keys of the token's issuer can't be had.
    #[error("the keys of the token's issuer can't be had now")]
    KeysUnavailable,
}

impl AuthnError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            AuthnError::Missing => "token_missing",
            AuthnError::Malformed(_) => "token_malformed",
            AuthnError::Expired => "token_expired",
            AuthnError::Audience(_) | AuthnError::ForeignAudience => "token_audience",
            AuthnError::Issuer => "token_issuer",
            AuthnError::Rejected | AuthnError::Unknown | AuthnError::Unverified(_) => "token_rejected",
            AuthnError::Throttled => "too_many_failures",
            AuthnError::Unavailable | AuthnError::KeysUnavailable => "authentication_unavailable",
        }
    }
}

/// Says who calls.
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
    // Names of other issuers' identities are theirs alone, whatever an authenticator of the cluster calls its users.
    if is_federated(&username) || username.chars().any(char::is_control) {
        return Err(AuthnError::Rejected);
    }
    Ok(Identity {
        username,
        uid: user.uid.clone(),
        groups: user.groups.clone().unwrap_or_default(),
        extra: user.extra.clone().unwrap_or_default(),
        tenants: None,
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
pub fn prefilter(
    token: &str,
    audience: Audience,
    issuer: Option<&str>,
    now: Timestamp,
) -> Result<Timestamp, AuthnError> {
    if token.len() > MAX_TOKEN {
        return Err(AuthnError::Malformed("too long"));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
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

    /// `from` is where failures count; None for a token that was good a moment ago, whatever its neighbours send.
    async fn review(
        &self,
        token: &str,
        audience: Audience,
        exp: Timestamp,
        from: Option<IpAddr>,
    ) -> Result<Answer<Reviewed>, NoVerdict> {
        let turn = tokio::time::timeout(TURN, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            self.metrics.review("token", "unreachable");
            return Err(NoVerdict::Refused("too many TokenReviews are under way".into()));
        };
        // Looked at with the turn in hand: so many garbage tokens at once overshoot by the number of turns, no more.
        if from.is_some_and(|from| self.failures.exhausted(from, self.clock.instant())) {
            return Err(NoVerdict::Throttled);
        }
        let status = self.reviewer.review(token, audience.as_str()).await.inspect_err(|error| {
            self.metrics.review("token", "unreachable");
            tracing::warn!(%error, "a TokenReview got no answer");
        })?;
        let value = accept(&status, audience).map(Arc::new);
        if let (Some(from), Err(_)) = (from, &value) {
            self.failures.count(from, self.clock.instant());
        }
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
                    let known = self.reviews.knows(&key, now, Result::is_ok);
                    let from = (!known).then_some(from);
                    let verdict = self.reviews.get(&key, now, || self.review(token, audience, exp, from)).await;
                    verdict.map_err(|none| match none {
                        NoVerdict::Throttled => AuthnError::Throttled,
                        NoVerdict::Away(_) | NoVerdict::Refused(_) => AuthnError::Unavailable,
                    })?
                }
            };
            Ok(Authenticated { identity: verdict.value?, stale: verdict.stale })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use k8s_openapi::api::authentication::v1::UserInfo;
    use serde_json::{Value, json};

    use super::*;
    use crate::server::testing::FakeClock;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn jwt(claims: &Value, signature: &str) -> String {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        format!("{}.{}.{signature}", part(&json!({"alg": "RS256", "kid": "k"})), part(claims))
    }

    fn token(signature: &str) -> String {
        jwt(&json!({"iss": "https://kubernetes", "aud": ["remit"], "exp": 1_800_003_600}), signature)
    }

    fn status(audiences: Option<&[&str]>) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: audiences.map(|all| all.iter().map(|a| (*a).to_owned()).collect()),
            user: Some(UserInfo { username: Some("system:serviceaccount:acme:coder".into()), ..UserInfo::default() }),
            error: None,
        }
    }

    /// Knows one good signature; counts what it is asked.
    #[derive(Default)]
    struct ApiServer {
        asked: AtomicUsize,
        away: AtomicBool,
        seen: Mutex<Vec<String>>,
    }

    impl TokenReviewer for ApiServer {
        fn review<'a>(
            &'a self,
            token: &'a str,
            audience: &'a str,
        ) -> BoxFuture<'a, Result<TokenReviewStatus, NoVerdict>> {
            Box::pin(async move {
                if self.away.load(Ordering::SeqCst) {
                    return Err(NoVerdict::Away("connection refused".into()));
                }
                self.asked.fetch_add(1, Ordering::SeqCst);
                self.seen.lock().unwrap().push(audience.to_owned());
                tokio::task::yield_now().await;
                let good = token.ends_with(".good");
                Ok(if good {
                    status(Some(&[audience]))
                } else {
                    TokenReviewStatus { authenticated: Some(false), ..TokenReviewStatus::default() }
                })
            })
        }
    }

    fn world() -> (Arc<ApiServer>, Arc<FakeClock>, ReviewedTokens) {
        let (api, clock) = (Arc::new(ApiServer::default()), Arc::new(FakeClock::default()));
        let issuer = Some("https://kubernetes".to_owned());
        let tokens = ReviewedTokens::new(api.clone(), issuer, clock.clone(), Arc::new(Metrics::default()));
        (api, clock, tokens)
    }

    #[test]
    fn empty_status_audiences() {
        for audiences in [None, Some(&[][..])] {
            let refused = accept(&status(audiences), Audience::Checks);
            assert_eq!(refused, Err(AuthnError::Audience("remit")), "the API server did not look at the audience");
        }
        assert_eq!(accept(&status(Some(&["remit"])), Audience::Checks).unwrap().namespace(), Some("acme"));
    }

    #[test]
    fn no_user_of_the_cluster_can_have_the_name_of_an_issuers_identity() {
        for name in ["oidc:https://idp#coder", "spiffe://prod/coder", "acme\0oidc:https://idp#coder", "a\nb"] {
            let mut named = status(Some(&["remit"]));
            named.user.as_mut().unwrap().username = Some(name.into());
            assert_eq!(accept(&named, Audience::Checks), Err(AuthnError::Rejected), "{name:?}");
        }
        let mut prefixed = status(Some(&["remit"]));
        prefixed.user.as_mut().unwrap().username = Some("oidc:alice@example.com".into());
        assert!(accept(&prefixed, Audience::Checks).is_ok(), "a usual prefix of the API server's own OIDC users");
    }

    #[test]
    fn foreign_audience_token() {
        let foreign = &["https://kubernetes.default.svc", "remit-admin", "remit2"];
        assert_eq!(accept(&status(Some(foreign)), Audience::Checks), Err(AuthnError::Audience("remit")));
        assert_eq!(accept(&status(Some(&["remit"])), Audience::Admin), Err(AuthnError::Audience("remit-admin")));
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let foreign = jwt(&json!({"aud": ["vault"], "exp": 1_800_003_600}), "good");
        assert_eq!(
            prefilter(&foreign, Audience::Checks, None, now),
            Err(AuthnError::Audience("remit")),
            "not even asked"
        );
    }

    #[test]
    fn a_status_that_says_no_or_names_nobody_is_refused() {
        let no = TokenReviewStatus { authenticated: Some(false), ..status(Some(&["remit"])) };
        let silent = TokenReviewStatus { authenticated: None, ..status(Some(&["remit"])) };
        let error = TokenReviewStatus { error: Some("expired".into()), ..status(Some(&["remit"])) };
        let nobody = TokenReviewStatus { user: Some(UserInfo::default()), ..status(Some(&["remit"])) };
        for bad in [no, silent, error, nobody] {
            assert_eq!(accept(&bad, Audience::Checks), Err(AuthnError::Rejected));
        }
    }

    #[test]
    fn what_cannot_be_a_token_is_told_at_once() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let look = |token: &str| prefilter(token, Audience::Checks, Some("https://kubernetes"), now);
        assert!(look(&token("sig")).is_ok());
        let claims = json!({"iss": "https://kubernetes", "aud": "remit", "exp": 1_800_003_600.0});
        assert!(look(&jwt(&claims, "sig")).is_ok(), "one audience as text");
        for bad in ["", "a", "a.b", "a.b.c", "a.b.c.d", &"x".repeat(20_000), &jwt(&claims, "")] {
            assert!(matches!(look(bad), Err(AuthnError::Malformed(_))), "{bad:.20}");
        }
        let none = format!(
            "{}.{}.sig",
            URL_SAFE_NO_PAD.encode(r#"{"alg":"nOnE"}"#),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        assert!(matches!(look(&none), Err(AuthnError::Malformed(_))));
        let with = |key: &str, value: Value| {
            let mut claims = claims.clone();
            claims[key] = value;
            jwt(&claims, "sig")
        };
        assert_eq!(look(&with("exp", json!(1_800_000_000))), Err(AuthnError::Expired));
        assert!(matches!(look(&with("exp", Value::Null)), Err(AuthnError::Malformed(_))));
        assert_eq!(look(&with("iss", json!("https://other"))), Err(AuthnError::Issuer));
        assert_eq!(look(&with("aud", Value::Null)), Err(AuthnError::Audience("remit")));
    }

    #[tokio::test]
    async fn garbage_token_flood() {
        let (api, clock, tokens) = world();
        let good = token("good");
        tokens.authenticate(&good, Audience::Checks, HERE).await.unwrap();
        // Garbage that is no token: never asked about.
        for n in 0..1000 {
            assert!(tokens.authenticate(&format!("garbage{n}"), Audience::Checks, HERE).await.is_err());
        }
        assert_eq!(api.asked.load(Ordering::SeqCst), 1);
        // Well-formed tokens, each with another signature, from one address.
        let mut throttled = 0;
        for n in 0..1000 {
            let answer = tokens.authenticate(&token(&format!("bad{n}")), Audience::Checks, HERE).await;
            throttled += usize::from(answer == Err(AuthnError::Throttled));
        }
        assert_eq!(api.asked.load(Ordering::SeqCst), 21, "twenty reviews, then the address is throttled");
        assert_eq!(throttled, 980);
        // The same bad token again and again: asked once in ten seconds.
        let other = "198.51.100.7".parse().unwrap();
        for _ in 0..100 {
            assert_eq!(tokens.authenticate(&token("bad"), Audience::Checks, other).await, Err(AuthnError::Rejected));
        }
        assert_eq!(api.asked.load(Ordering::SeqCst), 22);
        // Who was good stays good at the flooded address, also when the verdict has to be renewed; others are not touched.
        clock.forward(Duration::from_secs(11));
        for n in 0..100 {
            let _ = tokens.authenticate(&token(&format!("more{n}")), Audience::Checks, HERE).await;
        }
        assert!(tokens.authenticate(&good, Audience::Checks, HERE).await.is_ok());
        assert!(tokens.authenticate(good.as_str(), Audience::Checks, other).await.is_ok());
    }

    #[tokio::test]
    async fn a_verdict_is_asked_for_once_by_many_and_per_audience() {
        let (api, clock, tokens) = world();
        let good = token("good");
        let many = futures::future::join_all((0..50).map(|_| tokens.authenticate(&good, Audience::Checks, HERE))).await;
        assert!(many.iter().all(Result::is_ok));
        assert_eq!(api.asked.load(Ordering::SeqCst), 1);
        assert_eq!(tokens.authenticate(&good, Audience::Admin, HERE).await, Err(AuthnError::Audience("remit-admin")));
        clock.forward(Duration::from_secs(10));
        tokens.authenticate(&good, Audience::Checks, HERE).await.unwrap();
        assert_eq!(api.asked.load(Ordering::SeqCst), 2);
        assert_eq!(*api.seen.lock().unwrap(), ["remit", "remit"]);
    }

    #[tokio::test]
    async fn while_the_api_server_is_away_former_verdicts_count_five_minutes_and_are_marked() {
        let (api, clock, tokens) = world();
        let good = token("good");
        tokens.authenticate(&good, Audience::Checks, HERE).await.unwrap();
        assert_eq!(tokens.authenticate(&token("bad"), Audience::Checks, HERE).await, Err(AuthnError::Rejected));
        api.away.store(true, Ordering::SeqCst);
        clock.forward(Duration::from_secs(60));
        assert!(tokens.authenticate(&good, Audience::Checks, HERE).await.unwrap().stale);
        assert_eq!(tokens.authenticate(&token("bad"), Audience::Checks, HERE).await, Err(AuthnError::Rejected));
        assert_eq!(tokens.authenticate(&token("new"), Audience::Checks, HERE).await, Err(AuthnError::Unavailable));
        clock.forward(Duration::from_secs(240));
        assert_eq!(tokens.authenticate(&good, Audience::Checks, HERE).await, Err(AuthnError::Unavailable));
        api.away.store(false, Ordering::SeqCst);
        assert!(!tokens.authenticate(&good, Audience::Checks, HERE).await.unwrap().stale);
    }

    #[tokio::test]
    async fn a_verdict_never_outlives_its_token() {
        let (_, clock, tokens) = world();
        let short = jwt(&json!({"iss": "https://kubernetes", "aud": "remit", "exp": 1_800_000_005}), "good");
        tokens.authenticate(&short, Audience::Checks, HERE).await.unwrap();
        clock.forward(Duration::from_secs(5));
        assert_eq!(tokens.authenticate(&short, Audience::Checks, HERE).await, Err(AuthnError::Expired));
    }
}
