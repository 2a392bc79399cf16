//! Chases by seed. Each plays its script in a cluster and two clouds of its own, on shared machines;
//! the bill of the clouds judges it.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use petaflop_cloud_box::ec2;
use petaflop_cloud_box::engine::machine::{Machine, Why};
use petaflop_cloud_box::faults::{Fault, Operation, When};
use petaflop_cloud_box::machines::Side;
use petaflop_crds::TrainingJob;
use petaflop_harness::eventually;
use petaflop_operator::cluster::operate::Running;
use rustix::process::Signal;
use serde_json::json;

use crate::ONE_AT_A_TIME;
use crate::clouds::{LONG, lines};
use crate::market::Market;
use crate::operator::is;
use crate::oracles::{Billed, CLOCK, Verdict, judge};
use crate::script::{Hop, Loss, Place, Purchase, Script, Trouble, minutes};
use crate::world::{JOB, Size, World};

/// Seeds of `make test`: together they meet every kind of fault.
pub(crate) const SAMPLE: [u64; 3] = [7780, 29_008, 104_141];

/// Seconds of training, so that there is time to lose machines in.
const SIZE: Size = Size { steps: 1000, small: true };
/// How long it works before it rests: some checkpoints.
const WORKS: Duration = Duration::from_secs(2);

/// How late the end of a machine is noticed that nobody tells of: an agent that is silent for 90 s is
/// looked for, a sweep comes every 120 s, and gone is what was not seen twice.
const NOTICED: SignedDuration = SignedDuration::from_mins(5);

/// Two minutes that are real for the machine, in a cloud whose time goes ten times as fast.
const NOTICE_TICK: u64 = 100;

/// What came of a chase.
struct Report {
    machines: usize,
    /// Micro-dollars.
    invoiced: i64,
    finished: bool,
    hash_equal: bool,
    verdict: Verdict,
    /// Why it did not end.
    error: Option<String>,
    /// Machines that were to be lost, and were not: the job was faster.
    unreached: usize,
    took: Duration,
}

impl Report {
    fn is_clean(&self) -> bool {
        self.finished && self.hash_equal && self.error.is_none() && self.verdict.is_clean()
    }
}

/// A time in which the operator could not see or tell what was so.
struct Blind {
    from: Timestamp,
    until: Timestamp,
    kind: Unseen,
}

enum Unseen {
    Operator,
    Provider(Place),
    Clock(SignedDuration),
}

/// One script, while it is played.
struct Play {
    world: World,
    running: Option<Running>,
    blinds: Vec<Blind>,
    /// Number of the last placement that ran.
    placed: u32,
    /// Machines that the job needs, as far as it got.
    needed: usize,
    unreached: usize,
}

impl Play {
    /// To the end of the job.
    async fn on(&mut self, script: &Script) -> Result<TrainingJob> {
        let first = script.hops.first().context("a hop")?;
        self.world.clouds.favour(first.place);
        self.running = Some(self.world.operator().await?);
        self.arm(first.purchase);
        self.world.cluster.create(&self.world.job(SIZE)?).await?;
        for (at, hop) in script.hops.iter().enumerate() {
            self.buy(hop).await?;
            let over = self.runs().await?;
            self.disarm(hop.purchase);
            if over {
                self.unreached += script.hops.len() - 1 - at;
                break;
            }
            // Hours pass in moments: it rests in them, or it would be over. Where it may finish it
            // does not.
            if hop.loss.is_some() {
                tokio::time::sleep(WORKS).await;
                self.world.signal(Signal::STOP)?;
            }
            for trouble in &hop.troubles {
                self.meet(*trouble).await?;
            }
            if let (Some(loss), Some(next)) = (hop.loss, script.hops.get(at + 1)) {
                self.lose(loss, hop.unseen, next).await?;
            }
        }
        let complete = self.world.cluster.until(JOB, "Complete", LONG, |job| is_over(job)).await?;
        self.world.cluster.until_no_claims().await?;
        let running = self.running.as_ref().context("an operator")?;
        self.world.cluster.quiet(running).await?;
        Ok(complete)
    }

    fn now(&self) -> Timestamp {
        self.world.clouds.now()
    }

    /// Lets time pass, in larger steps the more it is.
    async fn pass(&self, time: Duration) {
        let seconds = match time.as_secs() {
            0..120 => 1,
            120..1200 => 3,
            _ => 6,
        };
        self.world.ticking.pass(time, seconds).await;
    }

    fn arm(&self, purchase: Purchase) {
        if let Some(fault) = purchase.fault() {
            for place in [Place::Aws, Place::RunPod] {
                self.world.clouds.faults(place, |faults| faults.next(fault, Operation::Create));
            }
        }
    }

    fn disarm(&self, purchase: Purchase) {
        if let Some(fault) = purchase.fault() {
            for place in [Place::Aws, Place::RunPod] {
                self.world.clouds.faults(place, |faults| faults.off(fault.name()));
            }
        }
    }

    /// What has to be waited for before a machine runs.
    async fn buy(&mut self, hop: &Hop) -> Result<()> {
        let needed = self.needed;
        match hop.purchase {
            Purchase::NeverStarts => {
                let stuck = || self.world.clouds.alive().filter(|(_, machine)| machine.stuck);
                let made = self.until_made_or_over(|| stuck().is_some()).await?;
                if made {
                    self.needed += 1;
                    // The launch timeout, and a look.
                    self.pass(minutes(21)).await;
                }
            }
            Purchase::OperatorDies(away) => {
                let clouds = &self.world.clouds;
                if self.until_made_or_over(|| clouds.bought() >= needed).await? {
                    self.die(away).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether it came to that before the job was over.
    async fn until_made_or_over(&self, made: impl Fn() -> bool) -> Result<bool> {
        let cluster = &self.world.cluster;
        let what = "a machine is made, or the job is over";
        Ok(eventually(what, LONG, || async {
            if made() {
                return Ok(true);
            }
            let job = cluster.job(JOB).await.map_err(|error| error.to_string())?;
            if is_over(&job) { Ok(false) } else { Err(format!("{:?}", job.status)) }
        })
        .await?)
    }

    /// Waits until the job runs in another place than before; whether it is over instead.
    async fn runs(&mut self) -> Result<bool> {
        let placed = self.placed;
        let what = format!("running in another place than {placed}");
        let number = |job: &TrainingJob| {
            let place = job.status.as_ref().and_then(|status| status.placement.as_ref());
            place.and_then(|place| place.number).unwrap_or_default()
        };
        let runs = |job: &TrainingJob| {
            let conditions = job.status.as_ref().map(|status| &status.conditions);
            conditions.is_some_and(|conditions| is(conditions, "Running")) && number(job) > placed
        };
        let seen = |job: &TrainingJob| runs(job) || is_over(job);
        let job = self.world.cluster.until(JOB, &what, LONG, seen).await?;
        self.placed = number(&job);
        Ok(is_over(&job))
    }

    /// The operator is dead for so long.
    async fn die(&mut self, away: u32) -> Result<()> {
        let from = self.now();
        drop(self.running.take());
        self.pass(minutes(away)).await;
        self.blinds.push(Blind { from, until: self.now(), kind: Unseen::Operator });
        self.running = Some(self.world.operator().await?);
        Ok(())
    }

    async fn meet(&mut self, trouble: Trouble) -> Result<()> {
        let from = self.now();
        match trouble {
            Trouble::OperatorDead(away) => self.die(away).await?,
            Trouble::CutFromOperator(seconds) => self.cut(Side::Operator, seconds).await,
            Trouble::CutFromProvider(seconds) => self.cut(Side::Provider, seconds).await,
            Trouble::Outage(place, away) => {
                self.faulty(place, Fault::Unavailable, away).await;
            }
            Trouble::CutFromOperators(place, away) => {
                self.faulty(place, Fault::LostAnswer, away).await;
            }
            Trouble::ClockOff(seconds) => {
                let off = SignedDuration::from_secs(i64::from(seconds));
                let clock = self.world.cluster.clock.clone();
                clock.step_wall(off);
                self.pass(Duration::from_secs(100)).await;
                clock.step_wall(-off);
                let kind = Unseen::Clock(off.abs());
                self.blinds.push(Blind { from, until: self.now(), kind });
            }
            Trouble::AbsurdPrices(price) => {
                self.world.clouds.price_dear(price);
                self.pass(minutes(3)).await;
                self.world.clouds.price_dear_again();
            }
        }
        Ok(())
    }

    async fn cut(&self, side: Side, seconds: u32) {
        let Some((_, machine)) = self.world.clouds.alive() else { return };
        self.world.clouds.market.machines.cut(&machine.id, side);
        self.pass(Duration::from_secs(seconds.into())).await;
        self.world.clouds.market.machines.mend(&machine.id);
    }

    async fn faulty(&mut self, place: Place, fault: Fault, away: u32) {
        let from = self.now();
        self.world.clouds.faults(place, |faults| faults.on(fault, None, When::Always));
        self.pass(minutes(away)).await;
        self.world.clouds.faults(place, |faults| faults.off(fault.name()));
        self.blinds.push(Blind { from, until: self.now(), kind: Unseen::Provider(place) });
    }

    /// The job loses its machine, and knows of a cheapest place to go to.
    async fn lose(&mut self, loss: Loss, unseen: Option<u32>, next: &Hop) -> Result<()> {
        self.world.clouds.favour(next.place);
        self.pass(Duration::from_secs(150)).await;
        self.arm(next.purchase);
        let from = self.now();
        if unseen.is_some() {
            drop(self.running.take());
        }
        let clouds = &self.world.clouds;
        let alive = clouds.alive();
        // Who is told so saves what he has; RunPod tells nobody.
        if loss == Loss::Notice && alive.as_ref().is_some_and(|(place, _)| *place == Place::Aws) {
            self.world.signal(Signal::CONT)?;
        }
        // The job was over already.
        self.unreached += usize::from(alive.is_none());
        if let Some((place, machine)) = alive {
            self.needed += 1;
            match loss {
                Loss::Notice => {
                    let left = Some(ec2::PACE.notice);
                    clouds.engine(place, |engine| engine.evict(&machine.id, left))?;
                    self.world.ticking.every(NOTICE_TICK);
                    eventually("the machine is given back or taken", LONG, || async {
                        let alive = clouds.alive().filter(|(_, now)| now.id == machine.id);
                        alive.is_none().then_some(()).ok_or_else(|| format!("{alive:?}"))
                    })
                    .await?;
                    self.world.ticking.every(crate::market::time::TICK);
                }
                Loss::Evicted => clouds.engine(place, |engine| engine.evict(&machine.id, None))?,
                Loss::HostDies => clouds.market.machines.kill(&machine.id),
            }
        }
        if let Some(away) = unseen {
            self.pass(minutes(away)).await;
            self.blinds.push(Blind { from, until: self.now(), kind: Unseen::Operator });
            self.running = Some(self.world.operator().await?);
        }
        Ok(())
    }

    /// Every machine as its cloud billed it.
    fn billed(&self) -> Result<Vec<Billed>> {
        let open = self.world.clouds.open_lines();
        let mut all = Vec::new();
        for place in [Place::Aws, Place::RunPod] {
            let (machines, sums, disks, counts) = self.world.clouds.engine(place, |engine| {
                let machines = engine.machines().to_vec();
                let sums = lines(engine, &machines);
                let disks: Vec<String> =
                    engine.disks().iter().map(|disk| disk.id.clone()).collect();
                let invoice = engine.invoice();
                let counts: Vec<String> =
                    invoice.lines().iter().map(|line| line.machine.clone()).collect();
                (machines, sums, disks, counts)
            });
            for (at, (machine, invoiced)) in machines.iter().zip(sums).enumerate() {
                let disk = disks.get(at);
                let is_its = |id: &String| *id == machine.id || Some(id) == disk;
                let bills = open.iter().any(is_its);
                let ended = machine.stopped.map(|(at, _)| at);
                all.push(Billed {
                    id: machine.id.clone(),
                    claim: claim_of(machine).with_context(|| machine.id.clone())?,
                    from: machine.created,
                    until: if bills { None } else { ended },
                    invoiced,
                    lines: counts.iter().filter(|id| is_its(id)).count() as i64,
                    late: self.late(place, machine),
                });
            }
        }
        Ok(all)
    }

    /// How late the operator may have learnt of a machine's end.
    fn late(&self, place: Place, machine: &Machine) -> Option<(SignedDuration, &'static str)> {
        let (end, why) = machine.stopped?;
        // EC2 says when somebody asked for the end, and no other time; RunPod says when a pod
        // stopped, unless that has ended itself by then.
        let untold = match place {
            Place::Aws => why != Why::User,
            Place::RunPod => why == Why::Evicted,
        };
        let mut late = untold.then_some((NOTICED, "the cloud does not say when it ended"));
        for blind in &self.blinds {
            let then = blind.from - NOTICED <= end && end <= blind.until;
            let more = match blind.kind {
                Unseen::Operator if then => {
                    (blind.until.duration_since(end), "the operator is dead")
                }
                Unseen::Provider(of) if of == place && then => {
                    (blind.until.duration_since(end), "the provider does not answer")
                }
                Unseen::Clock(off) if then || (untold && machine.created <= blind.until) => {
                    (off, CLOCK)
                }
                _ => continue,
            };
            let known = late.map_or(NOTICED, |(late, _)| late);
            late = Some((known + more.0.max(SignedDuration::ZERO), more.1));
        }
        late
    }
}

/// Uid of the claim that a machine carries in its environment.
fn claim_of(machine: &Machine) -> Option<String> {
    const NAME: &str = "PETAFLOP_IDENTITY";
    let boot = &machine.order.boot;
    let told = boot.environment.get(NAME).cloned().or_else(|| {
        let text = String::from_utf8_lossy(&boot.metadata.as_ref()?.user_data).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(NAME)?.strip_prefix('='));
        line.map(str::to_owned)
    })?;
    told.split('/').nth(3).map(str::to_owned)
}

fn is_over(job: &TrainingJob) -> bool {
    let conditions = job.status.as_ref().map(|status| &status.conditions);
    conditions.is_some_and(|all| is(all, "Complete") || is(all, "Failed"))
}

/// Plays a script, and judges it.
async fn play(market: Arc<Market>, script: &Script, undisturbed: &str) -> Result<Report> {
    let began = Instant::now();
    let name = format!("chase-{}", script.seed);
    let world = World::start(market, &name, script.seed, script.listed_after).await?;
    let mut play =
        Play { world, running: None, blinds: Vec::new(), placed: 0, needed: 1, unreached: 0 };
    let ended = play.on(script).await;
    let (mut finished, mut hash_equal) = (false, false);
    let mut error = ended.as_ref().err().map(|error| format!("{error:?}"));
    if let Ok(job) = &ended {
        let status = job.status.as_ref().context("a status")?;
        finished = is(&status.conditions, "Complete");
        hash_equal = status.artifact.as_deref() == Some(undisturbed);
        if !finished {
            error = Some(format!("{status:?}"));
        } else if let Err(left) = play.world.clouds.all_are_gone().await {
            error = Some(format!("{left:?}"));
        }
    }
    let machines = play.billed()?;
    let verdict = judge(&machines, &play.world.cluster.rows().await?, play.needed);
    if std::env::var_os("PETAFLOP_CHASE_SHOW").is_some() {
        eprintln!("{machines:#?}");
    }
    Ok(Report {
        machines: machines.len(),
        invoiced: machines.iter().map(|machine| machine.invoiced).sum(),
        finished,
        hash_equal,
        verdict,
        error,
        unreached: play.unreached,
        took: began.elapsed(),
    })
}

/// What all of them came to.
#[derive(Default)]
struct Sum {
    chases: usize,
    clean: usize,
    leaks: usize,
    doubles: usize,
    lost_rows: usize,
    difference: i64,
    late: (usize, i64),
    hash_equal: usize,
    finished: usize,
    machines: usize,
    invoiced: i64,
    unreached: usize,
    failed: Vec<u64>,
}

impl Sum {
    fn add(&mut self, script: &Script, report: &Result<Report>) {
        self.chases += 1;
        let seed = script.seed;
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                self.failed.push(seed);
                eprintln!("chase {seed}: {script}: {error:?}");
                return;
            }
        };
        let Report { machines, invoiced, finished, hash_equal, verdict, .. } = report;
        self.leaks += verdict.leaks.len();
        self.doubles += verdict.doubles.len();
        self.lost_rows += verdict.lost_rows.len();
        self.difference += verdict.difference;
        self.late.0 += verdict.late.0;
        self.late.1 += verdict.late.1;
        self.hash_equal += usize::from(*hash_equal);
        self.finished += usize::from(*finished);
        self.machines += machines;
        self.invoiced += invoiced;
        self.unreached += report.unreached;
        let result = if report.is_clean() { "ok" } else { "FAILED" };
        self.clean += usize::from(report.is_clean());
        eprintln!(
            "chase {seed}: {script}: {machines} machines, {} $, {} s: {result}",
            dollars(*invoiced),
            report.took.as_secs(),
        );
        if !report.is_clean() {
            self.failed.push(seed);
            eprintln!("  {verdict:?}\n  {}", report.error.as_deref().unwrap_or_default());
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "chases": self.chases,
            "leaks": self.leaks,
            "doubles": self.doubles,
            "lost_rows": self.lost_rows,
            "ledger_minus_invoice_micro_usd": self.difference,
            "booked_late": self.late.0,
            "booked_late_micro_usd": self.late.1,
            "hash_equal": self.hash_equal,
            "finished": self.finished,
            "machines": self.machines,
            "invoiced_micro_usd": self.invoiced,
            "losses_not_reached": self.unreached,
            "failed_seeds": self.failed,
        })
    }
}

fn dollars(micros: i64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

fn number(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text}"))?)),
        Err(_) => Ok(None),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chases_by_seed_leak_nothing_buy_nothing_twice_and_book_what_is_billed() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(market) = Market::open().await?.map(Arc::new) else { return Ok(()) };
    let first = number("PETAFLOP_CHASE_SEED")?.unwrap_or(1);
    let seeds: Vec<u64> = match number("PETAFLOP_CHASE_N")? {
        Some(count) => (first..first + count).collect(),
        None => SAMPLE.to_vec(),
    };
    let lanes = number("PETAFLOP_CHASE_LANES")?.unwrap_or(2) as usize;
    let undisturbed = SIZE.undisturbed().await?;
    let mut sum = Sum::default();
    let chases = seeds.into_iter().map(|seed| {
        let (market, undisturbed) = (market.clone(), undisturbed.clone());
        tokio::spawn(async move {
            let script = Script::of(seed);
            let report = play(market, &script, &undisturbed).await;
            (script, report)
        })
    });
    let mut chases = futures::stream::iter(chases).buffer_unordered(lanes.max(1));
    while let Some(chase) = chases.next().await {
        let (script, report) = chase?;
        sum.add(&script, &report);
    }
    let line = sum.json();
    eprintln!("{line}");
    if let Some(file) = std::env::var_os("PETAFLOP_CHASE_SUMMARY") {
        writeln!(std::fs::File::create(file)?, "{line}")?;
    }
    ensure!(sum.chases > 0, "no seed");
    if !sum.failed.is_empty() {
        bail!("these seeds failed, each alone: make chase N=1 SEED=…: {:?}", sum.failed);
    }
    Ok(())
}
