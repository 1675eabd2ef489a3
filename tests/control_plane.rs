//! The control plane under all other tests is a real one.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, PostParams};

use crate::support::{ControlPlane, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn control_plane_is_real_and_ends() {
    let plane = ControlPlane::start();
    let client = plane.client().await;

    // Stamped: clients refuse v0.0.0-master.
    let version = client.apiserver_version().await.unwrap();
    assert!(!version.git_version.starts_with("v0.0.0"), "{}", version.git_version);
    if !plane.version().is_empty() {
        assert_eq!(version.git_version, plane.version());
    }

    // Namespaces really go, with what is in them; owned objects go with their owner.
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let named = |name: &str| ObjectMeta { name: Some(name.into()), ..Default::default() };
    let namespace = Namespace { metadata: named("short-lived"), ..Default::default() };
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "short-lived");
    let owner = maps
        .create(&PostParams::default(), &ConfigMap { metadata: named("owner"), ..Default::default() })
        .await
        .unwrap();
    let reference = OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: "owner".into(),
        uid: owner.metadata.uid.unwrap(),
        ..Default::default()
    };
    let owned = ObjectMeta { owner_references: Some(vec![reference]), ..named("owned") };
    maps.create(&PostParams::default(), &ConfigMap { metadata: owned, ..Default::default() }).await.unwrap();
    maps.delete("owner", &DeleteParams::default()).await.unwrap();
    eventually("the owned ConfigMap is collected", || async {
        match maps.get_opt("owned").await.map_err(|e| e.to_string())? {
            None => Ok(()),
            Some(_) => Err("still there".into()),
        }
    })
    .await;
    namespaces.delete("short-lived", &DeleteParams::default()).await.unwrap();
    eventually("the namespace is gone", || async {
        match namespaces.get_opt("short-lived").await.map_err(|e| e.to_string())? {
            None => Ok(()),
            Some(n) => Err(format!("{:?}", n.status)),
        }
    })
    .await;

    // Tokens are for one audience.
    let token = plane.kubectl(&["create", "token", "default", "--audience=remit"]).unwrap();
    let reviews: Api<TokenReview> = Api::all(client);
    for (audience, good) in [("remit", true), ("remit-admin", false)] {
        let spec = TokenReviewSpec { token: token.clone(), audiences: Some(vec![audience.into()]) };
        let review = TokenReview { spec, ..Default::default() };
        let status = reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap();
        assert_eq!(status.authenticated.unwrap_or(false), good, "{audience}: {status:?}");
    }

    // Nothing is left when it ends.
    let pids = plane.pids();
    assert_eq!(pids.len(), 3);
    let logs = plane.logs();
    drop(plane);
    tokio::time::sleep(Duration::from_millis(100)).await;
    for pid in pids {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "process {pid} still runs");
    }
    assert!(!logs.exists());
}
