//! What goes on in the cloud: machines are made, come to life, end and leave things behind, all of it
//! on the bill.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Offer, OfferId};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::agent::{AgentEnd, AgentRunner, Boot};
use crate::bill::{Bill, Entry};
use crate::cloud::Call;
use crate::fault::{Fault, Faults, Kind};
use crate::machine::Machine;
use crate::manners::Manners;
use crate::server;
use crate::wire::{Create, State, View};

/// From the end of a machine until a request that was left behind makes another.
const RELAUNCH: Duration = Duration::from_secs(60);

/// A cloud, as all that goes on in it sees it.
pub(crate) struct Inner {
    pub(crate) manners: Manners,
    pub(crate) clock: Clock,
    pub(crate) agent: AgentRunner,
    /// The cloud's own: nothing of it dies with the runtime of whoever calls.
    pub(crate) own: Handle,
    pub(crate) began: (Timestamp, Duration),
    pub(crate) state: Mutex<All>,
}

/// Everything that changes.
pub(crate) struct All {
    pub(crate) machines: Vec<Machine>,
    pub(crate) faults: Faults,
    pub(crate) stale: Vec<View>,
    pub(crate) calls: Vec<Call>,
    pub(crate) offers: Vec<Offer>,
    pub(crate) walk: Option<(u64, u32)>,
    pub(crate) bill: Bill,
}

impl Inner {
    pub(crate) fn all(&self) -> MutexGuard<'_, All> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Timestamp {
        let (wall, boottime) = self.began;
        wall + signed(self.clock.boottime().saturating_sub(boottime))
    }

    pub(crate) fn arm(&self, fault: Fault, arm: impl FnOnce(&mut Faults)) {
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
    pub(crate) fn end(self: &Arc<Self>, id: &str, reason: &'static str, exit: Option<i32>) {
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

    pub(crate) fn next_id(&self) -> String {
        format!("i-{:08}", self.machines.len() + 1)
    }

    /// A machine begins to be, and to bill.
    pub(crate) fn begin(&mut self, machine: Machine) -> String {
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
