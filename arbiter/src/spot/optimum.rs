//! What a clairvoyant would have paid: the exact dynamic programme over the future.
//!
//! State: tick, slack lost so far, machine with its pending overhead, place of the checkpoint. Slack is lost in
//! multiples of u = gcd(tick, restarts), so the states are finite and nothing is rounded: costs are whole numbers
//! (of [`Paid`]'s unit) held in 64-bit floats, which have no error below 2^53 and for which the processor has a `min`.

use super::model::{Kind, Paid, Terms, ZoneIndex};
use super::replay::{Observe, Recorded, Run};
use crate::money::Usd;

/// What can be run: a zone's spot or on-demand, with the values its pending overhead can have at a tick's start.
struct Runnable {
    zone: ZoneIndex,
    kind: Kind,
    /// Where its values start in a layer, one array a level.
    first: usize,
    /// Slack units that a tick spends: on launch, then by level.
    spends: Vec<usize>,
}

/// The least that meeting the deadline costs from this start; what on-demand costs, and a miss, where it cannot be met.
pub fn optimum(terms: &Terms, market: &[Recorded], start: usize, observe: Observe) -> Run {
    let ticks = terms.ticks();
    let slack = ticks * terms.tick - terms.work;
    if slack < 0 {
        return on_demand_only(terms, market, start);
    }
    let unit = terms.zones.iter().fold(terms.tick, |unit, zone| gcd(unit, zone.restart));
    let most = (slack / unit) as usize;
    let step = (terms.tick / unit) as usize;
    let homes = if terms.pays_for_moves() { terms.zones.len() + 1 } else { 1 };
    let home_of = |zone: ZoneIndex| if homes == 1 { 0 } else { zone + 1 };
    let (options, arrays) = options(terms, market, unit, homes);
    let width = most + 1;
    let mut next = vec![0.0_f64; arrays * width];
    let mut this = vec![0.0_f64; arrays * width];
    for left in 1..=ticks {
        let tick = (ticks - left) as usize;
        let now = start + tick;
        let high = most.min(tick * step);
        // Where less slack is lost than this, the work is done.
        let low = match slack - left * terms.tick {
            spare if spare < 0 => 0,
            spare => ((spare / unit) as usize + 1).min(width),
        };
        if low > high {
            this.fill(0.0);
            std::mem::swap(&mut this, &mut next);
            continue;
        }
        for home in 0..homes {
            let (from, to) = (home * width, (home + 1) * width);
            let best = &mut this[from..to];
            best[..low].fill(0.0);
            best[low..=high].fill(f64::INFINITY);
            relax(best, &next[from..to], low, high, step, 0.0);
            for option in &options {
                let zone = &market[option.zone];
                if option.kind == Kind::Spot && !zone.has_spot(now) {
                    continue;
                }
                let from = home.checked_sub(1);
                let moved = terms.move_cost(from, option.zone);
                let asked = match (observe, option.kind) {
                    (Observe::Probed, Kind::Spot) => terms.zones[option.zone].probe,
                    _ => Usd::ZERO,
                };
                let once = Paid::once(moved).plus(Paid::once(asked));
                let cost = tick_cost(terms, zone, option.kind, now).plus(once).units() as f64;
                let array = option.first * width;
                relax(best, &next[array..array + width], low, high, option.spends[0], cost);
            }
        }
        for option in &options {
            let zone = &market[option.zone];
            let alive = option.kind == Kind::OnDemand || zone.has_spot(now);
            let cost = tick_cost(terms, zone, option.kind, now).units() as f64;
            for (level, spends) in option.spends[1..].iter().enumerate() {
                let (starts, rest) = this.split_at_mut(homes * width);
                let home = home_of(option.zone) * width;
                let array = (option.first - homes + level) * width;
                let out = &mut rest[array..array + width];
                out[..=high].copy_from_slice(&starts[home..=home + high]);
                if alive {
                    let after = option.first + (level + 1).min(option.spends.len() - 2);
                    relax(out, &next[after * width..(after + 1) * width], low, high, *spends, cost);
                }
            }
        }
        std::mem::swap(&mut this, &mut next);
    }
    if next[0].is_infinite() {
        return on_demand_only(terms, market, start);
    }
    Run { paid: Paid::from_units(next[0] as i64), moves: 0, missed: false }
}

/// out[k] = min(out[k], next[k + shift] + cost), within the slack there is.
fn relax(out: &mut [f64], next: &[f64], low: usize, high: usize, shift: usize, cost: f64) {
    let end = (high + 1).min(next.len().saturating_sub(shift));
    if low >= end {
        return;
    }
    for (out, next) in out[low..end].iter_mut().zip(&next[low + shift..end + shift]) {
        let value = next + cost;
        *out = if value < *out { value } else { *out };
    }
}

fn tick_cost(terms: &Terms, zone: &Recorded, kind: Kind, now: usize) -> Paid {
    let price = match kind {
        Kind::Spot => zone.spot.at(now),
        Kind::OnDemand => zone.on_demand,
    };
    Paid::rate(price, terms.tick)
}

/// Everything that can be run, and the number of arrays in a layer. On-demand of equal price and restart is one option, where moves
/// are free.
fn options(terms: &Terms, market: &[Recorded], unit: i64, homes: usize) -> (Vec<Runnable>, usize) {
    let mut options: Vec<Runnable> = Vec::new();
    let mut first = homes;
    for kind in [Kind::Spot, Kind::OnDemand] {
        for (zone, at) in terms.zones.iter().enumerate() {
            let same = |other: &Runnable| {
                other.kind == kind
                    && terms.zones[other.zone].restart == at.restart
                    && market[other.zone].on_demand == market[zone].on_demand
            };
            if kind == Kind::OnDemand && homes == 1 && options.iter().any(same) {
                continue;
            }
            let mut pending = at.restart;
            let mut spends = vec![(pending.min(terms.tick) / unit) as usize];
            while pending > 0 {
                pending = (pending - terms.tick).max(0);
                spends.push((pending.min(terms.tick) / unit) as usize);
            }
            if spends.len() == 1 {
                spends.push(0);
            }
            let levels = spends.len() - 1;
            options.push(Runnable { zone, kind, first, spends });
            first += levels;
        }
    }
    (options, first)
}

fn on_demand_only(terms: &Terms, market: &[Recorded], start: usize) -> Run {
    let mut policy = super::policies::OnDemand;
    super::replay::run(terms, market, start, super::replay::Manner::default(), &mut policy)
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
