//! What the API server tells: one watch a kind, shared by all who look, pruned of what nobody
//! reads. An object that cannot be read is said and left out; it blocks no other.

use std::collections::BTreeSet;
use std::fmt::Debug;

use futures::stream::{BoxStream, select_all};
use futures::{Stream, StreamExt};
use kube::core::{DeserializeGuard, NamespaceResourceScope, Resource};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{Config, Event, Result as WatchResult, watcher};
use kube::{Api, Client, ResourceExt};
use petaflop_arbiter::workload::WorkloadId;
use petaflop_crds::compute_claim::ClaimOwner;
use petaflop_crds::{ComputeClaim, ComputeProvider, InferenceService, SpendBudget, TrainingJob};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::cluster::gateway_objects::GATEWAY_LABEL;
use crate::cluster::served::Models;
use crate::cluster::shelf::{Shelf, named};
use crate::cluster::table::{ClaimTable, Name, version};
use crate::cluster::training_job::is_over;
use crate::cluster::{Handle, queue::Queue};

/// Objects a page.
const PAGE: u32 = 200;

/// The whole object once more, as `kubectl apply` leaves it there.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A part of a kind's objects that is listed and watched by itself.
pub struct Part<K> {
    api: Api<DeserializeGuard<K>>,
    config: Config,
    scope: Scope,
}

/// Which objects belong to a part.
#[derive(Clone, Debug, Default)]
struct Scope {
    /// Their namespace; `None`: any.
    namespace: Option<String>,
    /// Whether they carry this label; `None`: no matter.
    label: Option<(&'static str, bool)>,
}

impl Scope {
    fn holds(&self, object: &impl Resource) -> bool {
        let meta = object.meta();
        let here = self.namespace.is_none() || self.namespace == meta.namespace;
        let carries =
            |key: &str| meta.labels.as_ref().is_some_and(|labels| labels.contains_key(key));
        here && self.label.is_none_or(|(key, carried)| carries(key) == carried)
    }
}

impl<K> Part<K>
where
    K: Resource<DynamicType = ()>,
{
    /// All objects of the cluster.
    pub fn all(client: &Client) -> Self {
        let config = Config::default().page_size(PAGE);
        Self { api: Api::all(client.clone()), config, scope: Scope::default() }
    }

    /// The objects of each of these namespaces; of the whole cluster, where none are named.
    pub fn each(client: &Client, namespaces: &[String]) -> Vec<Self>
    where
        K: Resource<Scope = NamespaceResourceScope>,
    {
        if namespaces.is_empty() {
            return vec![Self::all(client)];
        }
        let one = |namespace: &String| Self {
            api: Api::namespaced(client.clone(), namespace),
            scope: Scope { namespace: Some(namespace.clone()), label: None },
            ..Self::all(client)
        };
        namespaces.iter().map(one).collect()
    }

    /// Those with these labels (`key=value,…`), where some are given.
    #[must_use]
    pub fn labels(mut self, labels: Option<&str>) -> Self {
        if let Some(labels) = labels {
            self.config = self.config.labels(labels);
        }
        self
    }

    /// Those that carry a label, or those that do not, so that two parts share the objects.
    #[must_use]
    pub fn labelled(mut self, key: &'static str, carried: bool) -> Self {
        let selector = if carried { key.to_owned() } else { format!("!{key}") };
        self.config = self.config.labels(&selector);
        self.scope.label = Some((key, carried));
        self
    }

    /// Those with these fields.
    #[must_use]
    pub fn fields(mut self, fields: &str) -> Self {
        self.config = self.config.fields(fields);
        self
    }

    fn events(&self) -> BoxStream<'static, Told<K>>
    where
        K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        watcher(self.api.clone(), self.config.clone()).default_backoff().boxed()
    }
}

/// What a watch says.
type Told<K> = WatchResult<Event<DeserializeGuard<K>>>;

/// The events of all parts, each with its part's number.
fn merged<K>(parts: &[Part<K>]) -> impl Stream<Item = (usize, Told<K>)> + Unpin + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let numbered =
        |(part, stream): (usize, &Part<K>)| stream.events().map(move |event| (part, event)).boxed();
    select_all(parts.iter().enumerate().map(numbered).collect::<Vec<_>>())
}

/// Where a watch keeps what it brings.
pub trait Keep<K>: Send + 'static {
    /// An object is there, new or changed.
    fn put(&mut self, object: &K);
    /// An object is gone.
    fn remove(&mut self, object: &K);
    /// The objects of which something holds.
    fn those(&self, holds: impl Fn(&K) -> bool) -> Vec<K>;
}

impl<K> Keep<K> for Shelf<K>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + 'static,
{
    fn put(&mut self, object: &K) {
        Shelf::put(self, object);
    }

    fn remove(&mut self, object: &K) {
        Shelf::remove(self, object);
    }

    fn those(&self, holds: impl Fn(&K) -> bool) -> Vec<K> {
        self.filtered(holds)
    }
}

/// As they are, for whoever looks at all of them often.
impl<K> Keep<K> for Writer<K>
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    fn put(&mut self, object: &K) {
        self.apply_watcher_event(&Event::Apply(object.clone()));
    }

    fn remove(&mut self, object: &K) {
        self.apply_watcher_event(&Event::Delete(object.clone()));
    }

    fn those(&self, holds: impl Fn(&K) -> bool) -> Vec<K> {
        let those = self.as_reader().state_filter(holds);
        those.into_iter().map(|object| K::clone(&object)).collect()
    }
}

/// A watch that has begun.
pub struct Begun {
    /// Ends by itself only with the runtime.
    pub task: tokio::task::JoinHandle<()>,
    /// Whether the first lists are complete.
    pub complete: watch::Receiver<bool>,
}

/// Begins to watch; `prune` takes out of each object what nobody reads; `seen` hears of every
/// object that is new, changed or gone.
pub fn begin<K>(
    parts: Vec<Part<K>>,
    keep: impl Keep<K>,
    prune: fn(&mut K),
    seen: impl Fn(&K, Seen) + Send + 'static,
) -> Begun
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let scopes = parts.iter().map(|part| part.scope.clone()).collect();
    let ready = watch::Sender::new(false);
    let complete = ready.subscribe();
    Begun { task: tokio::spawn(follow(scopes, merged(&parts), keep, ready, prune, seen)), complete }
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is there, new or changed.
    There,
    /// It is gone.
    Gone,
}

async fn follow<K>(
    scopes: Vec<Scope>,
    mut events: impl Stream<Item = (usize, Told<K>)> + Unpin,
    mut keep: impl Keep<K>,
    ready: watch::Sender<bool>,
    prune: fn(&mut K),
    seen: impl Fn(&K, Seen),
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let mut listed: Vec<BTreeSet<Name>> = scopes.iter().map(|_| BTreeSet::new()).collect();
    let mut unlisted: BTreeSet<usize> = (0..scopes.len()).collect();
    while let Some((part, event)) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, kind = %K::kind(&()), "watch");
                continue;
            }
        };
        let Some(event) = read(event) else { continue };
        // What several parts list is kept together, so each object of a list comes by itself.
        if let Event::InitApply(object) = &event {
            listed[part].insert(named(object));
        }
        match event {
            Event::Apply(mut object) | Event::InitApply(mut object) => {
                prune(&mut object);
                keep.put(&object);
                seen(&object, Seen::There);
            }
            Event::Delete(object) => {
                keep.remove(&object);
                seen(&object, Seen::Gone);
            }
            Event::Init => listed[part].clear(),
            Event::InitDone => {
                let names = std::mem::take(&mut listed[part]);
                for object in keep.those(|o| scopes[part].holds(o) && !names.contains(&named(o))) {
                    keep.remove(&object);
                    seen(&object, Seen::Gone);
                }
                unlisted.remove(&part);
                if unlisted.is_empty() {
                    ready.send_replace(true);
                }
            }
        }
    }
}

/// Takes the object out of its guard, and out of it what nobody reads.
fn read<K: Resource<DynamicType = ()>>(event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
    let open = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(mut object) => {
            let meta = object.meta_mut();
            meta.managed_fields = None;
            if let Some(annotations) = &mut meta.annotations {
                annotations.remove(LAST_APPLIED);
            }
            Some(object)
        }
        Err(error) => {
            let meta = &error.metadata;
            tracing::error!(kind = %K::kind(&()), namespace = ?meta.namespace, name = ?meta.name, %error, "left out");
            None
        }
    };
    Some(match event {
        Event::Apply(guard) => Event::Apply(open(guard)?),
        Event::Delete(guard) => Event::Delete(open(guard)?),
        Event::Init => Event::Init,
        Event::InitApply(guard) => Event::InitApply(open(guard)?),
        Event::InitDone => Event::InitDone,
    })
}

/// The claims' watch: into the table, which knows what is newer.
pub async fn follow_claims(
    parts: Vec<Part<ComputeClaim>>,
    table: ClaimTable,
    handle: Handle,
    ready: watch::Sender<bool>,
) {
    let mut events = merged(&parts);
    let mut listed: Vec<(BTreeSet<Name>, u64)> = parts.iter().map(|_| Default::default()).collect();
    let mut unlisted: BTreeSet<usize> = (0..parts.len()).collect();
    while let Some((part, event)) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, kind = "ComputeClaim", "watch");
                continue;
            }
        };
        let Some(event) = read(event) else { continue };
        match event {
            Event::Init => listed[part] = Default::default(),
            Event::InitApply(object) => {
                let (names, newest) = &mut listed[part];
                names.insert(named(&object));
                *newest = (*newest).max(version(&object));
                put(&table, &handle, object);
            }
            Event::InitDone => {
                let (names, newest) = std::mem::take(&mut listed[part]);
                table.listed(parts[part].scope.namespace.as_deref(), &names, newest);
                unlisted.remove(&part);
                if unlisted.is_empty() {
                    ready.send_replace(true);
                }
            }
            Event::Apply(object) => {
                put(&table, &handle, object);
            }
            Event::Delete(object) => {
                table.gone(&object);
                handle.claim_changed(&named(&object));
                handle.owner_changed(&owner_of(&object));
                handle.money_moved(&object.namespace().unwrap_or_default());
            }
        }
    }
}

/// Known first, or whoever is woken looks at what was before.
fn put(table: &ClaimTable, handle: &Handle, object: ComputeClaim) {
    let (name, owner) = (named(&object), owner_of(&object));
    table.put(object);
    handle.claim_changed(&name);
    handle.owner_changed(&owner);
    handle.money_moved(&name.0);
}

fn owner_of(claim: &ComputeClaim) -> WorkloadId {
    let ClaimOwner { kind, name, uid } = claim.spec.owner.clone();
    WorkloadId { kind: kind.into(), namespace: claim.namespace().unwrap_or_default(), name, uid }
}

/// Jobs: into their queue; and the services that serve what they make into theirs. One that is gone is
/// forgotten, by its uid.
pub fn on_job(
    handle: Handle,
    models: Models,
    forget: impl Fn(&str),
) -> impl Fn(&TrainingJob, Seen) {
    move |job, seen| {
        let name = named(job);
        if let (Seen::Gone, Some(uid)) = (seen, &job.metadata.uid) {
            forget(uid);
        }
        if seen == Seen::Gone || job.status.as_ref().is_some_and(is_over) {
            models.services_of(&name).iter().for_each(|service| handle.service_changed(service));
        }
        handle.jobs.add(name);
    }
}

/// Services: into their queue.
pub fn on_service(handle: Handle) -> impl Fn(&InferenceService, Seen) {
    move |service, _| handle.services.add(named(service))
}

/// What belongs to gateways: into the queue of their service.
pub fn on_gateway_object<K: Resource<DynamicType = ()>>(handle: Handle) -> impl Fn(&K, Seen) {
    move |object, _| {
        if let Some(service) = object.labels().get(GATEWAY_LABEL) {
            handle.service_changed(&(object.namespace().unwrap_or_default(), service.clone()));
        }
    }
}

/// Providers: into their queue.
pub fn on_provider(queue: Queue<String>) -> impl Fn(&ComputeProvider, Seen) {
    move |provider, _| queue.add(provider.name_any())
}

/// Budgets: into their queue; and whatever their specs say, everybody is decided anew.
pub fn on_budget(
    handle: Handle,
    placement: crate::cluster::placement::Placement,
) -> impl Fn(&SpendBudget, Seen) {
    move |budget, seen| {
        let name = (budget.namespace().unwrap_or_default(), budget.name_any());
        handle.know_budget(&name, seen == Seen::There);
        handle.budgets.add(name);
        placement.ask();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn map(namespace: &str, name: &str) -> DeserializeGuard<ConfigMap> {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some(namespace.to_owned());
        object.metadata.name = Some(name.to_owned());
        DeserializeGuard(Ok(object))
    }

    #[tokio::test]
    async fn a_new_list_of_one_namespace_takes_nothing_from_the_others() {
        let scopes =
            ["a", "b"].map(|name| Scope { namespace: Some(name.to_owned()), label: None }).to_vec();
        let shelf = Shelf::new(|_: &ConfigMap| false);
        let ready = watch::Sender::new(false);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        let note = move |object: &ConfigMap, what| {
            notes.lock().expect("notes").push((object.name_any(), what));
        };
        let events = [
            (0, Event::Init),
            (0, Event::InitApply(map("a", "stays"))),
            (0, Event::InitApply(map("a", "goes"))),
            (0, Event::InitDone),
            (1, Event::Init),
            (1, Event::InitApply(map("b", "other"))),
            (1, Event::InitDone),
            (0, Event::Init),
            (0, Event::InitApply(map("a", "stays"))),
            (0, Event::InitDone),
        ];
        let events = futures::stream::iter(events.map(|(part, event)| (part, Ok(event))));
        follow(scopes, events, shelf.clone(), ready.clone(), |_| {}, note).await;
        assert!(*ready.borrow());
        let mut left: Vec<String> = shelf.all().iter().map(ResourceExt::name_any).collect();
        left.sort();
        assert_eq!(left, ["other", "stays"]);
        let gone: Vec<_> = seen
            .lock()
            .expect("notes")
            .iter()
            .filter(|(_, what)| *what == Seen::Gone)
            .map(|(name, _)| name.clone())
            .collect();
        assert_eq!(gone, ["goes"]);
    }

    #[tokio::test]
    async fn nothing_is_complete_before_every_part_is() {
        let ready = watch::Sender::new(false);
        let scopes = vec![Scope::default(), Scope::default()];
        let events = futures::stream::iter([(0, Ok(Event::Init)), (0, Ok(Event::InitDone))]);
        let shelf = Shelf::new(|_: &ConfigMap| false);
        follow(scopes, events, shelf, ready.clone(), |_| {}, |_, _| {}).await;
        assert!(!*ready.borrow());
    }
}
