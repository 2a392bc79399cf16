//! What an operator costs that stays dead: each machine ends itself, by its lease, without anybody
//! who asks for it; its bill is then at most what `docs/faults.md` says.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::SignedDuration;
use petaflop_cloud_box::engine::machine::Why;
use petaflop_harness::eventually;
use rustix::process::Signal;

use crate::ONE_AT_A_TIME;
use crate::clouds::LONG;
use crate::market::Market;
use crate::script::Place;
use crate::world::{Size, World};

/// Instead of half an hour.
const LEASE: Duration = Duration::from_secs(20);
/// What the work has to end in. It does not, and is killed.
const GRACE: u32 = 10;
/// Until the machine is off: its container's end is noticed, the provider is asked.
const SHUTDOWN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_operator_stays_dead_ends_itself_and_costs_at_most_what_docs_say()
-> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(market) = Market::open().await?.map(Arc::new) else { return Ok(()) };
    for (place, why, seed) in [(Place::Aws, Why::Process, 1), (Place::RunPod, Why::User, 2)] {
        let mut world = World::start(market.clone(), "dead", seed, 0).await?;
        world.lease = LEASE;
        world.clouds.favour(place);
        let running = world.operator().await?;
        let mut job = world.job(Size { steps: 100_000, small: true })?;
        job.spec.checkpoint.grace_seconds = GRACE;
        world.cluster.create(&job).await?;
        world.runs(1).await?;
        // It heeds nothing: its grace is over before it is.
        ensure!(world.signal(Signal::STOP)? > 0, "nothing trains");

        // Seconds of the cloud are seconds of the machine.
        world.ticking.every(1000);
        drop(running);
        let dead = world.clouds.now();
        let calls = world.clouds.bought();
        let (of, machine) = world.clouds.alive().context("a machine")?;
        ensure!(of == place, "{machine:?}");
        let ended = eventually("the machine has ended itself", LONG, || async {
            let all = world.clouds.engine(place, |engine| engine.machines().to_vec());
            let machine = all.first().ok_or("no machine")?.clone();
            match machine.leaving {
                Some(_) => Ok(machine),
                None => Err(world.clouds.market.machines.log(&machine.id)),
            }
        })
        .await?;
        let (at, because) = ended.leaving.context("an end")?;
        ensure!(because == why, "{ended:?}");
        ensure!(world.clouds.bought() == calls, "nobody is there to buy");

        let most = SignedDuration::try_from(LEASE + SHUTDOWN)? + grace();
        ensure!(at.duration_since(dead) <= most, "{place}: {at} is long after {dead}");
        let seconds = (dead.duration_since(ended.created) + most).as_secs();
        let bound = ended.rate * seconds / 3600 + DISK * seconds / 3600 + 2;
        let invoice = world.clouds.engine(place, |engine| engine.invoice().total());
        ensure!(invoice > 0 && invoice <= bound, "{place}: {invoice} µ$, at most {bound}");
        let open = world.clouds.open_lines();
        ensure!(open.is_empty(), "{open:?} still bill");
        world.clouds.all_are_gone().await?;
        eprintln!(
            "{place}: ended {} s after its operator; {invoice} µ$ are billed, at most {bound}",
            at.duration_since(dead).as_secs()
        );
    }
    Ok(())
}

/// Micro-dollars an hour of 73 GB, at most.
const DISK: i64 = 73 * 100_000 / 730 + 1;

fn grace() -> SignedDuration {
    SignedDuration::from_secs(GRACE.into())
}
