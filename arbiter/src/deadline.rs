//! A job that must end in time, put to the spot policies: [`crate::spot`] decides here as it does in a replay.
//!
//! | the model's | is here |
//! |---|---|
//! | zone | a spot offer that is cheaper to the end than on-demand: the best few, and those the job saw lately |
//! | on-demand | the cheapest such offer of those that keep the deadline best |
//! | work W | the work left at the lowest likely rate, on the slowest of these machines; prices of quicker ones are scaled to it |
//! | restart d | twice the usual launch and fetching, as learned, and the work that may not be durable at the next look; one launch more for each on-demand offer that refused lately |
//! | there, gone | held by this job, or quoted by a provider that quotes its stock; refused lately, or quoted no more |
//! | unknown | a price without a word of stock (AWS): who tries, learns |
//! | tick | 300 s, or as many times as long as leave a thousand ticks; time left is rounded down to whole ones |
//!
//! So W and d are bounds, and on-demand is not certain: the theorem of [`crate::spot::safety`] holds for the model, and here as far as these
//! bounds do. A choice is for a tick and made anew in each pass. The policy is P1 where a table of its law is ready, R1 before.
//!
//! Money is kept for on-demand as time is: spot is left, or not begun with, where on-demand could not be paid any more after a try
//! that comes to nothing. A look is taken at each limit as it is now: of two jobs that share a budget each counts on what is left.
//!
//! A slower zone counts only while time is plenty with its work: else its W would take the others' time from them. Not asked:
//! for what may be on spot only, or never again; where what one owns does it in time and costs less; where nothing on-demand
//! will do, or something else is surer to be in time.

mod question;

use jiff::Timestamp;

use crate::candidates::{Candidate, Promise};
use crate::claim::Claim;
use crate::decision::{Advice, Advised, Outcome};
use crate::fit::First;
use crate::market::Class;
use crate::money::Usd;
use crate::objective::{Bounds, Course};
use crate::obstacle::{Check, Obstacle};
use crate::offer::{Capacity, Offer};
use crate::pass::Pass;
use crate::reason::Reason;
use crate::search::{Merge, Open, Row};
use crate::spot::law::BASE;
use crate::spot::model::Sight;
use crate::spot::shelf::Key;
use crate::watch::Watch;
use crate::workload::{InterruptionPolicy, Work, Workload};
use question::Question;

/// Places that are looked at.
const ZONES: usize = 8;

/// Refusals of on-demand that are counted.
const REFUSALS: u32 = 10;

/// Ticks that are looked ahead; where that is not enough they are made longer.
const TICKS: i64 = 1_024;

/// A place where the job could be on spot.
struct Spot<'a> {
    offer: &'a Offer,
    /// What can be taken there now.
    candidate: Option<Candidate<'a>>,
    course: Course,
    bounds: Bounds,
    sight: Sight,
    /// Whether on-demand could still be paid if this came to nothing.
    payable: bool,
}

/// What the policy said of a job, and what follows from it.
pub(crate) struct Guided<'a> {
    pub(crate) advice: Advice,
    /// What may be taken, the best first; empty where the job waits, or stays.
    pub(crate) takes: Vec<Candidate<'a>>,
    /// What would do otherwise.
    pub(crate) vetoed: Vec<Candidate<'a>>,
    /// The machine held must be left, whatever that costs.
    pub(crate) leaves: bool,
    /// A table that would have been looked into, had it been there.
    pub(crate) wants: Option<Key>,
    /// What the job has seen now.
    pub(crate) watch: Watch,
}

impl Guided<'_> {
    /// Whether the deadline is at risk on what is taken: until the line, on-demand is the way out of any place; where it
    /// refused, that is less sure.
    pub(crate) fn at_risk(&self, chosen: &Candidate<'_>, now: Timestamp) -> bool {
        self.advice.refused > 0 || self.advice.line < now && chosen.promise != Promise::Kept
    }

    /// Why what would do otherwise is not taken.
    pub(crate) const fn obstacle(&self) -> Obstacle {
        Obstacle::SpotPolicy { says: self.advice.says, line: self.advice.line }
    }

    /// What is said to whoever waits.
    pub(crate) fn waiting(&self) -> Option<Outcome> {
        let Advice { says: Advised::Wait, zones, line, on_demand, .. } = &self.advice else {
            return None;
        };
        // People need no more of it than the second.
        let line = Timestamp::from_second(line.as_second()).unwrap_or(*line);
        let message = format!(
            "no spot for now at {zones} places; waits for it until {line} at the latest, then takes {on_demand}"
        );
        Some(Outcome::Waiting { reason: Reason::InsufficientCapacity, message })
    }
}

/// What there is of on-demand.
struct OnDemand<'a> {
    candidate: Candidate<'a>,
    bounds: Bounds,
    /// Offers before it that refused lately.
    refused: u32,
}

impl<'a> Pass<'a> {
    /// Asks the policy, where it has a say: `takeable` is what would do without it, `held` the machine that the job has.
    pub(crate) fn guided(
        &self,
        workload: &'a Workload,
        held: Option<&'a Claim>,
        rows: &[&Row<'a>],
        open: &Open,
        takeable: &[Candidate<'a>],
    ) -> Option<Guided<'a>> {
        let Work::Training(_) = &workload.work else { return None };
        let finish_by = workload.finish_by?;
        if workload.interruption.policy == InterruptionPolicy::Fail
            || workload.placement.capacity.is_some()
        {
            return None;
        }
        let of = |capacity: Capacity| {
            let rows = rows.iter().filter(move |row| row.stock.class().capacity == capacity);
            rows.copied().collect::<Vec<&Row<'a>>>()
        };
        let on_demand = self.cheapest_on_demand(workload, &of(Capacity::OnDemand), open)?;
        // On-demand that keeps the deadline less surely than what would be taken without it is no way out.
        let surer = |best: &Candidate<'_>| best.promise.tier() < on_demand.candidate.promise.tier();
        if takeable.first().is_some_and(surer) {
            return None;
        }
        // What cannot be in time is made the best of, by whatever ends soonest.
        if let Promise::Broken(_) = on_demand.candidate.promise {
            return None;
        }
        let memory = self.world.watched.iter().find(|watch| watch.workload == workload.id.uid);
        let left = finish_by.as_millisecond().saturating_sub(self.now_millis).div_euclid(1_000);
        let spots = self.spots(workload, &of(Capacity::Spot), open, held, memory);
        let owned = |one: &&Candidate<'_>| {
            one.offer.capacity == Capacity::Owned && one.promise == Promise::Kept
        };
        let owned = takeable.iter().find(owned).map_or(Usd::MAX, |one| one.total);
        let sure = on_demand.candidate.total.min(owned);
        let mut spots = in_time(spots, &on_demand, sure, held, left);
        if spots.is_empty() {
            return None;
        }
        let look_again = tick(left) * 1_000;
        for spot in &mut spots {
            let runs = held.is_some_and(|claim| claim.spec.offer.id == spot.offer.id);
            // A try that is lost before its first checkpoint; what runs is asked again before another tick is paid.
            let start = if runs { 0 } else { spot.bounds.restart(look_again) };
            let millis = start.saturating_add(look_again);
            spot.payable = self.pays_after(workload, &on_demand.candidate, spot.offer, millis);
        }
        let question = Question { workload, held, takeable, on_demand, spots, memory, left };
        Some(question.put(&self.world.tables, self.now))
    }

    /// The on-demand offer to fall back on, and how many came before it that refused lately.
    fn cheapest_on_demand(
        &self,
        workload: &'a Workload,
        rows: &[&Row<'a>],
        open: &Open,
    ) -> Option<OnDemand<'a>> {
        let mut refused = 0;
        let mut merge = Merge::new(rows, open);
        loop {
            let (row, candidate) = merge.next()?;
            match self.stopped_by(workload, &candidate) {
                None => {
                    let bounds = candidate.course.bounds?;
                    return Some(OnDemand { candidate, bounds, refused });
                }
                Some(Check::Unavailable) if refused < REFUSALS => refused += 1,
                Some(check) if crate::checks::rises_with_price(check) => {
                    merge.close(row);
                }
                Some(_) => {}
            }
        }
    }

    /// What stops an offer of a class that will do.
    fn stopped_by(&self, workload: &Workload, one: &Candidate<'_>) -> Option<Check> {
        let mut first = First::default();
        if self.check_offer(workload, one.offer, one.total, &mut first) {
            self.check_now(workload, one.offer, &one.course, one.total, &mut first);
        }
        first.0
    }

    /// The places where the job could be on spot, the cheapest first.
    fn spots(
        &self,
        workload: &'a Workload,
        rows: &[&Row<'a>],
        open: &Open,
        held: Option<&'a Claim>,
        memory: Option<&'a Watch>,
    ) -> Vec<Spot<'a>> {
        let held = held.map(|claim| &claim.spec.offer).filter(is_spot);
        let mut spots: Vec<Spot<'a>> = Vec::with_capacity(ZONES);
        let mut merge = Merge::new(rows, open);
        while spots.len() < ZONES
            && let Some((row, one)) = merge.next()
        {
            let stopped = self.stopped_by(workload, &one);
            let Some(bounds) = one.course.bounds else { continue };
            let (candidate, sight) = match stopped {
                None => (Some(one), self.sight(one.offer)),
                Some(Check::Unavailable) => (None, Sight::Gone),
                Some(check) if crate::checks::rises_with_price(check) => {
                    merge.close(row);
                    continue;
                }
                Some(_) => continue,
            };
            let (offer, course) = (one.offer, one.course);
            spots.push(Spot { offer, candidate, course, bounds, sight, payable: true });
        }
        // The one that is held, and those that are quoted no more.
        let watched = memory.into_iter().flat_map(Watch::offers);
        for offer in held.into_iter().chain(watched) {
            let is_held = held.is_some_and(|held| held.id == offer.id);
            match spots.iter_mut().find(|spot| spot.offer.id == offer.id) {
                Some(spot) if is_held => spot.sight = Sight::There,
                Some(_) => {}
                None if !is_held && self.world.market.get(&offer.id).is_some() => {}
                None => {
                    let sight = if is_held { Sight::There } else { Sight::Gone };
                    spots.extend(self.absent(workload, offer, sight));
                }
            }
        }
        spots
    }

    /// A place that the market does not show.
    fn absent(&self, workload: &'a Workload, offer: &'a Offer, sight: Sight) -> Option<Spot<'a>> {
        let class = Class::of(offer);
        let provider = self.check_provider(workload, &class, &mut First::default())?;
        let chosen = self.choose_device(workload, &class, provider, &mut First::default());
        let (_, course, _) = chosen?;
        let bounds = course.bounds?;
        Some(Spot { offer, candidate: None, course, bounds, sight, payable: true })
    }

    /// What is known of a quoted spot offer in which the job is not.
    fn sight(&self, offer: &Offer) -> Sight {
        let stock = self.provider(&offer.provider).is_some_and(|state| state.quotes_stock);
        if stock { Sight::There } else { Sight::Unknown }
    }
}

fn is_spot(offer: &&Offer) -> bool {
    offer.capacity == Capacity::Spot
}

/// The places that cost less than what is sure to be had, and whose work leaves time for it.
fn in_time<'a>(
    spots: Vec<Spot<'a>>,
    on_demand: &OnDemand<'a>,
    sure: Usd,
    held: Option<&Claim>,
    left: i64,
) -> Vec<Spot<'a>> {
    let tick = tick(left);
    let least = on_demand.bounds.restart(tick * 1_000) / 1_000 + 2 * tick;
    let plenty = |work: i64| (left - work - least) * 10 > work;
    let mut kept = spots;
    kept.retain(|spot| {
        let is_held = held.is_some_and(|claim| claim.spec.offer.id == spot.offer.id);
        let cheaper = spot.course.dollars(spot.offer.price) < sure;
        let quick = spot.bounds.work <= on_demand.bounds.work;
        is_held || cheaper && (quick || plenty(spot.bounds.work / 1_000))
    });
    kept
}

/// Seconds of a tick with so many seconds left.
fn tick(left: i64) -> i64 {
    let mut tick = BASE;
    while left / tick > TICKS {
        tick *= 2;
    }
    tick
}
