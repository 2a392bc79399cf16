//! What an instance type is made of: AWS's description in, ours out. Pure.

use aws_sdk_ec2::types::{ArchitectureType, InstanceTypeInfo, UsageClassType};
use petaflop_arbiter::catalogue::Catalogue;
use petaflop_arbiter::offer::{Accelerators, Arch};

const MIB: u64 = 1 << 20;
/// Bytes that the host itself, docker and the agent need.
const OF_THE_HOST: u64 = 512 * MIB;

/// An instance type.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hardware {
    pub(super) name: String,
    pub(super) vcpus: u32,
    /// Bytes that the work may use.
    pub(super) memory: u64,
    pub(super) arch: Arch,
    pub(super) accelerators: Option<Accelerators>,
    pub(super) spot: bool,
    pub(super) on_demand: bool,
}

/// Reads a description; `None` for what is not sold here: Macs, bare metal (minutes more to start),
/// and burstable types, which bill for credits beside the hour.
pub(super) fn read(info: &InstanceTypeInfo) -> Option<Hardware> {
    if info.bare_metal() == Some(true) || info.burstable_performance_supported() == Some(true) {
        return None;
    }
    let name = info.instance_type()?.as_str().to_owned();
    let known = info.processor_info()?.supported_architectures();
    let arch = if known.contains(&ArchitectureType::X8664) {
        Arch::X86_64
    } else if known.contains(&ArchitectureType::Arm64) {
        Arch::Aarch64
    } else {
        return None;
    };
    let vcpus = u32::try_from(info.v_cpu_info()?.default_v_cpus()?).ok().filter(|n| *n > 0)?;
    let memory = mib(info.memory_info()?.size_in_mib()?)?;
    let classes = info.supported_usage_classes();
    // Who does not say is asked for it, and may refuse.
    let sold = |class: UsageClassType| classes.is_empty() || classes.contains(&class);
    Some(Hardware {
        accelerators: accelerators(&name, info),
        vcpus,
        memory: memory.saturating_sub(OF_THE_HOST),
        arch,
        spot: sold(UsageClassType::Spot),
        on_demand: sold(UsageClassType::OnDemand),
        name,
    })
}

fn accelerators(name: &str, info: &InstanceTypeInfo) -> Option<Accelerators> {
    let known = Catalogue::embedded().by_aws_instance_type(name).map(|row| row.key.clone());
    let model = |own: Option<&str>| {
        known.clone().unwrap_or_else(|| Accelerators::foreign_model(own.unwrap_or_default()))
    };
    let whole = |count: Option<i32>| u32::try_from(count.unwrap_or_default()).unwrap_or_default();
    if let Some(gpu) = info.gpu_info().and_then(|gpus| gpus.gpus().first()) {
        let memory = gpu.memory_info().and_then(|memory| mib(i64::from(memory.size_in_mib()?)));
        let count = whole(gpu.count());
        if count > 0 {
            return Some(Accelerators { model: model(gpu.name()), count, memory });
        }
        // A share of a device (g6f) is none that the catalogue's rates are true of: it goes by a
        // name of its own, so that nothing is planned on it.
        let share = gpu.gpu_partition_size().unwrap_or_default();
        let model = Accelerators::foreign_model(&format!("{} share {share}", model(gpu.name())));
        let count = whole(gpu.logical_gpu_count()).max(1);
        return Some(Accelerators { model, count, memory });
    }
    if let Some(device) = info.neuron_info().and_then(|info| info.neuron_devices().first()) {
        let memory = device.memory_info().and_then(|memory| mib(i64::from(memory.size_in_mib()?)));
        let count = whole(device.count()).max(1);
        return Some(Accelerators { model: model(device.name()), count, memory });
    }
    if let Some(device) =
        info.inference_accelerator_info().and_then(|info| info.accelerators().first())
    {
        let count = whole(device.count()).max(1);
        return Some(Accelerators { model: model(device.name()), count, memory: None });
    }
    None
}

fn mib(size: i64) -> Option<u64> {
    u64::try_from(size).ok()?.checked_mul(MIB).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
pub(super) mod tests {
    use aws_sdk_ec2::types::{
        GpuDeviceInfo, GpuDeviceMemoryInfo, GpuInfo, InstanceType, MemoryInfo, ProcessorInfo,
        VCpuInfo,
    };

    use super::*;

    fn plain(name: &str) -> aws_sdk_ec2::types::builders::InstanceTypeInfoBuilder {
        InstanceTypeInfo::builder()
            .instance_type(InstanceType::from(name))
            .processor_info(
                ProcessorInfo::builder().supported_architectures(ArchitectureType::X8664).build(),
            )
            .v_cpu_info(VCpuInfo::builder().default_v_cpus(4).build())
            .memory_info(MemoryInfo::builder().size_in_mib(16_384).build())
            .supported_usage_classes(UsageClassType::Spot)
            .supported_usage_classes(UsageClassType::OnDemand)
    }

    fn gpu(name: &str, count: i32, share: Option<f64>, mib: i32) -> GpuInfo {
        let device = GpuDeviceInfo::builder()
            .name(name)
            .count(count)
            .set_gpu_partition_size(share)
            .set_logical_gpu_count(share.map(|_| 1))
            .memory_info(GpuDeviceMemoryInfo::builder().size_in_mib(mib).build());
        GpuInfo::builder().gpus(device.build()).build()
    }

    #[test]
    fn a_type_is_its_processors_memory_and_accelerators() {
        let g6 = read(&plain("g6.xlarge").gpu_info(gpu("L4", 1, None, 22_888)).build());
        let g6 = g6.expect("a type");
        assert_eq!((g6.vcpus, g6.memory, g6.arch), (4, 15_872 * MIB, Arch::X86_64));
        let devices = g6.accelerators.expect("accelerators");
        assert_eq!((devices.model.as_str(), devices.count), ("L4", 1));
        assert_eq!(devices.memory, Some(22_888 * MIB));
        let cpu = read(&plain("c7a.xlarge").build()).expect("a type");
        assert_eq!((cpu.accelerators, cpu.spot, cpu.on_demand), (None, true, true));
    }

    #[test]
    fn short_names_are_told_apart_by_the_family() {
        let of = |name: &str, mib| {
            let info = plain(name).gpu_info(gpu("A100", 8, None, mib)).build();
            read(&info).expect("a type").accelerators.expect("accelerators").model
        };
        assert_ne!(of("p4d.24xlarge", 40_960), of("p4de.24xlarge", 81_920));
    }

    #[test]
    fn a_share_of_a_device_has_a_name_of_its_own() {
        let info = plain("g6f.large").gpu_info(gpu("L4", 0, Some(0.125), 2_861)).build();
        let devices = read(&info).expect("a type").accelerators.expect("accelerators");
        assert_eq!((devices.model.as_str(), devices.count), ("L4-share-0.125", 1));
        assert!(Catalogue::embedded().get(&devices.model).is_none());
    }

    #[test]
    fn what_is_not_sold_here_is_no_type() {
        assert_eq!(read(&plain("g4dn.metal").bare_metal(true).build()), None);
        assert_eq!(read(&plain("t3.large").burstable_performance_supported(true).build()), None);
        let mac = ProcessorInfo::builder().supported_architectures(ArchitectureType::Arm64Mac);
        assert_eq!(read(&plain("mac2.x").processor_info(mac.build()).build()), None);
        assert_eq!(read(&InstanceTypeInfo::builder().build()), None);
        let blocks = plain("p5e.48xlarge")
            .set_supported_usage_classes(Some(vec![UsageClassType::CapacityBlock]));
        let blocks = read(&blocks.build()).expect("a type");
        assert!(!blocks.spot && !blocks.on_demand);
    }
}
