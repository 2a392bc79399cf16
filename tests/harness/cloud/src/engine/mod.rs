//! What every provider in the box is made of: products, machines, an account, a bill. No I/O, no
//! clock: whoever calls says what time it is, and [`Engine::advance`] lets happen what was due. The
//! same calls at the same times with the same seed give the same machines, ids and invoice.
//!
//! | module | holds |
//! |---|---|
//! | [`product`] | what is sold, where, how much of it |
//! | [`series`] | how a spot price goes, recorded or made |
//! | [`machine`] | a rented machine and its life |
//! | [`bill`] | the biller: rules of each provider, lines, invoice |
//! | [`chance`] | seeded random numbers |
//! | [`disk`] | disks that may outlive their machine |
//! | `life` | what is done to a machine |
//! | `agenda` | what happens by itself, and when |
//!
//! | life | ends by |
//! |---|---|
//! | provisioning | a host was found: [`Pace::provision`] |
//! | starting | the image is there: [`Pace::start`] |
//! | running | its program ends, [`Engine::halt`], an eviction, a deadline, an empty account |
//! | exited | [`Engine::resume`], [`Engine::end`] |
//! | ending | its time to end is over: [`Pace::wind_down`] |
//! | terminated | – |

mod agenda;
pub mod bill;
pub mod chance;
pub mod disk;
mod life;
pub mod machine;
pub mod product;
pub mod series;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use self::agenda::Event;
use self::bill::{Biller, Invoice, Rules};
use self::chance::Chance;
use self::disk::Disk;
use self::machine::{Life, Machine, Order};
use self::product::{Product, ProductId, Sale};
use crate::host::Host;

/// How fast things go.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From the purchase to a host.
    pub provision: Duration,
    /// From the host to the program.
    pub start: Duration,
    /// From the purchase until the machine is listed and found by its id.
    pub appear: Duration,
    /// From the end of a machine until it is no longer listed.
    pub vanish: Duration,
    /// How often the account is settled.
    pub settle: Duration,
    /// From being told to end until it is ended by force.
    pub grace: Duration,
    /// From the end of the bill until the machine is gone.
    pub wind_down: Duration,
    /// From the notice to who bid less than the price until he is taken away.
    pub notice: Duration,
}

/// What an engine is made of.
pub struct Setup {
    /// What is sold.
    pub products: Vec<Product>,
    /// How it is billed.
    pub rules: Rules,
    /// How fast things go.
    pub pace: Pace,
    /// What was paid in, micro-dollars; `None`: the account pays afterwards.
    pub deposit: Option<i64>,
    /// The most that all machines may cost, micro-dollars an hour.
    pub spend_limit: i64,
    /// For ids.
    pub seed: u64,
    /// How an id of a machine looks.
    pub name: fn(&mut Chance) -> String,
    /// Where machines live.
    pub host: Box<dyn Host>,
}

/// Why nothing was bought, resumed or found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not that many units are free.
    #[error("no capacity")]
    NoCapacity,
    /// One machine has at most [`Product::largest`].
    #[error("no machine is that large")]
    TooLarge,
    /// Not enough for an hour is left.
    #[error("the balance is too low")]
    Balance,
    /// The spend limit would be passed.
    #[error("the spend limit is reached")]
    SpendLimit,
    /// Less is bid than it costs, or it is not sold that way.
    #[error("the bid is too low")]
    Bid,
    /// There is no such machine.
    #[error("unknown machine")]
    Unknown,
    /// Not in this state.
    #[error("not in this state")]
    State,
}

/// One provider's whole world.
pub struct Engine {
    now: Timestamp,
    products: Vec<Product>,
    machines: Vec<Machine>,
    disks: Vec<Disk>,
    agenda: BTreeMap<(Timestamp, u64), Event>,
    planned: u64,
    pace: Pace,
    biller: Biller,
    deposit: Option<i64>,
    spend_limit: i64,
    chance: Chance,
    name: fn(&mut Chance) -> String,
    host: Box<dyn Host>,
}

impl Engine {
    /// One in which nothing is rented.
    pub fn new(setup: Setup, now: Timestamp) -> Self {
        let Setup { products, rules, pace, deposit, spend_limit, seed, name, host } = setup;
        let mut engine = Self {
            now,
            products,
            machines: Vec::new(),
            disks: Vec::new(),
            agenda: BTreeMap::new(),
            planned: 0,
            pace,
            biller: Biller::new(rules),
            deposit,
            spend_limit,
            chance: Chance::new(seed),
            name,
            host,
        };
        if deposit.is_some() {
            engine.plan(pace.settle, Event::Settle);
        }
        engine
    }

    /// The time until which everything has happened.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// When something happens next by itself.
    pub fn next_event(&self) -> Option<Timestamp> {
        self.agenda.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets happen, in order, what is due. An earlier time than before changes nothing.
    pub fn advance(&mut self, now: Timestamp) {
        while let Some(due) = self.agenda.first_entry().filter(|due| due.key().0 <= now) {
            let ((at, _), event) = due.remove_entry();
            self.now = self.now.max(at);
            self.happen(event);
            self.notice_ended_programs();
        }
        self.now = self.now.max(now);
        self.notice_ended_programs();
    }

    /// What is sold.
    pub fn products(&self) -> impl Iterator<Item = (ProductId, &Product)> {
        self.products.iter().enumerate().map(|(place, product)| (ProductId(place), product))
    }

    /// A product of [`Engine::products`].
    pub fn product(&self, id: ProductId) -> &Product {
        &self.products[id.0]
    }

    /// A product, to change what it costs or how much there is of it. What was bought stays bought;
    /// a market whose price shall move for those who are in it, [`Engine::set_spot`] moves.
    pub fn product_mut(&mut self, id: ProductId) -> &mut Product {
        &mut self.products[id.0]
    }

    /// Units of a product that nobody rents.
    pub fn free(&self, id: ProductId) -> u32 {
        let rented = self.machines.iter().filter(|m| m.order.product == id && m.holds_units());
        let rented: u32 = rented.map(|machine| machine.order.units).sum();
        self.products[id.0].capacity.saturating_sub(rented)
    }

    /// The source of ids, for what a provider makes beside machines.
    pub fn chance(&mut self) -> &mut Chance {
        &mut self.chance
    }

    /// What a unit can be had for now, micro-dollars an hour.
    pub fn spot_price(&self, id: ProductId) -> Option<i64> {
        self.products[id.0].spot.as_ref().map(|series| series.at(self.now))
    }

    /// Buys a machine; gives its id. Nothing is remembered of an order that is refused, and the same
    /// order again is another machine.
    ///
    /// # Errors
    /// Why it is not sold.
    pub fn buy(&mut self, order: Order) -> Result<String, Refusal> {
        let product = &self.products[order.product.0];
        if order.units > product.largest || order.units == 0 {
            return Err(Refusal::TooLarge);
        }
        let rate = self.rate(&order)?;
        self.affordable(rate)?;
        if self.free(order.product) < order.units {
            return Err(Refusal::NoCapacity);
        }
        let id = (self.name)(&mut self.chance);
        let deadlines = [
            order.stop_after.map(|at| (at, Event::Stop(id.clone()))),
            order.end_after.map(|at| (at, Event::End(id.clone()))),
        ];
        for (at, event) in deadlines.into_iter().flatten() {
            self.plan_at(at, event);
        }
        self.machines.push(Machine {
            id: id.clone(),
            order,
            rate,
            life: Life::Provisioning,
            created: self.now,
            started: None,
            stopped: None,
            noticed: None,
            leaving: None,
            ended: None,
            stuck: false,
            attempt: 0,
        });
        self.begin(&id);
        Ok(id)
    }

    /// A machine's host never gets as far as its program.
    pub fn get_stuck(&mut self, id: &str) {
        if let Ok(machine) = self.known(id) {
            machine.stuck = true;
        }
    }

    /// Changes what a machine is made of.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn change(&mut self, id: &str, change: impl FnOnce(&mut Order)) -> Result<(), Refusal> {
        change(&mut self.known(id)?.order);
        Ok(())
    }

    /// Every machine there ever was, as it is: the truth, which no provider tells.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// A machine as it is.
    pub fn machine(&self, id: &str) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.id == id)
    }

    /// What a listing shows: late, as providers are.
    pub fn listed(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|machine| self.shows(machine))
    }

    /// Whether a machine is listed, and found by its id.
    pub fn shows(&self, machine: &Machine) -> bool {
        let since = |at: Timestamp, lag: Duration| self.now >= later(at, lag);
        since(machine.created, self.pace.appear)
            && machine.ended.is_none_or(|ended| !since(ended, self.pace.vanish))
    }

    /// Where a port of a machine is reached from outside.
    pub fn address(&self, id: &str, port: u16) -> Option<SocketAddr> {
        self.host.address(id, port)
    }

    /// Whether machines get addresses of their own.
    pub fn gives_addresses(&self) -> bool {
        self.host.gives_addresses()
    }

    /// The address of a machine that has one of its own.
    pub fn own_address(&self, id: &str) -> Option<Ipv4Addr> {
        self.host.own_address(id)
    }

    /// How it bills.
    pub fn rules(&self) -> &Rules {
        self.biller.rules()
    }

    /// What everything cost until now.
    pub fn invoice(&self) -> Invoice {
        self.biller.invoice(self.now)
    }

    /// Micro-dollars that are left of what was paid in.
    pub fn balance(&self) -> Option<i64> {
        self.deposit.map(|deposit| deposit - self.biller.spent(self.now))
    }

    fn rate(&self, order: &Order) -> Result<i64, Refusal> {
        let product = &self.products[order.product.0];
        let unit = match order.sale {
            Sale::OnDemand => product.on_demand,
            Sale::Spot { bid } => {
                let market = self.spot_price(order.product).ok_or(Refusal::Bid)?;
                if bid < market {
                    return Err(Refusal::Bid);
                }
                if self.biller.rules().spot_costs_the_bid { bid } else { market }
            }
        };
        Ok(unit.saturating_mul(i64::from(order.units)))
    }

    pub(super) fn affordable(&self, rate: i64) -> Result<(), Refusal> {
        if self.balance().is_some_and(|left| left < rate) {
            return Err(Refusal::Balance);
        }
        let running = self.machines.iter().filter(|machine| machine.holds_units());
        let running: i64 = running.map(|machine| machine.rate).sum();
        if running.saturating_add(rate) > self.spend_limit {
            return Err(Refusal::SpendLimit);
        }
        Ok(())
    }

    pub(super) fn known(&mut self, id: &str) -> Result<&mut Machine, Refusal> {
        self.machines.iter_mut().find(|machine| machine.id == id).ok_or(Refusal::Unknown)
    }
}

/// A time so much later, at most the end of all time.
fn later(at: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    at.saturating_add(by).unwrap_or(at)
}
