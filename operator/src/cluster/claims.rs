//! Claims as `ComputeClaim` objects: every change a compare-and-swap on the resourceVersion.

use async_trait::async_trait;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::DeserializeGuard;
use kube::{Api, Client, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::{Claim, ClaimSpec};
use petaflop_arbiter::reason::Reason;
use petaflop_crds::compute_claim::{AgentStatus, ComputeClaim, ComputeClaimStatus};
use petaflop_crds::scalar::Moment;

use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::cluster::error::{is_conflict, is_forbidden, is_invalid, is_not_found};
use crate::cluster::events::{self, Events};
use crate::cluster::status::{Conditions, Is};
use crate::cluster::table::ClaimTable;
use crate::cluster::{claim_status, finalizer, status};

/// How many claims are listed a page.
const PAGE: u32 = 500;

/// The claims of a cluster. What is written shows in the table at once, before the watch brings it.
#[derive(Clone)]
pub struct ObjectClaims {
    client: Client,
    namespaces: Vec<String>,
    table: ClaimTable,
    clock: Clock,
    events: Events,
}

impl ObjectClaims {
    /// Over these namespaces, or, where none are named, all; with the table that the watch fills.
    pub fn new(
        client: Client,
        namespaces: Vec<String>,
        table: ClaimTable,
        clock: Clock,
        events: Events,
    ) -> Self {
        Self { client, namespaces, table, clock, events }
    }

    /// Asks for the removal of exactly this claim. It stays until its finalizer goes.
    pub async fn delete(&self, stored: &StoredClaim) -> Result<(), ClaimsError> {
        let spec = &stored.claim.spec;
        let only_this =
            Preconditions { uid: Some(stored.claim.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(only_this), ..DeleteParams::background() };
        match self.api(&spec.owner.namespace).delete(&spec.name, &params).await {
            Ok(either) => {
                if let Some(object) = either.left() {
                    self.note(&object)?;
                }
                Ok(())
            }
            // Gone, or another of the same name.
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
            Err(error) => Err(store("deleting", error)),
        }
    }

    /// Sets one condition of a claim, if it is not so already and nobody else wrote meanwhile. Returns
    /// whether it was written.
    pub async fn say(
        &self,
        read: &StoredClaim,
        type_: &str,
        is: Is,
        reason: Reason,
        message: &str,
    ) -> Result<bool, ClaimsError> {
        let Some(mut object) = self.table.object(read) else { return Ok(false) };
        let mut status = object.status.clone().unwrap_or_default();
        let (generation, now) = (object.metadata.generation, self.clock.now());
        let mut conditions = Conditions::of(&mut status.conditions, generation, now);
        conditions.set(type_, is, reason, message);
        let old = object.status.replace(status);
        if old == object.status {
            return Ok(false);
        }
        Ok(self.write_status(&object, old.as_ref()).await?.is_some())
    }

    /// By compare-and-swap; `None`: somebody else wrote first, or it is gone.
    async fn write_status(
        &self,
        object: &ComputeClaim,
        old: Option<&ComputeClaimStatus>,
    ) -> Result<Option<StoredClaim>, ClaimsError> {
        let api = self.api(&object.namespace().unwrap_or_default());
        match api.replace_status(&object.name_any(), &PostParams::default(), object).await {
            Ok(written) => {
                if let Some(new) = &object.status {
                    let offer = &object.spec.offer;
                    let offer = format!(
                        "{} at {}, {} $/h",
                        offer.instance_type, object.spec.provider, offer.price.0
                    );
                    self.events.tell(object, events::of_claim(&offer, old, new));
                }
                self.note(&written).map(Some)
            }
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(None),
            Err(error) => Err(store("writing", error)),
        }
    }

    fn api(&self, namespace: &str) -> Api<ComputeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn note(&self, object: &ComputeClaim) -> Result<StoredClaim, ClaimsError> {
        let stored = read(object)?;
        self.table.put(object.clone());
        Ok(stored)
    }
}

/// An object as it came, if it is one of the kind at all: one that is not must not hide the others.
fn open(object: DeserializeGuard<ComputeClaim>) -> Result<ComputeClaim, ClaimsError> {
    object.0.map_err(|error| ClaimsError::Damaged {
        name: format!(
            "{}/{}",
            error.metadata.namespace.as_deref().unwrap_or_default(),
            error.metadata.name.as_deref().unwrap_or_default()
        ),
        what: error.to_string(),
    })
}

/// A claim from its object.
///
/// # Errors
/// What in it is no claim of ours.
pub fn read(object: &ComputeClaim) -> Result<StoredClaim, ClaimsError> {
    let claim = Claim::try_from(object).map_err(|errors| ClaimsError::Damaged {
        name: format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()),
        what: errors
            .iter()
            .map(|e| format!("{}: {}", e.path, e.message))
            .collect::<Vec<_>>()
            .join("; "),
    })?;
    let status = object.status.as_ref();
    Ok(StoredClaim {
        version: object.resource_version().unwrap_or_default(),
        deleting: object.metadata.deletion_timestamp.is_some(),
        billed_from: status.and_then(|s| s.billed_from).map(|at| at.0),
        running_from: status.and_then(|s| s.running_from).map(|at| at.0),
        endpoint: status.and_then(|s| s.endpoint.clone()),
        agent_key: status.and_then(|s| s.agent.as_ref()).map(|agent| agent.public_key.clone()),
        claim,
    })
}

#[async_trait]
impl Claims for ObjectClaims {
    async fn create(&self, spec: ClaimSpec) -> Result<Option<StoredClaim>, ClaimsError> {
        let refused = |what| ClaimsError::Refused { name: spec.name.clone(), what };
        let object =
            ComputeClaim::planned(&spec).map_err(|errors| refused(format!("{errors:?}")))?;
        match self.api(&spec.owner.namespace).create(&PostParams::default(), &object).await {
            Ok(object) => self.note(&object).map(Some),
            Err(error) if is_conflict(&error) => {
                let known = self.get(&spec.owner.namespace, &spec.name).await?;
                Ok(known.filter(|known| known.claim.spec.owner.uid == spec.owner.uid))
            }
            Err(error) if is_invalid(&error) => Err(refused(error.to_string())),
            // A namespace that is gone, too: it is that one's trouble alone.
            Err(error) if is_forbidden(&error) || is_not_found(&error) => {
                Err(ClaimsError::Forbidden { name: spec.name.clone(), what: error.to_string() })
            }
            Err(error) => Err(store("creating", error)),
        }
    }

    async fn get(&self, namespace: &str, name: &str) -> Result<Option<StoredClaim>, ClaimsError> {
        // Without a resourceVersion the server answers from etcd by quorum.
        let api: Api<DeserializeGuard<ComputeClaim>> =
            Api::namespaced(self.client.clone(), namespace);
        match api.get_opt(name).await.map_err(|e| store("reading", e))? {
            Some(object) => self.note(&open(object)?).map(Some),
            None => Ok(None),
        }
    }

    async fn list(&self) -> Result<Vec<StoredClaim>, ClaimsError> {
        let mut claims = Vec::new();
        for api in
            crate::cluster::within::<DeserializeGuard<ComputeClaim>>(&self.client, &self.namespaces)
        {
            let mut params = ListParams::default().limit(PAGE);
            loop {
                let page = api.list(&params).await.map_err(|e| store("listing", e))?;
                for object in page.items {
                    match open(object).and_then(|object| read(&object)) {
                        Ok(stored) => claims.push(stored),
                        // One that cannot be read keeps its machine: the sweep asks for its uid alone.
                        Err(error) => tracing::error!(%error, "left out"),
                    }
                }
                match page.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) => params = params.continue_token(&token),
                    None => break,
                }
            }
        }
        Ok(claims)
    }

    async fn replace(
        &self,
        read: &StoredClaim,
        new: StoredClaim,
    ) -> Result<Option<StoredClaim>, ClaimsError> {
        let spec = &read.claim.spec;
        let Some(mut object) = self.table.object(read) else {
            return Ok(None);
        };
        object.metadata.resource_version = Some(read.version.clone());
        let old = object.status.take();
        let mut status = old.clone().unwrap_or_default();
        status.record(&new.claim).map_err(|errors| ClaimsError::Damaged {
            name: spec.name.clone(),
            what: format!("{errors:?}"),
        })?;
        status.billed_from = new.billed_from.map(Moment);
        status.running_from = new.running_from.map(Moment);
        status.endpoint.clone_from(&new.endpoint);
        let now = self.clock.now();
        // The key of an agent is pinned: once written it never changes.
        if let (None, Some(key)) = (&status.agent, &new.agent_key) {
            let enrolled_at = status::time(now);
            status.agent = Some(AgentStatus { public_key: key.clone(), enrolled_at });
        }
        claim_status::summarise(&mut status, &new, object.metadata.generation, now);
        object.status = Some(status);
        self.write_status(&object, old.as_ref()).await
    }

    async fn release(&self, read: &StoredClaim) -> Result<(), ClaimsError> {
        let spec = &read.claim.spec;
        let Some(object) = self.table.object(read) else {
            return Ok(());
        };
        if !finalizer::is_held(&object) {
            return Ok(());
        }
        match finalizer::hold(&self.api(&spec.owner.namespace), &object, false).await {
            Ok(Some(object)) => self.note(&object).map(drop),
            Ok(None) => {
                self.table.remove(&spec.owner.namespace, &spec.name, &read.claim.uid);
                Ok(())
            }
            Err(error) => Err(store("releasing", error)),
        }
    }
}

fn store(what: &str, source: kube::Error) -> ClaimsError {
    ClaimsError::Store { what: what.to_owned(), source: Box::new(source) }
}
