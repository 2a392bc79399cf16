//! This host as a provider: an owned machine that costs electricity and margin,
//! on which an instance is a supervised process group that outlives the terminal
//! and the operator.
//!
//! | module | holds |
//! |---|---|
//! | [`process`] | processes by the identity they carry |
//! | `detect` | what the machine is, from the runtime |
//! | `record` | what is remembered of an instance after its processes are gone |

mod detect;
pub mod process;
mod record;

pub use crate::price;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use petaflop_arbiter::bill::Billing;
use petaflop_arbiter::claim::{FrozenRequest, Identity, LaunchSafety, Refusal};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::{
    Accelerators, Arch, Capacity, HostOwner, MeasuredRates, Offer, Sale,
};
use petaflop_plan::machine::Machine;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::error::{LaunchError, ProviderError};
use crate::machine::EnrolmentToken;
use crate::price::PowerPrice;
use crate::provider::{
    Capabilities, Command, Instance, InstanceId, InstanceState, Listing, Order, Provider, Used,
    Work, identity_text, parse_identity,
};
use process::{IDENTITY_VARIABLE, Member};
use record::Record;

/// The provider's name in offers and claims.
pub const NAME: &str = "host";

/// Seconds for which a look at this machine is good to take from.
const QUOTE_SECONDS: u32 = 60;

/// Of the caller's environment, what a child may see. Everything else, above all
/// credentials, reaches a job only by name.
const PASSED_ON: [&str; 8] = [
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "RUST_LOG",
    "RUST_BACKTRACE",
];

/// How this host is offered.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The `petaflop-runtime` binary.
    pub runtime: PathBuf,
    /// Folder for this provider's records.
    pub folder: PathBuf,
    /// What the owner says about electricity.
    pub power: PowerPrice,
}

/// This host.
#[derive(Clone, Debug)]
pub struct Host {
    config: HostConfig,
}

/// The launch request in this provider's form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    identity: Identity,
    command: Command,
    env: BTreeMap<String, String>,
    offer: Offer,
}

impl Host {
    /// Makes the folder for records.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(config: HostConfig) -> std::io::Result<Self> {
        fs::create_dir_all(config.folder.join("instances"))?;
        Ok(Self { config })
    }

    /// What this machine is, with measured rates where they could be had.
    ///
    /// # Errors
    /// When the runtime cannot be asked.
    pub async fn machine(&self) -> Result<Machine, ProviderError> {
        detect::machine(&self.config.runtime, &self.config.folder.join("measured.json")).await
    }

    fn records(&self) -> PathBuf {
        self.config.folder.join("instances")
    }

    /// Everything that lives or is remembered, as instances.
    fn look(&self) -> Result<Vec<Instance>, ProviderError> {
        let unreadable = |error: std::io::Error| ProviderError::Unreachable {
            provider: NAME.into(),
            detail: error.to_string(),
        };
        // Processes first: one that ends between the two looks is then still in a record.
        let mut living: BTreeMap<InstanceId, Vec<Member>> = BTreeMap::new();
        for member in process::members().map_err(unreadable)? {
            if let Some(identity) = parse_identity(&member.identity) {
                living.entry(id_of(&identity)).or_default().push(member);
            }
        }
        let records = record::all(&self.records()).map_err(unreadable)?;
        let mut instances = Vec::new();
        for record in records {
            let members = living.remove(&record.id).unwrap_or_default();
            instances.push(self.instance(record, &members));
        }
        // Alive without a record: somebody died between starting it and writing the record.
        for (id, members) in living {
            let identity = members.iter().find_map(|m| parse_identity(&m.identity));
            instances.push(Instance {
                id,
                identity,
                state: InstanceState::Running,
                started: started(&members),
                ended: None,
                offer: None,
                hourly: None,
                running: None,
                endpoint: None,
                exit: None,
                trouble: None,
            });
        }
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(instances)
    }

    fn instance(&self, mut record: Record, members: &[Member]) -> Instance {
        let state = match (members.is_empty(), record.stop_requested) {
            (true, _) => InstanceState::Terminated,
            (false, Some(_)) => InstanceState::Terminating,
            (false, None) => InstanceState::Running,
        };
        if state == InstanceState::Terminated && record.ended.is_none() {
            // Nobody watched its end: the last sign of life stands for it.
            record.ended = Some(record.last_sign_of_life());
            if let Err(error) = record.write(&self.records()) {
                tracing::warn!(%error, id = %record.id, "the end of an instance could not be noted");
            }
        }
        Instance {
            id: record.id,
            identity: Some(record.identity),
            state,
            started: Some(record.started),
            ended: record.ended,
            offer: record.offer,
            hourly: None,
            running: None,
            endpoint: None,
            exit: None,
            trouble: None,
        }
    }

    /// Memory promised to living instances that they do not use yet.
    fn promised(&self) -> u64 {
        let Ok(members) = process::members() else {
            return 0;
        };
        let Ok(records) = record::all(&self.records()) else {
            return 0;
        };
        records
            .iter()
            .map(|record| {
                let identity = identity_text(&record.identity);
                let mine = members.iter().filter(|m| m.identity == identity);
                let (mut alive, mut resident) = (false, 0);
                for member in mine {
                    alive = true;
                    resident += process::resident_bytes(member.pid);
                }
                if alive { record.memory.saturating_sub(resident) } else { 0 }
            })
            .sum()
    }

    fn offers(&self, machine: &Machine, now: Timestamp) -> Result<Vec<Offer>, ProviderError> {
        let misconfigured =
            |detail: String| ProviderError::Misconfigured { provider: NAME.into(), detail };
        let arch = Arch::from_name(&machine.arch).ok_or_else(|| {
            misconfigured(format!("processor architecture {:?} is not supported", machine.arch))
        })?;
        let measured = machine.cpu.measured.as_ref().map(|rates| MeasuredRates {
            gemm_gflops: rates.gemm_gflops,
            read_gb_s: rates.read_gb_s,
        });
        let logical_milli = u64::from(machine.cpu.logical.max(1)) * 1000;
        let share_milli = (u64::from(machine.cpu.allowed_milli) * 1000 / logical_milli).min(1000);
        let offer =
            |instance_type: String, accelerators, watts: u64| -> Result<Offer, ProviderError> {
                Ok(Offer {
                    id: Offer::id_of(NAME, "", "", &instance_type, Capacity::Owned),
                    provider: NAME.to_owned(),
                    region: String::new(),
                    zone: String::new(),
                    instance_type,
                    accelerators,
                    arch,
                    vcpu_milli: Some(machine.cpu.allowed_milli),
                    memory: Some(machine.memory.available.saturating_sub(self.promised())),
                    capacity: Capacity::Owned,
                    price: self.config.power.hourly(share_milli, watts).map_err(misconfigured)?,
                    quoted_at: now,
                    ttl_seconds: QUOTE_SECONDS,
                    owner: HostOwner::Known,
                    sale: Sale::Buyable,
                    measured,
                    // Processors are shared by the system's scheduler; memory is what runs out.
                    slots: None,
                    shares: Vec::new(),
                    interruptions_per_hour: Some(0.0),
                })
            };
        let mut offers = vec![offer("cpu".to_owned(), None, 0)?];
        // Equal devices are one offer.
        let mut groups: BTreeMap<(String, u64), (u32, f64)> = BTreeMap::new();
        for seen in &machine.accelerators {
            let model = seen.catalogue.clone().unwrap_or_else(|| seen.name.clone());
            let group = groups.entry((model, seen.memory)).or_default();
            group.0 += 1;
            group.1 += seen.power_watts.unwrap_or(0.0).max(0.0);
        }
        for ((model, memory), (count, watts)) in groups {
            let name = format!("{count}x_{model}");
            let accelerators =
                Accelerators { model, count, memory: Some(memory).filter(|m| *m > 0) };
            // Float to integer saturates, so an absurd power reading cannot panic.
            offers.push(offer(name, Some(accelerators), watts.ceil() as u64)?);
        }
        Ok(offers)
    }
}

/// The name of the instance that carries this identity.
fn id_of(identity: &Identity) -> InstanceId {
    InstanceId(identity.unique_name())
}

fn started(members: &[Member]) -> Option<Timestamp> {
    let first = members.iter().map(|m| m.start_ticks).min()?;
    Timestamp::from_second(process::started_at(first)?).ok()
}

#[async_trait]
impl Provider for Host {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            launch_safety: LaunchSafety { idempotent: true, settle_seconds: 1 },
            launch_timeout: Duration::from_secs(60),
            termination_timeout: Duration::from_secs(120),
            billing: Billing::new(Duration::from_millis(1), Duration::ZERO),
            sells: true,
            own_address: false,
            rented: false,
        }
    }

    async fn quote(&self) -> Result<Vec<Offer>, ProviderError> {
        let machine = self.machine().await?;
        self.offers(&machine, Timestamp::now())
    }

    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError> {
        let Order { identity, offer, work } = order;
        let invalid = |detail: String| LaunchError::Refused { kind: Refusal::Invalid, detail };
        let Work::Process(command) = work else {
            return Err(invalid(
                "this host runs commands, not images; take another provider for an image"
                    .to_owned(),
            ));
        };
        if offer.provider != NAME {
            return Err(invalid(format!("offer {} is not of this host", offer.id)));
        }
        if command.argv.is_empty() {
            return Err(invalid("there is no command to run".to_owned()));
        }
        let mut env: BTreeMap<String, String> = PASSED_ON
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
            .collect();
        env.extend(command.env.clone());
        env.insert(IDENTITY_VARIABLE.to_owned(), identity_text(identity));
        let body = Body {
            identity: identity.clone(),
            command: command.clone(),
            env,
            offer: offer.clone(),
        };
        let body = serde_json::to_string(&body).map_err(|error| invalid(error.to_string()))?;
        Ok(FrozenRequest { body })
    }

    async fn launch(
        &self,
        request: &FrozenRequest,
        _: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError> {
        let body: Body = serde_json::from_str(&request.body).map_err(|error| {
            LaunchError::Refused { kind: Refusal::Invalid, detail: error.to_string() }
        })?;
        let refused = |what: &str, path: &Path, error: std::io::Error| LaunchError::Refused {
            kind: Refusal::Transient,
            detail: format!("{what} {}: {error}", path.display()),
        };
        // One launch at a time, and never a second one of the same identity.
        let lock_path = self.config.folder.join("lock");
        let lock = File::create(&lock_path).map_err(|e| refused("cannot open", &lock_path, e))?;
        lock.lock().map_err(|e| refused("cannot lock", &lock_path, e))?;
        let id = id_of(&body.identity);
        let known = self.look().map_err(|error| LaunchError::Refused {
            kind: Refusal::Transient,
            detail: error.to_string(),
        })?;
        if known.iter().any(|instance| instance.id == id) {
            return Ok(id);
        }

        let Body { identity, command, env, offer } = body;
        let Some((program, arguments)) = command.argv.split_first() else {
            return Err(LaunchError::Refused {
                kind: Refusal::Invalid,
                detail: "there is no command to run".to_owned(),
            });
        };
        let log_path = Path::new(&command.log);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log_path)
            .map_err(|e| refused("cannot open the log", log_path, e))?;
        let errors = log.try_clone().map_err(|e| refused("cannot open the log", log_path, e))?;
        let mut child = std::process::Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(&env)
            .current_dir(&command.dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Out of the terminal's reach: Ctrl-C and hang-up go to other groups.
            .process_group(0)
            .spawn()
            .map_err(|e| refused("cannot start", Path::new(program), e))?;

        let record = Record {
            id: id.clone(),
            identity,
            dir: PathBuf::from(&command.dir),
            memory: command.memory,
            grace_seconds: command.grace_seconds,
            started: Timestamp::now(),
            stop_requested: None,
            ended: None,
            offer: Some(offer),
        };
        // The process carries its identity and is found without the record too.
        if let Err(error) = record.write(&self.records()) {
            tracing::warn!(%error, %id, "the record of an instance could not be written");
        }
        let records = self.records();
        let watched = id.clone();
        std::thread::spawn(move || {
            let status = child.wait();
            tracing::debug!(id = %watched, ?status, "the instance's first process ended");
            if let Err(error) = record::note_end(&records, &watched, Timestamp::now()) {
                tracing::warn!(%error, id = %watched, "the end of an instance could not be noted");
            }
        });
        Ok(id)
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        let mut instances = self.look()?;
        instances.retain(|instance| {
            instance.identity.as_ref().is_some_and(|known| {
                known.installation == identity.installation && known.claim_uid == identity.claim_uid
            })
        });
        Ok(Listing { instances, complete: true })
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        let mut instances = self.look()?;
        instances.retain(|instance| {
            instance.identity.as_ref().is_some_and(|identity| identity.installation == installation)
        });
        Ok(Listing { instances, complete: true })
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        Ok(self.look()?.into_iter().find(|instance| instance.id == *id))
    }

    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        let failed = |error: std::io::Error| ProviderError::Unreachable {
            provider: NAME.into(),
            detail: format!("cannot end {id}: {error}"),
        };
        let members: Vec<Member> = process::members()
            .map_err(failed)?
            .into_iter()
            .filter(|m| parse_identity(&m.identity).is_some_and(|identity| id_of(&identity) == *id))
            .collect();
        let Some(first) = members.first() else {
            return Ok(());
        };
        let now = Timestamp::now();
        let mut record = match record::read(&self.records(), id).map_err(failed)? {
            Some(record) => record,
            None => {
                let identity = parse_identity(&first.identity)
                    .ok_or_else(|| failed(std::io::Error::other("its identity cannot be read")))?;
                Record::found(id.clone(), identity, started(&members).unwrap_or(now))
            }
        };
        let asked = record.stop_requested;
        let overdue = asked.is_some_and(|at| {
            now.as_second().saturating_sub(at.as_second())
                >= i64::try_from(record.grace_seconds).unwrap_or(i64::MAX)
        });
        let kind = match (asked, overdue) {
            (_, true) => Signal::KILL,
            (None, false) => Signal::TERM,
            // Asked before, still within its grace.
            (Some(_), false) => return Ok(()),
        };
        for member in &members {
            process::signal(member, kind).map_err(failed)?;
        }
        record.stop_requested = Some(asked.unwrap_or(now));
        record.write(&self.records()).map_err(failed)
    }

    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        Ok(used.at_its_price(self.capabilities().billing))
    }
}
