//! What a user writes: jobs, services and budgets, and what is changed in them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Offer, OfferId};
use petaflop_crds::{ComputeClaim, SpendBudget};
use petaflop_fake_provider::Fault as Misbehaviour;
use petaflop_fake_provider::cloud::small_offer;
use serde_json::{Value, json};

use super::process::Process;
use super::{NOTICED, PRICE, SWEPT, World};
use crate::calls::Link;

impl World<'_> {
    /// Creates the job: a small recipe, with what the scenario adds to its spec; or the service.
    pub(crate) async fn create(&mut self, extra: Value) -> Result<()> {
        self.last = None;
        if self.serves {
            return self.serve(extra).await;
        }
        let mut object = json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": { "name": self.job },
            "spec": {
                "recipe": {
                    "model": { "dim": 128, "layers": 4, "heads": 4, "vocab": 512 },
                    "datasets": [{ "path": "file:///data/text", "type": "completion" }],
                    "sequence_len": 128, "micro_batch_size": 16, "max_steps": 100,
                    "learning_rate": 0.003, "seed": 42,
                },
                "checkpoint": { "graceSeconds": 20 },
            },
        });
        if let (Some(spec), Some(extra)) = (object["spec"].as_object_mut(), extra.as_object()) {
            spec.extend(extra.clone());
        }
        let job = serde_json::from_value(object)?;
        let job = self.lane.jobs().create(&PostParams::default(), &job).await.context("the job")?;
        self.noticed(job.metadata.generation).await;
        Ok(())
    }

    /// Creates the service: a small model, with what the scenario adds to its spec.
    async fn serve(&mut self, extra: Value) -> Result<()> {
        let mut object = json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": { "name": self.job },
            "spec": { "model": { "artifact": self.lane.model(320).await? } },
        });
        if let (Some(spec), Some(extra)) = (object["spec"].as_object_mut(), extra.as_object()) {
            spec.extend(extra.clone());
        }
        let service = serde_json::from_value(object)?;
        let services = self.lane.services();
        let service = services.create(&PostParams::default(), &service).await;
        self.noticed(service.context("the service")?.metadata.generation).await;
        Ok(())
    }

    /// Scales the service, as `kubectl scale` does.
    pub(crate) async fn scale(&mut self, replicas: u32) -> Result<()> {
        self.last = None;
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        let services = self.lane.services();
        services.patch_scale(&self.job, &PatchParams::default(), &patch).await?;
        self.noticed(services.get(&self.job).await?.metadata.generation).await;
        Ok(())
    }

    /// Has the service serve another model.
    pub(crate) async fn roll_out(&mut self) -> Result<()> {
        self.last = None;
        let model = self.lane.model(384).await?;
        let patch = Patch::Merge(json!({ "spec": { "model": { "artifact": model } } }));
        let services = self.lane.services();
        let service = services.patch(&self.job, &PatchParams::default(), &patch).await?;
        self.noticed(service.metadata.generation).await;
        Ok(())
    }

    /// The cloud sells the same again under another name, for a hundredth.
    pub(crate) fn undersell(&self) -> Result<()> {
        let offer = small_offer(&self.lane.provider, UsdPerHour::from_micros(PRICE / 100)?);
        let id = OfferId(format!("{}/r/other", self.lane.provider));
        self.cloud.sell(Offer { id, instance_type: "other".into(), ..offer });
        Ok(())
    }

    /// Lists show a machine as late as the cloud allows itself at most.
    pub(crate) fn listed_late(&self) {
        let lag = self.manners.settle.saturating_sub(Duration::from_secs(10));
        self.cloud.misbehave(Misbehaviour::ListingLag(lag));
    }

    pub(crate) async fn delete(&mut self) -> Result<()> {
        self.last = None;
        self.lane.jobs().delete(&self.job, &DeleteParams::background()).await?;
        Ok(())
    }

    /// Removes a claim by force, as nobody should. Its machine is nobody's from then on, until the sweep
    /// has had its time.
    pub(crate) async fn orphan(&mut self, claim: &ComputeClaim) -> Result<()> {
        self.last = None;
        let uid = claim.uid().context("a claim's uid")?;
        self.orphaned = Some((uid, self.clock.boottime() + SWEPT));
        let (claims, name) = (self.lane.claims(), claim.name_any());
        let bare = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        claims.patch(&name, &PatchParams::default(), &bare).await?;
        // The operator may have asked for its end meanwhile.
        let _ = claims.delete(&name, &DeleteParams::background().grace_period(0)).await;
        Ok(())
    }

    pub(crate) async fn suspend(&mut self, suspend: bool) -> Result<()> {
        self.patch(json!({ "suspend": suspend })).await
    }

    /// Changes the job's spec.
    pub(crate) async fn patch(&mut self, spec: Value) -> Result<()> {
        self.last = None;
        let patch = Patch::Merge(json!({ "spec": spec }));
        let job = self.lane.jobs().patch(&self.job, &PatchParams::default(), &patch).await?;
        self.noticed(job.metadata.generation).await;
        Ok(())
    }

    /// Changes the spec of an object of whatever kind, and has it seen. Gives the object then.
    pub(crate) async fn change(
        &mut self,
        api: &Api<DynamicObject>,
        name: &str,
        spec: &Value,
    ) -> Result<DynamicObject> {
        self.last = None;
        let patch = Patch::Merge(json!({ "spec": spec }));
        let written = api.patch(name, &PatchParams::default(), &patch).await?;
        for _ in 0..100 {
            self.pass(Duration::from_secs(5)).await?;
            let object = api.get(name).await?;
            let seen = object.data["status"]["observedGeneration"].as_i64();
            if seen == written.metadata.generation {
                return Ok(object);
            }
        }
        bail!("{name} does not say that it has seen {spec}")
    }

    /// What was written comes by a watch, a moment later: time stands still until it has, wherever it
    /// can come at all.
    async fn noticed(&self, is: Option<i64>) {
        let (namespace, name) = (self.lane.jobs_in.as_str(), &self.job);
        let knows = |process: &Process| {
            let operator = &process.running.operator;
            let known = match self.serves {
                true => operator.service(namespace, name).and_then(|s| s.metadata.generation),
                false => operator.job(namespace, name).and_then(|job| job.metadata.generation),
            };
            known == is || process.life.link() != Link::Open
        };
        let began = Instant::now();
        while !self.calls.is_dead()
            && !self.processes.iter().all(knows)
            && began.elapsed() < NOTICED
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// A budget for the whole namespace, of this many dollars an hour.
    pub(crate) async fn budget(&self, limit: &str) -> Result<()> {
        let api: Api<SpendBudget> =
            Api::namespaced(self.lane.client.clone(), self.lane.namespace.name());
        let budget = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "SpendBudget",
            "metadata": { "name": "all" },
            "spec": { "period": "Monthly", "limit": limit, "onExceeded": "Suspend" },
        }))?;
        api.create(&PostParams::default(), &budget).await.context("the budget")?;
        Ok(())
    }
}
