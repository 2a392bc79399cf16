//! Claims in files: `claims/<namespace>/<name>.json`, each changed only by
//! compare-and-swap on its version, as the API server does it. The finalizer is
//! in the create body; a claim is removed with it, for here only its own operator
//! ever wants one gone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use petaflop_arbiter::claim::{Claim, ClaimSpec, Phase};
use petaflop_arbiter::money::Usd;

use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::embedded::home::{self, Home, HomeError};
use crate::uid;

/// The claims of one home.
#[derive(Clone, Debug)]
pub struct FileClaims {
    folder: PathBuf,
}

impl FileClaims {
    /// Of this home.
    pub fn of(home: &Home) -> Self {
        Self { folder: home.root().join("claims") }
    }

    /// All claims, by namespace and name.
    pub fn all(&self) -> Result<Vec<StoredClaim>, HomeError> {
        let mut claims = Vec::new();
        for path in files_below(&self.folder)? {
            claims.extend(home::read_json::<StoredClaim>(&path)?);
        }
        claims.sort_by(|a, b| {
            let key =
                |c: &StoredClaim| (c.claim.spec.owner.namespace.clone(), c.claim.spec.name.clone());
            key(a).cmp(&key(b))
        });
        Ok(claims)
    }

    fn read(&self, namespace: &str, name: &str) -> Result<Option<StoredClaim>, HomeError> {
        home::read_json(&self.path(namespace, name))
    }

    fn make(&self, spec: ClaimSpec) -> Result<Option<StoredClaim>, HomeError> {
        let path = self.path(&spec.owner.namespace, &spec.name);
        let folder = path.parent().unwrap_or(&self.folder).to_owned();
        fs::create_dir_all(&folder).map_err(HomeError::unusable(&folder))?;
        let owner = spec.owner.uid.clone();
        let stored = StoredClaim {
            version: "1".to_owned(),
            deleting: false,
            billed_from: None,
            running_from: None,
            endpoint: None,
            agent_key: None,
            claim: Claim {
                spec,
                uid: uid::random().map_err(HomeError::unusable(Path::new("/dev/urandom")))?,
                phase: Phase::Planned,
                attempt: 1,
                spent: Usd::ZERO,
            },
        };
        let text = serde_json::to_vec_pretty(&stored)
            .map_err(|e| HomeError::Unusable { path: path.clone(), source: e.into() })?;
        if home::create_new(&path, &text)? {
            return Ok(Some(stored));
        }
        let known: Option<StoredClaim> = home::read_json(&path)?;
        Ok(known.filter(|known| known.claim.spec.owner.uid == owner))
    }

    fn swap(&self, read: &StoredClaim, new: StoredClaim) -> Result<Option<StoredClaim>, HomeError> {
        let spec = &read.claim.spec;
        let _lock = self.lock()?;
        match self.read(&spec.owner.namespace, &spec.name)? {
            Some(now) if now.version == read.version && now.claim.uid == read.claim.uid => {}
            _ => return Ok(None),
        }
        let version = read.version.parse::<u64>().map_err(|_| HomeError::Damaged {
            path: self.path(&spec.owner.namespace, &spec.name),
            what: format!("version: expected a number, found {:?}", read.version),
        })?;
        let new = StoredClaim { version: (version + 1).to_string(), ..new };
        home::write_json(&self.path(&spec.owner.namespace, &spec.name), &new)?;
        Ok(Some(new))
    }

    fn remove(&self, read: &StoredClaim) -> Result<(), HomeError> {
        let spec = &read.claim.spec;
        let path = self.path(&spec.owner.namespace, &spec.name);
        let _lock = self.lock()?;
        match self.read(&spec.owner.namespace, &spec.name)? {
            Some(now) if now.claim.uid == read.claim.uid => {
                fs::remove_file(&path).map_err(HomeError::unusable(&path))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, namespace: &str, name: &str) -> PathBuf {
        self.folder.join(namespace).join(format!("{name}.json"))
    }

    fn lock(&self) -> Result<File, HomeError> {
        home::lock(&self.folder.join(".lock"))
    }
}

#[async_trait]
impl Claims for FileClaims {
    async fn create(&self, spec: ClaimSpec) -> Result<Option<StoredClaim>, ClaimsError> {
        self.make(spec).map_err(store("creating"))
    }

    async fn get(&self, namespace: &str, name: &str) -> Result<Option<StoredClaim>, ClaimsError> {
        self.read(namespace, name).map_err(store("reading"))
    }

    async fn list(&self) -> Result<Vec<StoredClaim>, ClaimsError> {
        self.all().map_err(store("listing"))
    }

    async fn replace(
        &self,
        read: &StoredClaim,
        new: StoredClaim,
    ) -> Result<Option<StoredClaim>, ClaimsError> {
        self.swap(read, new).map_err(store("writing"))
    }

    async fn release(&self, read: &StoredClaim) -> Result<(), ClaimsError> {
        self.remove(read).map_err(store("removing"))
    }
}

fn store(what: &str) -> impl FnOnce(HomeError) -> ClaimsError + '_ {
    move |source| ClaimsError::Store { what: what.to_owned(), source: Box::new(source) }
}

/// The JSON files two levels down, drafts left out.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>, HomeError> {
    let mut found = Vec::new();
    for outer in fs::read_dir(folder).map_err(HomeError::unusable(folder))? {
        let outer = outer.map_err(HomeError::unusable(folder))?.path();
        if !outer.is_dir() {
            continue;
        }
        for inner in fs::read_dir(&outer).map_err(HomeError::unusable(&outer))? {
            let inner = inner.map_err(HomeError::unusable(&outer))?.path();
            if inner.extension().is_some_and(|e| e == "json") {
                found.push(inner);
            }
        }
    }
    Ok(found)
}
