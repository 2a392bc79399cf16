//! What is done to a machine, and what its bill makes of it.

use std::time::Duration;

use super::agenda::Event;
use super::bill::{Item, Price};
use super::machine::{Life, Notice, Outcome, Why};
use super::product::Sale;
use super::{Engine, Refusal, later};

impl Engine {
    /// Stops a machine: its program ends, its units are free, what it keeps bills on.
    ///
    /// # Errors
    /// When it does not exist or does not run.
    pub fn halt(&mut self, id: &str, why: Why) -> Result<(), Refusal> {
        let (now, grace) = (self.now, self.pace.grace);
        let machine = self.known(id)?;
        if !machine.holds_units() {
            return Err(Refusal::State);
        }
        machine.life = Life::Exited;
        machine.stopped = Some((now, why));
        machine.attempt += 1;
        let volume = machine.order.volume;
        self.host.end(id, grace);
        self.biller.close(id, now, why.is_taken());
        self.bill_volume(id, volume, Item::VolumeStopped);
        Ok(())
    }

    /// Starts a stopped machine again, on its host, for so much an hour and unit, or for what it
    /// cost.
    ///
    /// # Errors
    /// When it does not exist, is not stopped, or somebody else has its units now.
    pub fn resume(&mut self, id: &str, unit_rate: Option<i64>) -> Result<(), Refusal> {
        let machine = self.known(id)?;
        let (product, units) = (machine.order.product, machine.order.units);
        if machine.life != Life::Exited {
            return Err(Refusal::State);
        }
        let rate = unit_rate.map_or(machine.rate, |rate| rate.saturating_mul(i64::from(units)));
        self.affordable(rate)?;
        if self.free(product) < units {
            return Err(Refusal::NoCapacity);
        }
        let now = self.now;
        self.biller.close(id, now, false);
        self.known(id)?.rate = rate;
        self.begin(id);
        Ok(())
    }

    /// Ends a machine for ever, with all that it keeps: at once, or after [`super::Pace::wind_down`],
    /// in which it bills no longer. What ends already goes on ending.
    ///
    /// # Errors
    /// When it does not exist, or no longer.
    pub fn end(&mut self, id: &str, why: Why) -> Result<(), Refusal> {
        let (now, pace) = (self.now, self.pace);
        let machine = self.known(id)?;
        match machine.life {
            Life::Terminated => return Err(Refusal::Unknown),
            Life::Ending => return Ok(()),
            _ => {}
        }
        if machine.holds_units() {
            self.host.end(id, pace.grace);
        }
        let machine = self.known(id)?;
        machine.stopped.get_or_insert((now, why));
        machine.leaving = Some((now, why));
        machine.life = Life::Ending;
        machine.attempt += 1;
        let attempt = machine.attempt;
        self.biller.close(id, now, why.is_taken());
        if pace.wind_down.is_zero() {
            return self.gone(id, attempt);
        }
        self.plan(pace.wind_down, Event::Gone(id.to_owned(), attempt));
        Ok(())
    }

    /// A machine that was ending has ended, and with it the disks that do not outlive it.
    pub(super) fn gone(&mut self, id: &str, attempt: u32) -> Result<(), Refusal> {
        let now = self.now;
        let machine = self.known(id)?;
        if machine.life == Life::Ending && machine.attempt == attempt {
            machine.life = Life::Terminated;
            machine.ended = Some(now);
            self.leave_disks(id);
        }
        Ok(())
    }

    /// Takes a machine away, now or after telling it so.
    ///
    /// # Errors
    /// When it does not exist or does not run.
    pub fn evict(&mut self, id: &str, notice: Option<Duration>) -> Result<(), Refusal> {
        self.take(id, Why::Evicted, notice)
    }

    /// Tells a machine that it is likely to be taken away.
    ///
    /// # Errors
    /// When it does not exist or does not run.
    pub fn recommend(&mut self, id: &str) -> Result<(), Refusal> {
        if !self.known(id)?.holds_units() {
            return Err(Refusal::State);
        }
        self.host.recommend(id);
        Ok(())
    }

    pub(super) fn take(
        &mut self,
        id: &str,
        why: Why,
        notice: Option<Duration>,
    ) -> Result<(), Refusal> {
        let now = self.now;
        let machine = self.known(id)?;
        if !machine.holds_units() {
            return Err(Refusal::State);
        }
        let attempt = machine.attempt;
        let Some(left) = notice else { return self.leave(id, why) };
        machine.noticed.get_or_insert(Notice { given: now, due: later(now, left), why });
        self.host.notice(id, left);
        self.plan(left, Event::Evict(id.to_owned(), attempt, why));
        Ok(())
    }

    /// A machine stops or ends for another reason than that somebody said so: as it was bought.
    pub(super) fn leave(&mut self, id: &str, why: Why) -> Result<(), Refusal> {
        let at_end = self.known(id)?.order.at_end;
        let outcome = if why == Why::Process { at_end.program } else { at_end.eviction };
        match outcome {
            Outcome::Stops => self.halt(id, why),
            Outcome::Ends => self.end(id, why),
        }
    }

    /// The market's price of a product is this, from now on: for whoever buys, and for whoever pays
    /// the market's price, from his next hour on. Who bid less is given notice.
    pub fn set_spot(&mut self, product: super::product::ProductId, price: i64) {
        let sold = &mut self.products[product.0];
        let Some(series) = sold.spot.take() else { return };
        let series = series.then(self.now, price);
        sold.spot = Some(series.clone());
        let rented = self.machines.iter().filter(|m| m.order.product == product && m.holds_units());
        let rented: Vec<(String, u32)> = rented.map(|m| (m.id.clone(), m.attempt)).collect();
        for (id, attempt) in rented {
            self.biller.reprice(&id, &series);
            self.plan(Duration::ZERO, Event::Outbid(id, attempt));
        }
    }

    /// Looks whether a bid still holds, and when to look again.
    pub(super) fn outbid(&mut self, id: &str, attempt: u32) -> Result<(), Refusal> {
        let machine = self.known(id)?;
        let (product, sale) = (machine.order.product, machine.order.sale);
        let gone = machine.attempt != attempt || machine.noticed.is_some();
        let Sale::Spot { bid } = sale else { return Ok(()) };
        if gone || self.biller.rules().spot_costs_the_bid {
            return Ok(());
        }
        let Some(next) = self.products[product.0].spot.as_ref().map(|s| s.above(bid, self.now))
        else {
            return Ok(());
        };
        match next {
            Some(at) if at <= self.now => self.take(id, Why::Price, Some(self.pace.notice)),
            Some(at) => {
                self.plan_at(at, Event::Outbid(id.to_owned(), attempt));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A machine, old or new, begins to start, and to bill unless that begins when it runs.
    pub(super) fn begin(&mut self, id: &str) {
        let pace = self.pace;
        let Ok(machine) = self.known(id) else { return };
        machine.life = Life::Provisioning;
        machine.stopped = None;
        machine.noticed = None;
        machine.attempt += 1;
        let (attempt, disk, volume) = (machine.attempt, machine.order.disk, machine.order.volume);
        if !self.biller.rules().billed_once_it_runs {
            self.bill_compute(id);
        }
        let disk = self.biller.rules().disk.saturating_mul(i64::from(disk));
        if disk > 0 {
            self.biller.open(id, Item::Disk, Price::Monthly(disk), self.now);
        }
        self.bill_volume(id, volume, Item::Volume);
        self.plan(pace.provision, Event::Enter(id.to_owned(), attempt, Life::Starting));
        let ready = pace.provision.saturating_add(pace.start);
        self.plan(ready, Event::Enter(id.to_owned(), attempt, Life::Running));
        // It was bought for at least the price of now: this only says when to look again.
        let _ = self.outbid(id, attempt);
    }

    pub(super) fn bill_compute(&mut self, id: &str) {
        let now = self.now;
        let Ok(machine) = self.known(id) else { return };
        let (product, units) = (machine.order.product, machine.order.units);
        let (sale, rate) = (machine.order.sale, machine.rate);
        let spot = &self.products[product.0].spot;
        let price = match (sale, spot) {
            (Sale::Spot { .. }, Some(series)) if !self.biller.rules().spot_costs_the_bid => {
                Price::Market(series.clone(), units)
            }
            _ => Price::Hourly(rate),
        };
        self.biller.open(id, Item::Compute, price, now);
    }

    fn bill_volume(&mut self, id: &str, volume: u32, item: Item) {
        let rules = self.biller.rules();
        let stopped = item == Item::VolumeStopped;
        let price = if stopped { rules.volume_stopped } else { rules.volume_running };
        let price = price.saturating_mul(i64::from(volume));
        if price > 0 {
            self.biller.open(id, item, Price::Monthly(price), self.now);
        }
    }
}
