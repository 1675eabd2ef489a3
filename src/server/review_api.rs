//! TokenReviews and SubjectAccessReviews of the real API server. The only place of the server that talks to it.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::authn::{BoxFuture, TokenReviewer};
use super::authz::AccessReviewer;
use super::reviews::NoVerdict;

/// How long a review may take: kube clients have no read timeout of their own.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Reviews over a kube client.
#[derive(Clone)]
pub struct KubeReviews {
    client: Client,
}

impl KubeReviews {
    /// Over this client, whose identity must be allowed to create both kinds of review (ClusterRole `system:auth-delegator`
    /// has these two rights; the chart gives just them).
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// What the API server answers. A failure to create a review is the absence of a verdict, never a verdict: a bad token is a
    /// status, not an error.
    ///
    /// An API server that starts serves before it has read its RBAC objects, and says 403 to everyone. So a refusal is the API
    /// server's answer only when it says that it is ready; since it may have become so in between, it is asked once more then.
    async fn answer<K>(&self, review: &K) -> Result<K, NoVerdict>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    {
        let (api, how): (Api<K>, _) = (Api::all(self.client.clone()), PostParams::default());
        let asked = async {
            match told(api.create(&how, review).await) {
                Err(NoVerdict::Refused(why)) if !self.ready().await => {
                    Err(NoVerdict::Away(format!("it is not ready, and said {why}")))
                }
                Err(NoVerdict::Refused(_)) => told(api.create(&how, review).await),
                other => other,
            }
        };
        let late = || NoVerdict::Away(format!("no answer within {} s", TIMEOUT.as_secs()));
        tokio::time::timeout(TIMEOUT, asked).await.unwrap_or_else(|_| Err(late()))
    }

    /// Whether the API server says of itself that it is ready.
    async fn ready(&self) -> bool {
        let Ok(request) = axum::http::Request::get("/readyz").body(Vec::new()) else { return false };
        self.client.request_text(request).await.is_ok()
    }

    /// The issuer of this cluster's ServiceAccount tokens, from its discovery document; None where it can't be read.
    pub async fn issuer(&self) -> Option<String> {
        let request = axum::http::Request::get("/.well-known/openid-configuration").body(Vec::new()).ok()?;
        let asked = tokio::time::timeout(TIMEOUT, self.client.request::<serde_json::Value>(request)).await;
        match asked {
            Ok(Ok(document)) => document.get("issuer")?.as_str().map(str::to_owned),
            Ok(Err(error)) => {
                tracing::info!(%error, "the cluster's issuer is not known: tokens of other issuers will reach the API server");
                None
            }
            Err(_) => None,
        }
    }
}

impl TokenReviewer for KubeReviews {
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, NoVerdict>> {
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![audience.to_owned()]) },
            status: None,
        };
        Box::pin(async move {
            let asked = self.answer(&review).await?;
            asked.status.ok_or_else(|| NoVerdict::Refused("the TokenReview came back without status".into()))
        })
    }
}

impl AccessReviewer for KubeReviews {
    fn review(&self, spec: SubjectAccessReviewSpec) -> BoxFuture<'_, Result<bool, NoVerdict>> {
        let review = SubjectAccessReview { metadata: ObjectMeta::default(), spec, status: None };
        Box::pin(async move {
            let asked = self.answer(&review).await?;
            let status = asked
                .status
                .ok_or_else(|| NoVerdict::Refused("the SubjectAccessReview came back without status".into()))?;
            // `denied` wins over `allowed`, as in the API server.
            Ok(status.allowed && status.denied != Some(true))
        })
    }
}

fn told<T>(answer: kube::Result<T>) -> Result<T, NoVerdict> {
    answer.map_err(|error| match error {
        kube::Error::Api(status) if status.code < 500 && status.code != 429 => {
            NoVerdict::Refused(format!("{} {}", status.code, status.message))
        }
        error => NoVerdict::Away(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    const GOOD: &str = "good";
    const FORBIDDEN: &str = "forbidden";
    const READY: &str = "ready";
    const STARTING: &str = "starting";

    /// An API server that gives these answers, one after the other.
    fn api_server(answers: &[&'static str]) -> KubeReviews {
        let answers = Arc::new(Mutex::new(answers.iter().copied().collect::<VecDeque<_>>()));
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = answers.lock().unwrap().pop_front().expect("not asked more often");
            let readyz = request.uri().path() == "/readyz";
            assert_eq!(readyz, answer == READY || answer == STARTING, "{answer} to {}", request.uri());
            let (code, body): (u16, Value) = match answer {
                GOOD => (201, json!({"spec": {"token": "t"}, "status": {"authenticated": true}})),
                FORBIDDEN => (
                    403,
                    json!({"kind": "Status", "status": "Failure", "code": 403, "message": "no right", "reason": "Forbidden"}),
                ),
                READY => (200, json!("ok")),
                _ => (500, json!("[-]poststarthook/rbac/bootstrap-roles failed")),
            };
            let response = Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap();
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        });
        KubeReviews::new(Client::new(service, "default"))
    }

    async fn review(answers: &[&'static str]) -> Result<Option<bool>, NoVerdict> {
        let reviews = api_server(answers);
        TokenReviewer::review(&reviews, "t", "remit").await.map(|status| status.authenticated)
    }

    #[tokio::test]
    async fn a_refusal_counts_only_from_an_api_server_that_is_ready() {
        assert_eq!(review(&[GOOD]).await, Ok(Some(true)));
        assert!(matches!(review(&[FORBIDDEN, STARTING]).await, Err(NoVerdict::Away(_))));
        assert!(matches!(review(&[FORBIDDEN, READY, FORBIDDEN]).await, Err(NoVerdict::Refused(_))));
        assert_eq!(review(&[FORBIDDEN, READY, GOOD]).await, Ok(Some(true)), "ready in between");
    }
}
