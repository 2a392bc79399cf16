//! Chases by seed. Each plays its script in a cluster and two clouds of its own, on shared machines;
//! the bill of the clouds judges it.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt as _;

use crate::ONE_AT_A_TIME;
use crate::market::Market;
use crate::operator::is;
use crate::oracles::judge;
use crate::play::{Play, SIZE};
use crate::report::{Report, Sum};
use crate::script::Script;
use crate::world::World;

/// Seeds of `make test`: together they meet every kind of fault.
pub(crate) const SAMPLE: [u64; 3] = [7780, 29_008, 104_141];

/// Plays a script, and judges it.
async fn play(market: Arc<Market>, script: &Script, undisturbed: &str) -> Result<Report> {
    let began = Instant::now();
    let name = format!("chase-{}", script.seed);
    let world = World::start(market, &name, script.seed, script.listed_after).await?;
    let mut play = Play::new(world, script);
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
    let rows = play.world.cluster.rows().await?;
    let verdict = judge(&machines, &rows, play.needed);
    let report = Report {
        machines: machines.len(),
        invoiced: machines.iter().map(|machine| machine.invoiced).sum(),
        finished,
        hash_equal,
        verdict,
        error,
        unreached: play.unreached,
        took: began.elapsed(),
    };
    if !report.is_clean() {
        eprintln!("{}", play.history(&rows));
    }
    Ok(report)
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
