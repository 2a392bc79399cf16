//! What a service is to serve: its model, found in the store, and how much work a replica of it is.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::InferenceService;
use petaflop_store::ArtifactHash;

use crate::cluster::Operator;
use crate::cluster::artifacts::Unread;
use crate::cluster::inference_service::{Model, Served};
use crate::cluster::table::Name;
use crate::cluster::training_job::{self, Waits};

/// Models that were looked at, by hash, and who waits for which job. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Models {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What a hash names never changes.
    known: HashMap<String, Arc<Served>>,
    /// Services by the job that they name.
    by_job: HashMap<Name, BTreeSet<Name>>,
}

impl Models {
    /// What this service is to serve.
    pub async fn of(&self, operator: &Operator, service: &InferenceService) -> Model {
        if service.spec.container.is_some() {
            return Model::Known(Arc::new(Served::Container));
        }
        match self.artifact(operator, service) {
            Ok(artifact) => match self.look(operator, &artifact).await {
                Ok(served) => Model::Known(served),
                Err(model) => model,
            },
            Err(model) => model,
        }
    }

    /// The services that wait for a job, or serve what it made.
    pub fn services_of(&self, job: &Name) -> Vec<Name> {
        self.lock().by_job.get(job).into_iter().flatten().cloned().collect()
    }

    fn artifact(&self, operator: &Operator, service: &InferenceService) -> Result<String, Model> {
        let invalid = |message: &str| {
            Err(Model::Wrong(Waits { reason: Reason::InvalidSpec, message: message.to_owned() }))
        };
        let Some(model) = &service.spec.model else {
            return invalid("neither spec.model nor spec.container is given");
        };
        let by_uri = model.uri.as_deref().and_then(|uri| uri.strip_prefix("artifact:"));
        let by_uri = by_uri.filter(|hash| hash.parse::<ArtifactHash>().is_ok());
        if let Some(artifact) = model.artifact.as_deref().or(by_uri) {
            return Ok(artifact.to_owned());
        }
        let Some(job) = &model.training_job else {
            return invalid(
                "spec.model.uri is built for artifact:<hash> alone in a cluster: give that, or \
                 spec.model.artifact, the hash of an artifact in the store, or spec.model.trainingJob",
            );
        };
        let namespace = service.namespace().unwrap_or_default();
        let name = (namespace.clone(), service.name_any());
        let of_job = (namespace.clone(), job.clone());
        self.lock().by_job.entry(of_job).or_default().insert(name);
        let status = service.status.as_ref();
        let known = operator.job(&namespace, job);
        let said = known.as_ref().and_then(|job| job.status.as_ref());
        match (&known, said.filter(|status| training_job::is_over(status))) {
            (Some(_), Some(said)) => said.artifact.clone().ok_or_else(|| {
                let message = format!(
                    "TrainingJob {job} has ended without an artifact; delete and create it again, \
                     or name another"
                );
                Model::Wrong(Waits { reason: Reason::BlockedByFailedLoad, message })
            }),
            // A job may go once it is done, and come again; what it made stays until then.
            (there, _) => status
                .filter(|status| status.observed_generation == service.metadata.generation)
                .and_then(|status| status.artifact.clone())
                .ok_or_else(|| {
                    let message = match there {
                        Some(_) => format!("waits until TrainingJob {job} is Complete"),
                        None => format!("waits for TrainingJob {job}, which does not exist"),
                    };
                    let reason = Reason::MinimumReplicasUnavailable;
                    Model::Waits(Waits { reason, message })
                }),
        }
    }

    async fn look(&self, operator: &Operator, artifact: &str) -> Result<Arc<Served>, Model> {
        let known = self.lock().known.get(artifact).cloned();
        if let Some(served) = known {
            return Ok(served);
        }
        let read = operator.artifacts.read(&operator.settings.store, artifact).await;
        let read = read.map_err(|unread| match unread {
            Unread::Away(message) => Model::Waits(Waits { reason: Reason::Unreachable, message }),
            Unread::Wrong(why) => blocked(artifact, &why),
        })?;
        let shape = read.shape.as_ref().map_err(|why| blocked(artifact, why))?;
        let work = crate::embedded::work::serving(shape, read.weights)
            .map_err(|message| blocked(artifact, &message))?;
        let served = Arc::new(Served::Artifact { hash: artifact.to_owned(), work });
        self.lock().known.insert(artifact.to_owned(), served.clone());
        Ok(served)
    }

    /// A service is gone.
    pub fn forget(&self, service: &Name) {
        self.lock().by_job.retain(|_, services| {
            services.remove(service);
            !services.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn blocked(artifact: &str, why: &str) -> Model {
    let message = format!("artifact {artifact} cannot be served: {why}");
    Model::Wrong(Waits { reason: Reason::BlockedByFailedLoad, message })
}
