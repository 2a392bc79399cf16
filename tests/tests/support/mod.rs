//! What the tests of charts and manifests share.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

/// The repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A chart of ours, with what it depends on in its `charts/` folder, as anybody puts it there.
pub(crate) fn chart(name: &str) -> PathBuf {
    static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let path = root().join("charts").join(name);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.insert(name.to_owned()) {
        helm(["dependency", "build"], |helm| helm.arg(&path)).expect("the chart's dependencies");
    }
    path
}

/// Every document of a YAML text that is not empty.
pub(crate) fn documents(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// What helm prints.
pub(crate) fn helm<const N: usize>(
    arguments: [&str; N],
    with: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<String> {
    let mut command = Command::new(petaflop_harness::tools::helm()?);
    // Nothing of the user's own settings.
    let home = tempfile::tempdir()?;
    command.args(arguments).env_remove("KUBECONFIG").env("HELM_CACHE_HOME", home.path());
    command.env("HELM_CONFIG_HOME", home.path()).env("HELM_DATA_HOME", home.path());
    let output = with(&mut command).output().context("starting helm")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {errors}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// A valid object of a kind, with fields of its spec replaced.
pub(crate) fn with_spec(kind: &str, fields: &Map<String, Value>) -> Value {
    let bases: Map<String, Value> =
        serde_saphyr::from_str(include_str!("../../../crds/tests/bases.yaml")).expect("the bases");
    let mut object = json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": kind, "metadata": { "name": "case" },
        "spec": bases[kind]
    });
    for (field, value) in fields {
        object["spec"][field] = value.clone();
    }
    object
}

/// An object of one of our kinds after it went through our type.
pub(crate) fn typed(kind: &str, object: Value) -> Result<Value> {
    fn through<T: serde::de::DeserializeOwned + serde::Serialize>(object: Value) -> Result<Value> {
        Ok(serde_json::to_value(serde_json::from_value::<T>(object)?)?)
    }
    match kind {
        "TrainingJob" => through::<petaflop_crds::TrainingJob>(object),
        "InferenceService" => through::<petaflop_crds::InferenceService>(object),
        "ComputeClaim" => through::<petaflop_crds::ComputeClaim>(object),
        "ComputeProvider" => through::<petaflop_crds::ComputeProvider>(object),
        "SpendBudget" => through::<petaflop_crds::SpendBudget>(object),
        _ => bail!("no kind is called {kind}"),
    }
}
