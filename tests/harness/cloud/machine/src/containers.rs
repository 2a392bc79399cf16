//! Containers of a machine: real ones, in mount and process namespaces of their own on the machine's
//! network, which end with the machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petaflop_box_machine::{Bind, Image, Inside, PROGRAM, What};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::enter::{self, First, NAMESPACES, first, pid};
use crate::{Result, of};

const FOLDER: &str = "/var/lib/petaflop-box/containers";
/// Megabytes that a container may write.
const DISK: u64 = 4096;

/// What `docker run` was told.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) image: String,
    pub(crate) name: Option<String>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) command: Option<Vec<String>>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) binds: Vec<Bind>,
    /// Forgotten as soon as it ends.
    pub(crate) forgotten: bool,
}

pub(crate) struct Containers {
    images: BTreeMap<String, Image>,
    environment: BTreeMap<String, String>,
    all: Mutex<BTreeMap<String, Container>>,
    changed: Condvar,
}

struct Container {
    /// Its process outside of it.
    shim: Pid,
    ended: Option<i32>,
    forgotten: bool,
}

impl Containers {
    pub(crate) fn new(
        images: BTreeMap<String, Image>,
        environment: BTreeMap<String, String>,
    ) -> Self {
        Self { images, environment, all: Mutex::default(), changed: Condvar::new() }
    }

    pub(crate) fn image(&self, name: &str) -> Result<&Image> {
        self.images.get(name).ok_or_else(|| {
            format!("Error response from daemon: manifest for {name} not found: manifest unknown")
        })
    }

    pub(crate) fn run(&self, run: Run) -> Result<String> {
        let Run { image, name, entrypoint, command, environment, binds, forgotten } = run;
        let image = self.image(&image)?;
        let mut variables = self.environment.clone();
        variables.extend(environment);
        let program = image.program(entrypoint.as_deref(), command.as_deref(), &variables);
        let mut image = image.clone();
        for bind in &binds {
            // As docker does.
            if !bind.from.exists() {
                fs::create_dir_all(&bind.from).map_err(of(bind.from.display()))?;
            }
        }
        image.binds.extend(binds);

        let mut all = self.all();
        let name = name.unwrap_or_else(|| format!("nameless-{}", all.len()));
        if all.contains_key(&name) {
            return Err(format!("Conflict. The container name \"/{name}\" is already in use"));
        }
        let folder = Path::new(FOLDER).join(&name);
        let at = folder.join("root");
        fs::create_dir_all(&at).map_err(of(at.display()))?;
        let log = File::create(log(&name)).map_err(of("log"))?;
        let hostname = fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned();
        let what = What::Container(program);
        let inside = Inside { hostname, address: None, image, disk: DISK, what };
        let spec = folder.join("spec");
        enter::write(&spec, &First { inside, at })?;
        let child = Command::new("unshare")
            .args(NAMESPACES)
            .args(["--", PROGRAM, "shim"])
            .arg(&spec)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(of("log"))?)
            .stderr(log)
            .spawn()
            .map_err(of("unshare"))?;
        let shim = pid(child.id()).ok_or("no process")?;
        all.insert(name.clone(), Container { shim, ended: None, forgotten });
        Ok(name)
    }

    /// A child of process 1 has ended.
    pub(crate) fn reaped(&self, shim: Pid, code: i32) {
        let mut all = self.all();
        for container in all.values_mut().filter(|one| one.shim == shim && one.ended.is_none()) {
            container.ended = Some(code);
        }
        drop(all);
        self.changed.notify_all();
    }

    pub(crate) fn wait(&self, name: &str) -> Result<i32> {
        let mut all = self.all();
        loop {
            if let Some(code) = known(&mut all, name)?.ended {
                if known(&mut all, name)?.forgotten {
                    all.remove(name);
                }
                return Ok(code);
            }
            all = self.changed.wait(all).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn log(&self, name: &str) -> Result<String> {
        known(&mut self.all(), name)?;
        Ok(log(name).display().to_string())
    }

    pub(crate) fn stop(&self, name: &str, grace: Duration) -> Result<()> {
        self.signal(name, Signal::TERM)?;
        let runs = |all: &mut BTreeMap<String, Container>| {
            all.get(name).is_some_and(|one| one.ended.is_none())
        };
        let waited = self.changed.wait_timeout_while(self.all(), grace, runs);
        let (all, over) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(all);
        if over.timed_out() { self.kill(name) } else { Ok(()) }
    }

    pub(crate) fn kill(&self, name: &str) -> Result<()> {
        self.signal(name, Signal::KILL)?;
        self.wait(name).map(drop)
    }

    pub(crate) fn remove(&self, name: &str, force: bool) -> Result<()> {
        let runs = known(&mut self.all(), name)?.ended.is_none();
        if runs && !force {
            return Err(format!("cannot remove container \"/{name}\": container is running"));
        }
        if runs {
            self.kill(name)?;
        }
        self.all().remove(name);
        let _ = fs::remove_dir_all(Path::new(FOLDER).join(name));
        Ok(())
    }

    pub(crate) fn list(&self, all: bool) -> Vec<String> {
        let known = self.all();
        let shown = known.iter().filter(|(_, container)| all || container.ended.is_none());
        shown.map(|(name, _)| name.clone()).collect()
    }

    /// To process 1 of a container that runs.
    fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let mut all = self.all();
        let container = known(&mut all, name)?;
        if container.ended.is_none() {
            let process = first(container.shim).unwrap_or(container.shim);
            let _ = kill_process(process, signal);
        }
        Ok(())
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Container>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn known<'a>(all: &'a mut BTreeMap<String, Container>, name: &str) -> Result<&'a mut Container> {
    all.get_mut(name).ok_or_else(|| format!("Error: No such container: {name}"))
}

fn log(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name).join("log")
}
