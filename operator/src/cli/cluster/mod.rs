//! The same commands against a cluster, with the user's kubeconfig.
//!
//! Jobs and services are read and stopped as objects. What only the operator knows (logs, costs,
//! offers, explanations) is asked of it through the API server's proxy of its Service, so that
//! whoever reaches the API server reaches it too. The API server keeps the token that it is shown for
//! itself, so it is sent to the operator in a header of its own.

mod access;
mod objects;

use petaflop_arbiter::decide::Explanation;
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::workload::OwnerKind;
use serde::Deserialize;

use super::{Code, Command, Failure, Outcome, costs, explain, logs, offers, waiting};
use crate::costs::Costs;
use access::Access;

/// Which cluster, and how.
#[derive(clap::Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct Args {
    /// Talk to a cluster instead of this home: ps, logs, stop, costs, offers, explain
    #[arg(long, global = true)]
    cluster: bool,
    /// Context of the kubeconfig; implies --cluster
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig; implies --cluster [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<std::path::PathBuf>,
    /// The operator's Service
    #[arg(
        long,
        global = true,
        env = "PETAFLOP_OPERATOR",
        default_value = "petaflop-system/petaflop",
        value_name = "NAMESPACE/NAME"
    )]
    operator: String,
    /// Ask the operator as this ServiceAccount [default, where the kubeconfig holds no token but a
    /// certificate: the chart's, <operator>-viewer]
    #[arg(long, global = true, value_name = "NAMESPACE/NAME")]
    service_account: Option<String>,
}

impl Args {
    /// Whether a cluster is meant.
    pub(crate) fn is_meant(&self) -> bool {
        self.cluster || self.context.is_some() || self.kubeconfig.is_some()
    }
}

/// Namespaces of a command.
#[derive(clap::Args)]
pub(crate) struct Namespaces {
    /// Only of this namespace [default in a cluster: the context's]
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// In a cluster: of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
}

impl Namespaces {
    /// The one that is meant; `None`: all.
    fn of<'a>(&'a self, access: &'a Access) -> Option<&'a str> {
        let one = self.namespace.as_deref().unwrap_or(&access.namespace);
        (!self.all_namespaces).then_some(one)
    }
}

/// A command against a cluster.
pub(crate) fn dispatch(args: &Args, command: &Command) -> Outcome {
    waiting()?.block_on(async {
        let access = Access::of(args).await?;
        match command {
            Command::Ps(args) => objects::ps(&access, args).await,
            Command::Stop(args) => objects::stop(&access, args).await,
            Command::Logs(args) => logs_of(&access, args).await,
            Command::Costs(args) => costs_of(&access, args).await,
            Command::Offers(args) => offers_of(&access, args).await,
            Command::Explain(args) => explanation_of(&access, args).await,
            _ => Err(Failure::bad_input(
                "in a cluster there are ps, logs, stop, costs, offers and explain; \
                 jobs and services come into it by `kubectl apply -f`",
            )),
        }
    })
}

async fn logs_of(access: &Access, args: &logs::Args) -> Outcome {
    let namespace = args.namespace.as_deref().unwrap_or(&access.namespace);
    let (kind, name) = objects::one(access, namespace, &args.name).await?;
    let path = format!(
        "/api/v1/logs/{}/{}/{}?follow={}",
        quoted(namespace),
        plural(kind),
        quoted(&name),
        args.follow
    );
    access.copy(&path, args.follow).await?;
    Ok(Code::Done)
}

async fn costs_of(access: &Access, args: &costs::Args) -> Outcome {
    let mut path = format!("/api/v1/costs?by={}&rows={}", args.by.as_str(), args.json);
    for (name, value) in [
        ("namespace", args.namespaces.of(access)),
        ("from", args.from.as_deref()),
        ("to", args.to.as_deref()),
    ] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", quoted(value)));
        }
    }
    costs::show_costs(args, &access.json::<Costs>(&path).await?)
}

#[derive(Deserialize)]
struct Offered {
    offers: Vec<Offer>,
}

async fn offers_of(access: &Access, args: &offers::Args) -> Outcome {
    let path = match args.namespaces.of(access) {
        Some(namespace) => format!("/api/v1/offers?namespace={}", quoted(namespace)),
        None => "/api/v1/offers".to_owned(),
    };
    let Offered { offers } = access.json(&path).await?;
    offers::show_offers(args, offers)
}

#[derive(Deserialize)]
struct Explained {
    explanation: Explanation,
}

async fn explanation_of(access: &Access, args: &explain::Args) -> Outcome {
    let Some(name) = &args.name else {
        return Err(Failure::bad_input("name the job or service: `petaflop explain job/name`"));
    };
    let namespace = args.namespace.as_deref().unwrap_or(&access.namespace);
    let (kind, name) = objects::one(access, namespace, name).await?;
    if let Some(picture) = &args.svg {
        let path = format!("/api/v1/costs?by=job&rows=true&namespace={}", quoted(namespace));
        let rows = access.json::<Costs>(&path).await?.rows.unwrap_or_default();
        return explain::write_picture(picture, namespace, &name, rows);
    }
    let path = format!("/api/v1/explain/{}/{}/{}", quoted(namespace), plural(kind), quoted(&name));
    let Explained { explanation } = access.json(&path).await?;
    explain::show_explanation(args, &explanation)
}

const fn plural(kind: OwnerKind) -> &'static str {
    match kind {
        OwnerKind::TrainingJob => "trainingjobs",
        OwnerKind::InferenceService => "inferenceservices",
    }
}

/// A part of a URL.
fn quoted(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let quote = |byte: u8| match plain(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(quote).collect()
}
