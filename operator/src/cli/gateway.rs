//! `petaflop gateway`: what an InferenceService's Service selects. It is told its replicas by the
//! operator, on its second port; it needs no rights in the cluster and no Secret.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::keys::NoisePublic;
use tokio::signal::unix::{SignalKind, signal};

use super::{Code, Failure, Outcome, waiting};
use crate::gateway::{ByAgent, Config, Control, listen, serve_controlled};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Public key of the operator that says where the replicas are (base64)
    #[arg(long, env = "PETAFLOP_OPERATOR_KEY", value_name = "KEY")]
    operator_key: NoisePublic,
    /// Address to listen on
    #[arg(long, env = "PETAFLOP_GATEWAY_ADDRESS", default_value = "0.0.0.0")]
    address: IpAddr,
    /// Port for requests
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Port for health, metrics, and the operator
    #[arg(long, default_value_t = 8081)]
    own_port: u16,
}

pub(crate) fn run(args: &Args) -> Outcome {
    waiting()?.block_on(async {
        let at = |port| {
            let address = SocketAddr::new(args.address, port);
            listen(address)
                .map_err(|error| {
                    Failure::failed(format!(
                        "cannot listen on {address}: {error}; give another --address, --port or --own-port"
                    ))
                })
        };
        let (requests, own) = (at(args.port)?, at(args.own_port)?);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        let config = Config::default();
        let control = Control::new(config, Clock::system(), Arc::new(ByAgent), args.operator_key);
        serve_controlled(control, requests, own, stop).await;
        Ok(Code::Done)
    })
}
