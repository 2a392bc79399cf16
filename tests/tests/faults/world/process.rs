//! The operator's processes: they begin, die and come back, alone or beside another.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_crds::ComputeProvider;
use petaflop_fake_provider::{FakeProvider, Manners};
use petaflop_operator::cluster::leader::LEASE;
use petaflop_operator::cluster::operate::{Parts, Running, start};
use petaflop_operator::cluster::providers::MakeProvider;
use petaflop_operator::cluster::settings::{Settings, StoreAt};
use petaflop_operator::ledger::Ledger;
use petaflop_providers::{Provider, ProviderError};

use super::World;
use crate::calls::{Life, Link};
use crate::layers::{Kept, Sold, client};

/// Puts a provider behind another.
type TwistProvider = Arc<dyn Fn(Arc<dyn Provider>) -> Arc<dyn Provider> + Send + Sync>;

/// What an operator is given in place of what it would have: the mutations of the protocol.
#[derive(Clone, Default)]
pub(crate) struct Twist {
    /// Between the operator and its client of the API server.
    pub(crate) client: Option<Arc<dyn Fn(Client) -> Client + Send + Sync>>,
    /// Between the operator and its provider.
    pub(crate) provider: Option<TwistProvider>,
}

/// A process.
pub(super) struct Process {
    pub(super) running: Running,
    pub(super) life: Life,
    /// Its own clock, and when by the world's it began; `None`: the world's.
    pub(super) own: Option<(Clock, Duration)>,
}

impl Process {
    pub(super) fn goes(&self) -> bool {
        self.life.link() != Link::Stopped
    }
}

impl World<'_> {
    /// An operator as a new process would start it.
    async fn start(&self, life: &Life, clock: Clock, leader_elect: bool) -> Result<Running> {
        let lane = self.lane;
        let mut client = client(&lane.restricted, life);
        if let Some(twist) = &self.twist.client {
            client = twist(client);
        }
        let objects = Arc::new(Kept { inner: self.store.clone(), life: life.clone() });
        let settings = Settings {
            namespace: lane.namespace.name().to_owned(),
            replica: "test".into(),
            watch_namespaces: vec![lane.jobs_in.clone()],
            provider_labels: Some(format!("test={}", lane.namespace.name())),
            store: StoreAt {
                uri: if self.serves { lane.artifacts() } else { "/nowhere".into() },
                ..StoreAt::default()
            },
            ledger: StoreAt { uri: String::new(), ..StoreAt::default() },
            agent_image: "agent".into(),
            agent_download: None,
            agent_arm_download: None,
            agent_calls: None,
            runtime_image: "runtime".into(),
            runtime: "runtime".into(),
            lease: petaflop_operator::agents::LEASE,
            http_address: ([127, 0, 0, 1], 0).into(),
            public_metrics: true,
            gateway_image: "petaflop".into(),
            service_account: "petaflop".into(),
            secret_reader: "petaflop-secret-reader".into(),
            record_worlds: None,
            leader_elect,
        };
        let make = Make {
            name: lane.provider.clone(),
            address: self.cloud.address(),
            manners: self.manners,
            clock: self.clock.clone(),
            life: life.clone(),
            twist: self.twist.clone(),
        };
        let parts = Parts {
            client,
            clock,
            ledger: Ledger::over(objects, "the test's ledger"),
            make: Arc::new(make),
        };
        Ok(start(settings, parts).await?)
    }

    /// Starts a process, and another where that one dies at its start.
    pub(crate) async fn live(&mut self) -> Result<()> {
        self.processes.clear();
        loop {
            let life = self.calls.begin();
            let started = tokio::select! {
                started = self.start(&life, self.clock.clone(), false) => Some(started),
                () = self.calls.died() => None,
            };
            match started {
                Some(Ok(running)) => {
                    self.processes.push(Process { running, life, own: None });
                    return Ok(());
                }
                // It says what is missing and exits; whoever runs it starts it again.
                Some(Err(error)) if self.calls.struck() > 0 => {
                    tracing::warn!(%error, "did not start");
                    self.must_go_on("a start")?;
                }
                Some(Err(error)) => return Err(error),
                None => {}
            }
        }
    }

    /// A second operator beside the one that runs; neither knows of the other.
    pub(crate) async fn live_twice(&mut self) -> Result<()> {
        let life = self.calls.begin();
        self.processes.clear();
        for _ in 0..2 {
            let running = self.start(&life, self.clock.clone(), false).await?;
            self.processes.push(Process { running, life: life.clone(), own: None });
        }
        Ok(())
    }

    /// Two operators of which one leads, each with time of its own: the leader first.
    pub(crate) async fn live_elected(&mut self) -> Result<[Life; 2]> {
        self.processes.clear();
        let first = self.calls.begin();
        let second = self.calls.join();
        for life in [&first, &second] {
            let clock = Clock::manual(self.clock.now());
            let running = self.start(life, clock.clone(), true).await?;
            let own = Some((clock, self.clock.boottime()));
            self.processes.push(Process { running, life: life.clone(), own });
            self.settle().await?;
        }
        Ok([first, second])
    }

    /// A stopped process goes on: what it was about to send is sent before it sees how late it is.
    pub(crate) async fn go_on(&mut self, life: &Life) {
        life.set_link(Link::Open);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = self.clock.boottime();
        for (clock, since) in self.processes.iter().filter_map(|process| process.own.as_ref()) {
            let behind = now.saturating_sub(*since).saturating_sub(clock.boottime());
            clock.advance(behind);
        }
    }

    /// What the first process answers by HTTP.
    pub(crate) async fn http(&self, path: &str) -> Result<(u16, String)> {
        let address = self.processes.first().context("a process")?.running.http;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.get(format!("http://{address}{path}")).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// What becomes of all calls of all processes.
    pub(crate) fn link(&self, link: Link) {
        for process in &self.processes {
            process.life.set_link(link);
        }
    }

    /// How often the Lease has changed hands.
    pub(crate) async fn transitions(&self) -> Result<i32> {
        let leases: Api<Lease> =
            Api::namespaced(self.lane.client.clone(), self.lane.namespace.name());
        let spec = leases.get(LEASE).await?.spec.unwrap_or_default();
        Ok(spec.lease_transitions.unwrap_or(0))
    }

    /// Steps the wall of the process that does not lead.
    pub(crate) fn step_second(&self, step: jiff::SignedDuration) {
        if let Some((clock, _)) = self.processes.get(1).and_then(|one| one.own.as_ref()) {
            clock.step_wall(step);
        }
    }

    /// The process dies, whatever it was doing, and nobody starts another.
    pub(crate) fn die(&mut self) {
        self.calls.begin();
        self.processes.clear();
    }
}

/// Whatever the object says, it is this cloud.
struct Make {
    name: String,
    address: std::net::SocketAddr,
    manners: Manners,
    clock: Clock,
    life: Life,
    twist: Twist,
}

impl MakeProvider for Make {
    fn make(&self, object: &ComputeProvider) -> Result<Arc<dyn Provider>, ProviderError> {
        let name = object.name_any();
        if name != self.name {
            let detail = format!("{name} is not of this test");
            return Err(ProviderError::Misconfigured { provider: name, detail });
        }
        let cloud = FakeProvider::new(&name, self.address, self.manners, self.clock.clone());
        let sold = Sold { inner: Arc::new(cloud), life: self.life.clone() };
        let sold: Arc<dyn Provider> = Arc::new(sold);
        Ok(match &self.twist.provider {
            Some(twist) => twist(sold),
            None => sold,
        })
    }
}
