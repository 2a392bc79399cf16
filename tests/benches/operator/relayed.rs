//! The static agent in front of a replica, enrolled as an operator does it: the way that requests take
//! to rented machines.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_agent_api::enrol::{Enrolment, Expected, judge};
use petaflop_agent_api::keys::{NoisePublic, OperatorRoot};
use petaflop_agent_api::lease::Lease;
use petaflop_agent_api::message::{VERSION, Welcome, to_bytes};
use petaflop_agent_api::task::{PROGRESS_FILE, Task};
use petaflop_harness::eventually;
use petaflop_providers::machine::env;
use tokio::process::{Child, Command};

use crate::Args;
use crate::gateway::http;

const IDENTITY: &str = "installation/ns/claim/uid/1";

/// Ends with its process.
pub(crate) struct Agent {
    pub(crate) process: Child,
    pub(crate) at: SocketAddr,
    pub(crate) key: NoisePublic,
}

impl Agent {
    /// One whose task says that it serves where `replica` does.
    pub(crate) async fn start(
        args: &Args,
        root: &OperatorRoot,
        work: &Path,
        at: SocketAddr,
        replica: SocketAddr,
    ) -> Result<Self> {
        let program = args.agent.clone();
        let program =
            program.map_or_else(|| petaflop_tests::static_binary("petaflop-agent"), Ok)?;
        std::fs::create_dir_all(work)?;
        let process = Command::new(program)
            .arg("supervise")
            .env(env::IDENTITY, IDENTITY)
            .env(env::OPERATOR_KEY, root.noise().public().to_string())
            .env(env::TOKEN, root.token("uid", 1).expose().as_str())
            .env(env::PORT, at.port().to_string())
            .env(env::WORK, work)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let hello = eventually("the agent's hello", Duration::from_secs(30), || async {
            http(at, "GET /v1/hello", &[]).await.map_err(|error| error.to_string())
        });
        let hello = hello.await?;
        let expected = Expected {
            identity: IDENTITY,
            claim_uid: "uid",
            attempt: 1,
            enrolment: Enrolment::Open,
        };
        let admitted = judge(root, expected, &hello)?;
        let key = admitted.candidate.agent();
        let lease = Lease {
            claim_uid: "uid".to_owned(),
            agent: key,
            nonce: admitted.hello.lease_nonce,
            sequence: 1,
            duration_seconds: 3600,
        };
        let line = format!(r#"{{"event":"serving","port":{},"model":"m"}}"#, replica.port());
        let welcome = Welcome {
            version: VERSION,
            lease_keys: vec![root.lease().public()],
            lease: lease.sign(&root.lease()),
            task: Some(Task {
                argv: ["/bin/sh", "-c", &format!("echo '{line}' > {PROGRESS_FILE}; sleep 3600")]
                    .map(str::to_owned)
                    .into(),
                env: [].into(),
                secrets: [].into(),
                files: Vec::new(),
                folders: Vec::new(),
                inputs: Vec::new(),
                delivery: None,
                dir: None,
                progress: PROGRESS_FILE.to_owned(),
                log_sink: None,
                grace_seconds: 1,
                server: None,
                relay: Some(root.replica_key("uid")),
                pass: None,
                accelerators: None,
            }),
        };
        let welcome = admitted.candidate.welcome(&to_bytes(&welcome))?;
        let answer = http(at, "POST /v1/hello", &welcome).await.context("the welcome")?;
        ensure!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        // It looks at what its task says once a second.
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(Self { process, at, key })
    }
}
