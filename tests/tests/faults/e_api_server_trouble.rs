//! E. Trouble with the API server: nothing is decided on a view that may be old, nothing is bought
//! twice, and all goes on by itself when the server does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use petaflop_fake_provider::Manners;
use petaflop_harness::{ControlPlane, Link as Network, eventually};
use serde_json::json;

use crate::calls::{Fault, Link, Standing};
use crate::layers::class;
use crate::world::{Lane, Seen, Twist, World, by_hand, clouds, on_each};

const API: &str = "k8s.";

/// How long the server is away.
const AWAY: Duration = Duration::from_secs(300);

#[test]
fn e1_while_the_server_is_away_nothing_is_bought_and_then_all_goes_on() -> Result<()> {
    for phase in ["before", "launching", "running"] {
        on_each("e1", &[], async |world| {
            match phase {
                "before" => drop(world.settle().await?),
                "launching" => {
                    world.create(json!({})).await?;
                    world.until("a machine", |seen| !seen.billed.is_empty()).await?;
                }
                _ => {
                    world.create(json!({})).await?;
                    world.until("running", |seen| seen.is("Running")).await?;
                }
            }
            if phase == "before" {
                // Nobody but the operator is cut off: the job comes while it is.
                world.link(Link::Partitioned);
                world.create(json!({})).await?;
            }
            let before = world.cloud.billed_now().len();
            stay_away(world, phase).await?;
            ensure!(world.cloud.billed_now().len() == before, "{phase}: ended on an old view");
            let seen = world.until_complete().await?;
            let status = seen.job.context("the job")?.status.context("a status")?;
            ensure!(status.interruptions == 0, "{phase}: {status:#?}");
            // Its agent could not be let in for longer than a launch may take: it is replaced.
            let most = if phase == "launching" { 2 } else { 1 };
            ensure!(world.cloud.created() <= most, "{phase}: {} machines", world.cloud.created());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn e1_what_was_ending_when_the_server_went_away_ends_when_it_is_back() -> Result<()> {
    for phase in ["ending", "suspending", "deleting"] {
        on_each("e1", &[], async |world| {
            world.create(json!({})).await?;
            match phase {
                "ending" => {
                    let seen = world.until("complete", |seen| seen.is("Complete")).await?;
                    ensure!(seen.claims.len() == 1, "its machine has gone already");
                }
                "suspending" => {
                    world.until("running", |seen| seen.is("Running")).await?;
                    world.suspend(true).await?;
                }
                _ => {
                    world.until("running", |seen| seen.is("Running")).await?;
                    world.delete().await?;
                }
            }
            // Where its end falls into that time, a cloud that forgets it says no more when it was.
            world.outlived = AWAY;
            stay_away(world, phase).await?;
            let gone = |seen: &Seen| seen.claims.is_empty() && seen.billed.is_empty();
            match phase {
                "ending" => drop(world.until_complete().await?),
                "suspending" => {
                    world.until(phase, |seen| seen.is("Suspended") && gone(seen)).await?;
                    world.suspend(false).await?;
                    world.until_complete().await?;
                }
                _ => drop(world.until(phase, |seen| seen.job.is_none() && gone(seen)).await?),
            }
            let most = if phase == "suspending" { 2 } else { 1 };
            ensure!(world.cloud.created() == most, "{phase}: {} machines", world.cloud.created());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn e1_a_service_keeps_its_replica_while_the_server_is_away() -> Result<()> {
    on_each("e1-service", &[], async |world| {
        world.serves = true;
        // One that knows the store of models.
        world.live().await?;
        world.create(json!({ "replicas": 1 })).await?;
        world.until("it answers", |seen| seen.answer() == 1).await?;
        stay_away(world, "serving").await?;
        ensure!(world.cloud.billed_now().len() == 1, "ended on an old view");
        let seen = world.settle().await?;
        ensure!(seen.answer() == 1 && seen.claims.len() == 1, "{:#?}", seen.claims);
        // It is not only that nothing is done any more.
        world.scale(0).await?;
        world.until("gone", |seen| seen.claims.is_empty() && seen.billed.is_empty()).await?;
        ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
        Ok(())
    })
}

/// The server is away: nothing is bought, and nobody restarts the operator for it, for
/// it is alive and what it knows can still be asked for.
async fn stay_away(world: &mut World<'_>, phase: &str) -> Result<()> {
    let before = world.cloud.created();
    world.link(Link::Partitioned);
    world.pass(AWAY).await?;
    ensure!(world.cloud.created() == before, "{phase}: bought on an old view");
    for path in ["/healthz", "/readyz"] {
        let (status, said) = world.http(path).await?;
        ensure!(status == 200, "{phase}: {path} {status} {said}");
    }
    world.link(Link::Open);
    Ok(())
}

/// What the operator watches of ours.
const KINDS: [&str; 5] =
    ["trainingjobs", "computeclaims", "computeproviders", "inferenceservices", "spendbudgets"];

/// Waits, in real time as watches do, until these kinds were asked for in this way after so many calls.
async fn asked(world: &mut World<'_>, verb: &str, kinds: &[&str], after: usize) -> Result<()> {
    eventually("watches go on", Duration::from_secs(120), || async {
        let made = world.calls.made();
        let missing = kinds.iter().find(|kind| {
            let class = format!("k8s.{verb}.{kind}");
            !made[after..].iter().any(|point| point.class == class)
        });
        missing.map_or(Ok(()), |kind| Err(format!("no {verb} of {kind}")))
    })
    .await?;
    world.began = Instant::now();
    Ok(())
}

async fn restart(plane: &ControlPlane) -> Result<()> {
    plane.apiserver().kill();
    plane.apiserver().restart()?;
    Ok(plane.ready().await?)
}

#[test]
fn e2_watches_whose_past_is_gone_list_again_and_nothing_is_bought_twice() -> Result<()> {
    clouds().iter().copied().try_for_each(e2)
}

fn e2(manners: Manners) -> Result<()> {
    by_hand(async |errors| {
        let plane = crate::own_plane().await?;
        let mut lane = Lane::new(&plane, errors).await?;
        lane.run("e2", manners, &[], Twist::default(), async |world| {
            world.create(json!({})).await?;
            world.until("running", |seen| seen.is("Running")).await?;
            world.link(Link::Partitioned);
            restart(&plane).await?;
            // What it does not see, and cannot be told any more.
            world.patch(json!({ "backoffLimit": 5 })).await?;
            plane.compact().await?;
            restart(&plane).await?;
            let before = world.calls.count();
            world.link(Link::Open);
            asked(world, "list", &KINDS, before).await?;
            let seen = world.until_complete().await?;
            let job = seen.job.context("the job")?;
            let status = job.status.context("a status")?;
            ensure!(status.observed_generation == job.metadata.generation, "{status:#?}");
            ensure!(status.interruptions == 0 && world.cloud.created() == 1, "{status:#?}");
            Ok(())
        })
        .await
    })
}

#[test]
fn e3_a_watch_of_jobs_that_says_nothing_slows_and_storms_nothing() -> Result<()> {
    clouds().iter().copied().try_for_each(e3)
}

fn e3(manners: Manners) -> Result<()> {
    by_hand(async |errors| {
        let plane = crate::plane().await?;
        let proxy = plane.proxy()?;
        let mut config = plane.admin().config().await?;
        config.cluster_url = format!("https://{}", proxy.address()).parse()?;
        let watched = Client::try_from(config)?;
        // Watches of jobs on a line of their own.
        let twist = Twist {
            client: Some(Arc::new(move |client: Client| {
                let (client, watched) = (client, watched.clone());
                let service =
                    tower::service_fn(move |request: http::Request<kube::client::Body>| {
                        let (client, watched) = (client.clone(), watched.clone());
                        async move {
                            match class(request.method(), request.uri()).as_str() {
                                "k8s.watch.trainingjobs" => watched.send(request).await,
                                _ => client.send(request).await,
                            }
                        }
                    });
                Client::new(service, "default")
            })),
            ..Twist::default()
        };
        let mut lane = Lane::new(plane, errors).await?;
        lane.run("e3", manners, &[], twist, async |world| {
            world.create(json!({})).await?;
            world.until("running", |seen| seen.is("Running")).await?;
            proxy.set(Network::Silent);
            // The watch knows an older version from now on: what is written over that is refused.
            world.patch(json!({ "backoffLimit": 5 })).await?;
            let made = world.pass(Duration::from_secs(3600)).await?;
            let tried = made.iter().filter(|p| p.class == "k8s.update.trainingjobs/status").count();
            ensure!((1..=40).contains(&tried), "{tried} times in an hour");
            let seen = world.settle().await?;
            ensure!(seen.is("Complete") && seen.claims.is_empty(), "{:#?}", seen.job);
            proxy.set(Network::Open);
            let seen = world.until_complete().await?;
            let status = seen.job.context("the job")?.status.context("a status")?;
            ensure!(status.interruptions == 0 && world.cloud.created() == 1, "{status:#?}");
            Ok(())
        })
        .await
    })
}

#[test]
fn e5_a_server_that_asks_for_patience_gets_it() -> Result<()> {
    for status in [429, 503, 500] {
        on_each("e5", &[], async |world| {
            world.calls.stand(Standing { classes: API, every: 3, fault: Fault::Refuse(status) });
            world.create(json!({})).await?;
            world.until_complete().await?;
            world.calls.mend();
            ensure!(world.cloud.created() == 1, "{status}: {} machines", world.cloud.created());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn e6_a_conflict_in_every_second_write_slows_and_harms_nothing() -> Result<()> {
    on_each("e6", &[], async |world| {
        for classes in ["k8s.update.", "k8s.patch."] {
            world.calls.stand(Standing { classes, every: 2, fault: Fault::Refuse(409) });
        }
        world.create(json!({})).await?;
        let seen = world.until_complete().await?;
        let status = seen.job.context("the job")?.status.context("a status")?;
        ensure!(status.interruptions == 0 && world.cloud.created() == 1, "{status:#?}");
        world.calls.mend();
        Ok(())
    })
}

#[test]
fn e7_a_slow_server_costs_no_leader_and_no_machine() -> Result<()> {
    on_each("e7", &[], async |world| {
        world.live_elected().await?;
        let slow = Fault::Delay(Duration::from_secs(2));
        world.calls.stand(Standing { classes: API, every: 1, fault: slow });
        world.create(json!({})).await?;
        world.until_complete().await?;
        world.calls.mend();
        ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
        let taken = world.transitions().await?;
        ensure!(taken == 0, "the Lease changed hands {taken} times");
        Ok(())
    })
}

/// The API server empties a kind before it goes, and waits for finalizers: so machines go first.
#[test]
fn e10_kinds_that_are_deleted_take_their_machines_and_work_again_when_they_are_back() -> Result<()>
{
    clouds().iter().copied().try_for_each(e10)
}

fn e10(manners: Manners) -> Result<()> {
    by_hand(async |errors| {
        let plane = crate::own_plane().await?;
        let mut lane = Lane::new(&plane, errors).await?;
        let definitions: Api<CustomResourceDefinition> = Api::all(lane.client.clone());
        lane.run("e10", manners, &[], Twist::default(), async |world| {
            world.create(json!({})).await?;
            world.until("running", |seen| seen.is("Running")).await?;
            let all = definitions.list(&ListParams::default()).await?;
            for definition in &all {
                definitions.delete(&definition.name_any(), &DeleteParams::default()).await?;
            }
            world.until("no machine", |seen| seen.billed.is_empty()).await?;
            world.pass(Duration::from_secs(120)).await?;
            eventually("no kinds", Duration::from_secs(60), || async {
                let left = definitions.list(&ListParams::default()).await;
                let left = left.map_err(|e| e.to_string())?.items;
                left.first().map_or(Ok(()), |left| Err(format!("{:?}", left.status)))
            })
            .await?;
            let made = world.pass(Duration::from_secs(600)).await?;
            let writes = made.iter().filter(|point| point.writes()).count();
            ensure!(writes == 0, "{writes} writes to nowhere");
            ensure!(world.cloud.created() == 1, "bought for nobody");
            let before = world.calls.count();
            crate::install(&plane).await?;
            world.lane.sell().await?;
            asked(world, "list", &KINDS, before).await?;
            world.create(json!({})).await?;
            world.until_complete().await?;
            ensure!(world.cloud.created() == 2, "{} machines", world.cloud.created());
            Ok(())
        })
        .await
    })
}

#[test]
fn e10_a_kind_that_is_not_served_for_a_while_costs_no_machine() -> Result<()> {
    clouds().iter().copied().try_for_each(e10_away)
}

fn e10_away(manners: Manners) -> Result<()> {
    by_hand(async |errors| {
        let plane = crate::own_plane().await?;
        let mut lane = Lane::new(&plane, errors).await?;
        let definitions: Api<CustomResourceDefinition> = Api::all(lane.client.clone());
        lane.run("e10-away", manners, &[], Twist::default(), async |world| {
            world.create(json!({})).await?;
            world.until("running", |seen| seen.is("Running")).await?;
            let name = "computeclaims.petaflop.dev";
            let serve = async |served: bool| {
                let at = "/spec/versions/0/served";
                let patch = Patch::Json::<()>(serde_json::from_value(
                    json!([{ "op": "replace", "path": at, "value": served }]),
                )?);
                definitions.patch(name, &PatchParams::default(), &patch).await?;
                eventually("served or not", Duration::from_secs(60), || async {
                    let list = world.lane.claims().list(&ListParams::default()).await;
                    match list.is_ok() == served {
                        true => Ok(()),
                        false => Err(format!("{list:?}")),
                    }
                })
                .await?;
                anyhow::Ok(())
            };
            serve(false).await?;
            let before = world.calls.count();
            // Rounds of the sweep, in each of which its claim cannot be found.
            world.pass(Duration::from_secs(300)).await?;
            ensure!(world.cloud.billed_now().len() == 1, "ended: its claim was only out of sight");
            serve(true).await?;
            asked(world, "list", &["computeclaims"], before).await?;
            let seen = world.until_complete().await?;
            // Whoever looked while the claim was out of sight took it for gone.
            world.leaks.clear();
            let status = seen.job.context("the job")?.status.context("a status")?;
            ensure!(status.interruptions == 0 && world.cloud.created() == 1, "{status:#?}");
            Ok(())
        })
        .await
    })
}
