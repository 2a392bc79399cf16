//! What is seen and done by objects alone: `ps` and `stop`.

use jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use petaflop_arbiter::workload::OwnerKind;
use petaflop_crds::shared::{CostStatus, PlacementStatus};
use petaflop_crds::{InferenceService, TrainingJob};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::access::Access;
use crate::cli::{Code, Failure, Outcome, ps, show, stop, target};
use crate::cli::{print, print_json, say};

/// One line of `ps`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    kind: &'static str,
    namespace: String,
    name: String,
    phase: String,
    over: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hourly_price: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<Timestamp>,
    says: String,
}

impl Row {
    fn new(kind: &'static str, object: &impl ResourceExt) -> Self {
        Self {
            kind,
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            phase: "Pending".to_owned(),
            over: false,
            place: None,
            hourly_price: None,
            cost: None,
            created_at: object.creation_timestamp().map(|at| at.0),
            says: String::new(),
        }
    }

    fn at(mut self, placement: Option<PlacementStatus>, cost: Option<CostStatus>) -> Self {
        self.cost = cost.and_then(|cost| cost.total).map(|total| total.0);
        if let Some(at) = placement.filter(|_| !self.over) {
            self.hourly_price = at.hourly_price.map(|price| price.0);
            self.place = match (at.provider, at.instance_type) {
                (Some(provider), Some(kind)) => Some(format!("{provider}/{kind}")),
                (one, other) => one.or(other),
            };
        }
        self
    }

    fn of_job(job: TrainingJob) -> Self {
        let mut row = Self::new("TrainingJob", &job);
        let Some(status) = job.status else { return row };
        row.over = crate::cluster::training_job::is_over(&status);
        row.phase = status.phase.map_or(row.phase, |phase| format!("{phase:?}"));
        row.says = match (&status.artifact, row.over) {
            (Some(hash), true) => hash[..hash.len().min(16)].to_owned(),
            _ => ready_says(&status.conditions),
        };
        row.at(status.placement, status.cost)
    }

    fn of_service(service: InferenceService) -> Self {
        let mut row = Self::new("InferenceService", &service);
        let Some(status) = service.status else { return row };
        row.phase = status.phase.map_or(row.phase, |phase| format!("{phase:?}"));
        row.says = status.url.unwrap_or_else(|| ready_says(&status.conditions));
        row.at(status.placement, status.cost)
    }
}

fn ready_says(conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]) -> String {
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    let not = ready.filter(|condition| condition.status != "True");
    not.map_or_else(String::new, |condition| match condition.message.as_str() {
        "" => condition.reason.clone(),
        message => message.to_owned(),
    })
}

pub(super) async fn ps(access: &Access, args: &ps::Args) -> Outcome {
    let namespace = args.namespaces.of(access);
    let jobs: Vec<TrainingJob> = list(access, namespace).await?;
    let services: Vec<InferenceService> = list(access, namespace).await?;
    let mut rows: Vec<Row> = jobs.into_iter().map(Row::of_job).collect();
    rows.extend(services.into_iter().map(Row::of_service));
    rows.retain(|row| args.all || !row.over);
    rows.sort_by(|a, b| (a.created_at, &a.name).cmp(&(b.created_at, &b.name)));
    if args.json {
        print_json(&serde_json::json!({ "items": rows }))?;
        return Ok(Code::Done);
    }
    if rows.is_empty() {
        say(if args.all { "nothing yet" } else { "nothing runs; --all shows what is over" });
        return Ok(Code::Done);
    }
    let now = Timestamp::now();
    let mut table = show::table(
        &["KIND", "NAMESPACE", "NAME", "PHASE", "WHERE", "$/H", "COST $", "AGE", "SAYS"],
        &[5, 6, 7],
    );
    for row in rows {
        table.add_row([
            row.kind.to_owned(),
            row.namespace,
            row.name,
            row.phase,
            row.place.unwrap_or_default(),
            row.hourly_price.unwrap_or_default(),
            row.cost.unwrap_or_else(|| "0".to_owned()),
            row.created_at.map_or_else(String::new, |at| show::age(at, now)),
            row.says,
        ]);
    }
    print(show::lines(&table))?;
    Ok(Code::Done)
}

pub(super) async fn stop(access: &Access, args: &stop::Args) -> Outcome {
    if args.unclaimed {
        return Err(Failure::bad_input(
            "--unclaimed is for this home; in a cluster the operator ends what no claim wants",
        ));
    }
    let namespace = args.namespace.as_deref().unwrap_or(&access.namespace);
    let suspend = Patch::Merge(serde_json::json!({ "spec": { "suspend": true } }));
    let params = PatchParams::default();
    let mut stopped = Vec::new();
    for text in &args.names {
        for (kind, name) in found(access, namespace, text).await? {
            match kind {
                OwnerKind::TrainingJob => {
                    api::<TrainingJob>(access, namespace).patch(&name, &params, &suspend).await?;
                }
                OwnerKind::InferenceService => {
                    let api = api::<InferenceService>(access, namespace);
                    api.patch(&name, &params, &suspend).await?;
                }
            }
            say(format_args!(
                "{}/{name}: asked to stop; set spec.suspend to false to go on",
                kind.short()
            ));
            stopped.push(serde_json::json!({ "kind": kind, "namespace": namespace, "name": name }));
        }
    }
    if args.json {
        print_json(&serde_json::json!({ "stopped": stopped, "ended": [] }))?;
    }
    Ok(Code::Done)
}

/// The one object that a name stands for.
pub(super) async fn one(
    access: &Access,
    namespace: &str,
    text: &str,
) -> Result<(OwnerKind, String), Failure> {
    let (kinds, name) = target::parse(text)?;
    match kinds {
        // It may be gone already, and its log still there.
        [kind] => Ok((*kind, name.to_owned())),
        _ => {
            let mut found = found(access, namespace, text).await?;
            match found.len() {
                1 => Ok(found.remove(0)),
                _ => Err(Failure::bad_input(format!(
                    "{text} is a job and a service: give trainingjob/{text} or inferenceservice/{text}"
                ))),
            }
        }
    }
}

/// The objects that a name stands for; a bare name stands for both kinds.
async fn found(
    access: &Access,
    namespace: &str,
    text: &str,
) -> Result<Vec<(OwnerKind, String)>, Failure> {
    let (kinds, name) = target::parse(text)?;
    let mut found = Vec::new();
    for kind in kinds {
        let there = match kind {
            OwnerKind::TrainingJob => {
                api::<TrainingJob>(access, namespace).get_opt(name).await?.is_some()
            }
            OwnerKind::InferenceService => {
                api::<InferenceService>(access, namespace).get_opt(name).await?.is_some()
            }
        };
        if there {
            found.push((*kind, name.to_owned()));
        }
    }
    match found.is_empty() {
        false => Ok(found),
        true => Err(Failure::bad_input(format!(
            "there is no {text} in namespace {namespace}; `petaflop ps --cluster --all` lists what there is"
        ))),
    }
}

fn api<K>(access: &Access, namespace: &str) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(access.client.clone(), namespace)
}

async fn list<K>(access: &Access, namespace: Option<&str>) -> Result<Vec<K>, Failure>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = match namespace {
        Some(namespace) => api(access, namespace),
        None => Api::all(access.client.clone()),
    };
    Ok(api.list(&ListParams::default()).await?.items)
}
