//! The objective: expected dollars until the work is done.
//!
//! dollars = price × (start-up + image + inputs + work + rework + upload) + egress. Everything but
//! the price is the same for all offers of a class, so it is worked out once a class
//! ([`Course`]) and priced for each offer; dollars rise with price, so the cheapest offer of a
//! class is also its best. Services have no end: they are priced for one hour of one replica, and
//! their dollars a million tokens are shown.

use crate::checkpoint;
use crate::claim::Device;
use crate::decision::{CostBreakdown, CostTerm, Range, Term};
use crate::estimate::{Correction, NINE_IN_TEN, Rates, correction_key, rates};
use crate::market::Class;
use crate::money::{MILLIS_PER_HOUR, Usd, UsdPerHour};
use crate::offer::Capacity;
use crate::support::Operation;
use crate::workload::{Precision, Progress, TrainingWork, Work, Workload};
use crate::world::{Assumptions, ProviderState, World};

/// Spans are held at about three hundred years, so that sums of them stay within 64 bits.
const LONGEST_MILLIS: i64 = i64::MAX / 1_000_000;

/// The course of a workload on the offers of one class: every term but the price.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Course {
    /// Machine time by term, in milliseconds.
    start_up: i64,
    image: i64,
    inputs: i64,
    work: i64,
    rework: i64,
    upload: i64,
    /// Dollars for bytes that leave the place.
    egress: Usd,
    /// Milliseconds in all if things go well and if they go badly: about nine runs in ten lie between ([`Losses::range`]).
    range: (i64, i64),
    /// Tokens a second.
    pub(crate) tokens_per_second: Option<Range>,
    /// Milliseconds from one decoded token of a sequence to the next.
    pub(crate) millis_per_token: Option<f64>,
    /// Seconds between two checkpoints.
    pub(crate) checkpoint_interval_seconds: Option<u32>,
    /// What a deadline is held against, for what ends by itself.
    pub(crate) bounds: Option<Bounds>,
}

/// Bounds of a training run: nineteen in twenty go better.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    /// Milliseconds of work and upload at the lowest rate.
    pub(crate) work: i64,
    /// Milliseconds from asking for a machine until it can go on.
    pub(crate) launch: i64,
    /// Milliseconds of work that a loss undoes.
    pub(crate) unsaved: i64,
}

impl Bounds {
    /// Milliseconds from a loss until the work is where it was, for whoever looks again after so many: no more than those
    /// can have been undone since what he knew to be durable.
    pub(crate) fn restart(&self, look_again: i64) -> i64 {
        self.launch.saturating_add(self.unsaved.min(look_again)).min(LONGEST_MILLIS)
    }
}

/// A launch takes so many times as long as it usually does there, at most: what is usual is learned ([`crate::estimate::Corrections::launches`]),
/// how much one differs from another nobody has measured.
const LATE_LAUNCH: i64 = 2;

impl Course {
    /// The course of a workload on a class's device, or `None` where its speed cannot be estimated.
    pub(crate) fn of(
        world: &World,
        workload: &Workload,
        class: &Class,
        provider: &ProviderState,
        device: Device,
    ) -> Option<Course> {
        match &workload.work {
            Work::Training(work) => {
                let own = workload.measured.as_ref();
                let known = learned(world, own, class, device, Operation::Train, work.precision)?;
                Some(training(
                    work,
                    &workload.progress,
                    known.training(work),
                    losses_per_hour(class, &world.assumptions),
                    &Launches::at(world, provider),
                ))
            }
            Work::Serving(work) => {
                let known = learned(world, None, class, device, Operation::Serve, work.precision)?;
                let (tokens, millis) = known.decoding(work);
                Some(Course {
                    tokens_per_second: Some(tokens),
                    millis_per_token: Some(millis),
                    ..Course::an_hour()
                })
            }
            Work::Opaque(_) => Some(Course::an_hour()),
        }
    }

    /// Dollars of the work itself, its checkpoints' way out of the place included, by the hour that another machine takes
    /// for the same work: what unlike machines are compared by.
    pub(crate) fn hourly(&self, price: UsdPerHour, on: &Course) -> UsdPerHour {
        let dollars = price.for_millis(self.working_millis()).saturating_add(self.egress);
        let millis = i128::from(on.working_millis().max(1));
        let micros = i128::from(dollars.micros()) * i128::from(MILLIS_PER_HOUR) / millis;
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        UsdPerHour::from_micros(micros).unwrap_or(price)
    }

    const fn working_millis(&self) -> i64 {
        self.work + self.upload
    }

    /// The rest of it where the work is under way: the machine is there, with all that it needs.
    pub(crate) const fn under_way(self) -> Course {
        let there = self.start_up + self.image + self.inputs;
        let range = (self.range.0 - there, self.range.1 - there);
        Course { start_up: 0, image: 0, inputs: 0, range, ..self }
    }

    /// One hour of a machine, of which nothing else is known.
    const fn an_hour() -> Course {
        Course {
            start_up: 0,
            image: 0,
            inputs: 0,
            work: MILLIS_PER_HOUR,
            rework: 0,
            upload: 0,
            egress: Usd::ZERO,
            range: (MILLIS_PER_HOUR, MILLIS_PER_HOUR),
            tokens_per_second: None,
            millis_per_token: None,
            checkpoint_interval_seconds: None,
            bounds: None,
        }
    }

    /// Milliseconds from asking until the work is done, where it ends by itself.
    pub(crate) const fn millis_to_end(&self) -> Option<i64> {
        if self.bounds.is_some() { Some(self.millis()) } else { None }
    }

    /// The same if things go badly.
    pub(crate) const fn late_millis_to_end(&self) -> Option<i64> {
        if self.bounds.is_some() { Some(self.range.1) } else { None }
    }

    const fn millis(&self) -> i64 {
        self.start_up + self.image + self.inputs + self.work + self.rework + self.upload
    }

    /// Dollars at a price: each term rounded by itself, so that a breakdown adds up.
    pub(crate) fn dollars(&self, price: UsdPerHour) -> Usd {
        self.times()
            .into_iter()
            .filter(|(_, millis)| *millis > 0)
            .map(|(_, millis)| price.for_millis(millis))
            .fold(self.egress, Usd::saturating_add)
    }

    /// Dollars until so many milliseconds have passed: never more than [`Course::dollars`].
    pub(crate) fn dollars_within(&self, price: UsdPerHour, millis: i64) -> Usd {
        let within = price.for_millis(millis).saturating_add(self.egress);
        self.dollars(price).min(within)
    }

    const fn times(&self) -> [(Term, i64); 6] {
        [
            (Term::StartUp, self.start_up),
            (Term::Image, self.image),
            (Term::Inputs, self.inputs),
            (Term::Work, self.work),
            (Term::Rework, self.rework),
            (Term::Upload, self.upload),
        ]
    }

    /// All terms at a price, for people.
    pub(crate) fn breakdown(&self, price: UsdPerHour) -> CostBreakdown {
        let mut terms: Vec<CostTerm> = self
            .times()
            .into_iter()
            .filter(|(_, millis)| *millis > 0)
            .map(|(what, millis)| CostTerm { what, millis, usd: price.for_millis(millis) })
            .collect();
        if self.egress > Usd::ZERO {
            terms.push(CostTerm { what: Term::Egress, millis: 0, usd: self.egress });
        }
        CostBreakdown {
            total: self.dollars(price),
            terms,
            millis: self.millis(),
            millis_range: self.range,
            usd_range: self.bounds.map(|_| {
                let (early, late) = self.range;
                let at = |millis| price.for_millis(millis).saturating_add(self.egress);
                (at(early), at(late))
            }),
            tokens_per_second: self.tokens_per_second,
            usd_per_million_tokens: self
                .tokens_per_second
                .filter(|tokens| self.bounds.is_none() && tokens.expected > 0.0)
                .map(|tokens| price.for_millis(to_millis(1e6 / tokens.expected))),
        }
    }
}

/// The rates of a device after what past runs taught, this job's own included.
fn learned(
    world: &World,
    own: Option<&Correction>,
    class: &Class,
    device: Device,
    operation: Operation,
    precision: Precision,
) -> Option<Rates> {
    let plain = rates(class, device, precision)?;
    if world.corrections.entries.is_empty() && own.is_none() {
        return Some(plain);
    }
    let key = correction_key(class, device, operation);
    Some(world.corrections.apply(&key, own, plain))
}

/// Losses an hour: what the provider tells, else what is assumed.
fn losses_per_hour(class: &Class, assumptions: &Assumptions) -> f64 {
    class.interruptions_per_hour.filter(|rate| rate.is_finite() && *rate >= 0.0).unwrap_or(
        match class.capacity {
            Capacity::Spot => assumptions.spot_losses_per_hour,
            Capacity::OnDemand | Capacity::Owned => assumptions.other_losses_per_hour,
        },
    )
}

/// What it is like to start at a provider.
struct Launches<'a> {
    provider: &'a ProviderState,
    /// Bytes of the runtime's image.
    image_bytes: u64,
    /// How many times as long as estimated.
    slowness: f64,
}

impl<'a> Launches<'a> {
    fn at(world: &World, provider: &'a ProviderState) -> Launches<'a> {
        let slowness = world.corrections.launches(&provider.name);
        Launches { provider, image_bytes: world.assumptions.image_bytes, slowness }
    }

    /// Milliseconds of a launch's part, by what launches there really took.
    fn slowed(&self, millis: i64) -> i64 {
        let slowed = (millis as f64 * self.slowness).ceil();
        if slowed < LONGEST_MILLIS as f64 { slowed as i64 } else { LONGEST_MILLIS }
    }
}

/// What losses do to a training run: they come at a constant rate λ, and each throws away what was done since the last
/// checkpoint, anything from none to a whole interval I, and while that was on its way, and repeats start-up, image and inputs.
struct Losses {
    /// λ, an hour.
    per_hour: f64,
    /// Seconds that one loss takes on average: I/2 + durable + restart (Young 1974, first order).
    mean: f64,
    /// The mean of its square: mean² + I²/12, the point of the interval being as likely as any.
    mean_square: f64,
}

impl Losses {
    /// Of an interval in seconds, and milliseconds until a checkpoint is durable and until a new machine can go on. The next
    /// checkpoint begins when the last is durable.
    fn of(per_hour: f64, interval: u32, durable: i64, restart: i64) -> Losses {
        let durable = durable as f64 / 1000.0;
        let interval = f64::from(interval).max(durable);
        let mean = interval / 2.0 + durable + restart as f64 / 1000.0;
        Losses { per_hour, mean, mean_square: mean * mean + interval * interval / 12.0 }
    }

    /// How many are expected in so many milliseconds of work.
    fn expected(&self, work_millis: i64) -> f64 {
        self.per_hour * work_millis as f64 / MILLIS_PER_HOUR as f64
    }

    /// Milliseconds of rework that are expected.
    fn rework(&self, work_millis: i64) -> i64 {
        to_millis(self.expected(work_millis) * self.mean)
    }

    /// Milliseconds of work and rework between which nine runs in ten lie, from the work that is expected and what it is at the
    /// rates that nineteen in twenty stay below and above.
    ///
    /// The rework of N losses, N by Poisson, has the variance λT·E\[c²\] (a compound Poisson sum; Ross, *Introduction to
    /// Probability Models*). Rate and losses are taken for independent, so their deviations are added as squares, each side by
    /// itself. No run is shorter than its work at the high rate without a loss.
    fn range(&self, work_millis: i64, (quick, slow): (i64, i64)) -> (i64, i64) {
        let all = |work: i64| work.saturating_add(self.rework(work)).min(LONGEST_MILLIS);
        let expected = all(work_millis);
        let scatter = NINE_IN_TEN * libm::sqrt(self.expected(work_millis) * self.mean_square);
        let off = |at: i64| {
            let rate = (all(at) - expected) as f64 / 1000.0;
            to_millis(libm::sqrt(rate * rate + scatter * scatter))
        };
        let early = expected.saturating_sub(off(quick)).max(quick);
        (early.min(expected), expected.saturating_add(off(slow)).min(LONGEST_MILLIS))
    }
}

/// The course of a training run.
fn training(
    work: &TrainingWork,
    progress: &Progress,
    tokens_per_second: Range,
    losses_per_hour: f64,
    launches: &Launches<'_>,
) -> Course {
    let provider = launches.provider;
    let left = work.steps.saturating_sub(progress.steps_done) as f64;
    let tokens = left * work.tokens_per_step as f64;
    let transfer = |bytes: u64| transfer_millis(provider, bytes);
    let resumed = if progress.steps_done > 0 { work.checkpoint_bytes } else { 0 };
    let start_up = launches.slowed(provider.startup_millis.clamp(0, LONGEST_MILLIS));
    let image = launches.slowed(transfer(launches.image_bytes));
    let inputs = launches.slowed(transfer(work.input_bytes.saturating_add(resumed)));
    let durable = checkpoint_millis(work, progress, provider);
    let upload = match progress.checkpoint_millis {
        // As fast as a checkpoint was, of which the size is known.
        Some(_) if work.checkpoint_bytes > 0 => to_millis(
            durable as f64 / 1000.0 * work.artifact_bytes as f64 / work.checkpoint_bytes as f64,
        ),
        _ => transfer(work.artifact_bytes),
    };
    let restart = start_up
        .saturating_add(image)
        .saturating_add(
            launches.slowed(transfer(work.input_bytes.saturating_add(work.checkpoint_bytes))),
        )
        .min(LONGEST_MILLIS);
    let interval = work
        .checkpoint_interval_seconds
        .unwrap_or_else(|| checkpoint::interval_seconds(durable, losses_per_hour));
    let losses = Losses::of(losses_per_hour, interval, durable, restart);
    let fixed = start_up + image + inputs + upload;
    let work_millis = to_millis(tokens / tokens_per_second.expected);
    let at = |rate: f64| to_millis(tokens / rate);
    let range = losses.range(work_millis, (at(tokens_per_second.high), at(tokens_per_second.low)));
    let leaving = match provider.fetch_bytes_per_second {
        Some(_) => {
            let interval = i64::from(interval.max(1));
            let checkpoints = u64::try_from(work_millis / 1000 / interval).unwrap_or(0);
            checkpoints.saturating_mul(work.checkpoint_bytes).saturating_add(work.artifact_bytes)
        }
        None => 0,
    };
    Course {
        start_up,
        image,
        inputs,
        work: work_millis,
        rework: losses.rework(work_millis),
        upload,
        egress: for_bytes(provider.egress_usd_per_gb, leaving),
        range: (
            fixed.saturating_add(range.0).min(LONGEST_MILLIS),
            fixed.saturating_add(range.1).min(LONGEST_MILLIS),
        ),
        tokens_per_second: Some(tokens_per_second),
        millis_per_token: None,
        checkpoint_interval_seconds: Some(interval),
        bounds: Some(Bounds {
            work: to_millis(tokens / tokens_per_second.low)
                .saturating_add(upload)
                .min(LONGEST_MILLIS),
            launch: restart.saturating_mul(LATE_LAUNCH).min(LONGEST_MILLIS),
            unsaved: (i64::from(interval) * 1000).max(durable).saturating_add(durable),
        }),
    }
}

/// Milliseconds until a checkpoint is durable: as long as this job's last one took. That was on another
/// machine perhaps; but it is known of this job's state and of its store, and taken for all places
/// alike it makes no place look better only because nobody has measured there yet.
pub(crate) fn checkpoint_millis(
    work: &TrainingWork,
    progress: &Progress,
    provider: &ProviderState,
) -> i64 {
    let guessed = || transfer_millis(provider, work.checkpoint_bytes);
    progress.checkpoint_millis.map_or_else(guessed, |measured| measured.clamp(0, LONGEST_MILLIS))
}

/// Milliseconds in which bytes come to a provider's machine, or leave it.
fn transfer_millis(provider: &ProviderState, bytes: u64) -> i64 {
    let seconds = |rate: u64| bytes as f64 / rate.max(1) as f64;
    provider.fetch_bytes_per_second.map_or(0, |rate| to_millis(seconds(rate)))
}

/// Dollars for bytes at a price for 10⁹ of them, rounded up.
fn for_bytes(per_gb: Usd, bytes: u64) -> Usd {
    let micros =
        (i128::from(per_gb.micros().max(0)) * i128::from(bytes) + 999_999_999) / 1_000_000_000;
    Usd::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

/// Seconds as whole milliseconds, rounded up; what is not a number, or too long, is held at the longest span.
fn to_millis(seconds: f64) -> i64 {
    let millis = (seconds * 1000.0).ceil();
    if millis >= 0.0 && millis < LONGEST_MILLIS as f64 { millis as i64 } else { LONGEST_MILLIS }
}
