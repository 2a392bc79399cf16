//! Jobs created → claims written, beside plain creates of the same objects on the same server, in
//! turn; and how long a job waits for its first status.
//!
//! Times are the server's own: when a request came in, by its audit log.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kube::api::{DeleteParams, ListParams};
use petaflop_crds::{ComputeClaim, TrainingJob};
use petaflop_harness::Write;
use serde_json::Value;

use crate::Args;
use crate::figures::{Figure, Figures, quantile};
use crate::installed::{Installed, all, create, job, path};
use crate::job::count;
use crate::process;

pub(crate) async fn measure(args: &Args, petaflop: &Path, figures: &mut Figures) -> Result<()> {
    let installed = Installed::new("bench-rate", petaflop).await?;
    // Nobody looks after these.
    let plain = installed.plane.namespace("bench-plain").await?;
    let program = installed.start().await?;
    let pid = crate::installed::pid(&program)?;
    let (mut ours, mut server, mut written, mut most) = (vec![], vec![], vec![], vec![]);
    let (mut writing, mut creating, mut share) = (vec![], vec![], vec![]);
    let (mut middle, mut late, mut work) = (vec![], vec![], vec![]);
    // The first is for the caches of everybody.
    for round in 0..=args.rounds {
        let before = process::processor(pid)?;
        let writes = installed.plane.writes().await?;
        let jobs = bodies(&format!("r{round}"), args.burst)?;
        let jobs_at = path(installed.namespace.name(), "trainingjobs");
        create(&installed.client, &jobs_at, jobs.clone()).await?;
        installed.until_claims(args.burst).await?;
        installed.until_jobs(args.burst, "spoken of", |job| job.status.is_some()).await?;
        let seen = writes.all().await?;
        let used = process::processor(pid)? - before;
        let claims = plain_claims(&all(&installed.api::<ComputeClaim>()).await?)?;
        away(&installed).await?;

        let writes = installed.plane.writes().await?;
        create(&installed.client, &path(plain.name(), "trainingjobs"), jobs).await?;
        create(&installed.client, &path(plain.name(), "computeclaims"), claims).await?;
        let alone = writes.all().await?;
        if round == 0 {
            continue;
        }
        let user = installed.user();
        let (first, last) = span(&seen, |w| taken(w, "create", "trainingjobs"))?;
        let (first_claim, last_claim) =
            span(&seen, |w| taken(w, "create", "computeclaims") && w.user == user)?;
        ours.push(count(args.burst) / seconds(first, last_claim));
        written.push(count(args.burst) / seconds(first_claim, last_claim));
        let others = |w: &Write| w.object.namespace == plain.name();
        let (begin, _) = span(&alone, |w| others(w) && taken(w, "create", "trainingjobs"))?;
        let (begin_claims, end) =
            span(&alone, |w| others(w) && taken(w, "create", "computeclaims"))?;
        server.push(count(args.burst) / seconds(begin, end));
        let within = |w: &&Write| w.was_taken() && w.received >= first && w.received <= last_claim;
        let during = seen.iter().filter(within).count();
        writing.push(count(during) / seconds(first, last_claim));
        share.push(count(during) / count(args.burst));
        creating.push(count(2 * args.burst) / seconds(begin, end));
        most.push(count(args.burst) / seconds(begin_claims, end));
        let waits = first_status(&seen, &user);
        ensure!(waits.len() == args.burst, "{} of {} jobs", waits.len(), args.burst);
        middle.push(quantile(&waits, 0.5));
        late.push(quantile(&waits, 0.99));
        work.push(used / count(args.burst) * 1000.0);
        eprintln!(
            "    round {round}: jobs in {:.2} s, first claim after {:.2} s, last after {:.2} s",
            seconds(first, last),
            seconds(first, first_claim),
            seconds(first, last_claim)
        );
    }
    let name = format!("{} jobs at once → claims", args.burst);
    let plain_name = "plain creates of the same objects";
    let rate = Figure::new(name, "claims/s", ours).beside(plain_name, server);
    figures.add(rate.aim("ratio ≥ 0.8"));
    let rate = Figure::new("  the claims alone, first to last", "claims/s", written);
    figures.add(rate.beside("plain creates of claims", most));
    let all = Figure::new("  everybody's writes meanwhile", "writes/s", writing);
    figures.add(all.beside(plain_name, creating));
    // What a busy machine does not move.
    figures.add(Figure::new(
        "  everybody's writes for one claim",
        "of which job and claim are 2",
        share,
    ));
    figures.add(Figure::new("  processor time of the operator", "s per 1000 jobs", work));
    figures.add(Figure::new("  apply → first status, p50", "s", middle));
    figures.add(Figure::new("  apply → first status, p99", "s", late));

    let writes = installed.plane.writes().await?;
    let jobs_at = path(installed.namespace.name(), "trainingjobs");
    for body in bodies("one", args.burst)? {
        create(&installed.client, &jobs_at, vec![body]).await?;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    installed.until_jobs(args.burst, "spoken of", |job| job.status.is_some()).await?;
    let waits = first_status(&writes.all().await?, &installed.user());
    let what = format!("{} jobs, 4 a second: apply → first status", waits.len());
    figures.add(Figure::new(format!("{what}, p50"), "s", vec![quantile(&waits, 0.5)]));
    figures.add(Figure::new(format!("{what}, p99"), "s", vec![quantile(&waits, 0.99)]));
    away(&installed).await
}

fn bodies(prefix: &str, number: usize) -> Result<Vec<Vec<u8>>> {
    let body = |at| Ok(serde_json::to_vec(&job(&format!("{prefix}-{at:05}"))?)?);
    (0..number).map(body).collect()
}

/// The same objects as somebody else would create them: without an owner, or the garbage collector takes them.
fn plain_claims(claims: &[ComputeClaim]) -> Result<Vec<Vec<u8>>> {
    let mut bodies = Vec::new();
    for claim in claims {
        let mut object: Value = serde_json::to_value(claim)?;
        let labels = object["metadata"]["labels"].take();
        let name = object["metadata"]["name"].take();
        object["metadata"] = serde_json::json!({ "name": name, "labels": labels });
        object.as_object_mut().context("an object")?.remove("status");
        bodies.push(serde_json::to_vec(&object)?);
    }
    Ok(bodies)
}

/// Takes all jobs away and waits until nothing of them is left.
async fn away(installed: &Installed) -> Result<()> {
    let jobs = installed.api::<TrainingJob>();
    jobs.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
    installed.until_claims(0).await
}

fn taken(write: &Write, verb: &str, resource: &str) -> bool {
    write.was_taken()
        && write.verb == verb
        && write.object.resource == resource
        && write.object.subresource.is_empty()
}

/// When the first and the last of these came in.
fn span(writes: &[Write], which: impl Fn(&Write) -> bool) -> Result<(Timestamp, Timestamp)> {
    let times = || writes.iter().filter(|write| which(write)).map(|write| write.received);
    Ok((times().min().context("no such write")?, times().max().context("no such write")?))
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// For each job that was created: seconds until the operator wrote its status.
fn first_status(writes: &[Write], user: &str) -> Vec<f64> {
    let mut created = BTreeMap::new();
    let mut waits = BTreeMap::new();
    for write in writes {
        if taken(write, "create", "trainingjobs") {
            created.insert(&write.object.name, write.received);
        }
    }
    for write in writes {
        let status =
            write.object.resource == "trainingjobs" && write.object.subresource == "status";
        if status
            && write.was_taken()
            && write.user == user
            && let Some(at) = created.get(&write.object.name)
        {
            waits.entry(&write.object.name).or_insert_with(|| seconds(*at, write.received));
        }
    }
    waits.into_values().collect()
}
