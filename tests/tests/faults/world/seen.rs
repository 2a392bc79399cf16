//! What stands at a moment of a run.

use anyhow::Result;
use kube::api::ObjectMeta;
use petaflop_arbiter::ledger::Row;
use petaflop_crds::scalar::Money;
use petaflop_crds::{ComputeClaim, InferenceService, TrainingJob};
use petaflop_fake_provider::cloud::Billed;
use serde_json::{Value, json};

/// What stands in the cluster and in the cloud now.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) job: Option<TrainingJob>,
    pub(crate) service: Option<InferenceService>,
    pub(crate) claims: Vec<ComputeClaim>,
    pub(crate) billed: Vec<Billed>,
}

impl Seen {
    /// Whether the job is gone, as far as we are concerned: the garbage collector, which knows a kind
    /// only half a minute after it was made, may still hold it.
    pub(crate) fn is_gone(&self) -> bool {
        self.metadata().is_none_or(|meta| {
            let finalizers = meta.finalizers.as_deref().unwrap_or_default();
            meta.deletion_timestamp.is_some()
                && finalizers.iter().all(|name| name == "foregroundDeletion")
        })
    }

    /// Whether the job, or the service, says this of itself.
    pub(crate) fn is(&self, condition: &str) -> bool {
        let job = self.job.as_ref().and_then(|job| job.status.as_ref()).map(|s| &s.conditions);
        let service = self.service.as_ref().and_then(|s| s.status.as_ref()).map(|s| &s.conditions);
        (job.or(service).into_iter().flatten()).any(|c| c.type_ == condition && c.status == "True")
    }

    /// The reason for which a claim says this of itself.
    pub(crate) fn claim_says(&self, condition: &str) -> Option<&str> {
        let said = self.claims.iter().filter_map(|claim| claim.status.as_ref());
        let mut said = said.flat_map(|status| &status.conditions);
        let is = said.find(|c| c.type_ == condition && c.status == "True");
        is.map(|condition| condition.reason.as_str())
    }

    /// Replicas of the service that answer, by what it says of its spec as it is now.
    pub(crate) fn answer(&self) -> u32 {
        let Some(service) = &self.service else { return 0 };
        let status = service.status.as_ref();
        let status = status.filter(|s| s.observed_generation == service.metadata.generation);
        status.map_or(0, |status| status.available_replicas)
    }

    /// Whether all replicas that there are serve what is asked for now.
    pub(crate) fn is_rolled_out(&self) -> bool {
        let Some(service) = &self.service else { return false };
        let wanted = service.spec.model.as_ref().and_then(|model| model.artifact.as_ref());
        let status = service.status.as_ref();
        status.is_some_and(|s| s.artifact.as_ref() == wanted && s.updated_replicas == s.replicas)
    }

    /// What the job, or the service, has cost by its own words.
    pub(crate) fn cost(&self) -> Option<Money> {
        let job = self.job.as_ref().and_then(|job| job.status.as_ref()?.cost.as_ref());
        let service = self.service.as_ref().and_then(|s| s.status.as_ref()?.cost.as_ref());
        job.or(service)?.total.clone()
    }

    /// What it says that it has cost, where that is not what is booked for it. The machine of a claim that
    /// was removed by force is nobody's.
    pub(crate) fn miscounted(&self, rows: &[Row]) -> Result<Option<String>> {
        let (Some(total), Some(meta)) = (self.cost(), self.metadata()) else { return Ok(None) };
        let its = rows.iter().filter(|row| Some(&row.job_uid) == meta.uid.as_ref());
        let booked: i64 = its.map(|row| row.amount.micros()).sum();
        let differs = total.micro_dollars()? != booked;
        Ok(differs.then(|| format!("status.cost is {total:?}, the ledger's sum {booked}")))
    }

    /// Its status.
    pub(crate) fn status(&self) -> Value {
        match &self.service {
            Some(service) => json!(service.status),
            None => json!(self.job.as_ref().map(|job| &job.status)),
        }
    }

    /// What the API server keeps of it.
    pub(crate) fn metadata(&self) -> Option<&ObjectMeta> {
        let job = self.job.as_ref().map(|job| &job.metadata);
        job.or(self.service.as_ref().map(|service| &service.metadata))
    }
}
