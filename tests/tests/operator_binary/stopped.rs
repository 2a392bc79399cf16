//! One of two programs is stopped (SIGSTOP) for longer than its Lease lasts, and goes on.

use anyhow::{Context, Result, ensure};
use kube::api::DeleteParams;
use petaflop_crds::{ComputeClaim, TrainingJob};
use petaflop_harness::{Component, eventually};

use crate::world::{SOON, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_finds_that_another_leads_and_buys_nothing() -> Result<()> {
    let world = World::new("stop").await?;
    world.provide_nodes().await?;
    let first = world.start().await?;
    world.job_runs(&first, "before").await?;
    let leader = world.holder().await.map_err(anyhow::Error::msg)?.context("somebody leads")?;
    let second = world.start_beside().await?;

    first.pause()?;
    let heir = eventually("another leads", SOON, || async {
        match world.holder().await? {
            Some(holder) if holder != leader => Ok(holder),
            other => Err(format!("{other:?}\n{}", second.log_tail())),
        }
    })
    .await?;
    // What the first has not seen, and what it finds when it wakes up in the belief that it leads.
    world.job_runs(&second, "meanwhile").await?;
    first.resume()?;
    says(&first, "no longer leading").await?;
    world.job_runs(&second, "after").await?;
    let holder = world.holder().await.map_err(anyhow::Error::msg)?;
    ensure!(holder.as_ref() == Some(&heir), "{holder:?}, and before {heir}");
    for made in ["computeclaims", "pods"] {
        let count = world.created(made).await?;
        ensure!(count == 3, "{count} {made} for three jobs\n{}", first.log_tail());
    }
    let claims = world.all::<ComputeClaim>().await.map_err(anyhow::Error::msg)?;
    ensure!(claims.len() == 3, "{claims:#?}");

    // It takes over when the other has gone, and knows what that one did.
    second.stop(SOON);
    for name in ["before", "meanwhile", "after"] {
        world.api::<TrainingJob>().delete(name, &DeleteParams::default()).await?;
    }
    world.nothing_left(&first).await?;
    world.nothing_refused().await
}

/// Waits until a program's log has these words.
async fn says(program: &Component, words: &str) -> Result<()> {
    let said = eventually(words, SOON, || async {
        let log = std::fs::read_to_string(program.log()).map_err(|error| error.to_string())?;
        if log.contains(words) { Ok(()) } else { Err(program.log_tail()) }
    });
    Ok(said.await?)
}
