//! SpendBudgets and a provider's limits, on a real API server: who is let start, what becomes of
//! what runs when the limit is reached, and that a period's end or a higher limit lets it go on.
//!
//! Where no training is needed machines are bought on which nothing happens, and time is moved by
//! hand: what costs money here is the clock.

mod operator;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use operator::{Cluster, is, tiny};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::offer::OfferId;
use petaflop_crds::{ComputeProvider, SpendBudget, SpendBudgetStatus, TrainingJob};
use petaflop_fake_provider::agent::silent;
use petaflop_harness::eventually;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(180);

/// Of an hour of the only machine: a dollar a minute.
const PRICE: &str = "60";

/// Ten past twelve.
fn start() -> Timestamp {
    "2026-11-21T12:10:00Z".parse().expect("a point in time")
}

struct Money {
    cluster: Cluster,
    budgets: Api<SpendBudget>,
    jobs: Api<TrainingJob>,
    /// Whether each look moves the clock on by a second.
    ticks: bool,
}

impl Money {
    /// On a clock of its own, with machines on which nothing happens.
    async fn start(name: &str) -> Result<Self> {
        let cluster = Cluster::start_with(name, Clock::manual(start()), Some(silent())).await?;
        let offer = OfferId(format!("{}/r/small", cluster.provider));
        cluster.cloud.set_price(&offer, PRICE.parse()?);
        Ok(Self::of(cluster, true))
    }

    fn of(cluster: Cluster, ticks: bool) -> Self {
        let (client, namespace) = (cluster.client.clone(), cluster.namespace.clone());
        let budgets = Api::namespaced(client.clone(), &namespace);
        Self { cluster, budgets, jobs: Api::namespaced(client, &namespace), ticks }
    }

    async fn budget(&self, name: &str, spec: Value) -> Result<()> {
        let object = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1", "kind": "SpendBudget",
            "metadata": { "name": name }, "spec": spec,
        }))?;
        self.budgets.create(&PostParams::default(), &object).await?;
        Ok(())
    }

    async fn edit(&self, name: &str, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.budgets.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// A job without limits of its own.
    async fn job(&self, name: &str) -> Result<()> {
        let mut job = tiny(name)?;
        job.spec.deadline = None;
        job.spec.max_total_cost = None;
        job.metadata.labels = Some([("team".to_owned(), "a".to_owned())].into());
        self.cluster.create(&job).await
    }

    /// Waits, and moves time on while it does.
    async fn until<T>(&self, what: &str, check: impl AsyncFn() -> Result<T, String>) -> Result<T> {
        let found = eventually(what, LIMIT, || async {
            if self.ticks {
                self.cluster.clock.advance(Duration::from_secs(1));
            }
            check().await
        });
        Ok(found.await?)
    }

    async fn until_job(
        &self,
        name: &str,
        type_: &str,
        reason: &str,
    ) -> Result<(TrainingJob, Condition)> {
        self.until(&format!("{name} is {type_} for {reason}"), async || {
            let job = self.jobs.get(name).await.map_err(|error| error.to_string())?;
            let conditions = job.status.as_ref().map_or(&[][..], |status| &status.conditions);
            let found = conditions.iter().find(|c| c.type_ == type_ && c.reason == reason).cloned();
            found.map(|c| (job.clone(), c)).ok_or_else(|| format!("{conditions:#?}"))
        })
        .await
    }

    async fn until_budget(
        &self,
        name: &str,
        what: &str,
        so: impl Fn(&SpendBudgetStatus) -> bool,
    ) -> Result<SpendBudgetStatus> {
        self.until(&format!("{name}: {what}"), async || {
            let budget = self.budgets.get(name).await.map_err(|error| error.to_string())?;
            let status = budget.status.unwrap_or_default();
            if so(&status) { Ok(status) } else { Err(format!("{status:#?}")) }
        })
        .await
    }

    /// Waits until the only claims are of these jobs, all with a machine; returns what each is
    /// expected to cost, in micro-dollars.
    async fn until_machines(&self, owners: &[&str]) -> Result<Vec<i64>> {
        self.until(&format!("machines of {owners:?}"), async || {
            let claims = self.cluster.claims().await.map_err(|error| error.to_string())?;
            let mut have: Vec<&str> = claims
                .iter()
                .filter(|claim| claim.status.as_ref().is_some_and(|s| s.launched_at.is_some()))
                .map(|claim| claim.spec.owner.name.as_str())
                .collect();
            have.sort_unstable();
            if have != owners || claims.len() != owners.len() {
                return Err(format!("{have:?} of {}", claims.len()));
            }
            let micros = |money: &petaflop_crds::scalar::Money| money.micro_dollars().unwrap_or(0);
            Ok(claims.iter().map(|claim| micros(&claim.spec.reserved)).collect())
        })
        .await
    }

    async fn until_event(&self, object: &str, reason: &str) -> Result<String> {
        self.until(&format!("event {reason} of {object}"), async || {
            let events = self.cluster.events(object).await.map_err(|error| error.to_string())?;
            let found = events.iter().find(|(known, _)| known == reason);
            found.map(|(_, note)| note.clone()).ok_or_else(|| format!("{events:?}"))
        })
        .await
    }
}

fn micros(money: &Option<petaflop_crds::scalar::Money>) -> i64 {
    money.as_ref().and_then(|money| money.micro_dollars().ok()).unwrap_or(-1)
}

fn dollars(micros: i64) -> String {
    petaflop_arbiter::money::Usd::from_micros(micros).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_jobs_that_race_for_the_last_dollar_one_gets_it() -> Result<()> {
    let money = Money::start("budget-race").await?;
    let running = money.cluster.operator().await?;
    // What one costs is the arbiter's to say.
    money.job("probe").await?;
    let one = money.until_machines(&["probe"]).await?[0];
    money.cluster.delete("probe").await?;
    money.until_machines(&[]).await?;
    money.budget("team", json!({ "period": "Monthly", "limit": "1000" })).await?;
    let spent = money.until_budget("team", "is counted", |s| s.spent.is_some()).await?.spent;
    let limit = micros(&spent) + one * 3 / 2;
    money.edit("team", json!({ "limit": dollars(limit), "warnAtPercent": [60] })).await?;
    tokio::try_join!(money.job("first"), money.job("second"))?;
    let winner = money
        .until("one of them has a machine", async || {
            let claims = money.cluster.claims().await.map_err(|error| error.to_string())?;
            claims.first().map(|claim| claim.spec.owner.name.clone()).ok_or("none".to_owned())
        })
        .await?;
    let loser = if winner == "first" { "second" } else { "first" };
    let (_, stalled) = money.until_job(loser, "Stalled", "BudgetExceeded").await?;
    ensure!(stalled.status == "True" && stalled.message.contains("budget team"), "{stalled:?}");
    money.until_machines(&[&winner]).await?;
    let status =
        money.until_budget("team", "warns", |status| status.warned_at_percent == Some(60)).await?;
    ensure!(micros(&status.reserved) > 0 && micros(&status.reserved) <= one, "{status:#?}");
    money.until_event("team", "BudgetWarning").await?;
    money.until_event(loser, "BudgetExceeded").await?;

    // More money lets the other one start, and nobody had to ask.
    money.edit("team", json!({ "limit": "1000" })).await?;
    money.until_machines(&["first", "second"]).await?;
    ensure!(money.cluster.cloud.created() == 3, "{} machines", money.cluster.cloud.created());
    drop(running);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_suspended_at_the_limit_goes_on_in_the_next_period() -> Result<()> {
    let money = Money::start("budget-period").await?;
    let running = money.cluster.operator().await?;
    money.job("probe").await?;
    let one = money.until_machines(&["probe"]).await?[0];
    money.cluster.delete("probe").await?;
    money.until_machines(&[]).await?;
    // Counted by label: what the deleted job cost stays, though its labels are gone.
    let selector = json!({ "matchLabels": { "team": "a" } });
    let limit = dollars(one * 2);
    money
        .budget(
            "team",
            json!({ "period": "Hourly", "limit": limit, "selector": selector, "onExceeded": "Suspend" }),
        )
        .await?;
    money.job("long").await?;
    money.until_machines(&["long"]).await?;
    let (job, suspended) = money.until_job("long", "Suspended", "BudgetExceeded").await?;
    ensure!(suspended.message.contains("SpendBudget team"), "{suspended:?}");
    let status = job.status.context("a status")?;
    ensure!(is(&status.conditions, "Reconciling"), "it goes on by itself: {status:#?}");
    ensure!(status.interruptions == 0 && status.failures == 0, "{status:#?}");
    ensure!(money.cluster.claims().await?.is_empty());
    let exhausted =
        money.until_budget("team", "is exhausted", |s| is(&s.conditions, "Exhausted")).await?;
    ensure!(micros(&exhausted.spent) >= one * 2, "{exhausted:#?}");
    money.until_event("team", "BudgetExceeded").await?;
    money.until_event("long", "BudgetExceeded").await?;
    let rows = money.cluster.rows().await?;
    ensure!(rows.iter().any(|row| row.job == "long" && row.budgets == ["team"]), "{rows:#?}");

    // A restart neither lets it go on nor tells anything again.
    drop(running);
    let told = money.cluster.events("long").await?;
    let running = money.cluster.operator().await?;
    money
        .until("the operator has looked", async || {
            match running.queues.budgets.is_quiet(Duration::from_secs(60)) {
                true => Ok(()),
                false => Err("it has not".to_owned()),
            }
        })
        .await?;
    ensure!(money.cluster.claims().await?.is_empty());
    ensure!(money.cluster.events("long").await? == told);

    // The next full hour.
    let full: Timestamp = "2026-11-21T12:59:55Z".parse()?;
    let left = full.duration_since(money.cluster.clock.now()).max(SignedDuration::ZERO);
    money.cluster.clock.advance(left.unsigned_abs());
    money.until_job("long", "Suspended", "Resumed").await?;
    money.until_machines(&["long"]).await?;
    let anew =
        money.until_budget("team", "begins anew", |s| !is(&s.conditions, "Exhausted")).await?;
    let begins = anew.period_start.context("a period")?.0;
    ensure!(begins == "2026-11-21T13:00:00Z".parse()?, "{begins}");
    ensure!(micros(&anew.spent) < one, "{:?}", anew.spent);
    drop(running);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_below_what_was_spent_blocks_or_ends_at_once_as_it_says() -> Result<()> {
    let money = Money::start("budget-edited").await?;
    let running = money.cluster.operator().await?;
    money.budget("team", json!({ "period": "Monthly", "limit": "1000" })).await?;
    money.job("runs").await?;
    money.until_machines(&["runs"]).await?;
    money.edit("team", json!({ "limit": "0.01" })).await?;
    let status =
        money.until_budget("team", "is exhausted", |s| is(&s.conditions, "Exhausted")).await?;
    ensure!(micros(&status.committed_hourly_rate) == 60_000_000, "{status:#?}");
    money.job("new").await?;
    money.until_job("new", "Stalled", "BudgetExceeded").await?;
    // BlockNew: what runs goes on.
    money.until_machines(&["runs"]).await?;
    let job = money.cluster.job("runs").await?;
    ensure!(!is(&job.status.context("a status")?.conditions, "Suspended"));

    money.edit("team", json!({ "onExceeded": "Terminate" })).await?;
    let (_, failed) = money.until_job("runs", "Failed", "BudgetExceeded").await?;
    ensure!(failed.message.contains("SpendBudget team"), "{failed:?}");
    money.until_machines(&[]).await?;
    money
        .until("nothing bills", async || match money.cluster.cloud.billed_now() {
            billed if billed.is_empty() => Ok(()),
            billed => Err(format!("{billed:?}")),
        })
        .await?;
    // What only waits has not failed.
    money.until_job("new", "Stalled", "BudgetExceeded").await?;
    ensure!(money.cluster.cloud.created() == 1, "{} machines", money.cluster.cloud.created());
    money.until_event("runs", "BudgetExceeded").await?;
    drop(running);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_limits_hold_for_everyone() -> Result<()> {
    let money = Money::start("provider-limits").await?;
    let providers: Api<ComputeProvider> = Api::all(money.cluster.client.clone());
    let limit = async |limits: Value| {
        let patch = Patch::Merge(json!({ "spec": { "limits": limits } }));
        providers.patch(&money.cluster.provider, &PatchParams::default(), &patch).await
    };
    limit(json!({ "machines": 1 })).await?;
    let running = money.cluster.operator().await?;
    money.job("a-first").await?;
    money.until_machines(&["a-first"]).await?;
    money.job("b-second").await?;
    let (_, waits) = money.until_job("b-second", "OfferSelected", "QuotaExceeded").await?;
    ensure!(waits.message.contains("1 machines of the provider's limit"), "{waits:?}");
    // Two of them would cost 120 $ an hour.
    limit(json!({ "machines": null, "hourly": "119" })).await?;
    let hourly = money
        .until("the hourly limit is said", async || {
            let job = money.jobs.get("b-second").await.map_err(|error| error.to_string())?;
            let conditions = job.status.unwrap_or_default().conditions;
            let said = conditions.iter().any(|c| c.message.contains("leaves 59 $/h"));
            if said { Ok(()) } else { Err(format!("{conditions:#?}")) }
        })
        .await;
    hourly?;
    // Nor does a month's end lie near enough for what is left of the month.
    limit(json!({ "hourly": null, "monthly": "0.01" })).await?;
    money
        .until("the monthly limit is said", async || {
            let job = money.jobs.get("b-second").await.map_err(|error| error.to_string())?;
            let conditions = job.status.unwrap_or_default().conditions;
            let said = conditions.iter().any(|c| c.message.contains("monthly limit leaves"));
            if said { Ok(()) } else { Err(format!("{conditions:#?}")) }
        })
        .await?;
    money
        .until("the month's sum and what is offered are shown", async || {
            let object = providers.get(&money.cluster.provider).await;
            let status = object.map_err(|error| error.to_string())?.status.unwrap_or_default();
            let count = status.offers.as_ref().map_or(0, |offers| offers.count);
            match micros(&status.spent_this_month) > 0 && count == 1 {
                true => Ok(()),
                false => Err(format!("{status:#?}")),
            }
        })
        .await?;
    limit(json!({ "monthly": null })).await?;
    money
        .until("both have had a machine", async || match money.cluster.cloud.created() {
            0 | 1 => Err("one".to_owned()),
            _ => Ok(()),
        })
        .await?;
    let claims = money.cluster.claims().await?;
    ensure!(claims.iter().any(|claim| claim.spec.owner.name == "b-second"), "{:?}", names(&claims));
    drop(running);
    Ok(())
}

fn names(claims: &[petaflop_crds::ComputeClaim]) -> Vec<String> {
    claims.iter().map(ResourceExt::name_any).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_trained_before_the_limit_is_gone_on_from_and_ends_with_the_same_hash()
-> Result<()> {
    let money = Money::of(Cluster::start("budget-saved").await?, false);
    let running = money.cluster.operator().await?;
    let spec = json!({ "period": "Monthly", "limit": "1000", "onExceeded": "Suspend" });
    money.budget("team", spec).await?;
    let mut job = tiny("long")?;
    (job.spec.deadline, job.spec.max_total_cost) = (None, None);
    money.cluster.create(&job).await?;
    money.until_job("long", "Running", "Ok").await?;
    let at_rest = money.cluster.at_rest()?;
    money.edit("team", json!({ "limit": "0.000001" })).await?;
    money.until_job("long", "Running", "BudgetExceeded").await?;
    at_rest.go_on()?;
    let (job, _) = money.until_job("long", "Suspended", "BudgetExceeded").await?;
    let saved = job.status.and_then(|s| s.progress).and_then(|p| p.checkpoint_step);
    let saved = saved.filter(|step| (1..20).contains(step)).context("a checkpoint on its way")?;
    money.until_event("long", "CheckpointSaved").await?;
    ensure!(money.cluster.cloud.billed_now().is_empty(), "{:?}", money.cluster.cloud.billed_now());

    money.edit("team", json!({ "limit": "1000" })).await?;
    let (job, _) = money.until_job("long", "Complete", "Succeeded").await?;
    let status = job.status.context("a status")?;
    let golden: Value = serde_json::from_str(include_str!("../golden/tiny.json"))?;
    ensure!(status.artifact.as_deref() == golden["artifact"].as_str(), "{status:#?}");
    ensure!(status.interruptions == 0 && status.failures == 0, "a budget is no interruption");
    let from = status.progress.and_then(|p| p.checkpoint_step).unwrap_or(0);
    ensure!(from >= saved, "went on from step {from}; {saved} were saved");
    money.until_event("long", "Resumed").await?;
    money.cluster.until_no_claims().await?;
    money.cluster.quiet(&running).await?;
    ensure!(money.cluster.cloud.created() == 2, "{} machines", money.cluster.cloud.created());
    Ok(())
}
