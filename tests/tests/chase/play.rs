//! One script, while it is played: faults are switched on and off, machines are lost, hours pass.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::ledger::Row;
use petaflop_cloud_box::ec2::{self, Call};
use petaflop_cloud_box::engine::machine::{Machine, Why};
use petaflop_cloud_box::faults::{Fault, Operation, When};
use petaflop_cloud_box::machines::Side;
use petaflop_crds::TrainingJob;
use petaflop_harness::eventually;
use petaflop_operator::cluster::operate::Running;
use rustix::process::Signal;

use crate::clouds::{LONG, lines};
use crate::market::time::TICK;
use crate::operator::is;
use crate::oracles::{Billed, CLOCK};
use crate::script::{Hop, Loss, Place, Purchase, Script, Trouble, minutes};
use crate::world::{JOB, Size, World};

/// Seconds of training, so that there is time to lose machines in.
pub(crate) const SIZE: Size = Size { steps: 1000, small: true };
/// How long it works before it rests: some checkpoints.
const WORKS: Duration = Duration::from_secs(2);

/// How late the end of a machine is noticed that nobody tells of: an agent that is silent for 90 s is
/// looked for, a sweep comes every 120 s, and gone is what was not seen twice.
const NOTICED: SignedDuration = SignedDuration::from_mins(5);

/// A pod that is given back once it is known: that it is was asked for again and again.
const GIVEN_BACK: SignedDuration = SignedDuration::from_mins(1);

/// Who looks as often as this knows to the second when an instance came up.
const LOOKS: SignedDuration = SignedDuration::from_secs(2);

/// Two minutes that are real for the machine, in a cloud whose time goes ten times as fast.
const NOTICE_TICK: u64 = 100;
/// An agent looks every 5 s.
const HEARD: Duration = Duration::from_secs(6);

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
pub(crate) struct Play {
    pub(crate) world: World,
    late_listing: bool,
    running: Option<Running>,
    blinds: Vec<Blind>,
    /// Number of the last placement that ran.
    placed: u32,
    /// Machines that the job needs, as far as it got.
    pub(crate) needed: usize,
    /// Losses that came when the job was over already.
    pub(crate) unreached: usize,
}

impl Play {
    pub(crate) fn new(world: World, script: &Script) -> Self {
        Self {
            world,
            late_listing: script.listed_after > 0,
            running: None,
            blinds: Vec::new(),
            placed: 0,
            needed: 1,
            unreached: 0,
        }
    }

    /// To the end of the job.
    pub(crate) async fn on(&mut self, script: &Script) -> Result<TrainingJob> {
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
        let complete = self.world.cluster.until(JOB, "Complete", LONG, is_over).await?;
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

    fn arm(&mut self, purchase: Purchase) {
        // It is ended only once it is known.
        self.needed +=
            usize::from(self.late_listing && matches!(purchase, Purchase::WrongPrice(_)));
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
                    // One of the two clouds had it to give.
                    self.disarm(hop.purchase);
                    self.comes_up().await?;
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

    /// EC2 bills from running, and nobody sees to the second when that is while hours pass.
    async fn comes_up(&self) -> Result<()> {
        let clouds = &self.world.clouds;
        eventually("a machine comes up", LONG, || async {
            let pending = |(place, machine): &(Place, Machine)| {
                *place == Place::Aws && machine.started.is_none()
            };
            clouds.alive().filter(pending).map_or(Ok(()), |pending| Err(format!("{pending:?}")))
        })
        .await?;
        tokio::time::sleep(WORKS).await;
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
        // The job was over already.
        self.unreached += usize::from(alive.is_none());
        if let Some((place, machine)) = alive {
            self.needed += 1;
            match loss {
                Loss::Notice => {
                    let left = Some(ec2::PACE.notice);
                    clouds.engine(place, |engine| engine.evict(&machine.id, left))?;
                    self.world.ticking.every(NOTICE_TICK);
                    // Who is told so saves what he has, and does not finish instead; RunPod tells nobody.
                    if place == Place::Aws {
                        tokio::time::sleep(HEARD).await;
                        self.world.signal(Signal::CONT)?;
                    }
                    eventually("the machine is given back or taken", LONG, || async {
                        let alive = clouds.alive().filter(|(_, now)| now.id == machine.id);
                        alive.is_none().then_some(()).ok_or_else(|| format!("{alive:?}"))
                    })
                    .await?;
                    self.world.ticking.every(TICK);
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
    pub(crate) fn billed(&self) -> Result<Vec<Billed>> {
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

    /// What happened, for people to read: in order of time.
    pub(crate) fn history(&self, rows: &[Row]) -> String {
        let mut events: Vec<(Timestamp, String)> = Vec::new();
        for place in [Place::Aws, Place::RunPod] {
            for machine in self.world.clouds.engine(place, |engine| engine.machines().to_vec()) {
                let Machine { id, created, started, stopped, noticed, rate, stuck, .. } = &machine;
                let claim = claim_of(&machine).unwrap_or_default();
                let bought = format!("{id} bought for {claim} at {rate} µ$/h, stuck: {stuck}");
                events.push((*created, bought));
                events.extend(started.map(|at| (at, format!("{id} runs"))));
                events.extend(stopped.map(|(at, why)| (at, format!("{id} stopped: {why:?}"))));
                events.extend(machine.ended.map(|at| (at, format!("{id} is gone"))));
                if let Some(notice) = noticed {
                    events.push((*created, format!("{id} was to be told: {notice:?}")));
                }
            }
        }
        let calls = [self.world.clouds.ec2.calls(), self.world.clouds.runpod.calls()].concat();
        let changes = calls.into_iter().filter(|call| {
            matches!(call.operation, Operation::Create | Operation::Change | Operation::End)
        });
        events.extend(changes.map(|call| {
            let Call { at, line, status, faults, .. } = call;
            (at, format!("{line}: {status:?} {faults:?}"))
        }));
        events.extend(rows.iter().map(|row| {
            let Row { key, kind, from, to, amount, .. } = row;
            (*to, format!("{kind:?} row {key} from {from}: {} µ$", amount.micros()))
        }));
        events.extend(self.blinds.iter().flat_map(|blind| {
            let what = match &blind.kind {
                Unseen::Operator => "the operator is dead".to_owned(),
                Unseen::Provider(place) => format!("{place:?} does not answer"),
                Unseen::Clock(off) => format!("the clock is off by {off}"),
            };
            [(blind.from, format!("{what} from now on")), (blind.until, format!("no more: {what}"))]
        }));
        events.sort_by_key(|(at, _)| *at);
        events.into_iter().map(|(at, event)| format!("    {at}  {event}\n")).collect()
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
        if self.late_listing && machine.started.is_none_or(|at| end.duration_since(at) < GIVEN_BACK)
        {
            late = late.or(Some((GIVEN_BACK, "it is given back while time goes by")));
        }
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
        // EC2 bills from running, which is known to who looked meanwhile, and to nobody after him; and
        // that it took one away, for nothing, it tells for an hour.
        if place == Place::Aws && self.blinds.iter().any(|blind| blind.until >= machine.created) {
            let up = match why {
                Why::Evicted => end.duration_since(machine.created),
                _ => machine.started.unwrap_or(end).duration_since(machine.created),
            };
            let (known, why) = late.unwrap_or((SignedDuration::ZERO, "nobody saw it come up"));
            late = Some((known + up, why));
        } else if place == Place::Aws
            && let Some(gap) = machine.started.and_then(|up| self.unlooked(up))
        {
            let (known, why) =
                late.unwrap_or((SignedDuration::ZERO, "it was looked at too seldom"));
            late = Some((known + gap, why));
        }
        late
    }

    /// How long nobody had looked at EC2's instances as one of them came up, where that was longer
    /// than a look takes: on a busy machine.
    fn unlooked(&self, up: Timestamp) -> Option<SignedDuration> {
        let looks = self.world.clouds.ec2.calls().into_iter();
        let looks =
            looks.filter(|call| call.line.starts_with("DescribeInstances ")).map(|call| call.at);
        let (before, after): (Vec<_>, Vec<_>) = looks.partition(|at| *at < up);
        let (before, after) = (before.into_iter().max()?, after.into_iter().min()?);
        let gap = after.duration_since(before);
        (gap > LOOKS).then_some(gap)
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
