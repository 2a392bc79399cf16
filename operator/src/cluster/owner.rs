//! Whoever asked for a claim: a TrainingJob or an InferenceService, as far as its claims are concerned.

use std::time::Duration;

use kube::{Api, ResourceExt};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::OwnerKind;
use petaflop_crds::{InferenceService, TrainingJob};
use petaflop_providers::{Machine, Provider};

use crate::agents::Told;
use crate::claims::StoredClaim;
use crate::cluster::budgets::Counted;
use crate::cluster::error::Error;
use crate::cluster::{Operator, finalizer, inference_service, machine, training_job};

/// The owner of a claim.
#[derive(Clone, Debug)]
pub enum Owner {
    /// Runs to completion.
    Job(Box<TrainingJob>),
    /// Keeps replicas running.
    Service(Box<InferenceService>),
}

impl Owner {
    /// A claim's owner as the watch has it.
    pub fn known(operator: &Operator, stored: &StoredClaim) -> Option<Self> {
        let id = &stored.claim.spec.owner;
        let owner = match id.kind {
            OwnerKind::TrainingJob => Self::Job(Box::new(operator.job(&id.namespace, &id.name)?)),
            OwnerKind::InferenceService => {
                Self::Service(Box::new(operator.service(&id.namespace, &id.name)?))
            }
        };
        owner.is(&id.uid).then_some(owner)
    }

    /// A claim's owner as the API server has it.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn read(operator: &Operator, stored: &StoredClaim) -> Result<Option<Self>, Error> {
        let id = &stored.claim.spec.owner;
        let failed = Error::api("reading a claim's owner");
        let client = operator.client.clone();
        let owner = match id.kind {
            OwnerKind::TrainingJob => Api::namespaced(client, &id.namespace)
                .get_opt(&id.name)
                .await
                .map_err(failed)?
                .map(|job| Self::Job(Box::new(job))),
            OwnerKind::InferenceService => Api::namespaced(client, &id.namespace)
                .get_opt(&id.name)
                .await
                .map_err(failed)?
                .map(|service| Self::Service(Box::new(service))),
        };
        Ok(owner.filter(|owner| owner.is(&id.uid)))
    }

    fn is(&self, uid: &str) -> bool {
        let known = match self {
            Self::Job(job) => job.uid(),
            Self::Service(service) => service.uid(),
        };
        known.as_deref() == Some(uid)
    }

    /// Whether it carries our finalizer.
    pub fn is_held(&self) -> bool {
        match self {
            Self::Job(job) => finalizer::is_held(&**job),
            Self::Service(service) => finalizer::is_held(&**service),
        }
    }

    /// Whether it lacks our finalizer, and will get it: a job once it has a claim.
    pub fn is_to_be_held(&self) -> bool {
        let going = match self {
            Self::Job(job) => job.metadata.deletion_timestamp.is_some(),
            Self::Service(service) => service.metadata.deletion_timestamp.is_some(),
        };
        !going && !self.is_held()
    }

    /// Whether it still wants a claim of its.
    pub fn wants(&self, stored: &StoredClaim) -> bool {
        match self {
            Self::Job(job) => training_job::wants(job, stored),
            Self::Service(service) => inference_service::wants(service, stored),
        }
    }

    /// Why it no longer wants a claim of its.
    pub fn unwanted_because(&self, stored: &StoredClaim) -> Reason {
        match self {
            Self::Job(job) => training_job::unwanted_because(Some(job), stored),
            Self::Service(service) => inference_service::unwanted_because(service, stored),
        }
    }

    /// What budgets look at.
    pub fn counted(&self) -> Counted {
        match self {
            Self::Job(job) => Counted::job(job),
            Self::Service(service) => Counted::service(service),
        }
    }

    /// How long its command has to end by itself.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(match self {
            Self::Job(job) => u64::from(job.spec.checkpoint.grace_seconds),
            Self::Service(_) => inference_service::GRACE_SECONDS,
        })
    }

    /// The machine of a claim of its.
    pub fn machine(&self, operator: &Operator, stored: &StoredClaim) -> Machine {
        match self {
            Self::Job(job) => machine::of(operator, job, stored),
            Self::Service(service) => machine::replica(operator, service, stored),
        }
    }

    /// What the machine is told to run; `None` where that cannot be said now.
    pub fn task(
        &self,
        operator: &Operator,
        provider: &dyn Provider,
        stored: &StoredClaim,
    ) -> Option<Told> {
        match self {
            Self::Job(job) => machine::task(operator, job, stored),
            Self::Service(service) => {
                let port = match provider.capabilities().own_address {
                    true => inference_service::PORT,
                    false => 0,
                };
                machine::serve(operator, service, stored, port)
            }
        }
    }
}
