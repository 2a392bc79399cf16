//! What the API server tells: one watch a kind, shared by all who look, pruned of what nobody
//! reads. An object that cannot be read is said and left out; it blocks no other.

use std::collections::BTreeSet;
use std::fmt::Debug;

use futures::StreamExt;
use kube::core::{DeserializeGuard, Resource};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt};
use petaflop_crds::{ComputeClaim, ComputeProvider, SpendBudget, TrainingJob};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::cluster::table::{ClaimTable, Name, name_of, version};
use crate::cluster::{Handle, queue::Queue};

/// Objects a page.
const PAGE: u32 = 200;

/// One watch: where its objects are kept, and whether the first list is complete.
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
    /// Whether the first list is complete.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Begins to watch; `seen` hears of every object that is new, changed or gone.
    pub fn start(
        &mut self,
        api: Api<DeserializeGuard<K>>,
        labels: Option<&str>,
        seen: impl Fn(&K, Seen) + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        let writer = self.writer.take().expect("a watch is started once");
        let ready = self.ready.clone();
        let config = Config::default().page_size(PAGE);
        let config = labels.map_or(config.clone(), |labels| config.labels(labels));
        tokio::spawn(follow(api, config, writer, ready, seen))
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
    api: Api<DeserializeGuard<K>>,
    config: Config,
    mut writer: Writer<K>,
    ready: watch::Sender<bool>,
    seen: impl Fn(&K, Seen),
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher(api, config).default_backoff();
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, kind = %K::kind(&()), "watch");
                continue;
            }
        };
        let Some(event) = read(event) else { continue };
        // Who is gone after a new list is known only to the store.
        let before = matches!(event, Event::InitDone).then(|| writer.as_reader().state());
        writer.apply_watcher_event(&event);
        match &event {
            Event::Apply(object) => seen(object, Seen::There),
            Event::Delete(object) => seen(object, Seen::Gone),
            Event::Init | Event::InitApply(_) => {}
            Event::InitDone => {
                let store = writer.as_reader();
                for object in store.state() {
                    seen(&object, Seen::There);
                }
                for object in before.into_iter().flatten() {
                    if store.get(&ObjectRef::from_obj(&*object)).is_none() {
                        seen(&object, Seen::Gone);
                    }
                }
                ready.send_replace(true);
            }
        }
    }
}

/// Takes the object out of its guard, and out of it what nobody reads.
fn read<K: Resource<DynamicType = ()>>(event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
    let open = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(mut object) => {
            object.meta_mut().managed_fields = None;
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
    api: Api<DeserializeGuard<ComputeClaim>>,
    table: ClaimTable,
    handle: Handle,
    ready: watch::Sender<bool>,
) {
    let events = watcher(api, Config::default().page_size(PAGE)).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut listed: BTreeSet<Name> = BTreeSet::new();
    let mut newest = 0;
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, kind = "ComputeClaim", "watch");
                continue;
            }
        };
        let Some(event) = read(event) else { continue };
        match event {
            Event::Init => {
                listed.clear();
                newest = 0;
            }
            Event::InitApply(object) => {
                listed.insert(name_of(&object));
                newest = newest.max(version(&object));
                wake(&handle, &object);
                table.put(object);
            }
            Event::InitDone => {
                table.listed(&listed, newest);
                ready.send_replace(true);
            }
            Event::Apply(object) => {
                wake(&handle, &object);
                table.put(object);
            }
            Event::Delete(object) => {
                table.gone(&object);
                wake(&handle, &object);
            }
        }
    }
}

fn wake(handle: &Handle, object: &ComputeClaim) {
    handle.claim_changed(&name_of(object));
    handle.owner_changed(&object.spec.owner.uid);
}

/// Jobs: into their queue.
pub fn on_job(handle: Handle) -> impl Fn(&TrainingJob, Seen) {
    move |job, seen| {
        let name = (job.namespace().unwrap_or_default(), job.name_any());
        let uid = job.uid().unwrap_or_default();
        match seen {
            Seen::There => handle.know_owner(uid, name.clone()),
            Seen::Gone => handle.forget_owner(&uid),
        }
        handle.jobs.add(name);
    }
}

/// Providers: into their queue.
pub fn on_provider(queue: Queue<String>) -> impl Fn(&ComputeProvider, Seen) {
    move |provider, _| queue.add(provider.name_any())
}

/// Budgets: whatever they say, everybody is decided anew.
pub fn on_budget(placement: crate::cluster::placement::Placement) -> impl Fn(&SpendBudget, Seen) {
    move |_, _| placement.ask()
}
