//! The provider's own bill: what ran from when to when at which price. It shares no code with
//! petaflop's ledger, so that each can be held against the other.
//!
//! A begun second counts in full. A line is exact until its end, where half a micro-dollar is
//! rounded up; the invoice is the sum of its lines.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::series::Series;

const HOUR: i64 = 3600;
/// Disk is sold by the month of 730 hours.
const MONTH: i64 = 730 * HOUR;

/// How a provider bills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Each start, and each disk, is billed for at least so many seconds.
    pub minimum_seconds: i64,
    /// What can be taken away costs what was bid; else the market's price at the start of each of
    /// the machine's hours.
    pub spot_costs_the_bid: bool,
    /// Times are cut to whole seconds, as the provider tells them.
    pub whole_seconds: bool,
    /// Billing begins when the machine runs; else when it was bought.
    pub billed_once_it_runs: bool,
    /// What is sold at the market's price and taken away in its first hour costs nothing. What is not
    /// has no such hour: it is not interrupted, its host fails.
    pub first_hour_free_if_evicted: bool,
    /// Disk of a running machine, micro-dollars a GB and month.
    pub disk: i64,
    /// Kept disk of a running machine, micro-dollars a GB and month.
    pub volume_running: i64,
    /// Kept disk of a machine that does not run, micro-dollars a GB and month.
    pub volume_stopped: i64,
}

impl Rules {
    /// RunPod's, as read on 2026-11-20: by the second; container disk 0.10 dollars a GB-month while
    /// it runs; volume disk 0.10, and 0.20 while stopped; spot costs the bid.
    pub const RUNPOD: Self = Self {
        minimum_seconds: 0,
        spot_costs_the_bid: true,
        whole_seconds: false,
        billed_once_it_runs: false,
        first_hour_free_if_evicted: false,
        disk: 100_000,
        volume_running: 100_000,
        volume_stopped: 200_000,
    };

    /// EC2's for Linux, as read on 2026-11-20: by the second and at least a minute; the spot price
    /// in force at the start of each hour; no charge when interrupted in the first one; while it is
    /// pending nothing is charged. Its volumes are disks of their own, `gp3`, whether it runs or not.
    pub const EC2_LINUX: Self = Self {
        minimum_seconds: 60,
        spot_costs_the_bid: false,
        whole_seconds: true,
        billed_once_it_runs: true,
        first_hour_free_if_evicted: true,
        disk: 0,
        volume_running: 80_000,
        volume_stopped: 80_000,
    };
}

/// What a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// Accelerators or processors.
    Compute,
    /// Disk that lives while the machine runs.
    Disk,
    /// Disk that is kept, of a running machine.
    Volume,
    /// Disk that is kept, of a stopped one.
    VolumeStopped,
}

/// By what a line is reckoned.
#[derive(Clone, Debug)]
pub enum Price {
    /// Micro-dollars an hour.
    Hourly(i64),
    /// Micro-dollars a month of 730 hours.
    Monthly(i64),
    /// The series' price at the start of each hour of the line, times so many units.
    Market(Series, u32),
}

/// A line of the invoice.
#[derive(Clone, Debug)]
pub struct Line {
    /// The provider's id of the machine.
    pub machine: String,
    /// What for.
    pub item: Item,
    /// By what.
    pub price: Price,
    /// Since when.
    pub from: Timestamp,
    /// Until when; `None`: it bills now.
    pub until: Option<Timestamp>,
    /// The provider gave it away: it was taken back too early to be charged.
    pub waived: bool,
    minimum: i64,
}

impl Line {
    /// Seconds that it bills until a time, whatever they cost.
    pub fn billed_seconds(&self, now: Timestamp) -> i64 {
        if now < self.from {
            0
        } else {
            self.seconds(self.until.map_or(now, |until| until.min(now)))
        }
    }

    fn seconds(&self, until: Timestamp) -> i64 {
        let span = until.duration_since(self.from);
        let begun = i64::from(span.subsec_nanos() > 0);
        (span.as_secs() + begun).max(self.minimum).max(0)
    }

    /// Micro-dollars of it at a time.
    pub fn micros(&self, now: Timestamp) -> i64 {
        if self.waived || now < self.from {
            return 0;
        }
        let seconds = self.billed_seconds(now);
        let (exact, per) = match &self.price {
            Price::Hourly(micros) => (i128::from(*micros) * i128::from(seconds), HOUR),
            Price::Monthly(micros) => (i128::from(*micros) * i128::from(seconds), MONTH),
            Price::Market(series, units) => (self.market(series, *units, seconds), HOUR),
        };
        let per = i128::from(per);
        i64::try_from((exact + per / 2).div_euclid(per)).unwrap_or(i64::MAX)
    }

    fn market(&self, series: &Series, units: u32, seconds: i64) -> i128 {
        let hours = (0..seconds).step_by(HOUR as usize).map(|passed| {
            let start = self.from.as_second() + passed;
            let price = series.at(Timestamp::from_second(start).unwrap_or(self.from));
            i128::from(price) * i128::from((seconds - passed).min(HOUR))
        });
        hours.sum::<i128>() * i128::from(units)
    }
}

/// The biller of one account.
#[derive(Debug)]
pub struct Biller {
    rules: Rules,
    lines: Vec<Line>,
}

impl Biller {
    /// One without lines.
    pub fn new(rules: Rules) -> Self {
        Self { rules, lines: Vec::new() }
    }

    /// Its rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// A time as the provider tells it.
    fn told(&self, at: Timestamp) -> Timestamp {
        let whole = Timestamp::from_second(at.as_second()).ok();
        whole.filter(|_| self.rules.whole_seconds).unwrap_or(at)
    }

    /// Something begins to bill.
    pub fn open(&mut self, machine: &str, item: Item, price: Price, from: Timestamp) {
        let minimum = self.rules.minimum_seconds;
        let (machine, from) = (machine.to_owned(), self.told(from));
        self.lines.push(Line { machine, item, price, from, until: None, waived: false, minimum });
    }

    /// All that bills of a machine ends; `evicted`: because the provider took it back.
    pub fn close(&mut self, machine: &str, until: Timestamp, evicted: bool) {
        let until = self.told(until);
        let open = self.lines.iter_mut().filter(|line| line.until.is_none());
        for line in open.filter(|line| line.machine == machine) {
            let young = until.duration_since(line.from).as_secs() < HOUR;
            line.until = Some(until);
            let spot = matches!(line.price, Price::Market(..));
            line.waived = evicted && spot && young && self.rules.first_hour_free_if_evicted;
        }
    }

    /// The market in which a machine pays has another series, the same until now.
    pub fn reprice(&mut self, machine: &str, series: &Series) {
        let open = self.lines.iter_mut().filter(|l| l.until.is_none() && l.machine == machine);
        for line in open {
            if let Price::Market(known, _) = &mut line.price {
                *known = series.clone();
            }
        }
    }

    /// The invoice at a time.
    pub fn invoice(&self, now: Timestamp) -> Invoice {
        Invoice { now, lines: self.lines.clone() }
    }

    /// Micro-dollars so far.
    pub fn spent(&self, now: Timestamp) -> i64 {
        self.lines.iter().map(|line| line.micros(now)).sum()
    }
}

/// All that an account was billed for until a time.
#[derive(Clone, Debug)]
pub struct Invoice {
    now: Timestamp,
    lines: Vec<Line>,
}

impl Invoice {
    /// Its lines, in the order in which they began.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Micro-dollars of everything.
    pub fn total(&self) -> i64 {
        self.lines.iter().map(|line| line.micros(self.now)).sum()
    }

    /// Micro-dollars of each machine.
    pub fn by_machine(&self) -> BTreeMap<String, i64> {
        let mut sums = BTreeMap::new();
        for line in &self.lines {
            *sums.entry(line.machine.clone()).or_default() += line.micros(self.now);
        }
        sums
    }

    /// Machines that still bill.
    pub fn open(&self) -> Vec<&str> {
        let mut open: Vec<&str> =
            self.lines.iter().filter(|l| l.until.is_none()).map(|l| l.machine.as_str()).collect();
        open.dedup();
        open
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn start() -> Timestamp {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    fn billed(rules: Rules, price: Price, millis: i64, evicted: bool) -> i64 {
        let mut biller = Biller::new(rules);
        biller.open("m", Item::Compute, price, start());
        let end = start() + SignedDuration::from_millis(millis);
        biller.close("m", end, evicted);
        biller.spent(end + SignedDuration::from_hours(9))
    }

    #[test]
    fn begun_seconds_count_in_full_and_half_a_micro_dollar_is_rounded_up() {
        assert_eq!(billed(Rules::RUNPOD, Price::Hourly(3600), 1, false), 1);
        assert_eq!(billed(Rules::RUNPOD, Price::Hourly(3600), 1001, false), 2);
        assert_eq!(billed(Rules::RUNPOD, Price::Hourly(1800), 1000, false), 1);
        assert_eq!(billed(Rules::RUNPOD, Price::Hourly(1799), 1000, false), 0);
    }

    #[test]
    fn ec2_bills_a_minute_at_least_and_nothing_for_a_first_hour_that_it_ended() {
        assert_eq!(billed(Rules::EC2_LINUX, Price::Hourly(3_600_000), 5000, false), 60_000);
        let spot = || Price::Market(Series::recorded("by hand", 3_600_000, Vec::new()), 1);
        assert_eq!(billed(Rules::EC2_LINUX, spot(), 5000, true), 0);
        assert_eq!(billed(Rules::EC2_LINUX, spot(), 3_600_000, true), 3_600_000);
        // On demand nothing is waived.
        assert_eq!(billed(Rules::EC2_LINUX, Price::Hourly(3_600_000), 5000, true), 60_000);
    }

    #[test]
    fn the_markets_price_counts_from_the_start_of_each_of_the_machines_hours() {
        let change = start() + SignedDuration::from_mins(30);
        let series = Series::recorded("by hand", 1_000_000, vec![(change, 3_000_000)]);
        let price = Price::Market(series, 2);
        assert_eq!(billed(Rules::EC2_LINUX, price.clone(), 3_600_000, false), 2_000_000);
        assert_eq!(billed(Rules::EC2_LINUX, price, 5_400_000, false), 2_000_000 + 3_000_000);
    }

    #[test]
    fn disk_is_a_seven_hundred_and_thirtieth_of_its_monthly_price_an_hour() {
        let hours = 730 * 3_600_000;
        assert_eq!(billed(Rules::RUNPOD, Price::Monthly(100_000 * 40), hours, false), 4_000_000);
    }
}
