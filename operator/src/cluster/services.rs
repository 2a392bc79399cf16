//! The InferenceService's controller, the part with a client: what is seen goes into
//! [`inference_service::next`], and what comes out is written, each thing only if it differs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Resource, ResourceExt};
use petaflop_arbiter::reason::Reason;
use petaflop_crds::inference_service::InferenceServicePhase as Phase;
use petaflop_crds::{InferenceService, InferenceServiceStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::claims::StoredClaim;
use crate::cluster::budgets::Counted;
use crate::cluster::error::{Error, is_conflict, is_not_found};
use crate::cluster::gateway_objects::{self, Given};
use crate::cluster::inference_service::{self, Failure, Model, Replica, Seen, Wants};
use crate::cluster::queue::Again;
use crate::cluster::table::Name;
use crate::cluster::training_job::Waits;
use crate::cluster::{Operator, events, finalizer, secrets};

/// How long agents that run have to say how they are, before they count as lost.
const HEARD_WITHIN: Duration = Duration::from_secs(90);

/// A model that cannot be served is looked for again after this long: it may have come.
const LOOK_FOR_MODEL: Duration = Duration::from_secs(30);

/// What passes over services remember. It is lost with the process, which costs a look more. Clones
/// are the same.
#[derive(Clone, Debug, Default)]
pub struct Memories {
    inner: Arc<Mutex<HashMap<String, Memory>>>,
}

#[derive(Clone, Debug, Default)]
struct Memory {
    /// Time since boot at the first pass.
    since: Option<Duration>,
    wants: Wants,
    model: Option<Arc<inference_service::Served>>,
    /// Versions of the object that we have written over. The watch shows them for a while, and nothing
    /// is concluded from them: the failure that is counted by now would be forgotten, and bought for.
    overwritten: Vec<String>,
}

impl Memories {
    /// What a service of this uid wants and what it serves, once a pass over it said so.
    pub fn wants(&self, uid: &str) -> Option<(Wants, Arc<inference_service::Served>)> {
        let inner = self.lock();
        let memory = inner.get(uid)?;
        Some((memory.wants.clone(), memory.model.clone()?))
    }

    /// Another process leads.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pass over one service.
pub async fn reconcile(operator: &Operator, name: &Name) -> Result<Again, Error> {
    let Some(service) = operator.service(&name.0, &name.1) else {
        operator.gateways.forget(name);
        operator.models.forget(name);
        return Ok(Again::OnChange);
    };
    if !inference_service::is_ours(&service) {
        return Ok(Again::OnChange);
    }
    let uid = service.uid().unwrap_or_default();
    let deleting = service.metadata.deletion_timestamp.is_some();
    let now = operator.clock.now();
    let claims = operator.table.of_owner(&uid);
    let spent = operator.book.spent(&uid, &claims, now);
    let replica = |stored: StoredClaim| Replica {
        run: operator.agents.run(&(name.0.clone(), stored.claim.spec.name.clone())),
        key: operator.installation.root.replica_key(&stored.claim.uid),
        near: operator.is_near(&stored.claim.spec),
        stored,
    };
    let replicas: Vec<Replica> = claims.into_iter().map(replica).collect();
    let mut model = operator.models.of(operator, &service).await;
    let mut memory = operator.memories.lock().get(&uid).cloned().unwrap_or_default();
    let version = service.resource_version();
    if version.as_ref().is_some_and(|version| memory.overwritten.contains(version)) {
        // The newer one is on its way.
        return Ok(Again::OnChange);
    }
    if lacks_secrets(operator, &service, replicas.len())
        && let Some(waits) =
            secrets::learn(operator, (&name.0, &uid), (&service.spec).into()).await?
    {
        model = Model::Wrong(waits);
    }
    let since = *memory.since.get_or_insert(operator.clock.boottime());
    let said = operator.placement.said(&uid);
    let stop = operator.stop_of(&Counted::service(&service));
    let next = inference_service::next(&Seen {
        service: &service,
        replicas: &replicas,
        model: &model,
        route: &operator.gateways.route(name),
        spent,
        waits: said.as_ref().and_then(|said| said.waits.as_ref()),
        stopped_by_budget: stop.as_ref().map(|stop| stop.budget.as_str()),
        image: &operator.settings.runtime_image,
        all_heard: operator.clock.boottime().saturating_sub(since) > HEARD_WITHIN,
        now,
    });

    let api: Api<InferenceService> = Api::namespaced(operator.client.clone(), &name.0);
    let mut object = InferenceService::clone(&service);
    if next.finalizer != finalizer::is_held(&object) && (next.finalizer || deleting) {
        let written = finalizer::hold(&api, &object, next.finalizer).await;
        match written.map_err(Error::api("writing a service's finalizer"))? {
            Some(new) => object = new,
            // Gone with its last finalizer.
            None => {
                operator.memories.lock().remove(&uid);
                operator.secrets.forget(&uid);
                return Ok(Again::OnChange);
            }
        }
    }
    let mut status = next.status;
    if !deleting && let Some(waits) = objects(operator, &service).await? {
        stalled(&mut status, service.metadata.generation, now, &waits);
    }
    if let Model::Known(served) = &model {
        memory.model = Some(served.clone());
    }
    if let Some(wants) = next.wants {
        if wants != memory.wants {
            operator.placement.ask();
        }
        memory.wants = wants;
    }
    let idle_after = service.spec.idle.scale_to_zero_after_seconds;
    let idle_after = idle_after.filter(|_| status.phase != Some(Phase::Idle));
    if let Some(told) = next.told {
        let idle_after = idle_after.map(|seconds| Duration::from_secs(seconds.into()));
        operator.gateways.tell(&operator.handle(), name, told, idle_after);
    }
    if let Some(Failure { message, retry }) = &next.failure {
        tracing::warn!(message, retry, "a replica failed");
    }
    let writes = !deleting && service.status.as_ref() != Some(&status);
    memory.overwritten = match writes {
        true => version.into_iter().chain(object.resource_version()).collect(),
        false => Vec::new(),
    };
    operator.memories.lock().insert(uid.clone(), memory);

    // What was concluded must be durable before the claim that shows it goes.
    if writes {
        let before = object.status.as_ref().map_or(0, |status| status.interruptions);
        let lost = status.interruptions.saturating_sub(before);
        let written = write(operator, &api, object, status).await;
        if let Some(memory) = operator.memories.lock().get_mut(&uid) {
            match &written {
                // Nothing is on its way where the server sees no difference.
                Ok(version) => memory.overwritten.retain(|known| Some(known) != version.as_ref()),
                // It may stand as it was.
                Err(_) => memory.overwritten.clear(),
            }
        }
        written?;
        operator.metrics.interrupted(lost);
    }
    for replica in &replicas {
        let spec = &replica.stored.claim.spec;
        if next.unwanted.contains(&spec.name) && !replica.stored.deleting {
            operator.claims.delete(&replica.stored).await?;
            operator.claim_changed(&(spec.owner.namespace.clone(), spec.name.clone()));
        }
    }
    let again = match &model {
        Model::Known(_) => next.again,
        Model::Waits(_) | Model::Wrong(_) => {
            Some(next.again.map_or(LOOK_FOR_MODEL, |again| again.min(LOOK_FOR_MODEL)))
        }
    };
    Ok(again.map_or(Again::OnChange, Again::After))
}

/// Whether its Secrets are to be read: anew before it gets another machine, and by each process once.
fn lacks_secrets(operator: &Operator, service: &InferenceService, machines: usize) -> bool {
    let spec = &service.spec;
    let uid = service.metadata.uid.as_deref().unwrap_or_default();
    let seen = service.status.as_ref().and_then(|status| status.observed_generation);
    let gets_one = machines < spec.replicas as usize || seen != service.metadata.generation;
    secrets::Names::from(spec).any()
        && !spec.suspend
        && service.metadata.deletion_timestamp.is_none()
        && (gets_one || operator.secrets.of(uid).is_none())
}

/// The Deployment of its gateways, their Service and its route, as they should be. Returns what keeps
/// them from being so that only somebody else can mend.
async fn objects(operator: &Operator, service: &InferenceService) -> Result<Option<Waits>, Error> {
    let operator_key = operator.installation.root.noise().public().to_string();
    let given = Given { image: &operator.settings.gateway_image, operator_key: &operator_key };
    let deployment = gateway_objects::deployment(service, given);
    if let Some(waits) = keep(operator, &operator.deployments, service, deployment).await? {
        return Ok(Some(waits));
    }
    let wanted = gateway_objects::service(service);
    if let Some(waits) = keep(operator, &operator.cluster_services, service, wanted).await? {
        return Ok(Some(waits));
    }
    match gateway_objects::ingress(service) {
        Some(wanted) => keep(operator, &operator.ingresses, service, wanted).await,
        None => without_route(operator, service).await.map(|()| None),
    }
}

/// Takes the Ingress away that an earlier spec asked for.
async fn without_route(operator: &Operator, service: &InferenceService) -> Result<(), Error> {
    let (name, namespace) = (service.name_any(), service.namespace().unwrap_or_default());
    let known = operator.ingresses.get(&ObjectRef::new(&name).within(&namespace));
    let Some(ours) = known.filter(|there| is_of(&**there, service)) else {
        return Ok(());
    };
    let api: Api<Ingress> = Api::namespaced(operator.client.clone(), &namespace);
    let uid = Preconditions { uid: ours.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
    match api.delete(&name, &params).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
        Err(error) => Err(Error::api("taking a service's Ingress away")(error)),
    }
}

fn is_of(object: &impl ResourceExt, owner: &InferenceService) -> bool {
    object.owner_references().iter().any(|of| Some(&of.uid) == owner.metadata.uid.as_ref())
}

/// Makes an object so, or makes it.
async fn keep<K>(
    operator: &Operator,
    known: &Store<K>,
    owner: &InferenceService,
    wanted: K,
) -> Result<Option<Waits>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let namespace = owner.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(operator.client.clone(), &namespace);
    let name = wanted.name_any();
    let value = |object: &K| serde_json::to_value(object).unwrap_or(Value::Null);
    let there = match known.get(&ObjectRef::new(&name).within(&namespace)) {
        Some(there) => K::clone(&there),
        None => match api.create(&PostParams::default(), &wanted).await {
            Ok(_) => return Ok(None),
            // Ours, and the watch is behind; or without our label, and the watch does not see it.
            Err(error) if is_conflict(&error) => {
                let there = api.get_opt(&name).await;
                let Some(there) = there.map_err(Error::api("reading a gateway's objects"))? else {
                    return Err(Error::api("making a gateway's objects")(error));
                };
                there
            }
            Err(error) => return Err(Error::api("making a gateway's objects")(error)),
        },
    };
    if !is_of(&there, owner) {
        let kind = K::kind(&());
        let message = format!(
            "{kind} {name} is somebody else's: delete it, or give the InferenceService another \
             name"
        );
        return Ok(Some(Waits { reason: Reason::InvalidSpec, message }));
    }
    let mut change = value(&wanted);
    if gateway_objects::holds(&value(&there), &change) {
        return Ok(None);
    }
    // Over the very object that was seen.
    if let Some(meta) = change.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("uid".to_owned(), there.uid().into());
        meta.insert("resourceVersion".to_owned(), there.resource_version().into());
    }
    match api.patch(&name, &PatchParams::default(), &Patch::Merge(change)).await {
        Ok(_) => Ok(None),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(Error::api("writing a gateway's objects")(error)),
    }
}

fn stalled(
    status: &mut InferenceServiceStatus,
    generation: Option<i64>,
    now: Timestamp,
    waits: &Waits,
) {
    use crate::cluster::status::{Conditions, Is};
    let mut conditions = Conditions::of(&mut status.conditions, generation, now);
    conditions.set("RouteReady", Is::False, waits.reason, &waits.message);
    conditions.stalled(waits.reason, &waits.message);
}

/// A compare-and-swap: a status is never written over one that we did not see. Returns the version of
/// what stands now.
async fn write(
    operator: &Operator,
    api: &Api<InferenceService>,
    mut service: InferenceService,
    status: InferenceServiceStatus,
) -> Result<Option<String>, Error> {
    let name = service.name_any();
    let told = events::of_service(service.status.as_ref(), &status);
    service.status = Some(status);
    match api.replace_status(&name, &PostParams::default(), &service).await {
        Ok(written) => {
            operator.events.tell(&service, told);
            Ok(written.resource_version())
        }
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(Error::api("writing a service's status")(error)),
    }
}
