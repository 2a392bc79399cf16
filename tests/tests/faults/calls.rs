//! Every call of an operator to the API server, to the provider and to the ledger's store, in one
//! sequence, each with a number and a class; and the faults that strike in them.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use tokio::sync::{Notify, watch};

/// A call, by what is the same in every run: the n-th of its class, from 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Point {
    /// As in `k8s.create.computeclaims`, `provider.launch`, `ledger.put`; `*` for all classes.
    pub(crate) class: String,
    /// Among its class, from 1.
    pub(crate) nth: u32,
}

impl Point {
    pub(crate) fn new(class: &str, nth: u32) -> Self {
        Self { class: class.to_owned(), nth }
    }

    /// Whether it writes to the API server.
    pub(crate) fn writes(&self) -> bool {
        ["k8s.create", "k8s.update", "k8s.patch", "k8s.delete"]
            .iter()
            .any(|verb| self.class.starts_with(verb))
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.class, self.nth)
    }
}

/// What happens in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process dies, and nothing is sent.
    CrashBefore,
    /// It is done, and the process dies before it hears so.
    CrashAfter,
    /// It is done, and the answer is lost.
    LoseResponse,
    /// It is not done, and this is the answer.
    Refuse(u16),
    /// It is done this much later, by the clock.
    Delay(Duration),
    /// The process is stopped, as by SIGSTOP, with this call on its lips.
    Stop,
}

/// Why a call has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// There is no answer.
    Silence,
    /// An answer with this status.
    Status(u16),
}

/// A fault in every so manieth call of some classes, until it is taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// What the class begins with.
    pub(crate) classes: &'static str,
    /// In every so manieth of each.
    pub(crate) every: u32,
    pub(crate) fault: Fault,
}

/// All calls of one run, whichever process made them. Clones are the same.
#[derive(Clone)]
pub(crate) struct Calls {
    inner: Arc<Mutex<Inner>>,
    crash: Arc<Notify>,
    clock: Clock,
}

#[derive(Default)]
struct Inner {
    made: Vec<Point>,
    counts: HashMap<String, u32>,
    faults: HashMap<Point, Fault>,
    standing: Vec<Standing>,
    struck: u32,
    denied: Vec<String>,
    /// The process that lives now; others are dead.
    life: u32,
    dead: bool,
    in_flight: u32,
}

impl Calls {
    pub(crate) fn new(clock: Clock, faults: impl IntoIterator<Item = (Point, Fault)>) -> Self {
        let inner = Inner { faults: faults.into_iter().collect(), ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)), crash: Arc::default(), clock }
    }

    /// A new process begins; whatever an earlier one still does has no effect.
    pub(crate) fn begin(&self) -> Life {
        let mut inner = self.lock();
        inner.life += 1;
        inner.dead = false;
        inner.in_flight = 0;
        Life {
            calls: self.clone(),
            number: inner.life,
            link: Arc::new(watch::Sender::new(Link::Open)),
        }
    }

    /// One more process beside those that live.
    pub(crate) fn join(&self) -> Life {
        let number = self.lock().life;
        Life { calls: self.clone(), number, link: Arc::new(watch::Sender::new(Link::Open)) }
    }

    /// From now on, until [`Calls::mend`].
    pub(crate) fn stand(&self, standing: Standing) {
        self.lock().standing.push(standing);
    }

    /// Takes standing faults back.
    pub(crate) fn mend(&self) {
        self.lock().standing.clear();
    }

    /// All calls so far.
    pub(crate) fn made(&self) -> Vec<Point> {
        self.lock().made.clone()
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.lock().made.len()
    }

    /// Faults that struck.
    pub(crate) fn struck(&self) -> u32 {
        self.lock().struck
    }

    /// Calls that the API server answered 403.
    pub(crate) fn denied(&self) -> Vec<String> {
        self.lock().denied.clone()
    }

    /// These were answered 403 for another reason than rights.
    pub(crate) fn forgive(&self, class: &str) {
        self.lock().denied.retain(|denied| denied != class);
    }

    /// Whether the process has just died.
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Returns when the process dies.
    pub(crate) async fn died(&self) {
        loop {
            let died = self.crash.notified();
            if self.is_dead() {
                return;
            }
            died.await;
        }
    }

    /// Calls that are under way.
    pub(crate) fn in_flight(&self) -> u32 {
        self.lock().in_flight
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of all calls of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// They are made.
    Open,
    /// It is stopped: they are made when it goes on.
    Stopped,
    /// The API server is out of its reach; the rest of the world is not.
    Partitioned,
}

/// One process, as far as its calls go.
#[derive(Clone)]
pub(crate) struct Life {
    calls: Calls,
    number: u32,
    link: Arc<watch::Sender<Link>>,
}

impl Life {
    /// Makes a call, unless a fault says otherwise. Never returns in a process that is dead.
    pub(crate) async fn call<T>(
        &self,
        class: &str,
        apply: impl Future<Output = T>,
        fail: impl FnOnce(Trouble) -> T,
    ) -> T {
        let Some((fault, _guard)) = self.enter(class) else {
            return std::future::pending().await;
        };
        if fault == Some(Fault::Stop) {
            self.set_link(Link::Stopped);
        }
        if self.link() == Link::Stopped {
            self.calls.lock().in_flight -= 1;
            let _ = self.link.subscribe().wait_for(|link| *link != Link::Stopped).await;
            self.calls.lock().in_flight += 1;
        }
        if self.link() == Link::Partitioned && class.starts_with("k8s.") {
            return fail(Trouble::Silence);
        }
        let answer = match fault {
            None | Some(Fault::Stop) => apply.await,
            Some(Fault::CrashBefore) => return self.die().await,
            Some(Fault::CrashAfter) => {
                apply.await;
                return self.die().await;
            }
            Some(Fault::LoseResponse) => {
                apply.await;
                fail(Trouble::Silence)
            }
            Some(Fault::Refuse(status)) => fail(Trouble::Status(status)),
            Some(Fault::Delay(time)) => {
                // Not under way as far as time is concerned: it is time that it waits for.
                self.calls.lock().in_flight -= 1;
                self.calls.clock.sleep(time).await;
                self.calls.lock().in_flight += 1;
                apply.await
            }
        };
        match self.is_alive() {
            true => answer,
            false => std::future::pending().await,
        }
    }

    /// What becomes of its calls from now on.
    pub(crate) fn set_link(&self, link: Link) {
        self.link.send_replace(link);
    }

    pub(crate) fn link(&self) -> Link {
        *self.link.borrow()
    }

    /// The API server refused this for want of rights.
    pub(crate) fn denied(&self, class: &str) {
        self.calls.lock().denied.push(class.to_owned());
    }

    fn enter(&self, class: &str) -> Option<(Option<Fault>, InFlight)> {
        let mut inner = self.calls.lock();
        if inner.dead || inner.life != self.number {
            return None;
        }
        let count = inner.counts.entry(class.to_owned()).or_insert(0);
        *count += 1;
        let point = Point::new(class, *count);
        let place = Point::new("*", inner.made.len() as u32 + 1);
        let fault = inner.faults.remove(&point).or_else(|| inner.faults.remove(&place));
        let nth = point.nth;
        let standing = inner.standing.iter().find(|standing| {
            class.starts_with(standing.classes) && nth.is_multiple_of(standing.every)
        });
        let fault = fault.or(standing.map(|standing| standing.fault));
        inner.struck += u32::from(fault.is_some());
        inner.made.push(point);
        inner.in_flight += 1;
        Some((fault, InFlight { calls: self.calls.clone(), life: self.number }))
    }

    async fn die<T>(&self) -> T {
        {
            let mut inner = self.calls.lock();
            if inner.life == self.number {
                inner.dead = true;
            }
        }
        self.calls.crash.notify_waiters();
        std::future::pending().await
    }

    fn is_alive(&self) -> bool {
        let inner = self.calls.lock();
        !inner.dead && inner.life == self.number
    }
}

struct InFlight {
    calls: Calls,
    life: u32,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut inner = self.calls.lock();
        if inner.life == self.life {
            inner.in_flight = inner.in_flight.saturating_sub(1);
        }
    }
}
