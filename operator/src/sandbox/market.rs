//! What the market does while one looks on. The first machine is taken away, as its provider does
//! that; the host of the second dies without a word; the third may finish.

use jiff::{SignedDuration, Timestamp};
use petaflop_cloud_box::engine::machine::Life;

use super::clouds::{Cloud, Clouds};

/// What happens to machines, in this order.
const STORY: [Turn; 2] = [Turn::TakenAway, Turn::HostDies];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    TakenAway,
    HostDies,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The provider wants it back.
    TakenAway {
        /// The provider's id of the machine.
        machine: String,
        /// Until then it may save what it has.
        notice: Option<SignedDuration>,
    },
    /// Its host is gone, and nobody says so.
    HostDies {
        /// The provider's id of the machine.
        machine: String,
    },
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TakenAway { machine, notice: None } => {
                write!(f, "{machine} is taken away, now")
            }
            Self::TakenAway { machine, notice: Some(left) } => {
                write!(f, "{machine} is taken away in {} seconds", left.as_secs())
            }
            Self::HostDies { machine } => {
                write!(f, "the host of {machine} dies, and nobody is told")
            }
        }
    }
}

/// What has happened so far.
#[derive(Debug)]
pub struct Market {
    after: SignedDuration,
    told: Vec<String>,
}

impl Market {
    /// In which things happen to a machine so many seconds after its program started.
    pub fn new(after: u32) -> Self {
        Self { after: SignedDuration::from_secs(after.into()), told: Vec::new() }
    }

    /// Lets happen what is due. Called often.
    pub fn turn(&mut self, clouds: &Clouds, now: Timestamp) -> Option<Event> {
        let rented = clouds.rented();
        let runs = rented.iter().filter(|(_, machine)| machine.life == Life::Running);
        let running: Vec<(&str, Timestamp)> =
            runs.filter_map(|(_, machine)| Some((&*machine.id, machine.started?))).collect();
        let (turn, id) = self.due(&running, now)?;
        let (cloud, _) = rented.iter().find(|(_, machine)| machine.id == id)?;
        Some(match turn {
            Turn::HostDies => {
                clouds.kill(&id);
                Event::HostDies { machine: id }
            }
            Turn::TakenAway => {
                let notice = cloud.notice();
                take_away(*cloud, &id, notice);
                cloud.dries_up();
                Event::TakenAway { machine: id, notice }
            }
        })
    }

    /// What is due: the next turn befalls a machine that has run for a while and that nothing
    /// befell yet. It is told once.
    fn due(&mut self, running: &[(&str, Timestamp)], now: Timestamp) -> Option<(Turn, String)> {
        let turn = *STORY.get(self.told.len())?;
        let mut long = running.iter().filter(|(_, since)| now.duration_since(*since) >= self.after);
        let (id, _) = long.find(|(id, _)| !self.told.iter().any(|told| told == id))?;
        self.told.push((*id).to_owned());
        Some((turn, (*id).to_owned()))
    }
}

fn take_away(cloud: &dyn Cloud, id: &str, notice: Option<SignedDuration>) {
    let notice = notice.and_then(|left| left.try_into().ok());
    cloud.engine(&mut |engine| {
        if let Err(error) = engine.evict(id, notice) {
            // It ended in this moment.
            tracing::debug!(id, %error, "nothing to take away");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
    }

    #[test]
    fn each_turn_befalls_another_machine_once_it_has_run_for_a_while() {
        let mut market = Market::new(45);
        let first = ("first", at(0));
        assert_eq!(market.due(&[first], at(44)), None, "it has not run for long");
        assert_eq!(market.due(&[first], at(45)), Some((Turn::TakenAway, "first".into())));
        assert_eq!(market.due(&[first], at(99)), None, "it still runs, within its notice");
        let second = ("second", at(50));
        assert_eq!(market.due(&[second], at(94)), None);
        assert_eq!(market.due(&[second], at(95)), Some((Turn::HostDies, "second".into())));
        let third = ("third", at(100));
        assert_eq!(market.due(&[second, third], at(999)), None, "the story is over");
    }
}
