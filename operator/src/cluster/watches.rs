//! What the API server tells: one watch a kind, shared by all who look, pruned of what nobody
//! reads. An object that cannot be read is said and left out; it blocks no other.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Debug;

use futures::stream::{BoxStream, select_all};
use futures::{Stream, StreamExt};
use kube::core::{DeserializeGuard, NamespaceResourceScope, Resource};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{Config, Event, Result as WatchResult, watcher};
use kube::{Api, Client, ResourceExt};
use petaflop_arbiter::workload::OwnerKind;
use petaflop_crds::{ComputeClaim, ComputeProvider, InferenceService, SpendBudget, TrainingJob};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::cluster::gateway_objects::GATEWAY_LABEL;
use crate::cluster::served::Models;
use crate::cluster::table::{ClaimTable, Name, name_of, version};
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

/// One watch: where its objects are kept, and whether the first lists are complete.
pub struct Watched<K: Resource<DynamicType = ()> + Clone + 'static> {
    /// The objects.
    pub store: Store<K>,
    writer: Option<Writer<K>>,
    ready: watch::Sender<bool>,
}

impl<K> Default for Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    fn default() -> Self {
        let writer = Writer::new(());
        Self { store: writer.as_reader(), writer: Some(writer), ready: watch::Sender::new(false) }
    }
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Whether the first lists are complete.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Begins to watch; `prune` takes out of each object what nobody reads; `seen` hears of every
    /// object that is new, changed or gone.
    pub fn start(
        &mut self,
        parts: Vec<Part<K>>,
        prune: fn(&mut K),
        seen: impl Fn(&K, Seen) + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        let writer = self.writer.take().expect("a watch is started once");
        let ready = self.ready.clone();
        let scopes = parts.iter().map(|part| part.scope.clone()).collect();
        tokio::spawn(follow(scopes, merged(&parts), writer, ready, prune, seen))
    }
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
    mut writer: Writer<K>,
    ready: watch::Sender<bool>,
    prune: fn(&mut K),
    seen: impl Fn(&K, Seen),
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let store = writer.as_reader();
    let mut listed: Vec<HashSet<ObjectRef<K>>> = scopes.iter().map(|_| HashSet::new()).collect();
    let mut unlisted: BTreeSet<usize> = (0..scopes.len()).collect();
    while let Some((part, event)) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, kind = %K::kind(&()), "watch");
                continue;
            }
        };
        // The store knows one list; what several parts say comes to it object by object.
        let event = match read(event) {
            Some(Event::InitApply(mut object)) => {
                prune(&mut object);
                listed[part].insert(ObjectRef::from_obj(&object));
                Event::Apply(object)
            }
            Some(Event::Apply(mut object)) => {
                prune(&mut object);
                Event::Apply(object)
            }
            Some(other) => other,
            None => continue,
        };
        match &event {
            Event::Apply(object) => {
                writer.apply_watcher_event(&event);
                seen(object, Seen::There);
            }
            Event::Delete(object) => {
                writer.apply_watcher_event(&event);
                seen(object, Seen::Gone);
            }
            Event::Init | Event::InitApply(_) => listed[part].clear(),
            Event::InitDone => {
                let names = std::mem::take(&mut listed[part]);
                let missing =
                    |o: &K| scopes[part].holds(o) && !names.contains(&ObjectRef::from_obj(o));
                for object in store.state_filter(missing) {
                    writer.apply_watcher_event(&Event::Delete(K::clone(&object)));
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
                names.insert(name_of(&object));
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
                handle.claim_changed(&name_of(&object));
                handle.owner_changed(&object.spec.owner.uid);
                handle.money_moved(&object.namespace().unwrap_or_default());
            }
        }
    }
}

/// Known first, or whoever is woken looks at what was before.
fn put(table: &ClaimTable, handle: &Handle, object: ComputeClaim) {
    let (name, owner) = (name_of(&object), object.spec.owner.uid.clone());
    table.put(object);
    handle.claim_changed(&name);
    handle.owner_changed(&owner);
    handle.money_moved(&name.0);
}

/// Jobs: into their queue; and the services that serve what they make into theirs.
pub fn on_job(handle: Handle, models: Models) -> impl Fn(&TrainingJob, Seen) {
    move |job, seen| {
        let name = (job.namespace().unwrap_or_default(), job.name_any());
        let uid = job.uid().unwrap_or_default();
        match seen {
            Seen::There => handle.know_owner(uid, OwnerKind::TrainingJob, name.clone()),
            Seen::Gone => handle.forget_owner(&uid),
        }
        if seen == Seen::Gone || job.status.as_ref().is_some_and(is_over) {
            models.services_of(&name).iter().for_each(|service| handle.service_changed(service));
        }
        handle.jobs.add(name);
    }
}

/// Services: into their queue.
pub fn on_service(handle: Handle) -> impl Fn(&InferenceService, Seen) {
    move |service, seen| {
        let name = (service.namespace().unwrap_or_default(), service.name_any());
        let uid = service.uid().unwrap_or_default();
        match seen {
            Seen::There => handle.know_owner(uid, OwnerKind::InferenceService, name.clone()),
            Seen::Gone => handle.forget_owner(&uid),
        }
        handle.services.add(name);
    }
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
        let mut watched = Watched::<ConfigMap>::default();
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
        let writer = watched.writer.take().expect("a writer");
        let ready = watched.ready();
        follow(scopes, events, writer, watched.ready.clone(), |_| {}, note).await;
        assert!(*ready.borrow());
        let mut left: Vec<String> = watched.store.state().iter().map(|o| o.name_any()).collect();
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
        let mut watched = Watched::<ConfigMap>::default();
        let ready = watched.ready();
        let scopes = vec![Scope::default(), Scope::default()];
        let events = futures::stream::iter([(0, Ok(Event::Init)), (0, Ok(Event::InitDone))]);
        let writer = watched.writer.take().expect("a writer");
        follow(scopes, events, writer, watched.ready.clone(), |_| {}, |_, _| {}).await;
        assert!(!*ready.borrow());
    }
}
