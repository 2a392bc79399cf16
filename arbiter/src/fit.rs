//! Does it fit: which part of a machine would compute, and what stands in the way.
//!
//! Checks report to a `Sink`, which builds the numbers only where somebody wants to read them;
//! placing and explaining run the same lines.

use crate::catalogue::{Accelerator, Catalogue, MEMORY_TOLERANCE_PERCENT};
use crate::claim::Device;
use crate::estimate::backends;
use crate::market::Class;
use crate::obstacle::{Check, Obstacle};
use crate::offer::Accelerators;
use crate::support::{Level, Operation, SupportTable};
use crate::workload::{Alternative, DeviceRequest, Engine, Precision, Work, Workload};

/// Device memory that the runtime itself takes (context, kernels), in bytes.
pub const DEVICE_RESERVE: u64 = 600_000_000;

/// Takes what the checks find.
pub(crate) trait Sink {
    /// An obstacle was found. Returns whether to go on looking.
    fn hit(&mut self, check: Check, build: impl FnOnce() -> Obstacle) -> bool;
}

/// Stops at the first obstacle and remembers only which check it was.
#[derive(Default)]
pub(crate) struct First(pub(crate) Option<Check>);

impl Sink for First {
    fn hit(&mut self, check: Check, _: impl FnOnce() -> Obstacle) -> bool {
        self.0 = Some(check);
        false
    }
}

/// Collects every obstacle with its numbers.
#[derive(Default)]
pub(crate) struct All(pub(crate) Vec<Obstacle>);

impl Sink for All {
    fn hit(&mut self, _: Check, build: impl FnOnce() -> Obstacle) -> bool {
        self.0.push(build());
        true
    }
}

/// The parts of a machine that could compute for a workload, the better first: its devices, its
/// processor. Where devices are asked for and the machine has none, it still stands as devices,
/// so that the check can say so.
pub(crate) fn devices(workload: &Workload, class: &Class) -> (Device, Option<Device>) {
    let has = class.accelerators.is_some();
    if workload.accelerators.is_empty() {
        return match has {
            true => (Device::Accelerators, Some(Device::Cpu)),
            false => (Device::Cpu, None),
        };
    }
    let cpu = workload.accelerators.contains(&Alternative::Cpu);
    let devices = workload
        .accelerators
        .iter()
        .any(|alternative| matches!(alternative, Alternative::Devices(_)));
    match (devices, cpu) {
        (true, true) if has => (Device::Accelerators, Some(Device::Cpu)),
        (true, false) => (Device::Accelerators, None),
        (true | false, true) | (false, false) => (Device::Cpu, None),
    }
}

/// Everything about a class that bytes, devices and the engine decide. Returns whether to go on.
pub(crate) fn check(
    workload: &Workload,
    support: &SupportTable,
    class: &Class,
    device: Device,
    sink: &mut impl Sink,
) -> bool {
    if device == Device::Accelerators && !check_request(workload, class, sink) {
        return false;
    }
    let (needs, has) = (workload.resources.vcpu_milli, class.vcpu_milli);
    if needs > has.unwrap_or(0) && !sink.hit(Check::Vcpus, || Obstacle::Vcpus { needs, has }) {
        return false;
    }
    let (arena, host) = bytes(&workload.work);
    let on_host = match device {
        Device::Cpu => arena.saturating_add(host),
        Device::Accelerators => host,
    };
    let needs = on_host.max(workload.resources.memory);
    let has = class.memory;
    if needs > has.unwrap_or(0)
        && needs > 0
        && !sink.hit(Check::Memory, || Obstacle::Memory { needs, has })
    {
        return false;
    }
    match workload.engine {
        Engine::Container => true,
        Engine::Runtime => check_engine(workload, support, class, device, arena, sink),
    }
}

/// Bytes on the computing device, and beside it on the host.
fn bytes(work: &Work) -> (u64, u64) {
    match work {
        Work::Training(work) => (work.arena_bytes, work.host_bytes),
        Work::Serving(work) => (work.arena_bytes, work.host_bytes),
        Work::Opaque(_) => (0, 0),
    }
}

/// Whether the devices are among those asked for. The alternative that comes furthest is the one
/// whose obstacle is reported.
fn check_request(workload: &Workload, class: &Class, sink: &mut impl Sink) -> bool {
    let requests = || {
        workload.accelerators.iter().filter_map(|alternative| match alternative {
            Alternative::Devices(request) => Some(request),
            Alternative::Cpu => None,
        })
    };
    if workload.accelerators.is_empty()
        || requests().any(|request| first_gap(request, class).is_none())
    {
        return true;
    }
    let Some(check) = requests().filter_map(|request| first_gap(request, class)).max() else {
        return true;
    };
    sink.hit(check, || {
        requests()
            .find(|request| first_gap(request, class) == Some(check))
            .map(|request| gap(check, request, class))
            .expect("the check was found among the requests")
    })
}

/// Whether a model can do for a workload at all, whatever its count and memory: `false` only where
/// [`check`] says [`Check::AcceleratorModel`] of each class of the model.
pub(crate) fn model_may_do(workload: &Workload, class: &Class) -> bool {
    workload.accelerators.is_empty()
        || workload.accelerators.iter().any(|alternative| match alternative {
            Alternative::Cpu => true,
            Alternative::Devices(request) => model_fits(request, class),
        })
}

/// Whether vendor and model are what a request asks for.
fn model_fits(request: &DeviceRequest, class: &Class) -> bool {
    let Some(devices) = &class.accelerators else {
        return false;
    };
    let row = row_of(class);
    request.vendor.is_none_or(|vendor| row.is_some_and(|row| row.vendor == vendor))
        && (request.models.is_empty()
            || request.models.iter().any(|name| match row {
                Some(row) => row.answers_to(name),
                None => devices.model.eq_ignore_ascii_case(name),
            }))
}

/// The first demand of a request that a class does not meet.
fn first_gap(request: &DeviceRequest, class: &Class) -> Option<Check> {
    let Some(devices) = &class.accelerators else {
        return Some(Check::AcceleratorModel);
    };
    if !model_fits(request, class) {
        return Some(Check::AcceleratorModel);
    }
    let row = row_of(class);
    if devices.count < request.count || request.max_count.is_some_and(|most| devices.count > most) {
        return Some(Check::AcceleratorCount);
    }
    if let Some(needs) = request.min_memory
        && u128::from(nominal(devices, row)) * u128::from(100 + MEMORY_TOLERANCE_PERCENT)
            < u128::from(needs) * 100
    {
        return Some(Check::AcceleratorMemory);
    }
    if let Some(needs) = request.min_compute_capability
        && row.and_then(Accelerator::compute_capability).is_none_or(|has| has < needs)
    {
        return Some(Check::ComputeCapability);
    }
    let has_stack = |stack: &String| row.is_some_and(|row| row.stacks.contains(stack));
    if request.stack.as_ref().is_some_and(|stack| !has_stack(stack)) {
        return Some(Check::AcceleratorStack);
    }
    if request.linked && !row.is_some_and(Accelerator::is_linked) {
        return Some(Check::Interconnect);
    }
    None
}

fn gap(check: Check, request: &DeviceRequest, class: &Class) -> Obstacle {
    let row = row_of(class);
    let has = class.accelerators.as_ref();
    match check {
        Check::AcceleratorCount => {
            let has = has.map_or(0, |devices| devices.count);
            let most = request.max_count.filter(|most| has > *most);
            Obstacle::AcceleratorCount { needs: most.unwrap_or(request.count), has }
        }
        Check::AcceleratorMemory => Obstacle::AcceleratorMemory {
            needs: request.min_memory.unwrap_or(0),
            has: has.map_or(0, |devices| nominal(devices, row)),
        },
        Check::ComputeCapability => Obstacle::ComputeCapability {
            needs: request.min_compute_capability.unwrap_or((0, 0)),
            has: row.and_then(Accelerator::compute_capability),
        },
        Check::AcceleratorStack => Obstacle::AcceleratorStack {
            needs: request.stack.clone().unwrap_or_default(),
            has: row.map_or_else(|| "none that is known".to_owned(), |row| row.stacks.join(", ")),
        },
        Check::Interconnect => Obstacle::Interconnect {
            has: row.map_or_else(|| "unknown".to_owned(), |row| row.form.clone()),
        },
        _ => Obstacle::AcceleratorModel {
            needs: wish(request),
            has: has.map_or_else(|| "no accelerator".to_owned(), |devices| devices.model.clone()),
        },
    }
}

/// A request in words.
fn wish(request: &DeviceRequest) -> String {
    match (&request.vendor, request.models.is_empty()) {
        (_, false) => request.models.join(" or "),
        (Some(vendor), true) => format!("an accelerator of {}", vendor.as_str()),
        (None, true) => "an accelerator".to_owned(),
    }
}

fn row_of(class: &Class) -> Option<&'static Accelerator> {
    class.catalogue_row.map(|row| &Catalogue::embedded().rows()[row])
}

/// Memory of one device as people speak of it: a slice's own, else the card's nominal size.
fn nominal(devices: &Accelerators, row: Option<&Accelerator>) -> u64 {
    match (devices.memory, row) {
        // A card reports a little less than its name says, a slice much less.
        (Some(reported), Some(row)) if reported >= row.nominal_bytes() / 10 * 9 => {
            reported.max(row.nominal_bytes())
        }
        (Some(reported), _) => reported,
        (None, Some(row)) => row.nominal_bytes(),
        (None, None) => 0,
    }
}

/// Whether our runtime runs there, and whether the plan fits the devices that it can use.
fn check_engine(
    workload: &Workload,
    support: &SupportTable,
    class: &Class,
    device: Device,
    arena: u64,
    sink: &mut impl Sink,
) -> bool {
    let (operation, precision) = match &workload.work {
        Work::Training(work) => (Operation::Train, work.precision),
        Work::Serving(work) => (Operation::Serve, work.precision),
        Work::Opaque(_) => return true,
    };
    let (level, most) = engine_level(support, class, device, operation, precision);
    let enough = match level {
        Level::Verified => true,
        Level::CompiledOnly => workload.placement.allow_unverified,
        Level::None => false,
    };
    if !enough
        && !sink.hit(Check::Engine, || Obstacle::Engine { level, on: engine_place(class, device) })
    {
        return false;
    }
    if device == Device::Cpu {
        return true;
    }
    let asked = workload
        .accelerators
        .iter()
        .filter_map(|alternative| match alternative {
            Alternative::Devices(request) => Some(request.count),
            Alternative::Cpu => None,
        })
        .min()
        .unwrap_or(1);
    if enough
        && asked > most
        && !sink.hit(Check::Engine, || Obstacle::Engine {
            level: Level::Verified,
            on: format!("{asked} × {}", engine_place(class, device)),
        })
    {
        return false;
    }
    let Some(devices) = &class.accelerators else {
        return true;
    };
    let one = match (devices.memory, row_of(class)) {
        (Some(reported), Some(row)) => reported.min(row.nominal_bytes()),
        (Some(reported), None) => reported,
        (None, Some(row)) => row.plannable_bytes(),
        (None, None) => 0,
    };
    let has = one
        .saturating_sub(DEVICE_RESERVE)
        .saturating_mul(u64::from(devices.count.min(most.max(1))));
    arena <= has || sink.hit(Check::DeviceMemory, || Obstacle::DeviceMemory { needs: arena, has })
}

/// How far the engine is on the best backend of a device, and on how many at once.
fn engine_level(
    support: &SupportTable,
    class: &Class,
    device: Device,
    operation: Operation,
    precision: Precision,
) -> (Level, u32) {
    let isa = match (device, row_of(class)) {
        (Device::Cpu, _) => class.arch.as_str(),
        (Device::Accelerators, Some(row)) => row.isa.as_str(),
        (Device::Accelerators, None) => return (Level::None, 0),
    };
    backends(class, device)
        .map(|backend| support.level(backend, isa, operation, precision))
        .max()
        .unwrap_or((Level::None, 0))
}

/// Where the engine would run, in words: `cuda sm_90`, `cpu aarch64`.
fn engine_place(class: &Class, device: Device) -> String {
    match (device, row_of(class)) {
        (Device::Cpu, _) => format!("cpu {}", class.arch),
        (Device::Accelerators, Some(row)) => match backends(class, device).next() {
            Some(backend) => format!("{} {}", backend.as_str(), row.isa),
            None => row.key.clone(),
        },
        (Device::Accelerators, None) => class
            .accelerators
            .as_ref()
            .map_or_else(|| "no accelerator".to_owned(), |devices| devices.model.clone()),
    }
}
