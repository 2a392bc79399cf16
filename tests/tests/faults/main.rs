//! The buying protocol, proven by faults: the operator as a library on a real API server, with the
//! chart's rights and no more, buying in a cloud in a box whose own bill is the judge. Time is moved
//! by hand, so that hours pass in a moment.
//!
//! | module | holds |
//! |---|---|
//! | `calls`, `layers` | every call of an operator in one sequence, and the faults that strike in it |
//! | `rights` | what the chart lets it do |
//! | `world` | one run: cloud, ledger, clock, processes that die and come back |
//! | `scenario` | what a user and the cloud do to a job |
//! | `oracles` | what must be true in the end: O1 to O8, and the ledger |
//! | `sweep` | A: a crash before and after every call |
//! | `mutations`, `mischief` | that the oracles can fail: by the protocol, and by all else |
//! | `b_duplicate_launch`, `c_leaks`, `d_leader_election`, `e_api_server_trouble`, `e_patience`, `e_watches`, `h_scale`, `i_lifecycle`, `j_changes_of_mind`, `j_every_field` | the groups of `docs/faults.md` |

mod b_duplicate_launch;
mod c_leaks;
mod calls;
mod d_leader_election;
mod e_api_server_trouble;
mod e_patience;
mod e_watches;
mod h_scale;
mod i_lifecycle;
mod j_changes_of_mind;
mod j_every_field;
#[path = "../support/kstatus.rs"]
mod kstatus;
mod layers;
mod mischief;
mod mutations;
mod oracles;
mod rights;
mod scenario;
mod sweep;
mod world;

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use petaflop_harness::{ControlPlane, Options, eventually};
use tokio::sync::OnceCell;
use tracing::field::{Field, Visit};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::world::Errors;

/// The servers that the tests share, with our kinds.
pub(crate) async fn plane() -> Result<&'static ControlPlane> {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let plane = ControlPlane::shared().await;
    INSTALLED.get_or_try_init(|| install(plane)).await?;
    Ok(plane)
}

/// Servers of a test's own, for faults that would strike others too; without controllers.
pub(crate) async fn own_plane() -> Result<ControlPlane> {
    let plane = ControlPlane::start(Options::default().only_api()).await?;
    install(&plane).await?;
    Ok(plane)
}

/// Our kinds.
pub(crate) async fn install(plane: &ControlPlane) -> Result<()> {
    let client = plane.client().await?;
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in petaflop_crds::crds::all() {
        api.create(&PostParams::default(), &crd).await?;
    }
    for crd in petaflop_crds::crds::all() {
        let (group, names) = (&crd.spec.group, &crd.spec.names);
        let kind = GroupVersionKind::gvk(group, &crd.spec.versions[0].name, &names.kind);
        let kind = ApiResource::from_gvk_with_plural(&kind, &names.plural);
        let objects: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
        eventually("our kinds are served", Duration::from_secs(60), || async {
            let list = objects.list(&ListParams::default()).await;
            list.map(drop).map_err(|error| error.to_string())
        })
        .await?;
    }
    Ok(())
}

/// Until it is dropped, errors that this thread logs go there. With `PETAFLOP_FAULTS_LOG` set,
/// everything is printed as well.
pub(crate) fn log_to(errors: &Errors) -> tracing::subscriber::DefaultGuard {
    let print = std::env::var_os("PETAFLOP_FAULTS_LOG").map(|_| {
        let filter = tracing_subscriber::EnvFilter::new("petaflop_operator=debug");
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(filter)
    });
    let all = tracing_subscriber::registry().with(Collect(errors.clone())).with(print);
    tracing::subscriber::set_default(all)
}

struct Collect(Errors);

impl<S: tracing::Subscriber> Layer<S> for Collect {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == tracing::Level::ERROR {
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(text.0);
        }
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}
