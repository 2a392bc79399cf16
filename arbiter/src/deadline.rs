//! A job that must end in time, put to the spot policies: [`crate::spot`] decides here as it does in a replay.
//!
//! | the model's | is here |
//! |---|---|
//! | zone | a spot offer that is cheaper to the end than on-demand: the best few, and those the job saw lately |
//! | on-demand | the cheapest such offer of those that keep the deadline best |
//! | work W | the work left at the lowest likely rate, on the slowest of these machines; prices of quicker ones are scaled to it |
//! | restart d | twice the usual launch and fetching, and the work that may not be durable at the next look; one launch more for each on-demand offer that refused lately |
//! | there, gone | held by this job, or quoted by a provider that quotes its stock; refused lately, or quoted no more |
//! | unknown | a price without a word of stock (AWS): who tries, learns |
//! | tick | 300 s, or as many times as long as leave a thousand ticks; time left is rounded down to whole ones |
//!
//! So W and d are bounds, and on-demand is not certain: the theorem of [`crate::spot::safety`] holds for the model, and here as far as these
//! bounds do. A choice is for a tick and made anew in each pass. The policy is P1 where a table of its law is ready, R1 before.
//!
//! A slower zone counts only while time is plenty with its work: else its W would take the others' time from them. Not asked:
//! for what may be on spot only, or never again; where what one owns does it in time and costs less; where nothing on-demand will do.

use std::sync::Arc;

use jiff::Timestamp;

use crate::candidates::{Candidate, Promise};
use crate::claim::{Claim, Phase};
use crate::decision::{Advice, Advised, Outcome};
use crate::fit::First;
use crate::market::Class;
use crate::money::{Usd, UsdPerHour};
use crate::objective::{Bounds, Course};
use crate::obstacle::{Check, Obstacle};
use crate::offer::{Capacity, Offer, OfferId};
use crate::pass::Pass;
use crate::reason::Reason;
use crate::search::{Merge, Open, Row};
use crate::spot::law::BASE;
use crate::spot::learned::Learned;
use crate::spot::model::{Choice, Kind, Machine, Place, Policy, Quote, Sight, Terms, View, Zone};
use crate::spot::policies::P1;
use crate::spot::safety;
use crate::spot::shelf::Key;
use crate::spot::table::Spec;
use crate::watch::Watch;
use crate::workload::{InterruptionPolicy, Work, Workload};

/// Places that are looked at.
const ZONES: usize = 8;

/// Refusals of on-demand that are counted.
const REFUSALS: i64 = 10;

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
    /// Why what would do otherwise is not taken.
    pub(crate) const fn obstacle(&self) -> Obstacle {
        Obstacle::SpotPolicy { says: self.advice.says, line: self.advice.line }
    }

    /// What is said to whoever waits.
    pub(crate) fn waiting(&self) -> Option<Outcome> {
        let Advice { says: Advised::Wait, zones, line, on_demand, .. } = &self.advice else {
            return None;
        };
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
    refusals: i64,
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
        let owned = |best: &Candidate<'_>| {
            best.offer.capacity == Capacity::Owned && best.promise == Promise::Kept
        };
        if takeable.first().is_some_and(owned) {
            return None;
        }
        let of = |capacity: Capacity| {
            let rows = rows.iter().filter(move |row| row.stock.class().capacity == capacity);
            rows.copied().collect::<Vec<&Row<'a>>>()
        };
        let on_demand = self.cheapest_on_demand(workload, &of(Capacity::OnDemand), open)?;
        let memory = self.world.watched.iter().find(|watch| watch.workload == workload.id.uid);
        let left = finish_by.as_millisecond().saturating_sub(self.now_millis).div_euclid(1_000);
        let spots = self.spots(workload, &of(Capacity::Spot), open, held, memory);
        let spots = in_time(spots, &on_demand, held, left);
        if spots.is_empty() {
            return None;
        }
        Some(self.ask(workload, held, takeable, &on_demand, &spots, memory, left))
    }

    /// The on-demand offer to fall back on, and how many came before it that refused lately.
    fn cheapest_on_demand(
        &self,
        workload: &'a Workload,
        rows: &[&Row<'a>],
        open: &Open,
    ) -> Option<OnDemand<'a>> {
        let mut refusals = 0;
        let mut merge = Merge::new(rows, open);
        loop {
            let (row, candidate) = merge.next()?;
            match self.stopped_by(workload, &candidate) {
                None => {
                    let bounds = candidate.course.bounds?;
                    return Some(OnDemand { candidate, bounds, refusals });
                }
                Some(Check::Unavailable) if refusals < REFUSALS => refusals += 1,
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
            spots.push(Spot { offer: one.offer, candidate, course: one.course, bounds, sight });
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
        Some(Spot { offer, candidate: None, course, bounds: course.bounds?, sight })
    }

    /// What is known of a quoted spot offer in which the job is not.
    fn sight(&self, offer: &Offer) -> Sight {
        let stock = self.provider(&offer.provider).is_some_and(|state| state.quotes_stock);
        if stock { Sight::There } else { Sight::Unknown }
    }

    #[expect(clippy::too_many_arguments, reason = "one question, put together in `guided`")]
    fn ask(
        &self,
        workload: &'a Workload,
        held: Option<&'a Claim>,
        takeable: &[Candidate<'a>],
        on_demand: &OnDemand<'a>,
        spots: &[Spot<'a>],
        memory: Option<&'a Watch>,
        left: i64,
    ) -> Guided<'a> {
        let seconds = |millis: i64| (millis + 999) / 1_000;
        let bounds = &on_demand.bounds;
        let work = spots.iter().map(|spot| spot.bounds.work).fold(bounds.work, i64::max);
        let tick = tick(left);
        let late = bounds.restart(tick * 1_000).saturating_add(bounds.launch * on_demand.refusals);
        let restart = |spot: &Spot<'_>| seconds(spot.bounds.restart(tick * 1_000).max(late));
        let zone = |spot: &Spot<'_>| Zone { restart: restart(spot), probe: Usd::ZERO };
        let zones: Vec<Zone> = spots.iter().map(zone).collect();
        let terms = Terms {
            tick,
            work: seconds(work).max(1),
            deadline: left.max(0),
            zones,
            egress: Vec::new(),
        };
        // Dollars an hour of on-demand's own work.
        let reference = on_demand.candidate.course.working_millis();
        let scaled = |price: UsdPerHour, course: &Course| {
            let micros = i128::from(price.micros()) * i128::from(course.working_millis())
                / i128::from(reference.max(1));
            let micros = i64::try_from(micros).unwrap_or(i64::MAX);
            UsdPerHour::from_micros(micros).unwrap_or(price)
        };
        let on_demand_price = on_demand.candidate.offer.price;
        let quotes: Vec<Quote> = spots
            .iter()
            .map(|spot| Quote {
                spot: spot.sight,
                spot_price: scaled(spot.offer.price, &spot.course),
                on_demand_price,
            })
            .collect();
        let machine = held.and_then(|claim| self.machine(claim, spots, &terms));
        let view = View {
            terms: &terms,
            tick: 0,
            work_left: terms.work,
            machine,
            home: None,
            zones: &quotes,
        };
        let ids: Vec<&OfferId> = spots.iter().map(|spot| &spot.offer.id).collect();
        let offers = spots.iter().map(|spot| (spot.offer, spot.sight));
        let watch = Watch::after(memory, &workload.id.uid, offers, self.now);
        let learned = match memory {
            Some(watch) => watch.learned(&ids, self.now),
            None => Learned::of(spots.len()),
        };
        let cheapest = quotes.iter().map(|quote| quote.spot_price).min().unwrap_or_default();
        let ratio = cheapest.as_f64() / on_demand_price.as_f64().max(f64::MIN_POSITIVE);
        let spec = Spec::shared(&terms, ratio);
        let tables = Arc::new(self.world.tables.tables(spec));
        let policy = P1::knowing(&terms, Arc::clone(&tables), learned);
        let choice = safety::guarded(&view, policy.choose(&view));
        let wants = tables.missed().map(|law| Key { spec, law });
        let line = view.slack() - terms.shortest_restart();
        let refused = u32::try_from(on_demand.refusals).unwrap_or(u32::MAX);
        let advice = |says: Advised| Advice {
            says,
            policy: if wants.is_some() { "r1" } else { "p1" }.to_owned(),
            zones: u32::try_from(spots.len()).unwrap_or(u32::MAX),
            slack_seconds: view.slack(),
            restart_seconds: terms.shortest_restart(),
            refused,
            line: self.after(line),
            on_demand: on_demand.candidate.offer.id.clone(),
        };
        let is_on_demand = held.is_some() && view.on(Kind::OnDemand).is_some();
        let allowed = |one: &Candidate<'_>| match zone_of(spots, one) {
            Some(zone) => safety::allows(&view, Choice::spot(zone)),
            None => false,
        };
        let rented = |one: &Candidate<'_>| one.offer.capacity == Capacity::Spot;
        let split = |keep: &dyn Fn(&Candidate<'a>) -> bool| {
            takeable.iter().copied().partition::<Vec<Candidate<'a>>, _>(|one| keep(one))
        };
        let (says, (takes, vetoed), leaves) = match (choice, machine) {
            (Choice::Nothing, None) => (Advised::Wait, split(&|_| false), false),
            // A machine is not given up for nothing: it would be had anew in a while.
            (Choice::Nothing, Some(_)) => (Advised::Stay, split(&|one| !rented(one)), false),
            (Choice::Run(place), Some(machine)) if place == machine.place => {
                let keep = |one: &Candidate<'a>| !rented(one) || !is_on_demand && allowed(one);
                (Advised::Stay, split(&keep), false)
            }
            (Choice::Run(Place { zone, kind: Kind::Spot }), _) => {
                let (mut takes, vetoed) = split(&|one| !rented(one) || allowed(one));
                takes.retain(|one| zone_of(spots, one) != Some(zone));
                takes.splice(0..0, spots[zone].candidate);
                (Advised::Spot, (takes, vetoed), false)
            }
            (Choice::Run(Place { kind: Kind::OnDemand, .. }), machine) => {
                let (mut takes, vetoed) = split(&|one| !rented(one));
                let fallback = on_demand.candidate;
                takes.retain(|one| one.offer.id != fallback.offer.id);
                takes.insert(0, fallback);
                // Where on-demand does not end in time either, what runs is the best there is.
                let helps = view.slack() >= terms.shortest_restart();
                match machine {
                    Some(_) if !helps => (Advised::Stay, (Vec::new(), takes), false),
                    machine => (Advised::OnDemand, (takes, vetoed), machine.is_some()),
                }
            }
        };
        Guided { advice: advice(says), takes, vetoed, leaves, wants, watch }
    }

    /// The machine that is held, as the model sees it.
    fn machine(&self, claim: &Claim, spots: &[Spot<'_>], terms: &Terms) -> Option<Machine> {
        let offer = &claim.spec.offer;
        let zone = spots.iter().position(|spot| spot.offer.id == offer.id);
        let place = match (offer.capacity, zone) {
            (Capacity::Spot, Some(zone)) => Place { zone, kind: Kind::Spot },
            (Capacity::Spot, None) => return None,
            // Its zone does not matter: on-demand is one.
            (Capacity::OnDemand | Capacity::Owned, _) => Place { zone: 0, kind: Kind::OnDemand },
        };
        let restart = terms.zones[place.zone].restart;
        let pending = match claim.phase {
            Phase::Launched { at, .. } => restart - self.now.duration_since(at).as_secs().max(0),
            _ => restart,
        };
        Some(Machine { place, pending: pending.clamp(0, restart) })
    }

    fn after(&self, seconds: i64) -> Timestamp {
        let millis = self.now_millis.saturating_add(seconds.saturating_mul(1_000));
        Timestamp::from_millisecond(millis).unwrap_or(self.now)
    }
}

fn is_spot(offer: &&Offer) -> bool {
    offer.capacity == Capacity::Spot
}

fn zone_of(spots: &[Spot<'_>], one: &Candidate<'_>) -> Option<usize> {
    spots.iter().position(|spot| spot.offer.id == one.offer.id)
}

/// The places that cost less than on-demand, and whose work leaves time for it.
fn in_time<'a>(
    spots: Vec<Spot<'a>>,
    on_demand: &OnDemand<'a>,
    held: Option<&Claim>,
    left: i64,
) -> Vec<Spot<'a>> {
    let total = on_demand.candidate.total;
    let tick = tick(left);
    let least = on_demand.bounds.restart(tick * 1_000) / 1_000 + 2 * tick;
    let plenty = |work: i64| (left - work - least) * 10 > work;
    let mut kept = spots;
    kept.retain(|spot| {
        let is_held = held.is_some_and(|claim| claim.spec.offer.id == spot.offer.id);
        let cheaper = spot.course.dollars(spot.offer.price) < total;
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
