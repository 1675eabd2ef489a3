//! A control plane with the chart applied and the operator running.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use serde_json::{Value, json};

use super::{ControlPlane, Http, Operator, eventually, eventually_blocking, unique};

/// Namespace of the operator: the platform tenant.
pub const PLATFORM: &str = "remit-system";

/// A control plane with the chart applied and the operator running.
pub struct Cluster {
    // Dropped in this order: the operator first.
    pub operator: Operator,
    pub plane: ControlPlane,
    ca: String,
}

impl Cluster {
    /// A private one, for a test that kills, restarts or reconfigures the operator. Takes about ten seconds.
    pub fn start_own() -> Cluster {
        Cluster::start(ControlPlane::start(), &[])
    }

    /// The same with more flags for `remit operator`.
    pub fn start_own_with(arguments: &[&str]) -> Cluster {
        Cluster::start(ControlPlane::start(), arguments)
    }

    /// Installs the chart and starts the operator.
    pub fn start(plane: ControlPlane, arguments: &[&str]) -> Cluster {
        let folder = plane.attached("operator");
        let kubeconfig = folder.join("kubeconfig");
        let operator = Operator::prepare(folder, kubeconfig.clone(), arguments);
        Self::install_chart(&plane, operator.webhook);

        let token =
            plane.kubectl(&["create", "token", "remit", "-n", PLATFORM, "--duration=24h"]).expect("token of remit");
        std::fs::write(&kubeconfig, token_kubeconfig(&plane, &token)).expect("kubeconfig");
        operator.start();
        Self::started(operator, plane)
    }

    /// With an operator that is ready.
    pub(super) fn started(operator: Operator, plane: ControlPlane) -> Cluster {
        eventually_blocking("the webhook has its caBundle", || {
            let path = "jsonpath={.webhooks[*].clientConfig.caBundle}";
            match plane.kubectl(&["get", "validatingwebhookconfiguration", "remit", "-o", path])? {
                bundle if bundle.is_empty() => Err("empty".into()),
                _ => Ok(()),
            }
        });
        let encoded = plane
            .kubectl(&["get", "secret", "remit-ca", "-n", PLATFORM, "-o", r"jsonpath={.data.tls\.crt}"])
            .expect("Secret remit-ca");
        let ca = String::from_utf8(STANDARD.decode(encoded).expect("base64")).expect("PEM");
        Cluster { operator, plane, ca }
    }

    /// Renders the chart for an operator on this machine and applies it, CRDs and all.
    pub(super) fn install_chart(plane: &ControlPlane, webhook_port: u16) {
        plane.kubectl(&["create", "namespace", PLATFORM]).expect("namespace");
        let url = format!("webhook.url=https://127.0.0.1:{webhook_port}");
        let chart = plane.render_chart(&["--set", "deploy=false", "--set", &url]).expect("helm template");
        plane.kubectl_with(&["apply", "--server-side", "-f", "-"], &chart).expect("chart is accepted");
        plane.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]).expect("CRDs");
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.operator.https)
    }

    /// PEM of the CA that issued the operator's certificate.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// HTTPS client for the operator, for this test's runtime.
    pub fn http(&self) -> Http {
        Http::new(&self.url(), &self.ca)
    }

    /// Client of the administrator, for this test's runtime.
    pub async fn client(&self) -> kube::Client {
        self.plane.client().await
    }

    /// Client of somebody else.
    pub async fn client_as(&self, user: &str, groups: &[&str]) -> kube::Client {
        self.plane.client_as(user, groups).await
    }

    /// A new namespace `PREFIX-xxxxxxxx`.
    pub async fn namespace(&self, prefix: &str) -> String {
        let name = format!("{prefix}-{}", unique());
        let namespace =
            Namespace { metadata: ObjectMeta { name: Some(name.clone()), ..Default::default() }, ..Default::default() };
        let api: Api<Namespace> = Api::all(self.client().await);
        api.create(&PostParams::default(), &namespace).await.expect("namespace");
        name
    }

    /// Deletes a namespace and waits until it is gone.
    pub fn delete_namespace(&self, name: &str) {
        self.plane.kubectl(&["delete", "namespace", name, "--timeout=90s"]).expect("namespace goes");
    }

    /// What comes after the first package comes for everybody at once, whatever it changes: for tests of something else.
    pub fn rolls_out_at_once(&self, tenant: &str) {
        let budgets = json!({"criticalDrift": 1_000_000, "highDrift": 1_000_000, "denialGrowthPercent": 100});
        let object = json!({
            "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
            "spec": {
                "stages": [{"percent": 100, "minSeconds": 0, "minDecisions": 0}],
                "onInconclusive": "Proceed",
                "budgets": budgets,
            },
        });
        self.apply(tenant, &object.to_string()).expect("TenantRollout");
    }

    /// kubectl as administrator; Err is its standard error.
    pub fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        self.plane.kubectl(args)
    }

    /// `kubectl apply --server-side` of YAML into a namespace, as administrator.
    pub fn apply(&self, namespace: &str, yaml: &str) -> Result<String, String> {
        self.apply_with(namespace, yaml, &["--server-side"])
    }

    /// `kubectl apply` with other arguments (`--dry-run=server`, none for client-side). Ok is what it did, then the warnings it got.
    pub fn apply_with(&self, namespace: &str, yaml: &str, args: &[&str]) -> Result<String, String> {
        let args = [&["apply", "-n", namespace, "-f", "-"], args].concat();
        self.plane.kubectl_heard(&args, yaml).map(|(out, warnings)| format!("{out}\n{warnings}"))
    }

    /// `kubectl apply --server-side` in the role of a user of some groups.
    pub fn apply_as(&self, user: &str, groups: &[&str], namespace: &str, yaml: &str) -> Result<String, String> {
        let user = format!("--as={user}");
        let groups: Vec<String> = groups.iter().map(|g| format!("--as-group={g}")).collect();
        let mut args = vec!["--server-side", &user];
        args.extend(groups.iter().map(String::as_str));
        self.apply_with(namespace, yaml, &args)
    }

    /// `kubectl wait --for=condition=NAME`, also for an object that is not there yet.
    pub fn wait_for(&self, namespace: &str, object: &str, condition: &str) {
        if let Err(why) = self.kubectl(&["wait", "-n", namespace, object, "--for=create", "--timeout=90s"]) {
            panic!("{object} in {namespace}: {why}");
        }
        let condition = format!("--for=condition={condition}");
        if let Err(why) = self.kubectl(&["wait", "-n", namespace, object, &condition, "--timeout=90s"]) {
            let found = self.kubectl(&["get", "-n", namespace, object, "-o", "yaml"]).unwrap_or_else(|e| e);
            panic!("{object} in {namespace}: {why}\n{found}");
        }
    }

    /// A token of a ServiceAccount for an audience, valid one hour. The account is created where it is missing.
    pub async fn token_for(&self, namespace: &str, account: &str, audience: &str) -> String {
        let api: Api<ServiceAccount> = Api::namespaced(self.client().await, namespace);
        let object = ServiceAccount {
            metadata: ObjectMeta { name: Some(account.into()), ..Default::default() },
            ..Default::default()
        };
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(e) => panic!("ServiceAccount {account}: {e}"),
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.into()]),
                expiration_seconds: Some(3600),
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = api.create_token_request(account, &PostParams::default(), &request).await.expect("TokenRequest");
        answer.status.and_then(|s| s.token).expect("token")
    }

    /// Gives a ServiceAccount a ClusterRole in a namespace (`remit-gateway`, `remit-auditor`, …).
    pub fn bind(&self, namespace: &str, role: &str, account: &str) {
        let name = format!("{role}-{}", account.replace(':', "-"));
        let account = if account.contains(':') { account.to_owned() } else { format!("{namespace}:{account}") };
        let (role, account) = (format!("--clusterrole={role}"), format!("--serviceaccount={account}"));
        self.kubectl(&["create", "rolebinding", &name, "-n", namespace, &role, &account]).expect("RoleBinding");
    }

    /// One AuthZEN evaluation: status and JSON body.
    pub async fn check(&self, token: &str, tenant: &str, body: &Value) -> (u16, Value) {
        let answer = self.http().check(token, tenant, body).await.expect("an answer");
        (answer.status, answer.json())
    }

    /// May this agent call this tool? Body of the answer; asserts that it was answered with 200.
    pub async fn call(&self, token: &str, tenant: &str, agent: &str, tool: &str, arguments: Value) -> Value {
        let (status, body) = self.check(token, tenant, &super::http::call(agent, tool, arguments)).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Polls one evaluation until it is answered with this code (`context.code`), and gives that answer.
    pub async fn answered(&self, token: &str, tenant: &str, body: &Value, code: &str) -> Value {
        let http = self.http();
        eventually(&format!("the answer is {code}"), || async {
            let answer = http.check(token, tenant, body).await?;
            let json = answer.json();
            if json["context"]["code"] == code { Ok(json) } else { Err(format!("{} {}", answer.status, answer.text)) }
        })
        .await
    }
}

/// Kubeconfig of a bearer token.
pub fn token_kubeconfig(plane: &ControlPlane, token: &str) -> String {
    let admin: Value =
        serde_json::from_slice(&std::fs::read(plane.kubeconfig()).expect("kubeconfig")).expect("kubeconfig");
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "remit", "clusters": admin["clusters"],
        "users": [{"name": "remit", "user": {"token": token}}],
        "contexts": [{"name": "remit", "context": {"cluster": "remit", "user": "remit"}}],
    })
    .to_string()
}
