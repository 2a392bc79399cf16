//! Each kind as one of the arbiter's workloads.
//!
//! Specs are taken apart without `..`: a new field does not compile until
//! someone has decided what it means to the arbiter. What a spec cannot say —
//! who asks, how much work there is, what was done before — comes in as
//! [`Observed`].

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::catalogue;
use petaflop_arbiter::estimate::Correction;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::Capacity;
use petaflop_arbiter::workload::{
    Alternative, DeviceRequest, Engine, Interruption, InterruptionPolicy, OpaqueWork, OwnerKind,
    Placement, Progress, Resources, ServingWork, TrainingWork, Work, Workload, WorkloadId,
};

use crate::field_error::Errors;
use crate::inference_service::InferenceServiceSpec;
use crate::recipe::Recipe;
use crate::scalar::{Money, Quantity};
use crate::shared::{self, Accelerator, CapacityType, Deadline, NameRef, Vendor};
use crate::training_job::{JobInput, TrainingJobSpec};
use crate::{FieldError, MANAGED_BY};

/// What is known of an object beside its spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// Its namespace; outside a cluster `default`.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When `deadline.within` began to count: at admission, and again on resume.
    pub admitted_at: Timestamp,
    /// What was done and spent before.
    pub progress: Progress,
    /// How fast it was where it ran last, where that is known.
    pub measured: Option<Correction>,
}

impl Observed {
    fn id(&self, kind: OwnerKind) -> WorkloadId {
        WorkloadId {
            kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
        }
    }
}

impl TrainingJobSpec {
    /// The workload that this spec asks for. `work` is what the memory plan says of its recipe;
    /// `None` of a container, of which only its resources are known.
    pub fn workload(
        &self,
        observed: &Observed,
        work: Option<TrainingWork>,
    ) -> Result<Workload, Vec<FieldError>> {
        let TrainingJobSpec {
            recipe,
            container: _, // its command is the agent's business
            inputs,       // of a recipe in `work`
            output: _,    // of the runtime
            nodes,
            resources,
            placement,
            deadline,
            checkpoint: _, // its interval is in `work`
            volumes,
            ports,
            service_account_name,
            image_pull_secrets,
            secrets: _,    // read by the operator, and told over the enrolled channel
            budget_ref: _, // every budget that selects the object applies, by the world
            max_total_cost,
            backoff_limit: _,           // of the controller
            active_deadline_seconds: _, // of the controller
            ttl_seconds_after_finished: _,
            cache: _, // asked before anything is placed
            suspend,
            managed_by: _,
        } = self;
        let mut errors = Errors::default();
        if *nodes != 1 {
            errors.add("spec.nodes", "more than one node is not built yet: nodes must be 1");
        }
        let workload = Workload {
            id: observed.id(OwnerKind::TrainingJob),
            created_at: observed.created_at,
            engine: match &work {
                Some(_) => Engine::Runtime,
                None => Engine::Container,
            },
            work: match work {
                Some(work) => Work::Training(work),
                None => Work::Opaque(OpaqueWork { replicas: 1, fetch_bytes: 0 }),
            },
            resources: host_resources(resources, &mut errors),
            accelerators: alternatives(resources, &mut errors),
            placement: self::placement(placement, &mut errors),
            finish_by: deadline
                .as_ref()
                .and_then(|deadline| finish_by(deadline, observed.admitted_at, &mut errors)),
            max_total_cost: max_total_cost
                .as_ref()
                .and_then(|cost| usd("spec.maxTotalCost", cost, &mut errors)),
            interruption: interruption(placement),
            progress: observed.progress,
            suspended: *suspend,
            tied: tied(recipe.as_ref(), inputs, service_account_name, image_pull_secrets, volumes)
                .chain(ports.iter().map(|port| format!("port {}", port.port)))
                .collect(),
            measured: observed.measured.clone(),
        };
        errors.or(workload)
    }

    /// When it should be done; `None` where nobody said, or what was said cannot be read.
    pub fn finish_by(&self, admitted_at: Timestamp) -> Option<Timestamp> {
        finish_by(self.deadline.as_ref()?, admitted_at, &mut Errors::default())
    }

    /// Paths of the fields that are set and mean something only in a cluster.
    pub fn ignored_outside_cluster(&self) -> Vec<String> {
        let TrainingJobSpec {
            recipe: _,
            container: _,
            inputs: _,
            output,
            nodes: _,
            resources,
            placement: _,
            deadline: _,
            checkpoint: _,
            volumes,
            ports,
            service_account_name,
            image_pull_secrets,
            secrets,
            budget_ref,
            max_total_cost: _,
            backoff_limit: _,
            active_deadline_seconds: _,
            ttl_seconds_after_finished,
            cache: _,
            suspend: _,
            managed_by,
        } = self;
        set(&[
            ("spec.resources.ephemeralStorage", resources.ephemeral_storage.is_some()),
            ("spec.volumes", !volumes.is_empty()),
            ("spec.ports", !ports.is_empty()),
            ("spec.serviceAccountName", service_account_name.is_some()),
            ("spec.imagePullSecrets", !image_pull_secrets.is_empty()),
            ("spec.secrets", !secrets.is_empty()),
            ("spec.output.secretRef", output.secret_ref.is_some()),
            ("spec.budgetRef", budget_ref.is_some()),
            ("spec.ttlSecondsAfterFinished", ttl_seconds_after_finished.is_some()),
            ("spec.managedBy", managed_by != MANAGED_BY),
        ])
    }
}

impl InferenceServiceSpec {
    /// The workload that this spec asks for. `work` is what the memory plan says of its model, none of a
    /// container; its number of replicas is the spec's.
    pub fn workload(
        &self,
        observed: &Observed,
        work: Option<ServingWork>,
    ) -> Result<Workload, Vec<FieldError>> {
        let InferenceServiceSpec {
            model,
            container,
            replicas,
            min_replicas: _, // bounds, kept by the CRD's rules
            max_replicas: _,
            port: _, // of the server
            resources,
            placement,
            probes: _,  // of the agent
            rollout: _, // of the controller
            idle: _,    // of the controller: it asks for fewer replicas
            latency_target,
            route: _, // of the Ingress
            volumes,
            service_account_name,
            image_pull_secrets,
            secrets: _,
            budget_ref: _,
            suspend,
            managed_by: _,
        } = self;
        let mut errors = Errors::default();
        if model.is_some() == container.is_some() {
            errors.add("spec", "exactly one of model and container must be given");
        }
        let (engine, work) = match work {
            Some(work) => {
                let max_millis_per_token = latency_target.tpot_ms.or(work.max_millis_per_token);
                let work = ServingWork { replicas: *replicas, max_millis_per_token, ..work };
                (Engine::Runtime, Work::Serving(work))
            }
            None => {
                let work = OpaqueWork { replicas: *replicas, fetch_bytes: 0 };
                (Engine::Container, Work::Opaque(work))
            }
        };
        let workload = Workload {
            id: observed.id(OwnerKind::InferenceService),
            created_at: observed.created_at,
            engine,
            work,
            resources: host_resources(resources, &mut errors),
            accelerators: alternatives(resources, &mut errors),
            placement: self::placement(placement, &mut errors),
            finish_by: None,
            max_total_cost: None,
            interruption: interruption(placement),
            progress: observed.progress,
            suspended: *suspend,
            tied: tied(None, &[], service_account_name, image_pull_secrets, volumes).collect(),
            measured: None,
        };
        errors.or(workload)
    }

    /// Where its replicas may be.
    pub fn places(&self) -> Result<Placement, Vec<FieldError>> {
        let mut errors = Errors::default();
        let placement = placement(&self.placement, &mut errors);
        errors.or(placement)
    }

    /// Paths of the fields that are set and mean something only in a cluster.
    pub fn ignored_outside_cluster(&self) -> Vec<String> {
        let InferenceServiceSpec {
            model: _,
            container: _,
            replicas,
            min_replicas,
            max_replicas,
            port: _,
            resources,
            placement: _,
            probes: _, // of containers, which run in a cluster only
            rollout,
            idle,
            latency_target: _,
            route,
            volumes: _,
            service_account_name,
            image_pull_secrets,
            secrets: _,
            budget_ref,
            suspend: _,
            managed_by,
        } = self;
        set(&[
            ("spec.replicas", *replicas > 1),
            ("spec.minReplicas", min_replicas.is_some()),
            ("spec.maxReplicas", max_replicas.is_some()),
            ("spec.resources.ephemeralStorage", resources.ephemeral_storage.is_some()),
            ("spec.rollout", *rollout != Default::default()),
            ("spec.idle", *idle != Default::default()),
            ("spec.route", *route != Default::default()),
            ("spec.serviceAccountName", service_account_name.is_some()),
            ("spec.imagePullSecrets", !image_pull_secrets.is_empty()),
            ("spec.budgetRef", budget_ref.is_some()),
            ("spec.managedBy", managed_by != MANAGED_BY),
        ])
    }
}

/// What of a job or service only the cluster has. Its Secrets are not among it: they go to the agent.
fn tied(
    recipe: Option<&Recipe>,
    inputs: &[JobInput],
    service_account: &Option<String>,
    pull_secrets: &[NameRef],
    volumes: &[shared::Volume],
) -> std::vec::IntoIter<String> {
    let datasets = recipe.map_or(&[][..], |recipe| &recipe.datasets);
    let datasets = datasets.iter().map(|dataset| dataset.path.as_str());
    let base_model = recipe.and_then(|recipe| recipe.base_model.as_deref());
    let inputs = inputs.iter().map(|input| input.uri.as_str());
    // Whatever else is a path, with a folder before it or without.
    let anywhere = |uri: &str| {
        ["builtin:", "artifact:", "s3://", "https://", "configmap://", "/inputs/"]
            .iter()
            .any(|b| uri.starts_with(b))
    };
    let paths = datasets.chain(base_model).chain(inputs);
    let mut tied: Vec<String> = paths.filter(|uri| !anywhere(uri)).map(str::to_owned).collect();
    tied.extend(service_account.iter().map(|name| format!("ServiceAccount {name}")));
    tied.extend(pull_secrets.iter().map(|secret| format!("image pull Secret {}", secret.name)));
    tied.extend(volumes.iter().map(|volume| format!("volume {}", volume.name)));
    tied.into_iter()
}

/// The paths whose flag is set.
fn set(fields: &[(&str, bool)]) -> Vec<String> {
    fields.iter().filter(|(_, set)| *set).map(|(path, _)| (*path).to_owned()).collect()
}

fn usd(path: &str, money: &Money, errors: &mut Errors) -> Option<Usd> {
    money.micro_dollars().map(Usd::from_micros).map_err(|error| errors.add(path, error)).ok()
}

fn host_resources(resources: &shared::Resources, errors: &mut Errors) -> Resources {
    let shared::Resources { cpu, memory, ephemeral_storage, accelerator: _, any_of: _ } = resources;
    let vcpu_milli = cpu.as_ref().map_or(0, |cpu| match cpu.milli().map(u32::try_from) {
        Ok(Ok(milli)) => milli,
        Ok(Err(_)) => {
            errors.add("spec.resources.cpu", format_args!("no machine has {} processors", cpu.0));
            0
        }
        Err(error) => {
            errors.add("spec.resources.cpu", error);
            0
        }
    });
    let memory = memory
        .as_ref()
        .map_or(0, |memory| bytes("spec.resources.memory", memory, errors).unwrap_or(0));
    let disk = ephemeral_storage
        .as_ref()
        .map_or(0, |disk| bytes("spec.resources.ephemeralStorage", disk, errors).unwrap_or(0));
    Resources { vcpu_milli, memory, disk }
}

fn bytes(path: &str, quantity: &Quantity, errors: &mut Errors) -> Option<u64> {
    quantity.units().map_err(|error| errors.add(path, error)).ok()
}

fn alternatives(resources: &shared::Resources, errors: &mut Errors) -> Vec<Alternative> {
    let single = resources
        .accelerator
        .iter()
        .map(|wanted| ("spec.resources.accelerator".to_owned(), wanted));
    let several = resources
        .any_of
        .iter()
        .enumerate()
        .map(|(i, wanted)| (format!("spec.resources.anyOf[{i}]"), wanted));
    single.chain(several).map(|(path, wanted)| alternative(&path, wanted, errors)).collect()
}

fn alternative(path: &str, wanted: &Accelerator, errors: &mut Errors) -> Alternative {
    let Accelerator { vendor, models, count, min_memory, min_compute_capability } = wanted;
    let vendor = match vendor {
        Some(Vendor::None) => return Alternative::Cpu,
        Some(Vendor::NVIDIA) => Some(catalogue::Vendor::Nvidia),
        Some(Vendor::AMD) => Some(catalogue::Vendor::Amd),
        Some(Vendor::Apple) => Some(catalogue::Vendor::Apple),
        None => None,
    };
    shared::known_models(&format!("{path}.models"), models, errors);
    Alternative::Devices(DeviceRequest {
        vendor,
        models: models.clone(),
        count: *count,
        max_count: None,
        min_memory: min_memory
            .as_ref()
            .and_then(|memory| bytes(&format!("{path}.minMemory"), memory, errors)),
        min_compute_capability: min_compute_capability.as_ref().and_then(|text| {
            let parsed = text
                .split_once('.')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
            if parsed.is_none() {
                errors.add(
                    &format!("{path}.minComputeCapability"),
                    format_args!("expected a compute capability such as \"8.0\", found {text:?}"),
                );
            }
            parsed
        }),
        stack: None,
        linked: false,
    })
}

fn placement(placement: &shared::Placement, errors: &mut Errors) -> Placement {
    let shared::Placement {
        providers,
        regions,
        zones,
        exclude_regions,
        capacity_type,
        max_hourly_price,
        allow_untrusted_hosts,
        allow_unverified,
        interruption: _,
    } = placement;
    let price = max_hourly_price.as_ref().and_then(|price| {
        let price = usd("spec.placement.maxHourlyPrice", price, errors)?;
        UsdPerHour::from_micros(price.micros())
            .map_err(|error| errors.add("spec.placement.maxHourlyPrice", error))
            .ok()
    });
    Placement {
        providers: providers.clone(),
        regions: regions.clone(),
        zones: zones.clone(),
        exclude_regions: exclude_regions.clone(),
        capacity: match capacity_type {
            CapacityType::Spot => Some(Capacity::Spot),
            CapacityType::OnDemand => Some(Capacity::OnDemand),
            CapacityType::Owned => Some(Capacity::Owned),
            CapacityType::Auto => None,
        },
        max_hourly_price: price,
        allow_untrusted_hosts: *allow_untrusted_hosts,
        allow_unverified: *allow_unverified,
    }
}

fn interruption(placement: &shared::Placement) -> Interruption {
    let shared::Interruption {
        policy,
        max_interruptions,
        switch_if_savings_percent,
        min_hold_seconds,
    } = placement.interruption;
    Interruption {
        policy: match policy {
            shared::InterruptionPolicy::Restart => InterruptionPolicy::Restart,
            shared::InterruptionPolicy::Fail => InterruptionPolicy::Fail,
        },
        max_interruptions,
        switch_if_savings_percent,
        min_hold_seconds,
    }
}

/// The point in time of a deadline.
fn finish_by(
    deadline: &Deadline,
    admitted_at: Timestamp,
    errors: &mut Errors,
) -> Option<Timestamp> {
    match deadline {
        Deadline { finish_by: Some(text), within: None } => text
            .parse()
            .map_err(|error| {
                errors.add(
                    "spec.deadline.finishBy",
                    format_args!("expected RFC 3339, found {text:?}: {error}"),
                )
            })
            .ok(),
        Deadline { finish_by: None, within: Some(span) } => {
            let seconds =
                span.seconds().map_err(|error| errors.add("spec.deadline.within", error)).ok()?;
            let span = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            admitted_at
                .checked_add(span)
                .map_err(|_| errors.add("spec.deadline.within", "lies beyond the year 9999"))
                .ok()
        }
        _ => {
            errors.add("spec.deadline", "exactly one of finishBy and within must be given");
            None
        }
    }
}
