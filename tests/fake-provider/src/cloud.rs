//! The cloud: its machines, the calls it got, and what tests ask of it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, OfferId, Sale};
use petaflop_providers::provider::identity_text;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::agent::AgentRunner;
use crate::bill::Bill;
use crate::client::FakeProvider;
use crate::fault::{Fault, Faults, Kind};
use crate::inner::{All, Inner};
use crate::machine::Machine;
use crate::manners::Manners;
use crate::server;
use crate::wire::{Create, State};

/// A plain machine of four processors and 8 GiB that a provider sells, quoted now.
pub fn small_offer(provider: &str, price: UsdPerHour) -> Offer {
    Offer {
        id: OfferId(format!("{provider}/r/small")),
        provider: provider.to_owned(),
        region: "r".into(),
        zone: "r-1".into(),
        instance_type: "small".into(),
        accelerators: None,
        arch: Arch::X86_64,
        vcpu_milli: Some(4000),
        memory: Some(8 << 30),
        capacity: Capacity::OnDemand,
        price,
        quoted_at: Timestamp::now(),
        ttl_seconds: 3600,
        owner: HostOwner::Known,
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
        sale: Sale::Buyable,
    }
}

/// What a cloud is made of.
pub struct Setup {
    /// How it behaves when it behaves.
    pub manners: Manners,
    /// Its time. Steps of the wall do not reach it: a cloud has clocks of its own.
    pub clock: Clock,
    /// What it sells. Prices move by [`Cloud::set_price`] and [`Cloud::walk_prices`].
    pub offers: Vec<Offer>,
    /// What runs on its machines.
    pub agent: AgentRunner,
    /// Where it keeps its bill; one file a cloud.
    pub bill: PathBuf,
}

/// A call that the cloud got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number among all, from 1.
    pub sequence: u64,
    /// What was asked.
    pub kind: Kind,
    /// About what: an identity for a purchase, a number for one machine.
    pub subject: String,
    /// Status of the answer; `None` while there is none, and where the connection was cut.
    pub status: Option<u16>,
    /// Names of the faults that showed in it.
    pub faults: Vec<&'static str>,
}

/// Something that bills now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Billed {
    /// The cloud's number of it; `…/volume` for a volume.
    pub id: String,
    /// The identity it carries, or empty.
    pub identity: String,
    /// Since when.
    pub since: Timestamp,
}

/// A machine that petaflop, or this installation of it, did not make.
#[derive(Clone, Debug)]
pub enum Foreign {
    /// Without any tag.
    Untagged,
    /// With the tag of somebody else's claim, or of one that is no more.
    Tagged(Identity),
}

/// A running cloud. It has a runtime of its own: its machines outlive whoever uses it. Dropping it
/// ends everything but the bill.
pub struct Cloud {
    pub(crate) inner: Arc<Inner>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Cloud {
    /// Starts one on a free port of this host.
    ///
    /// # Errors
    /// When the bill cannot be opened or there is no port.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let Setup { manners, clock, offers, agent, bill } = setup;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("cloud")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = All {
            machines: Vec::new(),
            faults: Faults::default(),
            stale: Vec::new(),
            calls: Vec::new(),
            offers,
            walk: None,
            bill: Bill::open(&bill)?,
        };
        let began = (clock.now(), clock.boottime());
        let own = runtime.handle().clone();
        let state = Mutex::new(state);
        let inner = Arc::new(Inner { manners, clock, agent, own, began, state });
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(server::serve(listener, inner.clone()));
        Ok(Self { inner, address, runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A provider of this name that buys here.
    pub fn provider(&self, name: &str) -> FakeProvider {
        FakeProvider::new(name, self.address, self.inner.manners, self.inner.clock.clone())
    }

    /// The cloud's own time.
    pub fn now(&self) -> Timestamp {
        self.inner.now()
    }

    /// Misbehaves like this until told otherwise.
    pub fn misbehave(&self, fault: Fault) {
        self.inner.arm(fault, |faults| faults.always(fault));
    }

    /// Misbehaves like this in the call of this number among all calls, from 1.
    pub fn misbehave_in_call(&self, sequence: u64, fault: Fault) {
        self.inner.arm(fault, |faults| faults.in_call(sequence, fault));
    }

    /// Misbehaves like this once, after so many more calls of a kind.
    pub fn misbehave_after(&self, kind: Kind, skip: u32, fault: Fault) {
        self.inner.arm(fault, |faults| faults.after(kind, skip, fault));
    }

    /// No longer misbehaves in the way of this name.
    pub fn behave(&self, name: &str) {
        self.inner.all().faults.stop(name);
    }

    /// No longer misbehaves. What was done is done.
    pub fn behave_entirely(&self) {
        self.inner.all().faults.stop_all();
    }

    /// Sets the price of what is bought from now on.
    pub fn set_price(&self, offer: &OfferId, price: UsdPerHour) {
        for known in self.inner.all().offers.iter_mut().filter(|known| known.id == *offer) {
            known.price = price;
        }
    }

    /// Moves every price by up to so many per cent at each quote, the same walk for the same seed;
    /// 0 per cent stops it.
    pub fn walk_prices(&self, seed: u64, percent: u32) {
        self.inner.all().walk = (percent > 0).then_some((seed, percent.min(99)));
    }

    /// Sells something else too.
    pub fn sell(&self, offer: Offer) {
        self.inner.all().offers.push(offer);
    }

    /// Stops selling something. What was bought runs on.
    pub fn withdraw(&self, offer: &OfferId) {
        self.inner.all().offers.retain(|known| known.id != *offer);
    }

    /// Takes a machine away after telling it so, or at once and without a word where there is no
    /// notice.
    pub fn interrupt(&self, id: &str, notice: Option<Duration>) {
        let inner = self.inner.clone();
        let reason = "Server.SpotInstanceTermination";
        let Some(notice) = notice else {
            return inner.end(id, reason, None);
        };
        if let Some(machine) = inner.all().machines.iter().find(|machine| machine.id == id) {
            // Nobody listens on a machine without an agent.
            let _ = machine.notice.send_replace(Some(notice));
        }
        let (sleep, id) = (inner.clock.sleep(notice), id.to_owned());
        self.inner.own.spawn(async move {
            sleep.await;
            inner.end(&id, reason, None);
        });
    }

    /// Puts a machine there that nobody here bought. Gives its number.
    pub fn plant(&self, foreign: Foreign) -> String {
        let identity = match &foreign {
            Foreign::Untagged => None,
            Foreign::Tagged(identity) => Some(identity),
        };
        let now = self.inner.now();
        let mut all = self.inner.all();
        let Some(offered) = all.offers.first().cloned() else {
            panic!("a cloud that sells nothing has no machines");
        };
        let (offer, price) = (offered.id.clone(), offered.price);
        // Whoever has the tag of a claim has that of an offer too.
        let request = identity.map(|identity| Create {
            name: identity.unique_name(),
            token: identity.token(),
            identity: identity_text(identity),
            offer: offer.clone(),
            offered,
            bid: price,
            image: String::new(),
            env: BTreeMap::new(),
        });
        let machine = Machine {
            id: all.next_id(),
            name: identity.map_or("somebody".to_owned(), Identity::unique_name),
            identity: identity.map(identity_text),
            request,
            offer,
            price,
            state: State::Running,
            created: now,
            ended: None,
            reason: None,
            exit: None,
            never_starts: true,
            leaves_volume: false,
            leaves_request: false,
            endpoint: Arc::default(),
            notice: watch::channel(None).0,
            agent: None,
        };
        all.begin(machine)
    }

    /// Machines ever made, planted ones included.
    pub fn created(&self) -> usize {
        self.inner.all().machines.len()
    }

    /// What bills now, volumes included.
    pub fn billed_now(&self) -> Vec<Billed> {
        let all = self.inner.all();
        let open = all.bill.items().iter().filter(|(_, item)| item.ended.is_none());
        open.map(|(id, item)| Billed {
            id: id.clone(),
            identity: item.identity.clone(),
            since: item.began,
        })
        .collect()
    }

    /// Micro-dollars by identity, from the first machine until now.
    pub fn micros_by_identity(&self) -> BTreeMap<String, i64> {
        let now = self.now();
        self.inner.all().bill.by_identity(&self.inner.manners, now)
    }

    /// The numbers of the machines that carry a claim's uid, the first bought first, ended ones
    /// included.
    pub fn machines_of(&self, claim_uid: &str) -> Vec<String> {
        let all = self.inner.all();
        let part = format!("/{claim_uid}/");
        let carries = |machine: &&Machine| {
            machine.identity.as_ref().is_some_and(|identity| identity.contains(&part))
        };
        all.machines.iter().filter(carries).map(|machine| machine.id.clone()).collect()
    }

    /// What a claim's machines were started with: the bootstrap, the one-time token in it. Ended ones
    /// included.
    pub fn environments_of(&self, claim_uid: &str) -> Vec<BTreeMap<String, String>> {
        let all = self.inner.all();
        let part = format!("/{claim_uid}/");
        let requests = all.machines.iter().filter_map(|machine| machine.request.as_ref());
        let theirs = requests.filter(|request| request.identity.contains(&part));
        theirs.map(|request| request.env.clone()).collect()
    }

    /// Waits until whatever was woken in the cloud, by its clock or by a call, has run as far as
    /// it goes. An agent that talks to others may have more to do when they answer.
    pub async fn settle(&self) {
        // One thread, first come, first served: each round lets everything that waits have a turn.
        let rounds = self.inner.own.spawn(async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        });
        // It cannot fail but by the end of the cloud, after which nothing runs.
        let _ = rounds.await;
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.inner.all().calls.clone()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also from inside another runtime, where waiting would be refused.
            runtime.shutdown_background();
        }
    }
}
