//! All claims that are known, by name, by owner and by provider: what the watch brought, and what we wrote
//! ourselves since. Of two writings of one object the newer counts, so that nothing is ever decided
//! from a cache that is behind our own last write.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use petaflop_crds::ComputeClaim;

use crate::claims::StoredClaim;
use crate::cluster::claims;
use crate::cluster::shelf::{Packed, Packer, named};

/// Namespace and name.
pub use crate::agents::Name;

/// The claims of a cluster. Clones are the same table.
#[derive(Clone, Debug, Default)]
pub struct ClaimTable {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    packer: Packer<ComputeClaim>,
    claims: HashMap<Arc<Name>, Packed<ComputeClaim>>,
    /// In order. Mostly there is one, and a set would take ten times its room.
    by_owner: HashMap<String, Vec<Arc<Name>>>,
    by_provider: HashMap<String, BTreeSet<Arc<Name>>>,
    /// Providers whose last claim went, until somebody asks.
    left: HashSet<String>,
    /// Removed objects, until the watch has seen it: uid by name.
    removed: HashMap<Name, String>,
}

impl ClaimTable {
    /// Takes a claim over, unless a newer writing of it is known. Returns whether it was taken.
    pub fn put(&self, mut object: ComputeClaim) -> bool {
        prune(&mut object);
        let name = named(&object);
        let mut inner = self.lock();
        if let (Some(gone), Some(uid)) = (inner.removed.get(&name), object.metadata.uid.as_ref()) {
            if gone == uid {
                return false;
            }
            inner.removed.remove(&name);
        }
        let known = inner.get(&name);
        if let Some(known) = &known
            && known.metadata.uid == object.metadata.uid
            && version(known) >= version(&object)
        {
            return false;
        }
        if let Some(old) = known {
            inner.forget(&old, &name);
        }
        let packed = inner.packer.pack(&object);
        let name = Arc::new(name);
        inner.claims.insert(name.clone(), packed);
        let names = inner
            .by_owner
            .entry(object.spec.owner.uid.clone())
            .or_insert_with(|| Vec::with_capacity(1));
        if let Err(at) = names.binary_search(&name) {
            names.insert(at, name.clone());
        }
        inner.by_provider.entry(object.spec.provider.clone()).or_default().insert(name);
        true
    }

    /// The watch says that an object is gone.
    pub fn gone(&self, object: &ComputeClaim) {
        let name = named(object);
        let mut inner = self.lock();
        inner.removed.remove(&name);
        inner.remove(&name, object.metadata.uid.as_deref());
    }

    /// We took the last finalizer of a claim that was being removed.
    pub fn remove(&self, namespace: &str, name: &str, uid: &str) {
        let name = (namespace.to_owned(), name.to_owned());
        let mut inner = self.lock();
        inner.removed.insert(name.clone(), uid.to_owned());
        inner.remove(&name, Some(uid));
    }

    /// A list of a namespace, or of all, is complete: what was known before it began and is not in
    /// it is gone. What was written while it ran is newer than everything in it, and stays.
    pub fn listed(&self, namespace: Option<&str>, names: &BTreeSet<Name>, newest: u64) {
        let here = |name: &Name| namespace.is_none_or(|namespace| namespace == name.0);
        let mut inner = self.lock();
        let missing = inner.claims.keys().filter(|name| here(name) && !names.contains(&***name));
        for name in missing.cloned().collect::<Vec<_>>() {
            if inner.get(&name).is_some_and(|object| version(&object) <= newest) {
                inner.remove(&name, None);
            }
        }
        inner.removed.retain(|name, _| !here(name));
    }

    /// The object of exactly this writing of a claim, if that is still the newest known.
    pub fn object(&self, read: &StoredClaim) -> Option<ComputeClaim> {
        let spec = &read.claim.spec;
        let name = (spec.owner.namespace.clone(), spec.name.clone());
        let known = self.lock().get(&name)?;
        let same = known.metadata.uid.as_deref() == Some(read.claim.uid.as_str())
            && known.metadata.resource_version.as_deref() == Some(read.version.as_str());
        same.then_some(known)
    }

    /// One claim's object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<ComputeClaim> {
        self.lock().get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The claims of an owner, by name. One that cannot be read is left out, and said.
    pub fn of_owner(&self, uid: &str) -> Vec<StoredClaim> {
        let inner = self.lock();
        inner.read(inner.by_owner.get(uid).into_iter().flatten())
    }

    /// The claims on a provider's machines.
    pub fn of_provider(&self, name: &str) -> Vec<StoredClaim> {
        let inner = self.lock();
        inner.read(inner.by_provider.get(name).into_iter().flatten())
    }

    /// Whether there are claims on a provider's machines.
    pub fn needs_provider(&self, name: &str) -> bool {
        self.lock().by_provider.contains_key(name)
    }

    /// Whether a provider's last claim went since this was asked last, however many came after it.
    pub fn was_left(&self, name: &str) -> bool {
        self.lock().left.remove(name)
    }

    /// The claims of a namespace.
    pub fn of_namespace(&self, namespace: &str) -> Vec<StoredClaim> {
        let inner = self.lock();
        inner.read(inner.claims.keys().filter(|name| name.0 == namespace))
    }

    /// All claims.
    pub fn all(&self) -> Vec<StoredClaim> {
        let inner = self.lock();
        inner.read(inner.claims.keys())
    }

    /// Their names.
    pub fn names(&self) -> Vec<Name> {
        self.lock().claims.keys().map(|name| Name::clone(name)).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().claims.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn get(&self, name: &Name) -> Option<ComputeClaim> {
        self.claims.get(name).map(|packed| self.packer.unpack(packed))
    }

    fn read<'a>(&self, names: impl Iterator<Item = &'a Arc<Name>>) -> Vec<StoredClaim> {
        names.filter_map(|name| self.get(name)).filter_map(|object| readable(&object)).collect()
    }

    /// Removes a claim, if it is the one meant.
    fn remove(&mut self, name: &Name, uid: Option<&str>) {
        let Some(known) = self.get(name) else { return };
        if uid.is_none() || known.metadata.uid.as_deref() == uid {
            self.claims.remove(name);
            self.forget(&known, name);
            if !self.by_provider.contains_key(&known.spec.provider) {
                self.left.insert(known.spec.provider);
            }
        }
    }

    fn forget(&mut self, object: &ComputeClaim, name: &Name) {
        let owner = &object.spec.owner.uid;
        if let Some(names) = self.by_owner.get_mut(owner) {
            names.retain(|known| **known != *name);
            if names.is_empty() {
                self.by_owner.remove(owner);
            }
        }
        take_out(&mut self.by_provider, &object.spec.provider, name);
    }
}

fn take_out(index: &mut HashMap<String, BTreeSet<Arc<Name>>>, key: &str, name: &Name) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

/// Takes out what nobody reads and no write of ours needs: a status is written without its object's
/// metadata, a finalizer by itself. There may be many thousands.
fn prune(object: &mut ComputeClaim) {
    let meta = &mut object.metadata;
    (meta.managed_fields, meta.labels, meta.owner_references) = (None, None, None);
}

/// resourceVersions of one kind are numbers that rise with every write (Kubernetes 1.35 says so
/// for all kinds; etcd's revision always was).
pub fn version(object: &ComputeClaim) -> u64 {
    object.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn readable(object: &ComputeClaim) -> Option<StoredClaim> {
    claims::read(object).inspect_err(|error| tracing::error!(%error, "left out")).ok()
}

#[cfg(test)]
mod tests {
    use petaflop_arbiter::claim::{ClaimSpec, Device};
    use petaflop_arbiter::money::Usd;
    use petaflop_arbiter::workload::{OwnerKind, WorkloadId};

    use super::*;
    use crate::cluster::testing::offer;

    fn claim(name: &str, uid: &str, version: u64) -> ComputeClaim {
        let spec = ClaimSpec {
            name: name.into(),
            owner: WorkloadId {
                kind: OwnerKind::TrainingJob,
                namespace: "ns".into(),
                name: "job".into(),
                uid: "owner".into(),
            },
            placement: 1,
            index: 0,
            offer: offer("m", "0.5"),
            device: Device::Cpu,
            reserved: Usd::ZERO,
            decided_at: jiff::Timestamp::UNIX_EPOCH,
            revision: None,
            checkpoint_interval_seconds: None,
            runners_up: Vec::new(),
        };
        let mut object = ComputeClaim::planned(&spec).expect("a plain claim");
        object.metadata.uid = Some(uid.into());
        object.metadata.resource_version = Some(version.to_string());
        object
    }

    #[test]
    fn an_older_writing_never_replaces_a_newer_one() {
        let table = ClaimTable::default();
        assert!(table.put(claim("a", "u", 7)));
        assert!(!table.put(claim("a", "u", 5)));
        assert!(!table.put(claim("a", "u", 7)));
        assert!(table.put(claim("a", "u", 9)));
        assert_eq!(table.of_owner("owner").len(), 1);
    }

    #[test]
    fn what_we_removed_does_not_come_back_with_a_late_event() {
        let table = ClaimTable::default();
        table.put(claim("a", "u", 7));
        table.remove("ns", "a", "u");
        assert!(!table.put(claim("a", "u", 8)), "the watch is behind");
        assert!(table.is_empty());
        table.gone(&claim("a", "u", 9));
        assert!(!table.needs_provider("fake"));
        assert!(table.was_left("fake") && !table.was_left("fake"), "said once");
        assert!(table.put(claim("a", "v", 10)), "another object of the same name");
        assert_eq!(table.of_owner("owner").len(), 1);
        assert_eq!(table.of_provider("fake").len(), 1);
    }

    #[test]
    fn a_complete_list_drops_what_is_gone_and_keeps_what_was_written_meanwhile() {
        let table = ClaimTable::default();
        table.put(claim("gone", "u1", 3));
        table.put(claim("kept", "u2", 4));
        table.put(claim("new", "u3", 12));
        let names = BTreeSet::from([("ns".to_owned(), "kept".to_owned())]);
        table.listed(Some("other"), &BTreeSet::new(), 20);
        table.listed(Some("ns"), &names, 10);
        let left: Vec<String> =
            table.of_owner("owner").into_iter().map(|c| c.claim.spec.name).collect();
        assert_eq!(left, ["kept", "new"]);
    }
}
