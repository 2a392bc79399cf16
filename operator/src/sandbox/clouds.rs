//! The providers of a sandbox, and the state folder of a petaflop that rents from them.
//!
//! A machine has this machine's own files, under a layer in memory that is gone with it: there is
//! nothing to pull, and what runs here runs there. One folder is shared, as the bucket.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::routing::get;
use jiff::SignedDuration;
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::engine::machine::Machine;
use petaflop_cloud_box::engine::{Engine, Pace};
use petaflop_cloud_box::machines::{Image, Machines};
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{self, RunPod};
use petaflop_providers::runpod::{AgentDownload, BASE_VARIABLE, KEY_VARIABLE};
use serde_json::json;

#[cfg(feature = "aws")]
use super::amazon;
use super::programs;
use crate::embedded::runtime::{self, RuntimeError};
use crate::uid;

/// Image of our runtime there: this machine's own files.
const IMAGE: &str = "sandbox";

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A program is nowhere.
    #[error(
        "{name} is not beside {beside}; build it (make sandbox does), or set {variable} to its path"
    )]
    Missing {
        /// The program.
        name: &'static str,
        /// Where it was looked for.
        beside: PathBuf,
        /// What else may name it.
        variable: &'static str,
    },
    /// The runtime is nowhere.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Another sandbox uses the folder.
    #[error(
        "{0} is another sandbox's that still runs; wait for it, or name another folder with --home"
    )]
    Taken(PathBuf),
    /// The folder cannot be used.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Machines cannot be made.
    #[error(
        "machines of the sandbox cannot be made here: {0}; it needs Linux, root, and the programs of \
         util-linux and iproute2"
    )]
    Machines(io::Error),
    /// A server cannot listen.
    #[error("a cloud of the sandbox cannot listen: {0}")]
    Listen(io::Error),
}

/// One provider's engine: what it rents, and what it bills.
pub trait Cloud {
    /// As its ComputeProvider is called.
    fn name(&self) -> &'static str;
    /// From its word that a machine will be taken away until it is; `None`: it says nothing.
    fn notice(&self) -> Option<SignedDuration>;
    /// What it took away once it has no more of.
    fn dries_up(&self) {}
    /// Looks at what is rented and billed there, and changes it, as of now.
    fn engine(&self, look: &mut dyn FnMut(&mut Engine));
}

struct OfRunPod(RunPod);

impl Cloud for OfRunPod {
    fn name(&self) -> &'static str {
        "runpod"
    }

    fn notice(&self) -> Option<SignedDuration> {
        None
    }

    fn engine(&self, look: &mut dyn FnMut(&mut Engine)) {
        self.0.engine(|engine| look(engine));
    }
}

/// Clouds that run. With them their machines end.
pub struct Clouds {
    clouds: Vec<Box<dyn Cloud + Send>>,
    machines: Machines,
    folder: PathBuf,
    environment: BTreeMap<String, String>,
    _serving: tokio::task::JoinHandle<()>,
    _taken: fs::File,
}

impl Clouds {
    /// Starts them, with an empty state folder below `folder` that leads to them. Called on a runtime.
    ///
    /// # Errors
    /// What is missing here.
    pub async fn start(folder: &Path) -> Result<Self, SandboxError> {
        let program = programs::find("petaflop-box-machine", "PETAFLOP_BOX_MACHINE")?;
        let agent = programs::find("petaflop-agent", "PETAFLOP_AGENT")?;
        let runtime = runtime::find()?;
        let taken = claim(folder)?;
        let [home, bucket] = ["home", "bucket"].map(|name| folder.join(name));
        for path in [&home, &bucket] {
            fs::create_dir_all(path).map_err(unusable(path))?;
        }
        let runtime = runtime.canonicalize().map_err(unusable(&runtime))?;
        let image = Image::new("/").with(&runtime, &runtime).sharing(&bucket);
        let mut images = BTreeMap::from([(IMAGE.to_owned(), image.clone())]);
        #[cfg(feature = "aws")]
        images.extend(amazon::images(&image));
        let machines = Machines::alike(&program, images).map_err(SandboxError::Machines)?;
        let (url, sha256, serving) = serve(&agent, (machines.operator(), 0).into()).await?;
        let random = Path::new("/dev/urandom");
        let key = uid::random().map_err(unusable(random))?;
        let runpod = RunPod::start(runpod::Setup {
            clock: Clock::system(),
            seed: 1,
            keys: BTreeMap::from([(key.clone(), Scope::All)]),
            pace: Pace {
                provision: Duration::from_secs(1),
                start: Duration::from_secs(4),
                ..runpod::PACE
            },
            deposit: 100_000_000,
            limits: Limits::new(1000, 10_000, 100_000),
            page: None,
            host: Box::new(machines.clone()),
        })
        .map_err(SandboxError::Listen)?;
        let mut config = json!({
            "rented": {
                "store": bucket.display().to_string(),
                "agent": AgentDownload { url, sha256 },
                "runtimeImage": IMAGE,
                "runtime": runtime.display().to_string(),
            },
        });
        let mut environment: BTreeMap<String, String> = [
            ("PETAFLOP_HOME", home.display().to_string()),
            ("PETAFLOP_RUNTIME", runtime.display().to_string()),
            (BASE_VARIABLE, runpod.url()),
            (KEY_VARIABLE, key),
            // Everything is here.
            ("NO_PROXY", "*".to_owned()),
            ("no_proxy", "*".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let mut clouds: Vec<Box<dyn Cloud + Send>> = vec![Box::new(OfRunPod(runpod))];
        #[cfg(feature = "aws")]
        clouds.insert(0, amazon::start(&machines, &mut config, &mut environment)?);
        // JSON is YAML.
        let path = home.join("config.yaml");
        fs::write(&path, config.to_string()).map_err(unusable(&path))?;
        let names: Vec<&str> = clouds.iter().map(|cloud| cloud.name()).collect();
        environment.insert("PETAFLOP_PROVIDERS".to_owned(), names.join(","));
        let folder = folder.to_owned();
        Ok(Self { clouds, machines, folder, environment, _serving: serving, _taken: taken })
    }

    /// What leads a program to them.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// The providers.
    pub fn all(&self) -> impl Iterator<Item = &(dyn Cloud + Send)> {
        self.clouds.iter().map(|cloud| &**cloud)
    }

    /// Every machine that was ever bought, oldest first, and whose it is.
    pub fn rented(&self) -> Vec<(&(dyn Cloud + Send), Machine)> {
        let mut all = Vec::new();
        for cloud in self.all() {
            cloud.engine(&mut |engine| {
                all.extend(engine.machines().iter().map(|machine| (cloud, machine.clone())));
            });
        }
        all.sort_by_key(|(_, machine)| machine.created);
        all
    }

    /// What each machine wrote to its console, in files of its name; where.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn keep_consoles(&self) -> Result<PathBuf, SandboxError> {
        let folder = self.folder.join("consoles");
        fs::create_dir_all(&folder).map_err(unusable(&folder))?;
        for (_, machine) in self.rented() {
            let path = folder.join(format!("{}.log", machine.id));
            fs::write(&path, self.machines.log(&machine.id)).map_err(unusable(&path))?;
        }
        Ok(folder)
    }

    /// A machine's host dies, without a word.
    pub fn kill(&self, machine: &str) {
        self.machines.kill(machine);
    }
}

/// Empties the folder, for one sandbox alone.
fn claim(folder: &Path) -> Result<fs::File, SandboxError> {
    fs::create_dir_all(folder).map_err(unusable(folder))?;
    let path = folder.join("lock");
    let lock = fs::File::create(&path).map_err(unusable(&path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(SandboxError::Taken(folder.to_owned())),
        Err(fs::TryLockError::Error(error)) => return Err(unusable(&path)(error)),
    }
    for name in ["home", "bucket", "consoles"] {
        let path = folder.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(unusable(&path)(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(lock)
}

/// Serves the agent to machines: where, its SHA-256, and who serves.
async fn serve(
    agent: &Path,
    at: SocketAddr,
) -> Result<(String, String, tokio::task::JoinHandle<()>), SandboxError> {
    let bytes = bytes::Bytes::from(fs::read(agent).map_err(unusable(agent))?);
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let listener = tokio::net::TcpListener::bind(at).await.map_err(SandboxError::Listen)?;
    let at = listener.local_addr().map_err(SandboxError::Listen)?;
    let files = axum::Router::new().route("/petaflop-agent", get(async move || bytes));
    let serving = tokio::spawn(async move {
        // It ends with the program.
        let _ = axum::serve(listener, files).await;
    });
    Ok((format!("http://{at}/petaflop-agent"), sha256, serving))
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> SandboxError + '_ {
    move |source| SandboxError::Folder { path: path.to_owned(), source }
}
