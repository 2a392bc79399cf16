//! `petaflop-harness up`: a real Kubernetes control plane for a person to try
//! things on. It is gone with this process.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use petaflop_harness::kwok::{FakeNode, Kwok};
use petaflop_harness::{ControlPlane, Options, node, tools};

#[derive(Parser)]
#[command(about = "A real Kubernetes for tests, by hand")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a control plane, print how to reach it, and keep it until Ctrl-C
    Up {
        /// Also this many pretended nodes with eight H100 each
        #[arg(long, default_value_t = 0)]
        gpu_nodes: u32,
        /// Also a node that runs containers (root only)
        #[arg(long)]
        node: bool,
    },
    /// Build, fetch or install everything that takes that once, and say where it is
    Prepare,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Up { gpu_nodes, node } => up(gpu_nodes, node).await,
        Command::Prepare => prepare().await,
    }
}

async fn up(gpu_nodes: u32, node: bool) -> anyhow::Result<()> {
    let options = if node { Options::default().with_node() } else { Options::default() };
    let plane = ControlPlane::start(options).await?;
    let kwok = if gpu_nodes > 0 { Some(Kwok::start(&plane).await?) } else { None };
    if let Some(kwok) = &kwok {
        for index in 0..gpu_nodes {
            kwok.node(&FakeNode::with_8_h100(&format!("h100-{index}"))).await?;
        }
    }
    say(&format!("export KUBECONFIG={}", plane.admin().kubeconfig().display()));
    eprintln!("kubectl: {}", tools::kubectl()?.display());
    eprintln!("Ctrl-C ends it.");
    tokio::signal::ctrl_c().await.context("waiting for Ctrl-C")?;
    Ok(())
}

async fn prepare() -> anyhow::Result<()> {
    drop(ControlPlane::start(Options::default()).await?);
    for path in [tools::kubectl()?, tools::helm()?, tools::kwok()?, tools::versitygw()?] {
        say(&path.display().to_string());
    }
    if tools::is_root() {
        node::install()?;
        say(&tools::prometheus()?.display().to_string());
        say(&node::debian_base()?.display().to_string());
    }
    Ok(())
}

/// Output is what this program is for.
#[allow(clippy::print_stdout)]
fn say(line: &str) {
    println!("{line}");
}
