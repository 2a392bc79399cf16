//! C. Leaks: no machine bills that nobody owns, whatever is deleted, answered or left out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use petaflop_arbiter::claim::Identity;
use petaflop_crds::{ComputeClaim, ComputeProvider};
use petaflop_fake_provider::{Fault as Misbehaviour, Foreign, Kind, Manners};
use petaflop_harness::eventually;
use petaflop_providers::provider::parse_identity;
use serde_json::json;

use crate::calls::{Fault, Point, Standing};
use crate::world::{Lane, Seen, Twist, World, alone, by_hand, clouds, on_each};

async fn running(world: &mut World<'_>) -> Result<ComputeClaim> {
    world.create(json!({})).await?;
    let seen = world.until("running", |seen| seen.is("Running")).await?;
    seen.claims.into_iter().next().context("a claim")
}

async fn gone(world: &mut World<'_>) -> Result<()> {
    world.until("gone", |seen| seen.job.is_none() && seen.claims.is_empty()).await?;
    ensure!(world.cloud.billed_now().is_empty(), "{:?}", world.cloud.billed_now());
    Ok(())
}

/// After its start an operator looks for the first time, where the provider has forgotten what ended before.
const FIRST_ROUND: Duration = Duration::from_secs(12);

#[test]
fn c1_a_job_that_is_deleted_while_its_machine_is_bought_leaves_none() -> Result<()> {
    on_each("c1", &[], async |world| {
        // The machine is there; nobody has heard so, and no list shows it yet.
        world.cloud.misbehave_after(Kind::Create, 0, Misbehaviour::LostAnswer);
        world.listed_late();
        world.create(json!({})).await?;
        world.until("a machine", |seen| !seen.billed.is_empty()).await?;
        world.delete().await?;
        gone(world).await
    })
}

#[test]
fn c2_the_machine_of_a_claim_that_was_removed_by_force_is_ended() -> Result<()> {
    on_each("c2", &[], async |world| {
        let claim = running(world).await?;
        world.orphan(&claim).await?;
        // That its machine is gone in time is looked at whenever time stands still.
        world.until_complete().await?;
        // It is booked until it was told to end; what it takes to shut down nobody waits for.
        world.unseen = world.manners.shutdown;
        Ok(())
    })
}

#[test]
fn c2_the_account_of_an_orphan_is_closed_though_whoever_ended_it_died_before_its_last_row()
-> Result<()> {
    let ended = [(Point::new("provider.terminate", 1), Fault::CrashAfter)];
    on_each("c2-died", &ended, async |world| {
        let claim = running(world).await?;
        world.orphan(&claim).await?;
        world.until_complete().await?;
        ensure!(world.calls.struck() == 1, "nobody died");
        // A list may lag behind for so long.
        world.pass(world.manners.settle + Duration::from_secs(30 + 120)).await?;
        world.unseen = world.manners.shutdown;
        world.outlived = FIRST_ROUND;
        Ok(())
    })
}

#[test]
fn c2_the_machine_of_a_job_that_was_removed_by_force_is_ended_and_its_claim_says_why() -> Result<()>
{
    on_each("c2-job", &[], async |world| {
        running(world).await?;
        world.delete().await?;
        let bare = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        let jobs = world.lane.jobs();
        jobs.patch(&world.job, &PatchParams::default(), &bare).await?;
        let says = |seen: &Seen| seen.claim_says("Orphaned") == Some("OwnerGone");
        world.until("its claim says so", says).await?;
        gone(world).await
    })
}

#[test]
fn c2_a_machine_of_nobody_that_cannot_be_ended_keeps_no_other_alive() -> Result<()> {
    on_each("c2-stuck", &[], async |world| {
        running(world).await?;
        let bought = world.cloud.billed_now().remove(0);
        let bought = parse_identity(&bought.identity).context("an identity")?;
        world.until_complete().await?;
        world.until("no machine", |seen| seen.billed.is_empty()).await?;
        let of_nobody = |name: &str| {
            let (claim, claim_uid) = (name.to_owned(), format!("{name}{}", &bought.claim_uid[4..]));
            Foreign::Tagged(Identity { claim, claim_uid, ..bought.clone() })
        };
        let planted = ["gone", "lost"].map(|name| world.cloud.plant(of_nobody(name)));
        world.cloud.misbehave_after(Kind::Terminate, 0, Misbehaviour::TerminateForbidden);
        let seen = world.until("one of them", |seen| seen.billed.len() == 1).await?;
        // The one that was refused; the other was ended in the same round.
        ensure!(seen.billed[0].id == planted[0], "{:?} of {planted:?}", seen.billed);
        world.until("none of them", |seen| seen.billed.is_empty()).await?;
        world.leaks.clear();
        world.unseen = world.manners.shutdown;
        Ok(())
    })
}

#[test]
fn c3_a_machine_that_was_ended_and_runs_on_is_ended_again() -> Result<()> {
    on_each("c3", &[], async |world| {
        running(world).await?;
        world.cloud.misbehave(Misbehaviour::TerminateIgnored);
        world.delete().await?;
        world.pass(Duration::from_secs(50)).await?;
        let seen = world.settle().await?;
        ensure!(seen.claims.len() == 1, "its claim went before it");
        ensure!(seen.billed.len() == 1, "{:?}", seen.billed);
        world.cloud.behave_entirely();
        gone(world).await
    })
}

#[test]
fn c4_neither_not_found_nor_forbidden_is_taken_for_an_end() -> Result<()> {
    for lie in [Misbehaviour::TerminateNotFound, Misbehaviour::TerminateForbidden] {
        on_each("c4", &[], async |world| {
            running(world).await?;
            world.cloud.misbehave(lie);
            // Its agent gives it back meanwhile, and it is looked after every ten seconds.
            world.outlived = Duration::from_secs(12);
            world.delete().await?;
            world.pass(Duration::from_secs(50)).await?;
            let seen = world.settle().await?;
            ensure!(seen.claims.len() == 1 && seen.billed.len() == 1, "{:?}", seen.billed);
            world.cloud.behave_entirely();
            gone(world).await
        })?;
    }
    Ok(())
}

#[test]
fn c5_a_list_that_is_not_complete_proves_nothing() -> Result<()> {
    for lie in [
        Misbehaviour::PartialPage,
        Misbehaviour::ErrorMidList,
        Misbehaviour::RepeatedCursor,
        Misbehaviour::ServerError,
    ] {
        for &manners in clouds() {
            // A page holds one machine: with two, half of every list is missing.
            let short = Manners { page: 1, ..manners };
            alone("c5", short, &[], async |world| {
                world.cloud.plant(Foreign::Untagged);
                let claim = running(world).await?;
                world.cloud.misbehave(lie);
                world.pass(Duration::from_secs(400)).await?;
                world.cloud.behave_entirely();
                let seen = world.until_complete().await?;
                let status = seen.job.context("the job")?.status.context("a status")?;
                ensure!(status.interruptions == 0, "taken for lost: {status:#?}");
                ensure!(world.cloud.machines_of(&claim.uid().unwrap_or_default()).len() == 1);
                end_foreign(world).await
            })?;
        }
    }
    Ok(())
}

#[test]
fn c6_a_machine_too_young_to_be_listed_is_not_lost() -> Result<()> {
    on_each("c6", &[], async |world| {
        world.listed_late();
        world.create(json!({})).await?;
        let seen = world.until_complete().await?;
        let status = seen.job.context("the job")?.status.context("a status")?;
        ensure!(status.interruptions == 0 && world.cloud.created() == 1, "{status:#?}");
        Ok(())
    })
}

#[test]
fn c7_a_namespace_that_is_deleted_goes_after_its_machines() -> Result<()> {
    clouds().iter().copied().try_for_each(c7)
}

fn c7(manners: Manners) -> Result<()> {
    by_hand(async |errors| {
        let plane = crate::plane().await?;
        let theirs = plane.namespace("faults-user").await?;
        let mut lane = Lane::new(plane, errors).await?;
        lane.jobs_in = theirs.name().to_owned();
        let namespaces: Api<Namespace> = Api::all(lane.client.clone());
        lane.run("c7", manners, &[], Twist::default(), async |world| {
            running(world).await?;
            world.cloud.misbehave(Misbehaviour::TerminateIgnored);
            namespaces.delete(theirs.name(), &DeleteParams::default()).await?;
            // Its objects are deleted by a controller, which takes its own time.
            eventually("the job is deleted", Duration::from_secs(120), || async {
                let job = world.lane.jobs().get("c7").await.map_err(|e| e.to_string())?;
                job.metadata.deletion_timestamp.map(drop).ok_or_else(|| "not yet".to_owned())
            })
            .await?;
            world.pass(Duration::from_secs(50)).await?;
            let seen = world.settle().await?;
            ensure!(seen.claims.len() == 1 && seen.billed.len() == 1, "{:?}", seen.billed);
            let phase = namespaces.get(theirs.name()).await?.status.and_then(|s| s.phase);
            ensure!(phase.as_deref() == Some("Terminating"), "{phase:?}");
            world.cloud.behave_entirely();
            gone(world).await?;
            eventually("the namespace is gone", Duration::from_secs(120), || async {
                let left = namespaces.get_opt(theirs.name()).await.map_err(|e| e.to_string())?;
                left.map_or(Ok(()), |left| Err(format!("{:?}", left.status)))
            })
            .await?;
            // Nothing new may be made in it; its last events are lost.
            world.calls.forgive("k8s.create.events");
            Ok(())
        })
        .await
    })
}

#[test]
fn c9_a_provider_that_is_deleted_stays_until_its_last_machine_is_gone() -> Result<()> {
    on_each("c9", &[], async |world| {
        let claim = running(world).await?;
        let providers: Api<ComputeProvider> = Api::all(world.lane.client.clone());
        providers.delete(&claim.spec.provider, &DeleteParams::default()).await?;
        world.pass(Duration::from_secs(60)).await?;
        ensure!(world.cloud.billed_now().len() == 1, "its machine was ended");
        world.delete().await?;
        gone(world).await?;
        let settles = world.manners.settle + Duration::from_secs(30 + 10);
        world.pass(settles).await?;
        let left = providers.get_opt(&claim.spec.provider).await?;
        ensure!(left.is_none(), "{left:#?}");
        Ok(())
    })
}

#[test]
fn c9_a_machine_that_shows_up_after_its_claim_and_its_provider_were_removed_is_ended() -> Result<()>
{
    on_each("c9-late", &[], async |world| {
        let claim = running(world).await?;
        let bought = world.cloud.billed_now().remove(0);
        let bought = parse_identity(&bought.identity).context("an identity")?;
        let providers: Api<ComputeProvider> = Api::all(world.lane.client.clone());
        providers.delete(&claim.spec.provider, &DeleteParams::default()).await?;
        world.delete().await?;
        gone(world).await?;
        // Who is told that a purchase failed may have bought all the same.
        world.cloud.plant(Foreign::Tagged(Identity { attempt: bought.attempt + 1, ..bought }));
        world.pass(Duration::from_secs(20)).await?;
        let object = providers.get(&claim.spec.provider).await?;
        let said = object.status.unwrap_or_default().conditions;
        let waits = |c: &Condition| c.type_ == "Reconciling" && c.reason == "Releasing";
        ensure!(said.iter().any(waits), "{said:#?}");
        // Too young to be ended at first, and listed with an end to come for a while.
        world.until("no machine", |seen| seen.billed.is_empty()).await?;
        world.pass(Duration::from_secs(60)).await?;
        let left = providers.get_opt(&claim.spec.provider).await?;
        ensure!(left.is_none(), "{left:#?}");
        world.leaks.clear();
        world.unseen = world.manners.shutdown;
        Ok(())
    })
}

#[test]
fn c9_a_provider_that_is_deleted_stays_until_what_its_machines_cost_is_booked() -> Result<()> {
    let ended = [(Point::new("provider.terminate", 1), Fault::CrashAfter)];
    on_each("c9-account", &ended, async |world| {
        let claim = running(world).await?;
        world.orphan(&claim).await?;
        let providers: Api<ComputeProvider> = Api::all(world.lane.client.clone());
        providers.delete(&claim.spec.provider, &DeleteParams::default()).await?;
        world.delete().await?;
        let ended = |seen: &Seen| seen.job.is_none() && seen.billed.is_empty();
        world.until("no machine", ended).await?;
        ensure!(world.calls.struck() == 1, "nobody died");
        world.pass(2 * (world.manners.settle + Duration::from_secs(30 + 30))).await?;
        let left = providers.get_opt(&claim.spec.provider).await?;
        ensure!(left.is_none(), "{left:#?}");
        world.unseen = world.manners.shutdown;
        world.outlived = FIRST_ROUND;
        Ok(())
    })
}

#[test]
fn c9_credentials_that_are_gone_while_a_machine_runs_cost_neither_it_nor_its_job() -> Result<()> {
    // They are back while its task runs, and long after it has ended.
    for (gone, outlived) in [(200, 0), (1_200, 15 * 60)] {
        on_each("c9-keys", &[], async |world| {
            let claim = running(world).await?;
            let refused = Fault::Refuse(401);
            world.calls.stand(Standing { classes: "provider.", every: 1, fault: refused });
            world.pass(Duration::from_secs(60)).await?;
            // Whoever begins now never had any.
            world.die();
            world.live().await?;
            world.pass(Duration::from_secs(gone)).await?;
            let seen = world.settle().await?;
            ensure!(seen.claims.len() == 1 && !seen.is("Failed"), "forgotten: {:#}", seen.status());
            let providers: Api<ComputeProvider> = Api::all(world.lane.client.clone());
            let object = providers.get(&claim.spec.provider).await?;
            let said = object.status.unwrap_or_default().conditions;
            for (type_, status) in [("CredentialsValid", "False"), ("Stalled", "True")] {
                let is = |c: &&Condition| c.type_ == type_ && c.status == status;
                let found = said.iter().find(is).with_context(|| format!("{said:#?}"))?;
                ensure!(found.reason == "Unauthorized", "{found:?}");
            }
            world.calls.mend();
            world.outlived = Duration::from_secs(outlived);
            let seen = world.until_complete().await?;
            let status = seen.job.context("the job")?.status.context("a status")?;
            ensure!(status.interruptions == 0 && world.cloud.created() == 1, "{status:#?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn c10_a_machine_whose_operator_is_dead_ends_itself_when_its_lease_does() -> Result<()> {
    // A cloud that tells afterwards when it ended, and one that has forgotten it: there it is booked
    // until its lease must have been over, however late somebody looks.
    let (told, alone_for) = (Duration::ZERO, Duration::from_secs(15 * 60));
    for (manners, outlived) in [(Manners::aws(), told), (Manners::runpod(), alone_for)] {
        alone("c10", manners, &[], async |world| {
            running(world).await?;
            world.die();
            let since = world.clock.boottime();
            world.until("no machine", |seen| seen.billed.is_empty()).await?;
            let billed = world.clock.boottime() - since;
            ensure!(billed <= Duration::from_secs(30 * 60 + 60), "it billed for {billed:?}");
            // What it cost is booked, and the job goes on.
            let late = if outlived.is_zero() { 30 * 60 } else { 5 * 3600 };
            world.clock.advance(Duration::from_secs(late));
            world.outlived = outlived;
            world.live().await?;
            let again = |seen: &Seen| seen.is("Running") && !seen.billed.is_empty();
            world.until("running again", again).await?;
            world.delete().await?;
            gone(world).await
        })?;
    }
    Ok(())
}

#[test]
fn c11_machines_of_others_are_never_touched() -> Result<()> {
    on_each("c11", &[], async |world| {
        world.cloud.plant(Foreign::Untagged);
        world.cloud.plant(Foreign::Tagged(Identity {
            installation: "00000000-0000-4000-8000-000000000000".into(),
            namespace: world.lane.namespace.name().to_owned(),
            claim: "trj-other-00000000-1-0".into(),
            claim_uid: "11111111-0000-4000-8000-000000000000".into(),
            attempt: 1,
        }));
        world.create(json!({})).await?;
        world.until_complete().await?;
        world.pass(Duration::from_secs(1800)).await?;
        ensure!(world.cloud.billed_now().len() == 2, "{:?}", world.cloud.billed_now());
        end_foreign(world).await
    })
}

/// What was planted by the test is ended by it, so that what bills in the end is ours alone.
async fn end_foreign(world: &mut World<'_>) -> Result<()> {
    for billed in world.cloud.billed_now() {
        world.cloud.interrupt(&billed.id, None);
    }
    world.foreign = true;
    world.leaks.clear();
    Ok(())
}
