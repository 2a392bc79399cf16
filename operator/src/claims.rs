//! Claims in files: `claims/<namespace>/<name>.json`, each changed only by
//! compare-and-swap on its version, as the API server does it. The finalizer is
//! in the create body; a claim is removed only without it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use petaflop_arbiter::claim::{Claim, ClaimSpec, Phase};
use petaflop_arbiter::money::Usd;
use serde::{Deserialize, Serialize};

use crate::home::{self, Home, HomeError};

/// A claim with what its store knows of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoredClaim {
    /// Rises with every change.
    pub version: u64,
    /// When billing began, once that is known.
    pub billed_from: Option<Timestamp>,
    /// The claim.
    pub claim: Claim,
}

/// The claims of one home.
#[derive(Clone, Debug)]
pub struct Claims {
    folder: PathBuf,
}

impl Claims {
    /// Of this home.
    pub fn of(home: &Home) -> Self {
        Self { folder: home.root().join("claims") }
    }

    /// Creates a claim. Where one of that name exists already it is returned if it
    /// is the same owner's, for then it is the same intention; else `None`.
    pub fn create(&self, spec: ClaimSpec) -> Result<Option<StoredClaim>, HomeError> {
        let path = self.path(&spec.owner.namespace, &spec.name);
        let folder = path.parent().unwrap_or(&self.folder).to_owned();
        fs::create_dir_all(&folder).map_err(HomeError::unusable(&folder))?;
        let owner = spec.owner.uid.clone();
        let stored = StoredClaim {
            version: 1,
            billed_from: None,
            claim: Claim {
                spec,
                uid: home::new_uid().map_err(HomeError::unusable(Path::new("/dev/urandom")))?,
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

    /// One claim.
    pub fn get(&self, namespace: &str, name: &str) -> Result<Option<StoredClaim>, HomeError> {
        home::read_json(&self.path(namespace, name))
    }

    /// All claims, by namespace and name.
    pub fn list(&self) -> Result<Vec<StoredClaim>, HomeError> {
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

    /// Writes a claim if nobody else has since it was read. `None`: somebody has.
    pub fn replace(
        &self,
        read: &StoredClaim,
        new: StoredClaim,
    ) -> Result<Option<StoredClaim>, HomeError> {
        let spec = &read.claim.spec;
        let _lock = self.lock()?;
        match self.get(&spec.owner.namespace, &spec.name)? {
            Some(now) if now.version == read.version && now.claim.uid == read.claim.uid => {}
            _ => return Ok(None),
        }
        let new = StoredClaim { version: read.version + 1, ..new };
        home::write_json(&self.path(&spec.owner.namespace, &spec.name), &new)?;
        Ok(Some(new))
    }

    /// Takes the finalizer off: the claim is over and goes.
    pub fn release(&self, read: &StoredClaim) -> Result<(), HomeError> {
        let spec = &read.claim.spec;
        let path = self.path(&spec.owner.namespace, &spec.name);
        let _lock = self.lock()?;
        match self.get(&spec.owner.namespace, &spec.name)? {
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
