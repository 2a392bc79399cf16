//! The cloud: its machines, the calls it got, and what tests ask of it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, OfferId, Sale};
use petaflop_providers::provider::identity_text;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

use crate::agent::{AgentEnd, AgentRunner, Boot};
use crate::bill::{Bill, Entry};
use crate::client::FakeProvider;
use crate::fault::{Fault, Faults, Kind};
use crate::machine::Machine;
use crate::manners::Manners;
use crate::server;
use crate::wire::{Create, State, View};

/// From the end of a machine until a request that was left behind makes another.
const RELAUNCH: Duration = Duration::from_secs(60);

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

pub(crate) struct Inner {
    pub(crate) manners: Manners,
    pub(crate) clock: Clock,
    agent: AgentRunner,
    /// The cloud's own: nothing of it dies with the runtime of whoever calls.
    own: Handle,
    began: (Timestamp, Duration),
    state: Mutex<All>,
}

/// Everything that changes.
pub(crate) struct All {
    pub(crate) machines: Vec<Machine>,
    pub(crate) faults: Faults,
    pub(crate) stale: Vec<View>,
    calls: Vec<Call>,
    offers: Vec<Offer>,
    walk: Option<(u64, u32)>,
    bill: Bill,
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
        let Some(offer) = all.offers.first() else {
            panic!("a cloud that sells nothing has no machines");
        };
        let (offer, price) = (offer.id.clone(), offer.price);
        let machine = Machine {
            id: all.next_id(),
            name: identity.map_or("somebody".to_owned(), Identity::unique_name),
            identity: identity.map(identity_text),
            request: None,
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

impl Inner {
    pub(crate) fn all(&self) -> MutexGuard<'_, All> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Timestamp {
        let (wall, boottime) = self.began;
        wall + signed(self.clock.boottime().saturating_sub(boottime))
    }

    fn arm(&self, fault: Fault, arm: impl FnOnce(&mut Faults)) {
        let now = self.now();
        let mut all = self.all();
        if fault == Fault::StaleListing {
            all.stale = self.views(&all, now);
        }
        arm(&mut all.faults);
    }

    /// What the cloud tells of its machines, in the order in which they were made.
    pub(crate) fn views(&self, all: &All, now: Timestamp) -> Vec<View> {
        let style = self.manners.style;
        let told = all.machines.iter().filter(|machine| machine.is_told_of(style, now));
        told.map(|machine| machine.view(style)).collect()
    }

    /// Notes a call. Gives its number and the faults that show in it.
    pub(crate) fn called(&self, kind: Kind, subject: &str) -> (u64, Vec<Fault>) {
        let mut all = self.all();
        let sequence = all.calls.len() as u64 + 1;
        let faults = all.faults.of_call(kind, sequence);
        all.calls.push(Call {
            sequence,
            kind,
            subject: subject.to_owned(),
            status: None,
            faults: faults.iter().map(|fault| fault.name()).collect(),
        });
        (sequence, faults)
    }

    pub(crate) fn answered(&self, sequence: u64, status: u16) {
        let mut all = self.all();
        if let Some(call) = all.calls.get_mut(sequence as usize - 1) {
            call.status = Some(status);
        }
    }

    /// What it sells now.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        let now = self.now();
        let mut all = self.all();
        let All { offers, walk, .. } = &mut *all;
        for offer in offers.iter_mut() {
            offer.quoted_at = now;
            if let Some((seed, percent)) = walk {
                offer.price = step(offer.price, seed, *percent);
            }
        }
        offers.clone()
    }

    /// The machine that a token made before, and whether the whole request is the same.
    pub(crate) fn by_token(&self, request: &Create) -> Option<(String, bool)> {
        let all = self.all();
        all.machines.iter().find_map(|machine| {
            let made = machine.request.as_ref().filter(|made| made.token == request.token)?;
            Some((machine.id.clone(), made == request))
        })
    }

    /// What an hour costs whoever buys now; `None`: it is not sold.
    pub(crate) fn price_now(&self, offer: &OfferId, faults: &[Fault]) -> Option<UsdPerHour> {
        let all = self.all();
        let known = all.offers.iter().find(|known| known.id == *offer)?;
        Some(server::raised(known.price, faults))
    }

    /// Makes a machine and gives it life.
    pub(crate) fn make(
        self: &Arc<Self>,
        request: Create,
        price: UsdPerHour,
        faults: &[Fault],
    ) -> String {
        let now = self.now();
        let (notice, told) = watch::channel(None);
        let mut all = self.all();
        let id = all.next_id();
        let machine = Machine {
            id: id.clone(),
            name: request.name.clone(),
            identity: Some(request.identity.clone()),
            offer: request.offer.clone(),
            price,
            state: State::Pending,
            created: now,
            ended: None,
            reason: None,
            exit: None,
            never_starts: faults.contains(&Fault::NeverStarts),
            leaves_volume: faults.contains(&Fault::VolumeLeftBehind),
            leaves_request: faults.contains(&Fault::SpotRequestLeftBehind),
            endpoint: Arc::default(),
            notice,
            agent: None,
            request: Some(request.clone()),
        };
        let endpoint = machine.endpoint.clone();
        all.begin(machine);
        let boot = Boot {
            instance: id.clone(),
            identity: request.identity,
            env: request.env,
            clock: self.clock.clone(),
            notice: told,
            endpoint,
        };
        let up = self.clock.sleep(self.manners.boot);
        let life = self.own.spawn(self.clone().live(id.clone(), up, boot));
        if let Some(machine) = all.machine(&id) {
            machine.agent = Some(life.abort_handle());
        }
        id
    }

    async fn live(self: Arc<Self>, id: String, up: impl Future<Output = ()>, boot: Boot) {
        up.await;
        {
            let mut all = self.all();
            let Some(machine) = all.machine(&id).filter(|one| one.state == State::Pending) else {
                return;
            };
            machine.state = State::Running;
            if machine.never_starts {
                return;
            }
        }
        match (self.agent)(boot).await {
            AgentEnd::MachineEnded { code } => {
                self.end(&id, "Client.InstanceInitiatedShutdown", Some(code));
            }
            AgentEnd::Exited { code } => {
                let mut all = self.all();
                if let Some(machine) = all.machine(&id).filter(|m| m.state == State::Running) {
                    machine.state = State::Exited;
                    machine.exit = Some(code);
                }
            }
        }
    }

    /// Begins to end a machine, as it was asked to; it is gone a little later.
    pub(crate) fn stop(self: &Arc<Self>, id: &str) {
        let reason = "Client.UserInitiatedShutdown";
        if self.manners.shutdown.is_zero() {
            return self.end(id, reason, None);
        }
        {
            let mut all = self.all();
            let Some(machine) = all.machine(id) else { return };
            if matches!(machine.state, State::Stopping | State::Terminated) {
                return;
            }
            machine.state = State::Stopping;
            machine.reason = Some(reason);
        }
        let (inner, id) = (self.clone(), id.to_owned());
        let gone = self.clock.sleep(self.manners.shutdown);
        self.own.spawn(async move {
            gone.await;
            inner.end(&id, reason, None);
        });
    }

    /// Ends a machine now.
    fn end(self: &Arc<Self>, id: &str, reason: &'static str, exit: Option<i32>) {
        let now = self.now();
        let mut all = self.all();
        let Some(machine) = all.machine(id).filter(|one| one.ended.is_none()) else {
            return;
        };
        machine.state = State::Terminated;
        machine.ended = Some(now);
        machine.reason.get_or_insert(reason);
        machine.exit = machine.exit.or(exit);
        if let Some(agent) = machine.agent.take() {
            agent.abort();
        }
        let (volume, request) = (machine.leaves_volume, machine.leaves_request);
        let identity = machine.identity.clone().unwrap_or_default();
        let tenth = machine.price.micros() / 10;
        all.enter(Entry::Ended { id: id.to_owned(), at: now });
        if volume {
            let id = format!("{id}/volume");
            all.enter(Entry::Began { id, identity, micros_per_hour: tenth, at: now });
        }
        drop(all);
        if request {
            self.relaunch_later(id.to_owned());
        }
    }

    fn relaunch_later(self: &Arc<Self>, id: String) {
        let inner = self.clone();
        let later = self.clock.sleep(RELAUNCH);
        self.own.spawn(async move {
            later.await;
            let again = {
                let mut all = inner.all();
                let Some(machine) = all.machine(&id).filter(|one| one.leaves_request) else {
                    return;
                };
                machine.leaves_request = false;
                machine.request.clone().map(|request| (request, machine.price))
            };
            if let Some((request, price)) = again {
                inner.make(request, price, &[Fault::SpotRequestLeftBehind]);
            }
        });
    }

    /// Sees to it that nothing of a machine stays behind.
    pub(crate) fn clean(&self, id: &str) {
        let now = self.now();
        let mut all = self.all();
        let Some(machine) = all.machine(id) else { return };
        let volume = machine.leaves_volume && machine.state == State::Terminated;
        machine.leaves_volume = false;
        machine.leaves_request = false;
        if volume {
            all.enter(Entry::Ended { id: format!("{id}/volume"), at: now });
        }
    }
}

impl All {
    pub(crate) fn machine(&mut self, id: &str) -> Option<&mut Machine> {
        self.machines.iter_mut().find(|machine| machine.id == id)
    }

    fn next_id(&self) -> String {
        format!("i-{:08}", self.machines.len() + 1)
    }

    /// A machine begins to be, and to bill.
    fn begin(&mut self, machine: Machine) -> String {
        let id = machine.id.clone();
        self.enter(Entry::Began {
            id: id.clone(),
            identity: machine.identity.clone().unwrap_or_default(),
            micros_per_hour: machine.price.micros(),
            at: machine.created,
        });
        self.machines.push(machine);
        id
    }

    fn enter(&mut self, entry: Entry) {
        // An oracle that forgets is worse than none.
        self.bill.enter(entry).expect("the cloud's bill can be written");
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// One step of a walk of a price: up to so many per cent either way, never to nothing.
fn step(price: UsdPerHour, seed: &mut u64, percent: u32) -> UsdPerHour {
    // A linear congruential generator (Knuth's constants); the upper half is good enough.
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let span = 2 * i64::from(percent) + 1;
    let percent = i64::from((*seed >> 33) as u32) % span - i64::from(percent);
    let moved = price.micros().saturating_mul(100 + percent) / 100;
    UsdPerHour::from_micros(moved.max(1)).unwrap_or(price)
}
