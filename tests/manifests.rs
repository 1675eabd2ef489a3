//! examples/sidecar and examples/gateway: taken by a real API server as they are written, and their proxies' own command lines enforce
//! over HTTP.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::HeaderMap;
use axum::http::header::HOST;
use remit::enforce::http::{Guard, ListenArgs};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::mcp::{HttpClient, denial};
use crate::support::peers::{HttpProxy, HttpServer};
use crate::support::{Cluster, cluster, file};

/// The objects of a folder, as `kubectl apply -k` would send them.
fn rendered(cluster: &Cluster, folder: &str) -> (String, Vec<Value>) {
    let yaml = cluster.kubectl(&["kustomize", &file(folder).display().to_string()]).unwrap();
    let objects = yaml.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect();
    (yaml, objects)
}

fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn list<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

fn pod(deployment: &Value) -> &Value {
    &deployment["spec"]["template"]["spec"]
}

fn container<'a>(deployment: &'a Value, name: &str) -> &'a Value {
    let pod = pod(deployment);
    let mut all = list(pod, "/initContainers").chain(list(pod, "/containers"));
    all.find(|c| c["name"] == name).unwrap_or_else(|| panic!("no container {name}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// A namespace that takes only pods of the strictest profile, with the folder applied and its package in force.
async fn applied(cluster: &Cluster, folder: &str, package: &str) -> (String, Vec<Value>) {
    let namespace = cluster.namespace("manifests").await;
    let strict = ["enforce", "warn"].map(|mode| format!("pod-security.kubernetes.io/{mode}=restricted"));
    cluster.kubectl(&["label", "namespace", &namespace, &strict[0], &strict[1]]).unwrap();
    let (yaml, objects) = rendered(cluster, folder);
    for _ in 0..2 {
        let said = cluster.apply(&namespace, &yaml).unwrap();
        assert!(!said.to_lowercase().contains("warning"), "{said}");
    }
    cluster.wait_for(&namespace, &format!("policypackage/{package}"), "Ready");
    cluster.wait_for(&namespace, "tenantrollout/default", "Ready");
    (namespace, objects)
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_taken_as_they_are_written_and_their_pods_too() {
    let cluster = cluster();
    for (folder, package) in [("examples/sidecar", "git-0.1.0"), ("examples/gateway", "tickets-0.1.0")] {
        let (namespace, objects) = applied(cluster, folder, package).await;
        let deployments: Vec<&Value> = objects.iter().filter(|o| o["kind"] == "Deployment").collect();
        assert!(!deployments.is_empty());
        for deployment in deployments {
            let name = text(&deployment["metadata"]["name"]);
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod(deployment)});
            let said = cluster.apply_with(&namespace, &pod.to_string(), &["--server-side", "--dry-run=server"]);
            assert!(said.is_ok(), "{folder}: a pod of {name}: {said:?}");
        }
        for agent in objects.iter().filter(|o| o["kind"] == "Agent") {
            cluster.wait_for(&namespace, &format!("agent/{}", text(&agent["metadata"]["name"])), "Ready");
        }
        cluster.delete_namespace(&namespace);
    }
}

/// What closes the way past the proxy, and must not be edited away.
#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_way_past_the_proxy_in_the_manifests() {
    let cluster = cluster();
    for (folder, behind, proxies) in [
        ("examples/sidecar", "git-mcp", &[("remit", "git-mcp", "coder")][..]),
        (
            "examples/gateway",
            "tickets-gateway",
            &[("for-planner", "tickets-for-planner", "planner"), ("for-triage", "tickets-for-triage", "triage")][..],
        ),
    ] {
        let (_, objects) = rendered(cluster, folder);
        let deployment = object(&objects, "Deployment", behind);

        // The server is in a pod without agents, and listens on that pod's loopback.
        assert!(list(container(deployment, "server"), "/args").any(|a| a == "--host=127.0.0.1"), "{folder}");
        let upstream = "--upstream=http://127.0.0.1:8080/mcp";
        // The token is only where the proxies are; no pod has one for the API server.
        for deployment in objects.iter().filter(|o| o["kind"] == "Deployment") {
            let pod = pod(deployment);
            assert_eq!(pod["automountServiceAccountToken"], false, "{folder}");
            assert!(pod.get("shareProcessNamespace").is_none() && pod.get("hostNetwork").is_none(), "{folder}");
            for container in list(pod, "/initContainers").chain(list(pod, "/containers")) {
                let is_proxy = proxies.iter().any(|(name, ..)| container["name"] == *name);
                assert_eq!(list(container, "/volumeMounts").any(|m| m["name"] == "remit"), is_proxy, "{container}");
                assert_eq!(list(container, "/args").any(|a| a == upstream), is_proxy, "{container}");
            }
        }
        // Each proxy has a port that only its agent's pods reach, and the agent's address leads there.
        let policy = object(&objects, "NetworkPolicy", behind);
        assert_eq!(policy["spec"]["podSelector"], deployment["spec"]["selector"]);
        assert_eq!(list(policy, "/spec/ingress").count(), proxies.len(), "{folder}");
        for (name, service, agent) in proxies {
            let container = container(deployment, name);
            let port = &container["ports"][0];
            let listen = format!("--listen=0.0.0.0:{}", port["containerPort"]);
            assert!(list(container, "/args").any(|a| *a == listen), "{container}");
            // It can't tell who calls, and listens only because it is told to. It answers under the Service's name.
            let address: SocketAddr = listen.trim_start_matches("--listen=").parse().unwrap();
            assert!(Guard::new(address, &ListenArgs::default()).is_err());
            // Once: a flag that is said twice is a usage error.
            let trust_network = list(container, "/args").filter(|a| **a == "--trust-network").count() == 1;
            let guard = Guard::new(address, &ListenArgs { trust_network, ..ListenArgs::default() }).unwrap();
            assert_eq!(guard.admit(&HeaderMap::from_iter([(HOST, service.parse().unwrap())])).err(), None);
            // Nobody is sent to it before it listens.
            let probe = container.get("startupProbe").or(container.get("readinessProbe")).unwrap();
            assert_eq!(probe["tcpSocket"]["port"], port["name"], "{container}");
            let target = &object(&objects, "Service", service)["spec"]["ports"][0]["targetPort"];
            assert!(target == &port["name"] || target == &port["containerPort"], "{service} leads to {target}");
            let open = list(policy, "/spec/ingress").find(|r| r["ports"][0]["port"] == port["containerPort"]);
            let from = json!([{"podSelector": {"matchLabels": {"app": agent}}}]);
            assert_eq!(open.unwrap_or_else(|| panic!("{listen}"))["from"], from);
        }
    }
}

/// A pod of a manifest as processes of this machine: its proxies with their arguments and environment, a token as kubelet would project it
/// and the published CA, before one MCP server. Only the addresses differ.
struct Local<'a> {
    cluster: &'a Cluster,
    namespace: String,
    deployment: Value,
    dir: TempDir,
    server: HttpServer,
}

impl<'a> Local<'a> {
    async fn new(cluster: &'a Cluster, namespace: &str, deployment: &Value, tools: &[&str]) -> Local<'a> {
        let dir = TempDir::new().unwrap();
        let listed = tools.iter().map(|name| json!({"name": name, "inputSchema": {"type": "object"}}));
        std::fs::write(dir.path().join("tools.json"), listed.collect::<Value>().to_string()).unwrap();
        let server = HttpServer::fake(&dir.path().join("tools.json"), &dir.path().join("received")).await;
        let local = Self { cluster, namespace: namespace.into(), deployment: deployment.clone(), dir, server };
        let sources = || list(pod(deployment), "/volumes/0/projected/sources");
        let projected = sources().find_map(|s| s.get("serviceAccountToken")).unwrap();
        assert!(
            projected["expirationSeconds"].as_u64().unwrap() <= 3600,
            "short-lived, so that a stolen one is worth little"
        );
        local.token(text(&pod(deployment)["serviceAccountName"]), text(&projected["audience"])).await;
        let published = sources().find_map(|s| s.get("configMap")).unwrap();
        let path = format!("jsonpath={{.data.{}}}", text(&published["items"][0]["key"]).replace('.', "\\."));
        let ca =
            cluster.kubectl(&["get", "configmap", text(&published["name"]), "-n", namespace, "-o", &path]).unwrap();
        std::fs::write(local.path("ca.crt"), ca).unwrap();
        local
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a ServiceAccount's token where the proxy reads it.
    async fn token(&self, account: &str, audience: &str) {
        let token = self.cluster.token_for(&self.namespace, account, audience).await;
        std::fs::write(self.path("token.new"), token).unwrap();
        std::fs::rename(self.path("token.new"), self.path("token")).unwrap();
    }

    /// The file of this machine for one of the container's.
    fn here(&self, container: &Value, path: &str) -> PathBuf {
        let mount = list(container, "/volumeMounts").next().unwrap();
        let name = path.strip_prefix(&format!("{}/", text(&mount["mountPath"]))).unwrap();
        let items = list(pod(&self.deployment), "/volumes/0/projected/sources")
            .flat_map(|s| [&s["serviceAccountToken"]["path"], &s["configMap"]["items"][0]["path"]]);
        assert!(items.into_iter().any(|p| p == name), "{path} is not projected");
        self.path(name)
    }

    async fn start(&self, name: &str) -> (HttpProxy, HttpClient) {
        let container = container(&self.deployment, name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("REMIT_")) {
            command.env_remove(key);
        }
        for variable in list(container, "/env") {
            let (name, value) = (text(&variable["name"]), text(&variable["value"]));
            match name {
                "REMIT_URL" => command.env(name, self.cluster.url()),
                "REMIT_TOKEN_FILE" | "REMIT_CA_FILE" => command.env(name, self.here(container, value)),
                _ => command.env(name, value),
            };
        }
        let mut args = list(container, "/args").map(text);
        assert_eq!(args.next(), Some("mcp-proxy"));
        // The addresses of the pod are not this machine's.
        let mut moved = [
            ("--listen=0.0.0.0:", "--listen=127.0.0.1:0".to_owned(), 0),
            ("--upstream=http://127.0.0.1:8080/mcp", format!("--upstream={}", self.server.url), 0),
        ];
        command.arg("mcp-proxy").args(args.map(|argument| {
            match moved.iter_mut().find(|(here, ..)| argument.starts_with(*here)) {
                Some((_, there, times)) => {
                    *times += 1;
                    there.clone()
                }
                None => argument.to_owned(),
            }
        }));
        assert_eq!(moved.map(|(.., times)| times), [1, 1], "{container}");
        let proxy = HttpProxy::start(command).await;
        let agent = HttpClient::connect(&proxy.url).await;
        (proxy, agent)
    }

    /// What the server has got of calls. The proxy's own credentials are not for it.
    fn calls(&self) -> usize {
        let received = std::fs::read_to_string(self.path("received")).unwrap();
        let requests = received.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let is_call = |request: &Value| {
            assert!(request["headers"].get("authorization").is_none(), "{request}");
            serde_json::from_str::<Value>(text(&request["body"])).is_ok_and(|message| message["method"] == "tools/call")
        };
        requests.filter(is_call).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_is_its_agent_by_the_token_that_only_it_has() {
    let cluster = cluster();
    let (namespace, objects) = applied(cluster, "examples/sidecar", "git-0.1.0").await;
    let deployment = object(&objects, "Deployment", "git-mcp");
    let sidecar = Local::new(cluster, &namespace, deployment, &["log", "push", "reset"]).await;
    let (proxy, agent) = sidecar.start("remit").await;
    // The server has a tool more than the package.
    let listed = agent.request(0, "tools/list", json!({})).await;
    let names: Vec<&str> = list(&listed, "/result/tools").map(|t| text(&t["name"])).collect();
    assert_eq!(names, ["log", "push"], "{listed}");
    let pushed = agent.call(1, "push", json!({"branch": "main"})).await;
    assert_eq!(pushed["result"]["isError"], false, "{pushed}");
    let forced = agent.call(2, "push", json!({"branch": "main", "force": true})).await;
    assert_eq!(denial(&forced), "denied (no-force): Open a pull request instead.");
    assert_eq!(sidecar.calls(), 1);

    // The same agent's name with another ServiceAccount's token: the agent's own pod has at most this one.
    sidecar.token("default", "remit").await;
    let stranger = agent.call(3, "push", json!({"branch": "main"})).await;
    assert!(denial(&stranger).contains("not_allowed"), "{stranger}");
    // And with a token that was meant for somebody else.
    sidecar.token("coder", "vault").await;
    let elsewhere = agent.call(4, "push", json!({"branch": "main"})).await;
    assert!(denial(&elsewhere).contains("token_audience"), "{elsewhere}");
    assert_eq!(sidecar.calls(), 1);
    // A token that rotates goes on.
    sidecar.token("coder", "remit").await;
    let again = agent.call(5, "log", json!({})).await;
    assert_eq!(again["result"]["isError"], false, "{again}");
    drop(proxy);
    cluster.delete_namespace(&namespace);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_asks_for_each_agent_by_its_right_to_check() {
    let cluster = cluster();
    let (namespace, objects) = applied(cluster, "examples/gateway", "tickets-0.1.0").await;
    let deployment = object(&objects, "Deployment", "tickets-gateway");
    let gateway = Local::new(cluster, &namespace, deployment, &["list", "close"]).await;
    let (planner_proxy, planner) = gateway.start("for-planner").await;
    let (triage_proxy, triage) = gateway.start("for-triage").await;
    for (agent, closes) in [(&planner, true), (&triage, false)] {
        let listed = agent.call(1, "list", json!({})).await;
        assert_eq!(listed["result"]["isError"], false, "{listed}");
        let closed = agent.call(2, "close", json!({"ticket": 7})).await;
        if closes {
            assert_eq!(closed["result"]["isError"], false, "{closed}");
        } else {
            let reason = "denied (planner-only): Only the planner changes tickets. Leave it a comment.";
            assert_eq!(denial(&closed), reason);
        }
    }
    assert_eq!(gateway.calls(), 3);
    // Without the Role there is no gateway.
    gateway.token("somebody", "remit").await;
    let refused = planner.call(3, "close", json!({"ticket": 7})).await;
    assert!(denial(&refused).contains("not_allowed"), "{refused}");
    assert_eq!(gateway.calls(), 3);
    drop((planner_proxy, triage_proxy));
    cluster.delete_namespace(&namespace);
}

/// One definition, one digest: the packages in sdk/ pin what `remit tools import` pins.
#[test]
fn the_packages_digest_a_definition_as_remit_does() {
    let tool = json!({
        "name": "add", "description": "Adds.", "icons": [], "_meta": {"x": 1},
        "inputSchema": {"type": "object", "properties": {"b": {"minimum": 1.0}, "a": {}}},
    });
    let digest = remit::enforce::mcp::definition_digest(tool.as_object().unwrap()).unwrap();
    for test in ["sdk/python/tests/test_json.py", "sdk/typescript/tests/mcp.test.ts"] {
        assert!(std::fs::read_to_string(file(test)).unwrap().contains(&digest), "{test} does not expect {digest}");
    }
}
