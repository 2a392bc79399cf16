//! The files of one job or service.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use petaflop_arbiter::decision::Decision;
use petaflop_arbiter::watch::Watch;
use petaflop_arbiter::workload::OwnerKind;
use petaflop_arbiter::world::Recorded;

use super::{Admission, Intent, Status};
use crate::embedded::home::{self, Home, HomeError};

/// The files of one job or service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Its kind.
    pub kind: OwnerKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    root: PathBuf,
}

impl Folder {
    /// Of this object; it need not exist.
    pub fn of(home: &Home, kind: OwnerKind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            root: home.root().join(top(kind)).join(namespace).join(name),
        }
    }

    /// Every job and service of a home, by namespace and name, jobs first.
    pub fn all(home: &Home) -> Result<Vec<Self>, HomeError> {
        let mut found = Vec::new();
        for kind in [OwnerKind::TrainingJob, OwnerKind::InferenceService] {
            let top = home.root().join(top(kind));
            for namespace in names_in(&top)? {
                for name in names_in(&top.join(&namespace))? {
                    let folder = Self::of(home, kind, &namespace, &name);
                    if folder.root.join("admission.json").exists() {
                        found.push(folder);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `trainingjob/name`, as commands take it.
    pub fn reference(&self) -> String {
        let kind = match self.kind {
            OwnerKind::TrainingJob => "trainingjob",
            OwnerKind::InferenceService => "inferenceservice",
        };
        format!("{kind}/{}", self.name)
    }

    /// What was admitted; `None` when it does not exist.
    pub fn admission(&self) -> Result<Option<Admission>, HomeError> {
        home::read_json(&self.root.join("admission.json"))
    }

    /// Admits it.
    pub fn admit(&self, admission: &Admission) -> Result<(), HomeError> {
        fs::create_dir_all(&self.root).map_err(HomeError::unusable(&self.root))?;
        home::write_json(&self.root.join("admission.json"), admission)
    }

    /// How far it is.
    pub fn status(&self) -> Result<Status, HomeError> {
        Ok(home::read_json(&self.root.join("status.json"))?.unwrap_or_default())
    }

    /// Writes how far it is.
    pub fn write_status(&self, status: &Status) -> Result<(), HomeError> {
        home::write_json(&self.root.join("status.json"), status)
    }

    /// What the user wants of it now.
    pub fn intent(&self) -> Result<Intent, HomeError> {
        Ok(home::read_json(&self.root.join("intent.json"))?.unwrap_or_default())
    }

    /// Writes what the user wants of it now.
    pub fn write_intent(&self, intent: Intent) -> Result<(), HomeError> {
        home::write_json(&self.root.join("intent.json"), &intent)
    }

    /// Becomes its operator, if nobody is.
    pub fn try_operate(&self) -> Result<Option<File>, HomeError> {
        home::try_lock(&self.root.join("operator.lock"))
    }

    /// Whether some process works for it now.
    pub fn is_operated(&self) -> bool {
        // Not created here: asking must not leave files in a home that is only looked at.
        let Ok(file) = File::open(self.root.join("operator.lock")) else {
            return false;
        };
        matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
    }

    /// The last decision and the world it was made in.
    pub fn write_decision(&self, seen: &Recorded, decision: &Decision) -> Result<(), HomeError> {
        home::write_json(&self.root.join("world.json"), seen)?;
        home::write_json(&self.root.join("decision.json"), decision)
    }

    /// What the job, which has a deadline, saw of places where it could be on spot.
    pub fn watched(&self) -> Result<Option<Watch>, HomeError> {
        home::read_json(&self.root.join("watched.json"))
    }

    /// Keeps what a decision saw, of this job.
    pub fn write_watched(&self, uid: &str, watched: &[Watch]) -> Result<(), HomeError> {
        match watched.iter().find(|watch| watch.workload == uid) {
            Some(watch) => home::write_json(&self.root.join("watched.json"), watch),
            None => Ok(()),
        }
    }

    /// The last decision.
    pub fn decision(&self) -> Result<Option<Decision>, HomeError> {
        home::read_json(&self.root.join("decision.json"))
    }

    /// The working folder of one instance.
    pub fn run(&self, claim: &str) -> PathBuf {
        self.root.join("runs").join(claim)
    }

    /// Checkpoints of a key.
    pub fn checkpoints(&self, key: &str) -> PathBuf {
        self.root.join("checkpoints").join(&key[..key.len().min(16)])
    }

    /// Forgets the checkpoints of a key.
    pub fn forget_progress(&self, key: &str) -> Result<(), HomeError> {
        let folder = self.checkpoints(key);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(HomeError::unusable(&folder)(error))
            }
            _ => Ok(()),
        }
    }

    /// Forgets everything about it but its costs, which are in the ledger.
    pub fn remove(&self) -> Result<(), HomeError> {
        fs::remove_dir_all(&self.root).map_err(HomeError::unusable(&self.root))
    }
}

fn top(kind: OwnerKind) -> &'static str {
    match kind {
        OwnerKind::TrainingJob => "jobs",
        OwnerKind::InferenceService => "services",
    }
}

fn names_in(folder: &Path) -> Result<Vec<String>, HomeError> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(HomeError::unusable(folder))?;
        if entry.path().is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
