//! Machines with the real agent on them, in this process and on the cloud's
//! clock. Its tasks are real processes of this host; they die with their machine.
//! A machine may also be a Pod of which a test plays the kubelet.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use petaflop_agent::config::ENROL_WITHIN;
use petaflop_agent::exit::{self, BAD_BOOTSTRAP, BROKEN};
use petaflop_agent::{Agent, Config};
use petaflop_agent_api::clock::Clock;
use petaflop_providers::host::process;
use petaflop_providers::machine::env;
use rustix::process::Signal;

use crate::agent::{AgentEnd, AgentRunner, Boot};

/// The real agent on each machine, with a folder of its own in this one. When it is asked to end, and
/// when its lease does, it gives its machine back.
pub fn real(folder: &Path) -> AgentRunner {
    let folder = folder.to_owned();
    Arc::new(move |boot| {
        let work = folder.join(&boot.instance);
        Box::pin(run(boot, work))
    })
}

async fn run(boot: Boot, work: PathBuf) -> AgentEnd {
    let Some(config) = config(&boot, work.clone()) else {
        return AgentEnd::Exited { code: BAD_BOOTSTRAP.into() };
    };
    let agent = match Agent::start(config).await {
        Ok(agent) => agent,
        Err(error) => {
            tracing::warn!(%error, ?boot, "the agent does not start");
            return AgentEnd::Exited { code: BROKEN.into() };
        }
    };
    if let Some(address) = agent.address() {
        boot.reachable_at(address);
    }
    let _tasks = Tasks { identity: boot.identity.clone(), work };
    let stopper = agent.stopper();
    let mut notices = boot.notice.clone();
    let hear = async {
        if let Ok(told) = notices.wait_for(Option::is_some).await.map(|left| *left) {
            stopper.notice(told.unwrap_or_default());
        }
        std::future::pending::<Infallible>().await
    };
    let ended = tokio::select! {
        ended = agent.run() => ended,
        never = hear => match never {},
    };
    AgentEnd::MachineEnded { code: exit::code(&ended).into() }
}

/// What a Pod's container with this environment does, at this address of its own: the real agent,
/// on the machine's own clock. Gives its exit status. Whoever drops it kills the Pod.
pub async fn pod(environment: &BTreeMap<String, String>, at: SocketAddr, work: PathBuf) -> u8 {
    let identity = environment.get(env::IDENTITY).cloned().unwrap_or_default();
    let Some(bare) = bare(environment, &identity, Clock::system(), work.clone()) else {
        return BAD_BOOTSTRAP;
    };
    let config = Config { listen: Some(at), ..bare };
    match Agent::start(config).await {
        Ok(agent) => {
            let _tasks = Tasks { identity, work };
            exit::code(&agent.run().await)
        }
        Err(error) => {
            tracing::warn!(%error, %at, "the agent does not start");
            BROKEN
        }
    }
}

/// As the real agent reads its environment; `None` where that is not enough.
fn config(boot: &Boot, work: PathBuf) -> Option<Config> {
    let bare = bare(&boot.env, &boot.identity, boot.clock.clone(), work)?;
    // All machines are on this host: each takes a port of its own, and says which.
    let listen = bare.endpoint.is_none().then_some(([127, 0, 0, 1], 0).into());
    Some(Config { listen, ..bare })
}

fn bare(
    environment: &BTreeMap<String, String>,
    identity: &str,
    clock: Clock,
    work: PathBuf,
) -> Option<Config> {
    let text = |name: &str| environment.get(name).map(String::as_str);
    Some(Config {
        identity: identity.to_owned(),
        operator: text(env::OPERATOR_KEY)?.parse().ok()?,
        token: text(env::TOKEN)?.parse().ok()?,
        listen: None,
        endpoint: text(env::ENDPOINT).map(str::to_owned),
        inputs: work.join("inputs"),
        work,
        notice: None,
        metadata: None,
        lease: None,
        facts: serde_json::Value::Null,
        root: PathBuf::from("/"),
        clock,
        enrol_within: ENROL_WITHIN,
        program: None,
        alone: false,
    })
}

/// The processes of one machine's task. Dropped with the machine, whatever became of the agent.
struct Tasks {
    identity: String,
    work: PathBuf,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        // Two machines may carry one identity; their folders differ.
        let own = format!("{}={}", env::WORK, self.work.display());
        let Ok(members) = process::members() else { return };
        for member in members.iter().filter(|member| member.identity == self.identity) {
            let environment = fs::read(format!("/proc/{}/environ", member.pid)).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|one| one == own.as_bytes())
                && let Err(error) = process::signal(member, Signal::KILL)
            {
                tracing::warn!(%error, pid = member.pid, "a task outlives its machine");
            }
        }
    }
}
