//! examples/gitops: the health scripts judge objects of every phase as Helm and Flux do, the values
//! given there are ones that the charts take, and the workloads are ones that the CRDs take.

#[path = "support/kstatus.rs"]
mod kstatus;
mod support;

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, ensure};
use kstatus::kstatus;
use mlua::{Lua, LuaOptions, LuaSerdeExt, StdLib, Table};
use petaflop_arbiter::reason::Reason;
use petaflop_crds::manifest;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use support::{chart, documents, helm, root, typed, with_spec};

/// One object in one phase.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    kind: String,
    name: String,
    #[serde(default)]
    deleting: bool,
    #[serde(default)]
    spec: Map<String, Value>,
    status: Option<Map<String, Value>>,
    /// Type → status, reason, message.
    #[serde(default)]
    conditions: BTreeMap<String, (String, String, String)>,
    kstatus: String,
    health: (String, String),
}

impl Case {
    /// As a server would give it.
    fn object(&self) -> Value {
        let mut object = with_spec(&self.kind, &self.spec);
        object["metadata"]["generation"] = json!(2);
        if self.deleting {
            object["metadata"]["deletionTimestamp"] = json!("2026-11-21T11:00:00Z");
        }
        if let Some(status) = &self.status {
            let conditions = self.conditions.iter().map(|(type_, (status, reason, message))| {
                json!({
                    "type": type_, "status": status, "reason": reason, "message": message,
                    "observedGeneration": 2, "lastTransitionTime": "2026-11-21T10:00:00Z"
                })
            });
            object["status"] = Value::Object(status.clone());
            object["status"]["conditions"] = conditions.collect();
        }
        object
    }
}

fn cases() -> Vec<Case> {
    serde_saphyr::from_str(include_str!("../golden/health.yaml")).expect("the cases can be read")
}

/// The keys of Argo CD's ConfigMap.
fn customizations() -> Result<Map<String, Value>> {
    let file = root().join("examples/gitops/argocd/argocd-cm.yaml");
    let map = documents(&std::fs::read_to_string(file)?)?.remove(0);
    map["data"].as_object().cloned().context("data")
}

/// Runs a script as Argo CD does: Lua 5.1, a few libraries, the object in `obj`.
fn run(script: &str, object: &Value) -> Result<Value> {
    let answer = || -> mlua::Result<Value> {
        let libraries = StdLib::STRING | StdLib::TABLE | StdLib::MATH;
        let lua = Lua::new_with(libraries, LuaOptions::default())?;
        lua.globals().set("obj", lua.to_value(object)?)?;
        let answer: Table = lua.load(script).eval()?;
        lua.from_value(mlua::Value::Table(answer))
    };
    answer().map_err(|error| anyhow!("{error}\n{script}"))
}

#[test]
fn argo_cd_sees_each_phase_as_it_is() -> Result<()> {
    let data = customizations()?;
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for case in cases() {
        let key = format!("resource.customizations.health.petaflop.dev_{}", case.kind);
        let script = data.get(&key).and_then(Value::as_str).context(key.clone())?;
        let found = run(script, &case.object())?;
        let (health, message) = &case.health;
        let expected = json!({ "status": health, "message": message });
        ensure!(found == expected, "{} that {}: {found}", case.kind, case.name);
        seen.entry(case.kind).or_default().push(health.clone());
    }
    for kind in petaflop_crds::crds::KINDS {
        let seen = seen.get(*kind).with_context(|| format!("no object of kind {kind}"))?;
        for health in ["Progressing", "Healthy"] {
            ensure!(seen.iter().any(|found| found == health), "no {kind} is {health}");
        }
    }
    Ok(())
}

#[test]
fn helm_and_flux_see_each_phase_as_it_is() -> Result<()> {
    for case in cases() {
        let found = kstatus(&case.object());
        ensure!(found == case.kstatus, "{} that {}: {found}", case.kind, case.name);
    }
    Ok(())
}

#[test]
fn what_one_tool_calls_ill_no_other_calls_well() -> Result<()> {
    for case in cases() {
        let (health, kstatus) = (case.health.0.as_str(), case.kstatus.as_str());
        let contradiction = matches!(
            (health, kstatus),
            ("Healthy", "Failed" | "InProgress") | ("Degraded", "InProgress")
        );
        ensure!(!contradiction, "{} that {}: {health}, {kstatus}", case.kind, case.name);
    }
    Ok(())
}

#[test]
fn the_objects_are_ones_that_the_operator_can_write() -> Result<()> {
    for case in cases() {
        let object = case.object();
        let through = typed(&case.kind, object.clone())?;
        // Fields that our types do not know would be lost; what they add are defaults.
        let status = object.get("status").and_then(Value::as_object).into_iter().flatten();
        for (field, value) in status {
            ensure!(through["status"][field] == *value, "{} {}: {field}", case.kind, case.name);
        }
        for condition in case.conditions.values() {
            let known = Reason::ALL.iter().any(|reason| reason.as_str() == condition.1);
            ensure!(known, "{} {}: {condition:?}", case.kind, case.name);
        }
    }
    Ok(())
}

#[test]
fn suspend_and_resume_change_nothing_else() -> Result<()> {
    #[derive(Deserialize)]
    struct Actions {
        #[serde(rename = "discovery.lua")]
        discovery: String,
        definitions: Vec<Definition>,
    }
    #[derive(Deserialize)]
    struct Definition {
        name: String,
        #[serde(rename = "action.lua")]
        action: String,
    }
    let data = customizations()?;
    for case in cases() {
        let key = format!("resource.customizations.actions.petaflop.dev_{}", case.kind);
        let Some(actions) = data.get(&key).and_then(Value::as_str) else {
            ensure!(!matches!(case.kind.as_str(), "TrainingJob" | "InferenceService"), "{key}");
            continue;
        };
        let actions: Actions = serde_saphyr::from_str(actions)?;
        let mut object = case.object();
        // An empty list and an empty map are the same to Lua.
        object["status"] = json!({ "conditions": object["status"]["conditions"] });
        if object["status"]["conditions"].is_null() {
            object.as_object_mut().context("an object")?.remove("status");
        }
        let offered = run(&actions.discovery, &object)?;
        let (suspended, finished) = (
            case.spec.get("suspend") == Some(&json!(true)),
            case.conditions.keys().any(|type_| type_ == "Complete" || type_ == "Failed"),
        );
        ensure!(offered["suspend"]["disabled"] == json!(suspended || finished), "{}", case.name);
        ensure!(offered["resume"]["disabled"] == json!(!suspended || finished), "{}", case.name);
        ensure!(actions.definitions.len() == 2, "{key}");
        for definition in &actions.definitions {
            let mut expected = object.clone();
            expected["spec"]["suspend"] = json!(definition.name == "suspend");
            let changed = run(&definition.action, &object)?;
            ensure!(changed == expected, "{} {}: {changed}", case.name, definition.name);
        }
    }
    Ok(())
}

#[test]
fn the_workloads_are_ones_that_the_crds_take() -> Result<()> {
    let file = root().join("examples/gitops/workloads/models.yaml");
    let bytes = std::fs::read(&file)?;
    manifest::judge(&bytes, &file.display().to_string())?;
    ensure!(documents(std::str::from_utf8(&bytes)?)?.len() == 3);
    Ok(())
}

#[test]
fn the_charts_take_the_values_that_the_examples_give() -> Result<()> {
    let gitops = root().join("examples/gitops");
    let mut releases = Vec::new();
    for file in [
        "argocd/applications.yaml",
        "flux/releases/petaflop-crds.yaml",
        "flux/releases/petaflop.yaml",
    ] {
        for object in documents(&std::fs::read_to_string(gitops.join(file))?)? {
            let spec = &object["spec"];
            let (path, values) = match object["kind"].as_str() {
                Some("Application") => {
                    (&spec["source"]["path"], &spec["source"]["helm"]["valuesObject"])
                }
                _ => (&spec["chart"]["spec"]["chart"], &spec["values"]),
            };
            let path = path.as_str().context("a path")?.to_owned();
            ensure!(root().join(&path).is_dir(), "{file}: {path} is not there");
            if path.starts_with("charts/") {
                releases.push((path, values.clone()));
            }
        }
    }
    ensure!(releases.len() == 4, "{releases:?}");
    for (path, values) in releases {
        let file = tempfile::NamedTempFile::new()?;
        let values = if values.is_null() { json!({}) } else { values };
        std::fs::write(file.path(), values.to_string())?;
        let name = path.strip_prefix("charts/").context("a chart of ours")?;
        let rendered =
            helm(["template", "petaflop"], |helm| helm.arg(chart(name)).arg("-f").arg(file.path()))
                .with_context(|| format!("{path} with {values}"))?;
        ensure!(!documents(&rendered)?.is_empty(), "{path}");
    }
    for path in ["examples/gitops/flux/releases", "examples/gitops/workloads"] {
        let list =
            documents(&std::fs::read_to_string(root().join(path).join("kustomization.yaml"))?)?;
        for resource in list[0]["resources"].as_array().context("resources")? {
            let file = root().join(path).join(resource.as_str().context("a name")?);
            ensure!(file.is_file(), "{} is not there", file.display());
        }
    }
    Ok(())
}
