//! `--provider`: jobs at some providers alone, whatever their manifests say.

use petaflop_crds::{Document, Object};

/// Means: in a sandbox.
const SANDBOX: &str = "sandbox";

#[derive(clap::Args)]
pub(crate) struct OnlyAt {
    /// Train at these providers alone, instead of those of the manifest: host, runpod, …; or
    /// `sandbox`: clouds on this machine, where nothing is paid
    #[arg(
        long = "provider",
        env = "PETAFLOP_PROVIDERS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    names: Vec<String>,
}

impl OnlyAt {
    /// The sandbox is asked for.
    pub(crate) fn is_sandbox(&self) -> bool {
        self.names.iter().any(|name| name == SANDBOX)
    }

    /// Changes what the manifest says. Services stay where they are.
    pub(crate) fn apply(&self, documents: &mut [Document]) {
        if self.names.is_empty() {
            return;
        }
        for document in documents {
            if let Object::TrainingJob(job) = &mut document.object {
                job.spec.placement.providers.clone_from(&self.names);
            }
        }
    }
}
