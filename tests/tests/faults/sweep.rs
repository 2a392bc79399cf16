//! A. A crash before and after every call: each scenario is run without faults first, and then once for
//! each of its calls and side of it; every run must end as the first one did.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use petaflop_harness::ControlPlane;
use serde_json::Value;

use crate::calls::{Fault, Point};
use crate::oracles::{Outcome, Unsure, compare, end, writes};
use crate::scenario::{ALL, Act, Scenario};
use crate::world::{Errors, Lane, PRICE, Twist, World, everything};

/// Runs side by side, for each processor: most of a run is waiting for answers, and for quiet.
const LANES: usize = 5;

/// Turns after which a run that goes on for ever is given up.
const TURNS: u32 = 2_000;

/// Every so manieth point of a scenario that is not gone through as a whole.
const SAMPLE: usize = 25;

/// After the end, until time is idle: the provider is let go of within the minute that its lists may lag
/// behind and one more, or as many more rests as these, where a starved processor has time pass in the
/// midst of what is done; and how long it is watched then.
const REST: Duration = Duration::from_secs(125);
const RESTS: usize = 3;
const IDLE: Duration = Duration::from_secs(65);

/// What is called while nothing is left to do. A fault within the rest has that begin anew; so has one within
/// the watch, as the second of two may be later than all calls of the run: whoever starts has its own to make.
async fn idle(world: &mut World<'_>) -> Result<Vec<Point>> {
    loop {
        for _ in 0..=RESTS {
            let struck = world.calls.struck();
            world.pass(REST).await?;
            if world.calls.struck() == struck && !world.is_held().await? {
                break;
            }
        }
        let struck = world.calls.struck();
        let idle = world.pass(IDLE).await?;
        if world.calls.struck() == struck {
            return Ok(idle);
        }
    }
}

/// Without faults or with these, from the first process to the idle end. Writes are counted later.
async fn run(lane: &mut Lane, task: &Task) -> Result<Outcome> {
    let Task { scenario, job, faults, twist } = task.clone();
    let mut world = lane.world(job, scenario.manners, scenario.lasts, faults, twist).await?;
    world.serves = scenario.serves;
    if let Some(limit) = scenario.budget {
        world.budget(limit).await?;
    }
    world.live().await?;
    world.settle().await?;
    world.create((scenario.spec)()).await?;
    let (mut acts, mut turns) = (0, 0);
    loop {
        let seen = world.settle().await?;
        let act = (scenario.next)(acts, &seen);
        match &act {
            Act::Wait => world.move_on().await?,
            Act::Delete => world.delete().await?,
            Act::Scale(replicas) => world.scale(*replicas).await?,
            Act::Suspend(suspend) => world.suspend(*suspend).await?,
            Act::RollOut => world.roll_out().await?,
            Act::Undersell => world.undersell()?,
            Act::Orphan => {
                let claim = seen.claims.first().context("a claim to remove")?;
                world.orphan(claim).await?;
            }
            Act::Interrupt(notice) => {
                let id = seen.billed.first().context("a machine to take away")?.id.clone();
                world.cloud.interrupt(&id, *notice);
            }
            Act::Done => break,
        }
        acts += u32::from(act != Act::Wait);
        turns += 1;
        if turns > TURNS {
            bail!("it does not end: {:#}, last calls {:?}", seen.status(), world.last_calls());
        }
    }
    let calls = world.calls.made();
    let idle = idle(&mut world).await?;
    // Who dies says nothing, so no fault of a sweep excuses an error.
    let errors = world.errors();
    let seen = world.settle().await?;
    let idle_writes: Vec<String> =
        idle.iter().filter(|call| call.writes()).map(ToString::to_string).collect();
    let mut leaks = world.leaks.clone();
    leaks.extend(seen.billed.iter().map(|billed| format!("{} at the end", billed.id)));
    let rows = world.rows().await?;
    let bill = world.cloud.micros_by_identity();
    let unsure = Unsure { late: scenario.late, ..Unsure::default() };
    let mut ledger = compare(&rows, &bill, &scenario.manners, PRICE, world.calls.struck(), unsure);
    ledger.extend(seen.miscounted(&rows)?);
    let outcome = Outcome {
        end: end(&seen),
        leaks,
        at_once: world.at_once,
        machines: world.cloud.created(),
        idle_writes,
        idle_calls: idle.len(),
        errors,
        denied: world.calls.denied(),
        ledger,
        calls,
        struck: world.calls.struck(),
        writes: BTreeMap::new(),
    };
    world.end().await?;
    Ok(outcome)
}

/// One run to be made.
#[derive(Clone)]
pub(crate) struct Task {
    pub(crate) scenario: Scenario,
    pub(crate) job: String,
    pub(crate) faults: Vec<(Point, Fault)>,
    pub(crate) twist: Twist,
}

/// What came of it.
pub(crate) struct Done {
    pub(crate) task: Task,
    pub(crate) outcome: Result<Outcome>,
    namespace: String,
}

/// Makes these runs, some side by side, and fills in what the audit log says of each.
pub(crate) fn all(tasks: Vec<Task>) -> Result<Vec<Done>> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let lanes = (LANES * processors).min(tasks.len());
    let queue = Arc::new(Mutex::new(VecDeque::from(tasks)));
    let log = block_on(async {
        let plane = crate::plane().await?;
        Ok(plane.writes().await?)
    })?;
    let threads: Vec<_> = (0..lanes)
        .map(|_| {
            let queue = queue.clone();
            std::thread::spawn(move || lane(&queue))
        })
        .collect();
    let mut done = Vec::new();
    for thread in threads {
        match thread.join() {
            Ok(made) => done.extend(made?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    let written = block_on(async { Ok(log.all().await?) })?;
    for one in &mut done {
        if let Ok(outcome) = &mut one.outcome {
            outcome.writes = writes(&written, &one.namespace, &one.task.job);
        }
    }
    Ok(done)
}

/// A thread with a runtime of its own: what is logged on it was logged by its runs.
fn lane(queue: &Mutex<VecDeque<Task>>) -> Result<Vec<Done>> {
    let errors = Errors::default();
    let _logged = crate::log_to(&errors);
    block_on(async {
        let plane: &ControlPlane = crate::plane().await?;
        let mut lane = Lane::new(plane, errors.clone()).await?;
        let mut done = Vec::new();
        loop {
            let task = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(mut task) = task else { return Ok(done) };
            let mut outcome = run(&mut lane, &task).await;
            // Which call comes when is not the same in every run: another may hit.
            for _ in 0..2 {
                if outcome.as_ref().is_ok_and(|o| o.struck == 0) && !task.faults.is_empty() {
                    task.job.push('x');
                    outcome = run(&mut lane, &task).await;
                }
            }
            let namespace = lane.namespace.name().to_owned();
            // What did not come to its end may hold on to its objects: the next run has nothing to do with them.
            if outcome.is_err() {
                lane = Lane::new(plane, errors.clone()).await?;
            }
            done.push(Done { task, outcome, namespace });
        }
    })
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// One line of the summary.
#[derive(Clone, Debug, Default)]
struct Tally {
    calls: usize,
    points: usize,
    missed: usize,
    failed: usize,
    leaks: usize,
    doubles: usize,
    lost_rows: usize,
}

/// Every call of these scenarios, or every so manieth.
fn sweep(scenarios: &[(Scenario, usize)]) -> Result<BTreeMap<&'static str, Tally>> {
    let began = std::time::Instant::now();
    let references: Vec<Task> = scenarios
        .iter()
        .map(|(scenario, _)| Task {
            scenario: *scenario,
            job: scenario.name.to_owned(),
            faults: Vec::new(),
            twist: Twist::default(),
        })
        .collect();
    let mut reference = BTreeMap::new();
    let mut tally: BTreeMap<&str, Tally> = BTreeMap::new();
    for done in all(references)? {
        let name = done.task.scenario.name;
        let outcome = done.outcome.with_context(|| format!("{name} without faults"))?;
        let broken = outcome.judge(&outcome, done.task.scenario.machines);
        ensure!(broken.is_empty(), "{name} without faults: {broken:#?}");
        tally.entry(name).or_default().calls = outcome.calls.len();
        eprintln!(
            "{name}: {} calls, writes {:?}, ends as {}",
            outcome.calls.len(),
            outcome.writes,
            outcome.end
        );
        reference.insert(name, outcome);
    }
    eprintln!("references: {:?}", began.elapsed());
    let mut tasks = Vec::new();
    for (scenario, every) in scenarios {
        let calls = &reference[scenario.name].calls;
        let sides = [(Fault::CrashBefore, 'b'), (Fault::CrashAfter, 'a')];
        let points = calls.iter().enumerate().flat_map(|(i, point)| {
            sides.map(|(fault, side)| (i, side, vec![(point.clone(), fault)]))
        });
        // A2: a second crash while the first one is being mended.
        let doubles = if everything() { 9 } else { 27 };
        let twice = calls.iter().enumerate().step_by(doubles).map(|(i, point)| {
            let again = Point::new("*", u32::try_from(i).unwrap_or(0) + 12 + (i as u32 % 17));
            (i, 'd', vec![(point.clone(), Fault::CrashAfter), (again, Fault::CrashAfter)])
        });
        tasks.extend(points.chain(twice).step_by(*every).map(|(i, side, faults)| Task {
            scenario: *scenario,
            job: format!("{}-{i}{side}", scenario.name),
            faults,
            twist: Twist::default(),
        }));
    }
    if let Some(at) = at() {
        tasks.retain(|task| task.faults[0].0.to_string() == at);
    }
    for done in all(tasks)? {
        let scenario = done.task.scenario;
        let tally = tally.entry(scenario.name).or_default();
        let faults: Vec<String> =
            done.task.faults.iter().map(|(point, fault)| format!("{fault:?} {point}")).collect();
        match done.outcome {
            Ok(outcome) if outcome.struck == 0 => {
                tally.missed += 1;
                eprintln!("{}: {faults:?} was not reached", done.task.job);
            }
            Ok(outcome) => {
                tally.points += 1;
                let broken = outcome.judge(&reference[scenario.name], scenario.machines);
                tally.leaks += outcome.leaks.len();
                tally.doubles += outcome.machines.saturating_sub(scenario.machines);
                tally.lost_rows += outcome.ledger.len();
                if !broken.is_empty() {
                    tally.failed += 1;
                    eprintln!("{}: {faults:?}: {broken:#?}", done.task.job);
                }
            }
            Err(error) => {
                tally.points += 1;
                tally.failed += 1;
                eprintln!("{}: {faults:?}: {error:?}", done.task.job);
            }
        }
    }
    eprintln!("all: {:?}", began.elapsed());
    Ok(tally)
}

/// The only call to crash at, as in `provider.launch#1`: for whoever looks for the reason.
fn at() -> Option<String> {
    std::env::var("PETAFLOP_FAULTS_AT").ok()
}

#[test]
fn a_crash_before_or_after_any_call_leaks_nothing_and_buys_nothing_twice() -> Result<()> {
    let only = std::env::var("PETAFLOP_FAULTS_ONLY").ok();
    let only: Vec<&str> = only.iter().flat_map(|only| only.split(',')).collect();
    let scenarios: Vec<(Scenario, usize)> = ALL
        .iter()
        .filter(|scenario| only.is_empty() || only.iter().any(|one| scenario.name.starts_with(one)))
        .map(|scenario| {
            let whole = scenario.name == "complete" || scenario.name.starts_with("delete");
            (*scenario, if whole || everything() || at().is_some() { 1 } else { SAMPLE })
        })
        .collect();
    let tally = sweep(&scenarios)?;
    let sum = |of: fn(&Tally) -> usize| tally.values().map(of).sum::<usize>();
    eprintln!(
        "{:<18} {:>6} {:>7} {:>7} {:>6} {:>8} {:>10} {:>7}",
        "scenario", "calls", "points", "missed", "leaks", "doubles", "ledger", "failed"
    );
    for (name, t) in &tally {
        eprintln!(
            "{name:<18} {:>6} {:>7} {:>7} {:>6} {:>8} {:>10} {:>7}",
            t.calls, t.points, t.missed, t.leaks, t.doubles, t.lost_rows, t.failed
        );
    }
    let mut line = serde_json::json!({
        "scenarios": tally.len(),
        "points": sum(|t| t.points),
        "leaks": sum(|t| t.leaks),
        "doubles": sum(|t| t.doubles),
        "lost_ledger_rows": sum(|t| t.lost_rows),
        "failed": sum(|t| t.failed),
    });
    let summary = std::env::var("PETAFLOP_FAULTS_SUMMARY").ok();
    // What real kills came to is there before us.
    let before = summary.as_ref().and_then(|path| std::fs::read(path).ok());
    let before = before.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    if let (Some(line), Some(before)) = (line.as_object_mut(), before.as_ref().map(|b| &b["kills"]))
    {
        line.insert("kills".to_owned(), before.clone());
    }
    eprintln!("{line}");
    if let Some(path) = summary {
        std::fs::write(path, format!("{line}\n"))?;
    }
    ensure!(sum(|t| t.failed) == 0, "{line}");
    // A point that no run reached says nothing.
    ensure!(
        sum(|t| t.missed) * 20 <= sum(|t| t.points),
        "too many points were not reached: {tally:?}"
    );
    Ok(())
}
