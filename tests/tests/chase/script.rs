//! What happens to a chased job, as a pure function of a seed: where it goes, what goes wrong while
//! its machines are bought and while they run, how it loses them. In words too, so that a seed that
//! fails says what it did.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use petaflop_cloud_box::engine::chance::Chance;
use petaflop_cloud_box::faults::Fault;

/// Where it is cheapest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Spot instances of EC2.
    Aws,
    /// Hosts of RunPod Community.
    RunPod,
}

/// What goes wrong while a machine is bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purchase {
    /// Nothing.
    Plain,
    /// It is done, and nobody hears of it.
    LostAnswer,
    /// It never comes there.
    LostRequest,
    /// 500, and done all the same.
    ErrorButDone,
    /// 500, and not done.
    ErrorNotDone,
    /// Gone since it was quoted.
    CapacityGone,
    /// It costs so many thousandths of what was quoted.
    WrongPrice(u32),
    /// It bills, and never gets as far as its program.
    NeverStarts,
    /// The operator dies once the machine is made, for so many minutes.
    OperatorDies(u32),
}

/// What goes wrong while a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Operator and store do not reach the machine, nor it them, for so many seconds.
    CutFromOperator(u32),
    /// The machine does not reach its provider, for so many seconds.
    CutFromProvider(u32),
    /// The operator is dead for so many minutes.
    OperatorDead(u32),
    /// The operator's wall clock is off by so many seconds, and is put right later.
    ClockOff(i32),
    /// A provider answers nothing but 503 for so many minutes.
    Outage(Place, u32),
    /// The operator's calls to a provider are cut for so many minutes: done, and not heard of.
    CutFromOperators(Place, u32),
    /// All that a provider sells beside costs nothing, or all there is, for a while.
    AbsurdPrices(i64),
}

/// How it loses a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Taken away, two minutes after it was told so.
    Notice,
    /// Taken away.
    Evicted,
    /// Its host dies.
    HostDies,
}

/// One machine's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) place: Place,
    pub(crate) purchase: Purchase,
    pub(crate) troubles: Vec<Trouble>,
    /// `None`: the job finishes there.
    pub(crate) loss: Option<Loss>,
    /// The operator is dead when that happens, and for so many minutes.
    pub(crate) unseen: Option<u32>,
}

/// What happens to one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    /// A listing of RunPod's shows a pod so many seconds after its purchase.
    pub(crate) listed_after: u32,
    pub(crate) hops: Vec<Hop>,
}

/// Nearly as late as RunPod was seen to be.
const LATE: u32 = 50;

const OUTAGES: [u32; 5] = [5, 10, 20, 45, 120];
const STEPS: [i32; 6] = [-3600, -600, -45, 30, 900, 5400];
const DEAD: [u32; 4] = [1, 3, 8, 15];

impl Script {
    /// The script of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        // Seeds are neighbours; what they give is not.
        let mut chance = Chance::new(Chance::new(seed).draw());
        let losses = [0, 1, 1, 1, 1, 2, 2][chance.below(7) as usize];
        let mut hops: Vec<Hop> = (0..=losses).map(|at| hop(&mut chance, at < losses)).collect();
        // One that nothing happens to shows nothing.
        if hops.iter().all(|hop| hop.loss.is_none() && hop.is_quiet()) {
            hops[0].troubles.push(trouble(&mut chance));
        }
        let listed_after = if chance.below(8) == 0 { LATE } else { 0 };
        Self { seed, listed_after, hops }
    }

    /// The kinds of what happens in it.
    pub(crate) fn kinds(&self) -> BTreeSet<&'static str> {
        let mut kinds = BTreeSet::new();
        if self.listed_after > 0 {
            kinds.insert("late-listing");
        }
        for hop in &self.hops {
            kinds.insert(match hop.place {
                Place::Aws => "aws",
                Place::RunPod => "runpod",
            });
            kinds.extend(hop.purchase.kind());
            kinds.extend(hop.troubles.iter().map(|trouble| trouble.kind()));
            kinds.extend(hop.loss.map(|loss| match loss {
                Loss::Notice => "notice",
                Loss::Evicted => "evicted",
                Loss::HostDies => "host-dies",
            }));
            kinds.extend(hop.unseen.map(|_| "unseen"));
        }
        kinds
    }
}

impl Hop {
    fn is_quiet(&self) -> bool {
        self.purchase == Purchase::Plain && self.troubles.is_empty()
    }
}

impl Purchase {
    /// What the providers do in their next purchase.
    pub(crate) fn fault(self) -> Option<Fault> {
        Some(match self {
            Self::Plain | Self::OperatorDies(_) => return None,
            Self::LostAnswer => Fault::LostAnswer,
            Self::LostRequest => Fault::LostRequest,
            Self::ErrorButDone => Fault::ErrorButDone,
            Self::ErrorNotDone => Fault::ErrorNotDone,
            Self::CapacityGone => Fault::CapacityGone,
            Self::WrongPrice(permille) => Fault::PriceChanged(permille),
            Self::NeverStarts => Fault::NeverStarts,
        })
    }

    fn kind(self) -> Option<&'static str> {
        self.fault().map(Fault::name).or(match self {
            Self::OperatorDies(_) => Some("operator-dies-buying"),
            _ => None,
        })
    }
}

impl Trouble {
    fn kind(self) -> &'static str {
        match self {
            Self::CutFromOperator(_) => "machine-cut-from-operator",
            Self::CutFromProvider(_) => "machine-cut-from-provider",
            Self::OperatorDead(_) => "operator-dead",
            Self::ClockOff(seconds) if seconds < 0 => "clock-back",
            Self::ClockOff(_) => "clock-forward",
            Self::Outage(..) => "outage",
            Self::CutFromOperators(..) => "operator-cut-from-provider",
            Self::AbsurdPrices(_) => "absurd-prices",
        }
    }
}

fn of<T: Copy>(chance: &mut Chance, all: &[T]) -> T {
    all[chance.below(all.len() as u64) as usize]
}

fn place(chance: &mut Chance) -> Place {
    of(chance, &[Place::Aws, Place::RunPod])
}

fn hop(chance: &mut Chance, is_lost: bool) -> Hop {
    let place = place(chance);
    let purchase = match chance.below(16) {
        0 => Purchase::LostAnswer,
        1 => Purchase::LostRequest,
        2 => Purchase::ErrorButDone,
        3 => Purchase::ErrorNotDone,
        4 => Purchase::CapacityGone,
        5 => Purchase::WrongPrice(of(chance, &[1200, 3000, 100_000])),
        6 => Purchase::NeverStarts,
        7 => Purchase::OperatorDies(of(chance, &DEAD)),
        _ => Purchase::Plain,
    };
    let troubles = [0, 0, 1, 1, 1, 2][chance.below(6) as usize];
    let troubles = (0..troubles).map(|_| trouble(chance)).collect();
    let loss = is_lost.then(|| of(chance, &[Loss::Notice, Loss::Evicted, Loss::HostDies]));
    let unseen = (is_lost && chance.below(6) == 0).then(|| of(chance, &DEAD));
    Hop { place, purchase, troubles, loss, unseen }
}

fn trouble(chance: &mut Chance) -> Trouble {
    match chance.below(7) {
        0 => Trouble::CutFromOperator(20 + chance.below(200) as u32),
        1 => Trouble::CutFromProvider(20 + chance.below(200) as u32),
        2 => Trouble::OperatorDead(of(chance, &DEAD)),
        3 => Trouble::ClockOff(of(chance, &STEPS)),
        4 => Trouble::Outage(place(chance), of(chance, &OUTAGES)),
        5 => Trouble::CutFromOperators(place(chance), of(chance, &OUTAGES)),
        _ => Trouble::AbsurdPrices(of(chance, &[0, 1, 900_000_000_000_000])),
    }
}

/// Minutes as time.
pub(crate) fn minutes(minutes: u32) -> Duration {
    Duration::from_secs(u64::from(minutes) * 60)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aws => "AWS",
            Self::RunPod => "RunPod",
        })
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.listed_after > 0 {
            write!(f, "pods are listed after {} s; ", self.listed_after)?;
        }
        for (at, hop) in self.hops.iter().enumerate() {
            let Hop { place, purchase, troubles, loss, unseen } = hop;
            write!(f, "{}{place}", if at == 0 { "" } else { " -> " })?;
            let mut said: Vec<String> = Vec::new();
            match purchase {
                Purchase::Plain => {}
                Purchase::WrongPrice(permille) => said.push(format!("costs {permille}/1000")),
                Purchase::OperatorDies(minutes) => {
                    said.push(format!("operator dies buying, {minutes} min"));
                }
                _ => said.extend(purchase.kind().map(str::to_owned)),
            }
            said.extend(troubles.iter().map(|trouble| match trouble {
                Trouble::CutFromOperator(seconds) => format!("cut from operator {seconds} s"),
                Trouble::CutFromProvider(seconds) => format!("cut from provider {seconds} s"),
                Trouble::OperatorDead(minutes) => format!("operator dead {minutes} min"),
                Trouble::ClockOff(seconds) => format!("clock off {seconds:+} s"),
                Trouble::Outage(place, minutes) => format!("{place} out {minutes} min"),
                Trouble::CutFromOperators(place, minutes) => {
                    format!("answers of {place} lost {minutes} min")
                }
                Trouble::AbsurdPrices(price) => format!("others cost {price} µ$"),
            }));
            said.extend(loss.map(|loss| {
                let how = match loss {
                    Loss::Notice => "evicted with notice",
                    Loss::Evicted => "evicted",
                    Loss::HostDies => "host dies",
                };
                let unseen =
                    unseen.map(|minutes| format!(" while the operator is dead {minutes} min"));
                format!("{how}{}", unseen.unwrap_or_default())
            }));
            if !said.is_empty() {
                write!(f, " ({})", said.join(", "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_KIND: [&str; 23] = [
        "absurd-prices",
        "aws",
        "capacity-gone",
        "clock-back",
        "clock-forward",
        "error-but-done",
        "error-not-done",
        "evicted",
        "host-dies",
        "late-listing",
        "lost-answer",
        "lost-request",
        "machine-cut-from-operator",
        "machine-cut-from-provider",
        "never-starts",
        "notice",
        "operator-cut-from-provider",
        "operator-dead",
        "operator-dies-buying",
        "outage",
        "price-changed",
        "runpod",
        "unseen",
    ];

    #[test]
    fn every_seed_gives_a_script_that_can_be_finished_and_every_kind_of_fault_occurs() {
        let mut kinds = BTreeSet::new();
        for seed in 0..10_000 {
            let script = Script::of(seed);
            assert_eq!(script, Script::of(seed), "the same seed, the same script");
            let (last, before) = script.hops.split_last().expect("a machine");
            assert!(before.len() <= 2 && before.iter().all(|hop| hop.loss.is_some()), "{script}");
            assert!(last.loss.is_none() && last.unseen.is_none(), "it may finish: {script}");
            // A day is what it stays where it is, whatever is cheaper.
            let steps =
                script.hops.iter().flat_map(|hop| &hop.troubles).map(|trouble| match trouble {
                    Trouble::Outage(_, minutes) | Trouble::CutFromOperators(_, minutes) => {
                        u64::from(*minutes) * 60
                    }
                    Trouble::ClockOff(seconds) => u64::from(seconds.unsigned_abs()),
                    _ => 0,
                });
            assert!(steps.sum::<u64>() < 80_000, "{script}");
            kinds.extend(script.kinds());
        }
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), EVERY_KIND);
    }

    #[test]
    fn a_script_says_what_it_does() {
        let script = Script::of(5);
        let said = script.to_string();
        for hop in &script.hops {
            assert!(said.contains(&hop.place.to_string()), "{said}");
        }
        assert!(said.len() < 600, "{said}");
    }

    #[test]
    fn the_sample_of_make_test_meets_every_kind_of_fault() {
        let kinds: BTreeSet<&str> =
            crate::seeded::SAMPLE.iter().flat_map(|seed| Script::of(*seed).kinds()).collect();
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), EVERY_KIND);
    }
}
