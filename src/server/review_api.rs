//! TokenReviews and SubjectAccessReviews of the real API server. The only place of the server that talks to it.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

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
            let api: Api<TokenReview> = Api::all(self.client.clone());
            let asked = limited(async { api.create(&PostParams::default(), &review).await }).await?;
            asked.status.ok_or_else(|| NoVerdict::Refused("the TokenReview came back without status".into()))
        })
    }
}

impl AccessReviewer for KubeReviews {
    fn review(&self, spec: SubjectAccessReviewSpec) -> BoxFuture<'_, Result<bool, NoVerdict>> {
        let review = SubjectAccessReview { metadata: ObjectMeta::default(), spec, status: None };
        Box::pin(async move {
            let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
            let asked = limited(async { api.create(&PostParams::default(), &review).await }).await?;
            let status = asked
                .status
                .ok_or_else(|| NoVerdict::Refused("the SubjectAccessReview came back without status".into()))?;
            // `denied` wins over `allowed`, as in the API server.
            Ok(status.allowed && status.denied != Some(true))
        })
    }
}

/// Any failure to create a review is the absence of a verdict, never a verdict: a bad token is a status, not an error.
async fn limited<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, NoVerdict> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code < 500 && status.code != 429 => {
            Err(NoVerdict::Refused(format!("{} {}", status.code, status.message)))
        }
        Ok(Err(error)) => Err(NoVerdict::Away(error.to_string())),
        Err(_) => Err(NoVerdict::Away(format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}
