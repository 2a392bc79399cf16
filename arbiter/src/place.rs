//! Placing one workload: the best offers, and what came nearest where none will do.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::candidates::{Candidate, Found, Promise};
use crate::checks::{of_place, rises_with_price};
use crate::claim::{Claim, Device};
use crate::decision::{MISSES_SHOWN, Miss, RANKED_SHOWN};
use crate::fit::{self, All, First};
use crate::market::{Class, Stock};
use crate::money::Usd;
use crate::objective::Course;
use crate::obstacle::{Check, Obstacle};
use crate::offer::{Capacity, Offer};
use crate::pass::Pass;
use crate::search::{Merge, Open, Row, Stopped};
use crate::workload::Workload;

impl<'a> Pass<'a> {
    /// Finds the best offers for one machine of a workload; for one that has a machine, this one, what it may leave it for.
    pub(crate) fn search(&self, workload: &'a Workload, held: Option<&'a Claim>) -> Found<'a> {
        let open = Open::of(&self.world.market, &workload.placement);
        let mut stopped = Stopped::new();
        let rows = self.rows(workload, workload.placement.capacity, &open, &mut stopped);
        let (buyable, dated): (Vec<&Row<'a>>, Vec<&Row<'a>>) =
            rows.iter().partition(|row| row.stock.class().buyable);
        let takeable = self.best(workload, &buyable, &open, Check::Dearer, &mut stopped);
        let dated = self.best(workload, &dated, &open, Check::NotForSale, &mut stopped);
        let mut takeable = takeable;
        let mut guided = self.guided(workload, held, &buyable, &open, &takeable);
        if let Some(guided) = &mut guided {
            takeable = std::mem::take(&mut guided.takes);
            stopped.add(Check::SpotPolicy, guided.vetoed.len() as u32);
        }
        // Each offer is counted once: the chosen one as none, what it beat as dearer.
        stopped.add(Check::Dearer, takeable.len().saturating_sub(1) as u32);
        let on_demand = match takeable.is_empty() {
            true => None,
            false => self.on_demand(workload, &rows, &open),
        };
        Found { takeable, dated, on_demand, stopped, guided }
    }

    /// The best few of some classes. What comes after them is counted as stopped by `rest`.
    fn best(
        &self,
        workload: &'a Workload,
        rows: &[&Row<'a>],
        open: &Open,
        rest: Check,
        stopped: &mut Stopped,
    ) -> Vec<Candidate<'a>> {
        let mut best = Vec::new();
        let mut merge = Merge::new(rows, open);
        while best.len() < RANKED_SHOWN
            && let Some((row, one)) = merge.next()
        {
            let mut first = First::default();
            if self.check_offer(workload, one.offer, one.total, &mut first) {
                self.check_now(workload, one.offer, &one.course, one.total, &mut first);
            }
            match first.0 {
                None => best.push(one),
                Some(Check::NotForSale) => {
                    best.push(one);
                    stopped.add(Check::NotForSale, 1);
                }
                // What follows costs no less.
                Some(check) if rises_with_price(check) => stopped.add(check, 1 + merge.close(row)),
                // None of the others was quoted later.
                Some(Check::StaleQuote) if rows[row].stock.good_until() <= self.now_millis => {
                    stopped.add(Check::StaleQuote, 1 + merge.close(row));
                }
                Some(check) => stopped.add(check, 1),
            }
        }
        stopped.add(rest, merge.rest());
        best
    }

    /// The cheapest on-demand offer that meets the constraints of the workload, also where another
    /// capacity type is asked for: what the choice is compared with.
    fn on_demand(
        &self,
        workload: &'a Workload,
        rows: &[Row<'a>],
        open: &Open,
    ) -> Option<Candidate<'a>> {
        let others;
        let rows = match workload.placement.capacity {
            Some(Capacity::Spot | Capacity::Owned) => {
                let on_demand = Some(Capacity::OnDemand);
                others = self.rows(workload, on_demand, open, &mut Stopped::new());
                &others
            }
            Some(Capacity::OnDemand) | None => rows,
        };
        let rows: Vec<&Row<'a>> =
            rows.iter().filter(|row| row.stock.class().capacity == Capacity::OnDemand).collect();
        let mut merge = Merge::new(&rows, open);
        loop {
            let (row, one) = merge.next()?;
            let mut first = First::default();
            if self.check_offer(workload, one.offer, one.total, &mut first) {
                return Some(one);
            }
            if first.0.is_some_and(rises_with_price) {
                merge.close(row);
            }
        }
    }

    /// The offers that came nearest, each with everything that would have to give: fewest
    /// obstacles first, then the smallest distance. At most two of the same kind.
    ///
    /// Looked at in the order of what class and place alone put in the way: once enough was found
    /// that fewer things stop, nothing else can be nearer.
    pub(crate) fn misses(&self, workload: &'a Workload) -> Vec<Miss> {
        let open = Open::of(&self.world.market, &workload.placement);
        let views: Vec<(&Stock, View)> = self
            .world
            .market
            .stocks()
            .map(|stock| (stock, self.view(workload, stock.class())))
            .collect();
        let mut parts: Vec<(usize, usize, Option<Check>)> = Vec::new();
        for (index, (stock, view)) in views.iter().enumerate() {
            for check in [None, Some(Check::Region), Some(Check::Zone)] {
                if stock.aisles().iter().any(|aisle| open.check(aisle.place) == check) {
                    parts.push((view.obstacles.len() + usize::from(check.is_some()), index, check));
                }
            }
        }
        parts.sort_unstable();
        let mut nearest = Nearest::default();
        for (at_least, index, check) in parts {
            if nearest.is_full_before(at_least) {
                break;
            }
            let (stock, view) = &views[index];
            let mut settled = 0;
            for offer in stock.by_price(|place| open.check(place) == check) {
                let verdict = self.verdict(workload, view, offer);
                if verdict.obstacles.is_empty() {
                    continue;
                }
                // What only class, place and price stop is nearer than everything dearer there.
                let mut checks = verdict.obstacles.iter().map(Obstacle::check);
                settled +=
                    u32::from(checks.all(|check| of_place(check) || rises_with_price(check)));
                nearest.take(verdict);
                if settled == SAME_KIND {
                    break;
                }
            }
        }
        nearest.misses()
    }

    /// Every offer with everything that stands in its way. For people who ask, not for deciding.
    pub(crate) fn verdicts(&self, workload: &'a Workload) -> Vec<Verdict<'a>> {
        let mut verdicts = Vec::with_capacity(self.world.market.len());
        for stock in self.world.market.stocks() {
            let view = self.view(workload, stock.class());
            verdicts.extend(stock.offers().map(|offer| self.verdict(workload, &view, offer)));
        }
        verdicts
    }

    /// A class on the device that has fewest obstacles, and of two with as many the faster.
    fn view(&self, workload: &Workload, class: &Class) -> View {
        let mut of_provider = All::default();
        let provider = self.check_provider(workload, class, &mut of_provider);
        if let Some(needs) = workload.placement.capacity
            && needs != class.capacity
        {
            let has = class.capacity;
            of_provider.0.push(Obstacle::CapacityType { needs, has });
        }
        let (better, other) = fit::devices(workload, class);
        let on = |device: Device| {
            let mut sink = All(of_provider.0.clone());
            let course = provider.and_then(|provider| {
                self.check_device(workload, class, provider, device, &mut sink)
            });
            View { device, course, obstacles: sink.0 }
        };
        let rank = |view: &View| {
            let millis = view.course.and_then(|(course, _)| course.millis_to_end());
            (view.obstacles.len(), millis)
        };
        let better = on(better);
        match other.map(on) {
            Some(other) if rank(&other) < rank(&better) => other,
            Some(_) | None => better,
        }
    }

    fn verdict(&self, workload: &Workload, view: &View, offer: &'a Offer) -> Verdict<'a> {
        let mut sink = All(view.obstacles.clone());
        match &view.course {
            Some((course, _)) => {
                let total = course.dollars(offer.price);
                self.check_offer(workload, offer, total, &mut sink);
                self.check_now(workload, offer, course, total, &mut sink);
            }
            // Without a course there are no dollars to check, but there are places and prices.
            None => {
                self.check_offer(workload, offer, Usd::ZERO, &mut sink);
                let dated = offer.not_for_sale();
                sink.0.extend(dated.map(|note| Obstacle::NotForSale { note }));
            }
        }
        sink.0.sort_by_key(Obstacle::check);
        Verdict { offer, device: view.device, course: view.course, obstacles: sink.0 }
    }
}

/// Misses of one kind that are shown.
const SAME_KIND: u32 = 2;

/// The nearest misses seen so far, of each kind (what checks stop them) the nearest.
#[derive(Default)]
struct Nearest<'a> {
    kinds: HashMap<Vec<Check>, Vec<Near<'a>>>,
}

/// A miss with its distance.
struct Near<'a> {
    distance: f64,
    verdict: Verdict<'a>,
}

impl Near<'_> {
    /// The nearer first: fewer obstacles, then distance, then price, then id.
    fn order(&self, other: &Self) -> Ordering {
        let key = |near: &Self| (near.verdict.obstacles.len(), near.verdict.offer.price);
        let (mine, its) = (key(self), key(other));
        mine.0
            .cmp(&its.0)
            .then_with(|| self.distance.total_cmp(&other.distance))
            .then_with(|| mine.1.cmp(&its.1))
            .then_with(|| self.verdict.offer.id.cmp(&other.verdict.offer.id))
    }
}

impl<'a> Nearest<'a> {
    fn take(&mut self, verdict: Verdict<'a>) {
        let kind = verdict.obstacles.iter().map(Obstacle::check).collect();
        let distance = verdict.obstacles.iter().map(Obstacle::distance).sum();
        let near = Near { distance, verdict };
        let same = self.kinds.entry(kind).or_default();
        let at = same.partition_point(|known| known.order(&near) == Ordering::Less);
        if at < SAME_KIND as usize {
            same.insert(at, near);
            same.truncate(SAME_KIND as usize);
        }
    }

    /// Whether there are enough with fewer obstacles than so many.
    fn is_full_before(&self, obstacles: usize) -> bool {
        let fewer = |kind: &&Vec<Check>| kind.len() < obstacles;
        let found = self.kinds.iter().filter(|(kind, _)| fewer(kind)).map(|(_, same)| same.len());
        found.sum::<usize>() >= MISSES_SHOWN
    }

    fn misses(self) -> Vec<Miss> {
        let mut all: Vec<Near<'a>> = self.kinds.into_values().flatten().collect();
        all.sort_by(Near::order);
        all.into_iter()
            .take(MISSES_SHOWN)
            .map(|Near { verdict, .. }| Miss {
                total: verdict.course.map(|(course, _)| course.dollars(verdict.offer.price)),
                offer: verdict.offer.clone(),
                obstacles: verdict.obstacles,
            })
            .collect()
    }
}

/// What stands in the way of a whole class.
struct View {
    device: Device,
    course: Option<(Course, Promise)>,
    obstacles: Vec<Obstacle>,
}

/// One offer and everything that stands in its way.
pub(crate) struct Verdict<'a> {
    pub(crate) offer: &'a Offer,
    pub(crate) device: Device,
    pub(crate) course: Option<(Course, Promise)>,
    pub(crate) obstacles: Vec<Obstacle>,
}
