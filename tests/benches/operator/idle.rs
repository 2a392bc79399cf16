//! An operator with nothing to do: what it writes; what it holds in memory, by objects; how long a
//! fresh process needs until it does something useful.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use petaflop_arbiter::claim::{Claim, ClaimSpec, Device, Phase, claim_name};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, OfferId, Sale};
use petaflop_arbiter::workload::{OwnerKind, WorkloadId};
use petaflop_crds::compute_claim::{ComputeClaimStatus, FINALIZER};
use petaflop_crds::scalar::Moment;
use petaflop_crds::{ComputeClaim, TrainingJob};
use petaflop_harness::eventually;
use petaflop_operator::claims::StoredClaim;
use petaflop_operator::cluster::claim_status;
use serde_json::json;

use crate::Args;
use crate::figures::{Figure, Figures};
use crate::installed::{AT_ONCE, GENEROUS, Installed, create, job, path, pid};
use crate::job::count;
use crate::process::{self, Memory};

pub(crate) async fn measure(args: &Args, petaflop: &Path, figures: &mut Figures) -> Result<()> {
    let (few, many) = (args.objects / 10, args.objects);
    let installed = Installed::new("bench-idle", petaflop).await?;
    let mut seen = Vec::new();
    for objects in [0, few, many] {
        let there = seen.last().map_or(0, |(objects, _)| *objects);
        fill(&installed, there..objects).await?;
        seen.push((objects, cold(&installed, objects, figures).await?));
    }
    let [_, (_, small), (_, large)] = seen[..] else { unreachable!("three sizes") };
    let each = (large.rss - small.rss) / count(many - few);
    let what = format!("memory of one job and its claim, slope {few} → {many}");
    figures.add(Figure::new(what, "bytes", vec![each]));
    drop(installed);
    quiet(args, petaflop, figures).await
}

/// A third of the jobs is suspended, a third waits for a place that nobody offers, a third is complete.
async fn quiet(args: &Args, petaflop: &Path, figures: &mut Figures) -> Result<()> {
    let installed = Installed::new("bench-quiet", petaflop).await?;
    let at = path(installed.namespace.name(), "trainingjobs");
    let (mut bodies, mut complete) = (Vec::new(), Vec::new());
    for number in 0..args.quiet_objects {
        let name = format!("quiet-{number:05}");
        let mut body = job(&name)?;
        match number % 3 {
            0 => body["spec"]["suspend"] = json!(true),
            1 => body["spec"]["placement"] = json!({ "zones": ["atlantis-1"] }),
            _ => complete.push(name),
        }
        bodies.push(serde_json::to_vec(&body)?);
    }
    create(&installed.client, &at, bodies).await?;
    let jobs: Api<TrainingJob> = installed.api();
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let said = json!({ "status": { "phase": "Complete", "completionTime": now, "conditions": [{
        "type": "Complete", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": now,
    }] } });
    for name in complete {
        jobs.patch_status(&name, &PatchParams::default(), &Patch::Merge(&said)).await?;
    }
    let program = installed.start().await?;
    let spoken = |job: &TrainingJob| {
        job.status.as_ref().is_some_and(|status| status.observed_generation.is_some())
    };
    installed.until_jobs(args.quiet_objects, "spoken of", spoken).await?;
    process::settled(pid(&program)?).await?;
    let writes = installed.plane.writes().await?;
    let before = process::processor(pid(&program)?)?;
    tokio::time::sleep(Duration::from_secs(args.quiet_seconds)).await;
    let used = process::processor(pid(&program)?)? - before;
    let tally = writes.tally(Some(&installed.user())).await?;
    let (leases, others): (Vec<_>, Vec<_>) =
        tally.writes.iter().partition(|((object, _), _)| object.resource == "leases");
    for ((object, verb), times) in &others {
        println!("    {times} × {verb} {object}");
    }
    let sum = |of: &[(_, &u64)]| count(of.iter().map(|(_, times)| **times as usize).sum());
    let what = format!("writes with {} idle jobs in {} s", args.quiet_objects, args.quiet_seconds);
    figures.add(Figure::new(what, "writes", vec![sum(&others)]).aim("0"));
    figures.add(Figure::new("  events", "events", vec![count(tally.events as usize)]).aim("0"));
    figures.add(Figure::new("  renewals of its Lease", "writes", vec![sum(&leases)]));
    let share = used / count(args.quiet_seconds as usize) * 100.0;
    figures.add(Figure::new("  processor time", "% of a core", vec![share]));
    Ok(())
}

/// Adds jobs that have their machine already, and the machines' claims. Their provider is away, so
/// that nothing is asked of agents that do not exist; the operator says so of each job, and is ended.
async fn fill(installed: &Installed, numbers: std::ops::Range<usize>) -> Result<()> {
    let all = numbers.end;
    if numbers.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    let claims: Api<ComputeClaim> = installed.api();
    let at = path(installed.namespace.name(), "trainingjobs");
    futures::stream::iter(numbers)
        .map(|number| (number, claims.clone(), at.clone()))
        .map(|(number, claims, at)| async move {
            let mut body = job(&format!("idle-{number:05}"))?;
            body["metadata"]["finalizers"] = json!([FINALIZER]);
            let bodies = vec![serde_json::to_vec(&body)?];
            let answers = create(&installed.client, &at, bodies).await?;
            let job: TrainingJob = serde_json::from_str(answers.first().context("an answer")?)?;
            let mut claim = claim(&job)?;
            let made = ComputeClaim::planned(&claim.spec).map_err(|e| anyhow::anyhow!("{e:?}"))?;
            let mut made = claims.create(&PostParams::default(), &made).await?;
            claim.uid = made.metadata.uid.clone().unwrap_or_default();
            made.status = Some(status(claim)?);
            let name = made.metadata.name.clone().unwrap_or_default();
            claims.replace_status(&name, &PostParams::default(), &made).await?;
            anyhow::Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    eprintln!("    {all} jobs and claims after {:.0} s", began.elapsed().as_secs_f64());
    let program = installed.start().await?;
    installed.until_jobs(all, "spoken of", |job| job.status.is_some()).await?;
    process::settled(pid(&program)?).await?;
    eprintln!("    spoken of after {:.0} s", began.elapsed().as_secs_f64());
    program.stop(Duration::from_secs(60));
    Ok(())
}

/// A fresh process beside objects that are all as they should be.
async fn cold(installed: &Installed, objects: usize, figures: &mut Figures) -> Result<Memory> {
    let began = Instant::now();
    let program = installed.start().await?;
    let name = format!("probe-{objects}");
    let at = path(installed.namespace.name(), "trainingjobs");
    create(&installed.client, &at, vec![serde_json::to_vec(&job(&name)?)?]).await?;
    let jobs: Api<TrainingJob> = installed.api();
    let claims: Api<ComputeClaim> = installed.api();
    let of_it = ListParams::default().labels(&format!("petaflop.dev/owner={name}"));
    let placed = eventually("a claim for the new job", GENEROUS, || async {
        let list = claims.list(&of_it).await.map_err(|error| error.to_string())?;
        if list.items.is_empty() { Err(program.log_tail()) } else { Ok(began.elapsed()) }
    })
    .await?;
    let what = format!("{objects} jobs and claims: start → claim of a new job");
    figures.add(Figure::new(what, "s", vec![placed.as_secs_f64()]));
    jobs.delete(&name, &DeleteParams::background()).await?;
    let process = pid(&program)?;
    process::settled(process).await?;
    let memory = process::memory(process)?;
    let mib = |bytes: f64| vec![bytes / f64::from(1 << 20)];
    let aimed = objects >= 10_000;
    let rss =
        Figure::new(format!("{objects} jobs and claims: RSS, settled"), "MiB", mib(memory.rss));
    figures.add(if aimed { rss.aim("≤ 64") } else { rss });
    let peak = Figure::new(format!("{objects} jobs and claims: peak"), "MiB", mib(memory.peak));
    figures.add(if aimed { peak.aim("≤ 160") } else { peak });
    let used = process::processor(process)?;
    figures.add(Figure::new(
        format!("{objects} jobs and claims: processor time until then"),
        "s",
        vec![used],
    ));
    program.stop(Duration::from_secs(60));
    Ok(memory)
}

/// What the arbiter might have decided for a job.
fn claim(job: &TrainingJob) -> Result<Claim> {
    let now = jiff::Timestamp::now();
    let meta = &job.metadata;
    let owner = WorkloadId {
        kind: OwnerKind::TrainingJob,
        namespace: meta.namespace.clone().context("a namespace")?,
        name: meta.name.clone().context("a name")?,
        uid: meta.uid.clone().context("a uid")?,
    };
    let spec = ClaimSpec {
        name: claim_name(&owner, 1, 0),
        owner,
        placement: 1,
        index: 0,
        offer: Offer {
            id: OfferId("away/eu-west-1/eu-west-1a/m7i.large/on-demand".into()),
            provider: "away".into(),
            region: "eu-west-1".into(),
            zone: "eu-west-1a".into(),
            instance_type: "m7i.large".into(),
            accelerators: None,
            arch: Arch::X86_64,
            vcpu_milli: Some(2000),
            memory: Some(8 << 30),
            capacity: Capacity::OnDemand,
            price: "0.1008".parse()?,
            quoted_at: now,
            ttl_seconds: 300,
            owner: HostOwner::Known,
            measured: None,
            slots: None,
            shares: Vec::new(),
            interruptions_per_hour: None,
            sale: Sale::Buyable,
        },
        device: Device::Cpu,
        reserved: Usd::from_micros(100_000),
        decided_at: now,
        revision: None,
        checkpoint_interval_seconds: None,
        runners_up: Vec::new(),
    };
    let phase = Phase::Launched { instance: "i-0123456789abcdef0".into(), at: now };
    Ok(Claim { spec, uid: String::new(), phase, attempt: 1, spent: Usd::ZERO })
}

/// As the operator writes it once the machine is there.
fn status(claim: Claim) -> Result<ComputeClaimStatus> {
    let now = jiff::Timestamp::now();
    let mut status = ComputeClaimStatus::default();
    status.record(&claim).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    status.billed_from = Some(Moment(now));
    status.endpoint = Some("192.0.2.1:8472".into());
    let stored = StoredClaim {
        version: String::new(),
        deleting: false,
        billed_from: Some(now),
        running_from: None,
        endpoint: status.endpoint.clone(),
        agent_key: None,
        claim,
    };
    claim_status::summarise(&mut status, &stored, Some(1), now);
    Ok(status)
}
