//! What happens by itself: machines start, deadlines come, accounts are settled, programs end.

use std::time::Duration;

use jiff::Timestamp;

use super::machine::{Life, Why};
use super::{Engine, Refusal, later};

/// Something that is due. An event of an attempt is void when the machine was stopped meanwhile.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A machine of this attempt gets as far as this.
    Enter(String, u32, Life),
    /// The notice of a machine of this attempt is over.
    Evict(String, u32, Why),
    /// The price may have passed the bid for a machine of this attempt.
    Outbid(String, u32),
    /// A machine of this attempt has ended.
    Gone(String, u32),
    /// A machine's own deadline to stop.
    Stop(String),
    /// A machine's own deadline to end.
    End(String),
    /// The account is settled.
    Settle,
}

impl Engine {
    pub(super) fn happen(&mut self, event: Event) {
        // What became of a machine meanwhile decides; then there is nothing to do.
        let _ = match event {
            Event::Enter(id, attempt, life) => self.enter(&id, attempt, life),
            Event::Evict(id, attempt, why) => match self.machine(&id) {
                Some(machine) if machine.attempt == attempt => self.leave(&id, why),
                _ => Ok(()),
            },
            Event::Outbid(id, attempt) => self.outbid(&id, attempt),
            Event::Gone(id, attempt) => self.gone(&id, attempt),
            Event::Stop(id) => self.halt(&id, Why::Deadline),
            Event::End(id) => self.end(&id, Why::Deadline),
            Event::Settle => self.settle(),
        };
    }

    fn enter(&mut self, id: &str, attempt: u32, life: Life) -> Result<(), Refusal> {
        let now = self.now;
        let image = self.known(id)?.order.boot.image.clone();
        let pulled = self.host.pulls(&image);
        let machine = self.known(id)?;
        if machine.attempt != attempt {
            return Ok(());
        }
        machine.stuck |= !pulled;
        if machine.stuck && life == Life::Running {
            // Where billing begins with running, the provider takes it for running.
            if self.biller.rules().billed_once_it_runs {
                self.known(id)?.started = Some(now);
                self.bill_compute(id);
            }
            return Ok(());
        }
        machine.life = life;
        if life == Life::Running {
            machine.started = Some(now);
            let boot = machine.order.boot.clone();
            if self.biller.rules().billed_once_it_runs {
                self.bill_compute(id);
            }
            self.host.start(id, &boot);
        }
        Ok(())
    }

    /// An empty account stops everything, and ends what keeps nothing elsewhere.
    fn settle(&mut self) -> Result<(), Refusal> {
        if self.balance().is_some_and(|left| left <= 0) {
            let alive = self.machines.iter().filter(|machine| machine.life != Life::Terminated);
            let alive: Vec<String> = alive.map(|machine| machine.id.clone()).collect();
            for id in alive {
                self.end(&id, Why::Balance)?;
            }
        }
        self.plan(self.pace.settle, Event::Settle);
        Ok(())
    }

    /// Programs that ended by themselves: their machines stop.
    pub(super) fn notice_ended_programs(&mut self) {
        let running = self.machines.iter().filter(|machine| machine.life == Life::Running);
        let running: Vec<String> = running.map(|machine| machine.id.clone()).collect();
        for id in running {
            if !self.host.alive(&id) {
                // It runs: it was just asked.
                let _ = self.leave(&id, Why::Process);
            }
        }
    }

    pub(super) fn plan(&mut self, from_now: Duration, event: Event) {
        self.plan_at(later(self.now, from_now), event);
    }

    pub(super) fn plan_at(&mut self, at: Timestamp, event: Event) {
        self.planned += 1;
        self.agenda.insert((at, self.planned), event);
    }
}
