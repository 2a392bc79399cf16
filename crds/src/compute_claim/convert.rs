//! `ComputeClaim` ↔ the arbiter's `Claim`, without loss.
//!
//! What the API cannot hold (a shipped price, which is never bought from; a negative amount) gives
//! errors that name the field, and so does what the arbiter cannot (a phase without its parts).
//! Fields of the status that the arbiter does not know (conditions, endpoint, agent, billing) stay
//! as they are when a phase is recorded.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::core::ObjectMeta;
use petaflop_arbiter::claim::{self, Claim, ClaimSpec, FrozenRequest, Phase};
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{self, Accelerators, Offer, OfferId, Sale, Share};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::{self, WorkloadId};

use super::{
    Arch, Capacity, ClaimOwner, ClaimedAccelerators, ClaimedOffer, ClaimedShare, ComputeClaim,
    ComputeClaimPhase, ComputeClaimSpec, ComputeClaimStatus, Device, FINALIZER, HostOwner,
    MeasuredRates, OWNER_KIND_LABEL, OWNER_LABEL, OwnerKind, PROVIDER_LABEL, RunnerUp,
};
use crate::field_error::Errors;
use crate::scalar::{Decimal, Moment, Money};
use crate::shared::CostStatus;
use crate::{API_VERSION, FieldError};

/// Largest number of bytes that every JSON reader keeps exactly.
const MOST_BYTES: u64 = (1 << 53) - 1;

impl ComputeClaim {
    /// The object to create for a claim: deterministic name, finalizer and owner in the create body.
    ///
    /// # Errors
    /// What the API cannot hold, by field.
    pub fn planned(claim: &ClaimSpec) -> Result<ComputeClaim, Vec<FieldError>> {
        let spec = ComputeClaimSpec::try_from(claim)?;
        let WorkloadId { kind, namespace, name, uid } = &claim.owner;
        let owner = OwnerReference {
            api_version: API_VERSION.to_owned(),
            kind: OwnerKind::from(*kind).as_str().to_owned(),
            name: name.clone(),
            uid: uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        };
        let labels = [
            (OWNER_KIND_LABEL, owner.kind.clone()),
            (OWNER_LABEL, name.clone()),
            (PROVIDER_LABEL, spec.provider.clone()),
        ];
        Ok(ComputeClaim {
            metadata: ObjectMeta {
                name: Some(claim.name.clone()),
                namespace: Some(namespace.clone()),
                labels: Some(labels.map(|(label, value)| (label.to_owned(), value)).into()),
                finalizers: Some(vec![FINALIZER.to_owned()]),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec,
            status: None,
        })
    }
}

impl ComputeClaimStatus {
    /// Writes down how far the arbiter's claim is. What belongs to the new phase is set, a frozen
    /// request that is no longer needed goes, all else stays.
    ///
    /// # Errors
    /// A cost that the API cannot hold.
    pub fn record(&mut self, claim: &Claim) -> Result<(), Vec<FieldError>> {
        let Claim { spec: _, uid: _, phase, attempt, spent } = claim;
        let mut errors = Errors::default();
        let total = money("status.cost.total", spent.micros(), &mut errors);
        errors.or(())?;
        self.attempt = *attempt;
        let cost = self.cost.take().unwrap_or_default();
        self.cost = match (&cost.total, *spent == Usd::ZERO) {
            (None, true) => (cost != CostStatus::default()).then_some(cost),
            _ => Some(CostStatus { total: Some(total), ..cost }),
        };
        (self.request, self.attempted_at, self.ambiguous_since) = (None, None, None);
        self.reason = None;
        self.phase = Some(match phase {
            Phase::Planned => ComputeClaimPhase::Planned,
            Phase::Attempted { request, at } => {
                self.request = Some(request.body.clone());
                self.attempted_at = Some(Moment(*at));
                ComputeClaimPhase::Attempted
            }
            Phase::Ambiguous { request, since } => {
                self.request = Some(request.body.clone());
                self.ambiguous_since = Some(Moment(*since));
                ComputeClaimPhase::Ambiguous
            }
            Phase::Launched { instance, at } => {
                self.provider_id = Some(instance.clone());
                self.launched_at = Some(Moment(*at));
                ComputeClaimPhase::Launched
            }
            Phase::Ending { instance, reason } => {
                self.provider_id.clone_from(instance);
                self.reason = Some(reason.as_str().to_owned());
                ComputeClaimPhase::Ending
            }
            Phase::Ended { reason } => {
                self.reason = Some(reason.as_str().to_owned());
                ComputeClaimPhase::Ended
            }
        });
        Ok(())
    }

    fn arbiter_phase(&self, errors: &mut Errors) -> Phase {
        let request = |errors: &mut Errors| FrozenRequest {
            body: errors.need("status.request", self.request.clone()).unwrap_or_default(),
        };
        let at = |path: &str, at: Option<Moment>, errors: &mut Errors| {
            errors.need(path, at).unwrap_or(Moment(jiff::Timestamp::UNIX_EPOCH)).0
        };
        let reason = |errors: &mut Errors| {
            let text = errors.need("status.reason", self.reason.as_deref()).unwrap_or_default();
            let known = Reason::ALL.iter().find(|reason| reason.as_str() == text);
            if known.is_none() && !text.is_empty() {
                errors.add("status.reason", format_args!("{text:?} is no reason that we know"));
            }
            known.copied().unwrap_or(Reason::InvalidSpec)
        };
        match self.phase.unwrap_or(ComputeClaimPhase::Planned) {
            ComputeClaimPhase::Planned => Phase::Planned,
            ComputeClaimPhase::Attempted => Phase::Attempted {
                request: request(errors),
                at: at("status.attemptedAt", self.attempted_at, errors),
            },
            ComputeClaimPhase::Ambiguous => Phase::Ambiguous {
                request: request(errors),
                since: at("status.ambiguousSince", self.ambiguous_since, errors),
            },
            ComputeClaimPhase::Launched => Phase::Launched {
                instance: errors
                    .need("status.providerID", self.provider_id.clone())
                    .unwrap_or_default(),
                at: at("status.launchedAt", self.launched_at, errors),
            },
            ComputeClaimPhase::Ending => {
                Phase::Ending { instance: self.provider_id.clone(), reason: reason(errors) }
            }
            ComputeClaimPhase::Ended => Phase::Ended { reason: reason(errors) },
        }
    }
}

impl TryFrom<&ComputeClaim> for ClaimSpec {
    type Error = Vec<FieldError>;

    fn try_from(object: &ComputeClaim) -> Result<ClaimSpec, Vec<FieldError>> {
        let mut errors = Errors::default();
        let spec = claim_spec(object, &mut errors);
        errors.or(spec)
    }
}

impl TryFrom<&ComputeClaim> for Claim {
    type Error = Vec<FieldError>;

    fn try_from(object: &ComputeClaim) -> Result<Claim, Vec<FieldError>> {
        let mut errors = Errors::default();
        let planned = ComputeClaimStatus { attempt: 1, ..ComputeClaimStatus::default() };
        let status = object.status.as_ref().unwrap_or(&planned);
        let claim = Claim {
            spec: claim_spec(object, &mut errors),
            uid: errors.need("metadata.uid", object.uid()).unwrap_or_default(),
            phase: status.arbiter_phase(&mut errors),
            attempt: status.attempt,
            spent: status
                .cost
                .as_ref()
                .and_then(|cost| cost.total.as_ref())
                .map_or(Usd::ZERO, |total| usd("status.cost.total", total, &mut errors)),
        };
        errors.or(claim)
    }
}

fn claim_spec(object: &ComputeClaim, errors: &mut Errors) -> ClaimSpec {
    let ComputeClaimSpec {
        owner,
        placement,
        index,
        provider,
        offer,
        device,
        reserved,
        decided_at,
        revision,
        checkpoint_interval_seconds,
        runners_up,
    } = &object.spec;
    let ClaimOwner { kind, name, uid } = owner;
    ClaimSpec {
        name: errors.need("metadata.name", object.metadata.name.clone()).unwrap_or_default(),
        owner: WorkloadId {
            kind: (*kind).into(),
            namespace: errors.need("metadata.namespace", object.namespace()).unwrap_or_default(),
            name: name.clone(),
            uid: uid.clone(),
        },
        placement: *placement,
        index: *index,
        offer: arbiter_offer(provider, offer, errors),
        device: match device {
            Device::Cpu => claim::Device::Cpu,
            Device::Accelerators => claim::Device::Accelerators,
        },
        reserved: usd("spec.reserved", reserved, errors),
        decided_at: decided_at.0,
        revision: revision.clone(),
        checkpoint_interval_seconds: *checkpoint_interval_seconds,
        runners_up: (runners_up.iter())
            .map(|RunnerUp { offer, total }| claim::RunnerUp {
                offer: OfferId(offer.clone()),
                total: usd("spec.runnersUp.total", total, errors),
            })
            .collect(),
    }
}

fn arbiter_offer(provider: &str, offer: &ClaimedOffer, errors: &mut Errors) -> Offer {
    let ClaimedOffer {
        id,
        region,
        zone,
        instance_type,
        accelerators,
        arch,
        vcpu_milli,
        memory,
        capacity,
        price,
        quoted_at,
        ttl_seconds,
        host_owner,
        measured,
        slots,
        shares,
        interruptions_per_hour,
    } = offer;
    let price = usd("spec.offer.price", price, errors);
    Offer {
        id: OfferId(id.clone()),
        provider: provider.to_owned(),
        region: region.clone().unwrap_or_default(),
        zone: zone.clone().unwrap_or_default(),
        instance_type: instance_type.clone(),
        accelerators: accelerators.as_ref().map(|ClaimedAccelerators { model, count, memory }| {
            Accelerators { model: model.clone(), count: *count, memory: *memory }
        }),
        arch: match arch {
            Arch::X86_64 => offer::Arch::X86_64,
            Arch::Aarch64 => offer::Arch::Aarch64,
        },
        vcpu_milli: *vcpu_milli,
        memory: *memory,
        capacity: match capacity {
            Capacity::Spot => offer::Capacity::Spot,
            Capacity::OnDemand => offer::Capacity::OnDemand,
            Capacity::Owned => offer::Capacity::Owned,
        },
        price: UsdPerHour::from_micros(price.micros()).unwrap_or(UsdPerHour::ZERO),
        quoted_at: quoted_at.0,
        ttl_seconds: *ttl_seconds,
        owner: match host_owner {
            HostOwner::Known => offer::HostOwner::Known,
            HostOwner::Unknown => offer::HostOwner::Unknown,
        },
        sale: Sale::Buyable,
        measured: measured.as_ref().map(|MeasuredRates { gemm_gflops, read_gb_s }| {
            offer::MeasuredRates {
                gemm_gflops: number("spec.offer.measured.gemmGflops", gemm_gflops, errors),
                read_gb_s: number("spec.offer.measured.readGbS", read_gb_s, errors),
            }
        }),
        slots: *slots,
        shares: shares.iter().map(arbiter_share).collect(),
        interruptions_per_hour: interruptions_per_hour
            .as_ref()
            .map(|losses| number("spec.offer.interruptionsPerHour", losses, errors)),
    }
}

fn arbiter_share(ClaimedShare { of, amount, all }: &ClaimedShare) -> Share {
    Share { of: of.clone(), amount: *amount, all: *all }
}

fn claimed_share(Share { of, amount, all }: &Share) -> ClaimedShare {
    // What no JSON number holds exactly is no amount that anybody could run out of.
    let exactly = |amount: &u64| (*amount).min(MOST_BYTES);
    ClaimedShare { of: of.clone(), amount: exactly(amount), all: exactly(all) }
}

impl TryFrom<&ClaimSpec> for ComputeClaimSpec {
    type Error = Vec<FieldError>;

    fn try_from(claim: &ClaimSpec) -> Result<ComputeClaimSpec, Vec<FieldError>> {
        let ClaimSpec {
            name: _,
            owner,
            placement,
            index,
            offer,
            device,
            reserved,
            decided_at,
            revision,
            checkpoint_interval_seconds,
            runners_up,
        } = claim;
        let WorkloadId { kind, namespace: _, name, uid } = owner;
        let mut errors = Errors::default();
        let spec = ComputeClaimSpec {
            owner: ClaimOwner { kind: (*kind).into(), name: name.clone(), uid: uid.clone() },
            placement: *placement,
            index: *index,
            provider: offer.provider.clone(),
            offer: claimed_offer(offer, &mut errors),
            device: match device {
                claim::Device::Cpu => Device::Cpu,
                claim::Device::Accelerators => Device::Accelerators,
            },
            reserved: money("spec.reserved", reserved.micros(), &mut errors),
            decided_at: Moment(*decided_at),
            revision: revision.clone(),
            checkpoint_interval_seconds: *checkpoint_interval_seconds,
            runners_up: runners_up.iter().map(|one| runner_up(one, &mut errors)).collect(),
        };
        errors.or(spec)
    }
}

fn runner_up(one: &claim::RunnerUp, errors: &mut Errors) -> RunnerUp {
    let claim::RunnerUp { offer, total } = one;
    let total = money("spec.runnersUp.total", total.micros(), errors);
    RunnerUp { offer: offer.0.clone(), total }
}

fn claimed_offer(offer: &Offer, errors: &mut Errors) -> ClaimedOffer {
    let Offer {
        id,
        provider: _, // one level up
        region,
        zone,
        instance_type,
        accelerators,
        arch,
        vcpu_milli,
        memory,
        capacity,
        price,
        quoted_at,
        ttl_seconds,
        owner,
        sale,
        measured,
        slots,
        shares,
        interruptions_per_hour,
    } = offer;
    if !sale.is_buyable() {
        errors.add("spec.offer", "is a price seen at some time: nothing is bought from it");
    }
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    ClaimedOffer {
        id: id.0.clone(),
        region: text(region),
        zone: text(zone),
        instance_type: instance_type.clone(),
        accelerators: accelerators.as_ref().map(|Accelerators { model, count, memory }| {
            ClaimedAccelerators {
                model: model.clone(),
                count: *count,
                memory: bytes("spec.offer.accelerators.memory", *memory, errors),
            }
        }),
        arch: match arch {
            offer::Arch::X86_64 => Arch::X86_64,
            offer::Arch::Aarch64 => Arch::Aarch64,
        },
        vcpu_milli: *vcpu_milli,
        memory: bytes("spec.offer.memory", *memory, errors),
        capacity: match capacity {
            offer::Capacity::Spot => Capacity::Spot,
            offer::Capacity::OnDemand => Capacity::OnDemand,
            offer::Capacity::Owned => Capacity::Owned,
        },
        price: money("spec.offer.price", price.micros(), errors),
        quoted_at: Moment(*quoted_at),
        ttl_seconds: *ttl_seconds,
        host_owner: match owner {
            offer::HostOwner::Known => HostOwner::Known,
            offer::HostOwner::Unknown => HostOwner::Unknown,
        },
        measured: measured.map(|offer::MeasuredRates { gemm_gflops, read_gb_s }| MeasuredRates {
            gemm_gflops: decimal("spec.offer.measured.gemmGflops", gemm_gflops, errors),
            read_gb_s: decimal("spec.offer.measured.readGbS", read_gb_s, errors),
        }),
        slots: *slots,
        shares: shares.iter().map(claimed_share).collect(),
        interruptions_per_hour: interruptions_per_hour
            .map(|losses| decimal("spec.offer.interruptionsPerHour", losses, errors)),
    }
}

impl OwnerKind {
    /// The kind's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            OwnerKind::TrainingJob => "TrainingJob",
            OwnerKind::InferenceService => "InferenceService",
        }
    }
}

impl From<workload::OwnerKind> for OwnerKind {
    fn from(kind: workload::OwnerKind) -> OwnerKind {
        match kind {
            workload::OwnerKind::TrainingJob => OwnerKind::TrainingJob,
            workload::OwnerKind::InferenceService => OwnerKind::InferenceService,
        }
    }
}

impl From<OwnerKind> for workload::OwnerKind {
    fn from(kind: OwnerKind) -> workload::OwnerKind {
        match kind {
            OwnerKind::TrainingJob => workload::OwnerKind::TrainingJob,
            OwnerKind::InferenceService => workload::OwnerKind::InferenceService,
        }
    }
}

fn usd(path: &str, money: &Money, errors: &mut Errors) -> Usd {
    money.micro_dollars().map(Usd::from_micros).unwrap_or_else(|error| {
        errors.add(path, error);
        Usd::ZERO
    })
}

/// An amount that reads back as it was.
fn money(path: &str, micros: i64, errors: &mut Errors) -> Money {
    let money = Money::from(Usd::from_micros(micros));
    if let Err(error) = money.micro_dollars() {
        errors.add(path, error);
    }
    money
}

fn bytes(path: &str, bytes: Option<u64>, errors: &mut Errors) -> Option<u64> {
    if let Some(bytes) = bytes.filter(|bytes| *bytes > MOST_BYTES) {
        errors.add(path, format_args!("expected at most {MOST_BYTES} bytes, found {bytes}"));
    }
    bytes
}

fn number(path: &str, decimal: &Decimal, errors: &mut Errors) -> f64 {
    decimal.number().unwrap_or_else(|error| {
        errors.add(path, error);
        0.0
    })
}

fn decimal(path: &str, number: f64, errors: &mut Errors) -> Decimal {
    Decimal::of(number).unwrap_or_else(|| {
        errors.add(path, format_args!("expected a number of 0 or more, found {number}"));
        Decimal("0".to_owned())
    })
}
