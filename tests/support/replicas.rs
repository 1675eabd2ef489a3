//! Several `remit operator` processes on one control plane, as a Deployment would run them: each with a proxy of its own in front of
//! the API server, and one in front of their webhooks, as a Service would be.

use std::net::SocketAddr;
use std::ops::Deref;

use super::cluster::token_kubeconfig;
use super::{Cluster, ControlPlane, Http, Operator, PLATFORM, Proxy, eventually_blocking};

/// The replicas. The first is also the cluster's operator.
pub struct Replicas {
    // Dropped in this order: the operators before the control plane.
    others: Vec<Operator>,
    cluster: Cluster,
    /// Between each replica and the API server.
    pub to_api: Vec<Proxy>,
    webhook: Proxy,
}

impl Deref for Replicas {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Replicas {
    /// Starts so many, and waits until all are ready and one of them leads.
    pub fn start(n: usize, arguments: &[&str]) -> Replicas {
        Self::start_with(ControlPlane::start(), n, arguments, &[])
    }

    /// The same on this control plane, each with this environment.
    pub fn start_with(plane: ControlPlane, n: usize, arguments: &[&str], environment: &[(&str, &str)]) -> Replicas {
        let api: SocketAddr = plane.server().trim_start_matches("https://").parse().expect("address of the API server");
        let mut to_api = Vec::new();
        let operators: Vec<Operator> = (0..n)
            .map(|i| {
                let folder = plane.attached(&format!("replica-{i}"));
                let proxy = Proxy::start("127.0.0.1:0", &[api]);
                let kubeconfig = folder.join("kubeconfig");
                let operator = Operator::prepare(folder, kubeconfig, arguments);
                let name = format!("replica-{i}");
                let own = [environment, &[("POD_NAME", name.as_str())]].concat();
                operator.set_environment(&own);
                to_api.push(proxy);
                operator
            })
            .collect();
        let webhooks: Vec<SocketAddr> = operators.iter().map(|o| ([127, 0, 0, 1], o.webhook).into()).collect();
        let webhook = Proxy::start("127.0.0.1:0", &webhooks);
        Cluster::install_chart(&plane, webhook.address().port());
        let token = plane.kubectl(&["create", "token", "remit", "-n", PLATFORM, "--duration=24h"]).expect("token");
        for (operator, proxy) in operators.iter().zip(&to_api) {
            let through =
                token_kubeconfig(&plane, &token).replace(plane.server(), &format!("https://{}", proxy.address()));
            std::fs::write(operator.kubeconfig(), through).expect("kubeconfig");
            operator.spawn();
        }
        operators.iter().for_each(Operator::wait_ready);
        let mut operators = operators.into_iter();
        let first = operators.next().expect("at least one replica");
        let cluster = Cluster::started(first, plane);
        let replicas = Replicas { others: operators.collect(), cluster, to_api, webhook };
        replicas.leader();
        replicas
    }

    /// One more start of a replica, armed: it ends (`REMIT_FAULT`) or pauses (`REMIT_PAUSE`) at a point of src/fault.rs. An empty name
    /// disarms it.
    pub fn arm(&self, i: usize, variable: &str, point: &str) {
        let name = format!("replica-{i}");
        self.replica(i).set_environment(&[("POD_NAME", &name), (variable, point)]);
    }

    /// Who answers webhooks from now on: as a Service does that knows which of its pods do not answer.
    pub fn webhooks_of(&self, replicas: &[usize]) {
        let of = |i: &usize| ([127, 0, 0, 1], self.replica(*i).webhook).into();
        self.webhook.retarget(&replicas.iter().map(of).collect::<Vec<SocketAddr>>());
        self.webhook.break_connections();
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.others.len() + 1
    }

    /// One of them.
    pub fn replica(&self, i: usize) -> &Operator {
        if i == 0 { &self.cluster.operator } else { &self.others[i - 1] }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Operator> {
        (0..self.len()).map(|i| self.replica(i))
    }

    /// HTTPS client of one.
    pub fn http_of(&self, i: usize) -> Http {
        Http::new(&format!("https://127.0.0.1:{}", self.replica(i).https), self.ca())
    }

    /// Who leads: waits until one does, and says that it does.
    pub fn leader(&self) -> usize {
        eventually_blocking("one replica leads", || {
            let leaders: Vec<usize> = (0..self.len()).filter(|i| self.replica(*i).leads()).collect();
            match leaders[..] {
                [one] => Ok(one),
                _ => Err(format!("{leaders:?} of {} lead", self.len())),
            }
        })
    }

    /// Waits until another than this one leads.
    pub fn leader_but(&self, not: usize) -> usize {
        eventually_blocking("another replica leads", || {
            let one = (0..self.len()).find(|i| *i != not && self.replica(*i).leads());
            one.ok_or_else(|| format!("none but {not}; lease: {:?}", self.lease()))
        })
    }

    /// Who holds the lease, by the object.
    pub fn lease(&self) -> Result<String, String> {
        self.kubectl(&["get", "lease", "remit", "-n", PLATFORM, "-o", "jsonpath={.spec.holderIdentity}"])
    }
}
