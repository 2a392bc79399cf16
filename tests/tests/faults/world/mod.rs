//! One run: a cloud, a ledger and a clock of its own, an operator that can die and come back, and the
//! loop that moves time on whenever nothing is left to do now.
//!
//! | module | holds |
//! |---|---|
//! | `lane` | where runs take place, one after the other |
//! | `process` | the operators: how they begin, die and come back |
//! | `user` | what a user writes |
//! | `seen` | what stands at a moment |

mod lane;
mod process;
mod seen;
mod user;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::{Api, ResourceExt};
use object_store::memory::InMemory;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::ledger::Row;
use petaflop_crds::{ComputeClaim, ComputeProvider, SpendBudget};
use petaflop_fake_provider::{Cloud, Manners};
use petaflop_operator::cluster::finalizer::is_held;
use petaflop_operator::ledger::Ledger;
use serde_json::json;

use crate::calls::{Calls, Point};
use crate::oracles::{Unsure, compare};

pub(crate) use lane::{Errors, Lane, alone, by_hand, clouds, everything, on_each};
use process::Process;
pub(crate) use process::Twist;
pub(crate) use seen::Seen;

/// Nothing happened for this long: time may move on.
const STILL: Duration = Duration::from_millis(4);

/// Real time after which a watch brings nothing any more.
const NOTICED: Duration = Duration::from_secs(2);

/// Real time after which a run counts as stuck, however slow the machine.
const STUCK: Duration = Duration::from_secs(60);

/// After which the machine of a claim that was removed by force has ended: a round of the sweep, how long
/// a young machine is left alone, and the call itself.
pub(crate) const SWEPT: Duration = Duration::from_secs(120 + 90 + 10);

/// Micro-dollars an hour of what the cloud sells: 400 a second.
pub(crate) const PRICE: i64 = 1_440_000;

/// A run.
pub(crate) struct World<'a> {
    pub(crate) lane: &'a Lane,
    pub(crate) cloud: Cloud,
    pub(crate) clock: Clock,
    pub(crate) calls: Calls,
    pub(crate) job: String,
    /// What it works on is a service of this name, and no job.
    pub(crate) serves: bool,
    pub(crate) manners: Manners,
    store: Arc<InMemory>,
    twist: Twist,
    processes: Vec<Process>,
    /// What was seen last, and after how many calls.
    last: Option<(usize, Seen)>,
    /// Since when it goes on, in real time.
    pub(crate) began: Instant,
    /// Most claims that stood at once.
    pub(crate) at_once: u64,
    /// Machines that billed while their claim was not there, each once.
    pub(crate) leaks: Vec<String>,
    /// Uid of the claim that was removed by force, and by the time since boot until when its machine is to
    /// be gone.
    orphaned: Option<(String, Duration)>,
    /// Machines of others are on the bill.
    pub(crate) foreign: bool,
    /// Machines of orphans bill for so long after they were told to end, and it is not booked.
    pub(crate) unseen: Duration,
    /// What is booked may reach so far beyond what is billed: nobody could say when a machine ended.
    pub(crate) outlived: Duration,
}

/// Why time stands still.
enum Pause {
    Quiet,
    Dead,
}

impl World<'_> {
    /// Lets things happen, and time pass, until it is so.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        mut is: impl FnMut(&Seen) -> bool,
    ) -> Result<Seen> {
        for _ in 0..3000 {
            let seen = self.settle().await?;
            if is(&seen) {
                return Ok(seen);
            }
            self.move_on().await?;
        }
        let seen = self.look().await?;
        bail!(
            "never {what}: {:#}, claims {:#?}, last calls {:?}",
            seen.status(),
            seen.claims.iter().map(|claim| &claim.status).collect::<Vec<_>>(),
            self.last_calls()
        )
    }

    /// The job is complete, and its machine and claim gone.
    pub(crate) async fn until_complete(&mut self) -> Result<Seen> {
        self.until("complete", |seen| seen.is("Complete") && seen.claims.is_empty()).await
    }

    /// Lets things happen until nothing is left to do now, and says what stands then.
    pub(crate) async fn settle(&mut self) -> Result<Seen> {
        loop {
            match self.pause().await? {
                Pause::Dead => self.live().await?,
                Pause::Quiet => {
                    let before = self.calls.count();
                    let seen = match self.last.take() {
                        // Nobody has written since.
                        Some((count, seen)) if count == before => {
                            Seen { billed: self.cloud.billed_now(), ..seen }
                        }
                        _ => self.look().await?,
                    };
                    if self.calls.count() == before && !self.calls.is_dead() {
                        self.notice_leaks(&seen);
                        self.last = Some((before, seen.clone()));
                        return Ok(seen);
                    }
                }
            }
        }
    }

    /// Moves the clock to the next thing that waits for it.
    pub(crate) async fn move_on(&self) -> Result<()> {
        loop {
            let own =
                self.processes.iter().filter(|one| one.goes()).filter_map(|one| one.own.as_ref());
            let clocks: Vec<&Clock> =
                own.map(|(clock, _)| clock).chain(std::iter::once(&self.clock)).collect();
            if let Some(wait) = clocks.iter().filter_map(|clock| clock.next_wake()).min() {
                for clock in clocks {
                    clock.advance(wait.max(Duration::from_millis(1)));
                }
                return Ok(());
            }
            self.must_go_on("anything that waits for the clock")?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets this much time pass, whatever happens in it. Gives the calls that were made.
    pub(crate) async fn pass(&mut self, time: Duration) -> Result<Vec<Point>> {
        let until = self.clock.boottime() + time;
        let before = self.calls.count();
        while self.clock.boottime() < until {
            self.settle().await?;
            self.move_on().await?;
        }
        self.settle().await?;
        Ok(self.calls.made().split_off(before))
    }

    async fn pause(&self) -> Result<Pause> {
        let mut last = (self.calls.count(), Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if self.calls.is_dead() {
                return Ok(Pause::Dead);
            }
            let idle = self.calls.in_flight() == 0
                && self.processes.iter().filter(|one| one.goes()).all(|one| {
                    // Whoever is at work may be waiting for the clock, and who does not lead leaves
                    // its queues alone.
                    let queues = &one.running.queues;
                    let waiting = queues.jobs.depth()
                        + queues.services.depth()
                        + queues.claims.depth()
                        + queues.providers.depth();
                    waiting == 0 || !one.running.operator.leadership.leads()
                });
            let count = self.calls.count();
            if !idle || count != last.0 {
                last = (count, Instant::now());
                self.must_go_on("quiet")?;
            } else if last.1.elapsed() >= STILL {
                self.cloud.settle().await;
                if self.calls.count() == count && self.calls.in_flight() == 0 {
                    return Ok(Pause::Quiet);
                }
            }
        }
    }

    async fn look(&self) -> Result<Seen> {
        let (jobs, services) = (self.lane.jobs(), self.lane.services());
        // One that cannot be read is nobody's, and where the kind is away there are none.
        let claims: Api<DeserializeGuard<ComputeClaim>> =
            Api::namespaced(self.lane.client.clone(), &self.lane.jobs_in);
        let all = ListParams::default();
        let job = async { if self.serves { Ok(None) } else { jobs.get_opt(&self.job).await } };
        let service =
            async { if self.serves { services.get_opt(&self.job).await } else { Ok(None) } };
        let (job, service, claims) = tokio::join!(job, service, claims.list(&all));
        let is_away =
            |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 404);
        let job = job.or_else(|error| if is_away(&error) { Ok(None) } else { Err(error) })?;
        let claims = match claims {
            Err(error) if is_away(&error) => Vec::new(),
            claims => claims?.items.into_iter().filter_map(|claim| claim.0.ok()).collect(),
        };
        Ok(Seen { job, service: service?, claims, billed: self.cloud.billed_now() })
    }

    /// A claim is written before its machine is bought, and goes after it: at no time does a machine
    /// bill that no claim stands for.
    fn notice_leaks(&mut self, seen: &Seen) {
        self.at_once = self.at_once.max(seen.claims.len() as u64);
        for billed in &seen.billed {
            let owned = |claim: &ComputeClaim| {
                claim.uid().is_some_and(|uid| billed.identity.contains(&format!("/{uid}/")))
            };
            let is_swept_soon = self.orphaned.as_ref().is_some_and(|(uid, until)| {
                billed.identity.contains(&format!("/{uid}/")) && self.clock.boottime() <= *until
            });
            if !seen.claims.iter().any(owned) && !is_swept_soon && !self.leaks.contains(&billed.id)
            {
                self.leaks.push(billed.id.clone());
            }
        }
    }

    fn must_go_on(&self, what: &str) -> Result<()> {
        if self.began.elapsed() > STUCK {
            bail!("{}: still no {what}; last calls: {:?}", self.job, self.last_calls());
        }
        Ok(())
    }

    pub(crate) fn last_calls(&self) -> Vec<String> {
        let made = self.calls.made();
        made.iter().rev().take(15).rev().map(ToString::to_string).collect()
    }

    /// What is wrong now that all is over: machines that bill, rights, panics, and money.
    pub(crate) async fn wrong(&mut self) -> Result<Vec<String>> {
        self.pass(Duration::from_secs(60)).await?;
        let seen = self.settle().await?;
        let mut wrong = self.leaks.clone();
        let panicked = self.errors().into_iter().filter(|error| error.contains("panicked"));
        wrong.extend(panicked);
        wrong.extend(self.calls.denied());
        let wants = seen.claims.iter().filter(|claim| claim.metadata.deletion_timestamp.is_none());
        if seen.billed.len() != wants.clone().count() {
            wrong.push(format!("{:?} bill for {} claims", seen.billed, wants.count()));
        }
        let mut bill = self.cloud.micros_by_identity();
        if self.foreign {
            let rows = self.rows().await?;
            bill.retain(|identity, _| rows.iter().any(|row| identity.contains(&row.claim_uid)));
        }
        let rows = self.rows().await?;
        if seen.is("Complete") {
            wrong.extend(seen.miscounted(&rows)?);
        }
        let struck = self.calls.struck();
        let unsure = Unsure { late: self.outlived, early: self.unseen };
        wrong.extend(compare(&rows, &bill, &self.manners, PRICE, struck, unsure));
        Ok(wrong)
    }

    /// Whether the operator holds on to its provider still.
    pub(crate) async fn is_held(&self) -> Result<bool> {
        let providers: Api<ComputeProvider> = Api::all(self.lane.client.clone());
        Ok(providers.get_opt(&self.lane.provider).await?.is_some_and(|object| is_held(&object)))
    }

    /// Everything in the ledger.
    pub(crate) async fn rows(&self) -> Result<Vec<Row>> {
        Ok(Ledger::over(self.store.clone(), "the test's ledger").rows().await?)
    }

    /// Ends the process for good, and removes what stands in the cluster.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.die();
        let background = DeleteParams::background();
        let bare = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        let jobs = self.lane.jobs();
        let claims = self.lane.claims();
        for claim in claims.list(&ListParams::default()).await?.items {
            let _ = claims.patch(&claim.name_any(), &PatchParams::default(), &bare).await;
            let _ = claims.delete(&claim.name_any(), &background).await;
        }
        if jobs.get_opt(&self.job).await?.is_some() {
            let _ = jobs.patch(&self.job, &PatchParams::default(), &bare).await;
            let _ = jobs.delete(&self.job, &background).await;
        }
        if self.serves {
            let services = self.lane.services();
            let _ = services.patch(&self.job, &PatchParams::default(), &bare).await;
            let _ = services.delete(&self.job, &background).await;
        }
        let providers: Api<ComputeProvider> = Api::all(self.lane.client.clone());
        let _ = providers.patch(&self.lane.provider, &PatchParams::default(), &bare).await;
        let budgets: Api<SpendBudget> =
            Api::namespaced(self.lane.client.clone(), self.lane.namespace.name());
        let _ = budgets.delete("all", &DeleteParams::default()).await;
        Ok(())
    }

    pub(crate) fn errors(&self) -> Vec<String> {
        self.lane.errors.take()
    }
}
