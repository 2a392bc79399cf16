//! Made trees of /proc, /sys and /dev, as machines and containers show them.

use std::{fs, os::unix::fs::symlink, path::Path};

use petaflop_device::{Roots, detect};
use petaflop_plan::machine::{Accelerator, Machine};
use proptest::prelude::*;
use tempfile::TempDir;

const GIB: u64 = 1 << 30;
const V1_UNLIMITED: &str = "9223372036854771712\n";

struct Tree(TempDir);

impl Tree {
    /// Eight processors of which this process may use all, 32 GiB of which 20 are free.
    fn machine() -> Self {
        let tree = Self(TempDir::new().expect("temporary folder"));
        let processors: String = (0..8)
            .map(|i| {
                format!(
                    "processor\t: {i}\nmodel name\t: Made Processor 3000\n\
                     flags\t\t: fpu sse4_2 avx2 fma avx512f amx_tile f16c\n\n"
                )
            })
            .collect();
        tree.write("proc/cpuinfo", &processors);
        tree.write("proc/self/status", "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t0-7\n");
        tree.write(
            "proc/meminfo",
            &format!(
                "MemTotal:       {} kB\nMemFree:        100 kB\nMemAvailable:   {} kB\n",
                32 * GIB / 1024,
                20 * GIB / 1024
            ),
        );
        tree
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
        fs::write(path, text).expect("file");
        self
    }

    fn link(&self, at: &str, to: &str) -> &Self {
        let at = self.0.path().join(at);
        fs::create_dir_all(at.parent().expect("has a parent")).expect("folder");
        symlink(to, at).expect("link");
        self
    }

    fn detect(&self) -> Machine {
        detect(&Roots::files_under(self.0.path()))
    }

    fn v2(group: &str) -> Self {
        let tree = Self::machine();
        tree.write("proc/self/cgroup", &format!("0::{group}\n"));
        tree.write(
            "proc/self/mountinfo",
            "22 1 0:21 / /proc rw - proc proc rw\n\
             30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        tree
    }

    fn v1(group: &str) -> Self {
        let tree = Self::machine();
        tree.write(
            "proc/self/cgroup",
            &format!("5:memory:{group}\n4:cpu,cpuacct:{group}\n1:name=systemd:/\n0::/\n"),
        );
        tree.write(
            "proc/self/mountinfo",
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        tree
    }
}

#[test]
fn without_limits_the_whole_machine_is_allowed() {
    let machine = Tree::machine().detect();
    assert_eq!(machine.cpu.model, "Made Processor 3000");
    assert_eq!((machine.cpu.logical, machine.cpu.allowed_milli), (8, 8000));
    assert_eq!(machine.cpu.features, ["amx_tile", "avx2", "avx512f", "f16c", "fma", "sse4_2"]);
    assert_eq!(machine.memory.total, 32 * GIB);
    assert_eq!(machine.memory.available, 20 * GIB);
    assert_eq!((machine.memory.limit, machine.memory.limit_source), (None, None));
    assert!(machine.accelerators.is_empty());
}

#[test]
fn affinity_bounds_the_processors() {
    let tree = Tree::machine();
    tree.write("proc/self/status", "Cpus_allowed_list:\t0,2-3\n");
    assert_eq!(tree.detect().cpu.allowed_milli, 3000);
}

#[test]
fn cgroup_v2_limits_are_found() {
    let tree = Tree::v2("/job");
    tree.write("sys/fs/cgroup/job/cpu.max", "250000 100000\n")
        .write("sys/fs/cgroup/job/memory.max", &(4 * GIB).to_string())
        .write("sys/fs/cgroup/job/memory.high", "max\n")
        .write("sys/fs/cgroup/job/memory.current", &(3 * GIB).to_string())
        .write(
            "sys/fs/cgroup/job/memory.stat",
            &format!("anon 5\nactive_file {GIB}\ninactive_file {GIB}\n"),
        );
    let machine = tree.detect();
    assert_eq!(machine.cpu.allowed_milli, 2500);
    assert_eq!(machine.memory.limit, Some(4 * GIB));
    assert_eq!(machine.memory.limit_source.as_deref(), Some("/sys/fs/cgroup/job/memory.max"));
    // 4 − (3 − 1 − ½)
    assert_eq!(machine.memory.available, 2 * GIB + GIB / 2);
}

#[test]
fn the_least_of_nested_limits_counts_wherever_it_stands() {
    let tree = Tree::v2("/pod/job");
    tree.write("sys/fs/cgroup/pod/cpu.max", "150000 100000\n")
        .write("sys/fs/cgroup/pod/memory.max", &(2 * GIB).to_string())
        .write("sys/fs/cgroup/pod/memory.current", &GIB.to_string())
        .write("sys/fs/cgroup/pod/job/cpu.max", "max 100000\n")
        .write("sys/fs/cgroup/pod/job/memory.max", &(8 * GIB).to_string())
        .write("sys/fs/cgroup/pod/job/memory.current", "0\n");
    let machine = tree.detect();
    assert_eq!(machine.cpu.allowed_milli, 1500);
    assert_eq!(machine.memory.limit, Some(2 * GIB));
    assert_eq!(machine.memory.available, GIB);
    assert_eq!(machine.memory.limit_source.as_deref(), Some("/sys/fs/cgroup/pod/memory.max"));
}

#[test]
fn memory_high_is_a_limit_to_plan_by() {
    let tree = Tree::v2("/");
    tree.write("sys/fs/cgroup/memory.max", &(8 * GIB).to_string())
        .write("sys/fs/cgroup/memory.high", &(6 * GIB).to_string())
        .write("sys/fs/cgroup/memory.current", &GIB.to_string());
    let machine = tree.detect();
    assert_eq!(machine.memory.limit, Some(6 * GIB));
    assert_eq!(machine.memory.available, 5 * GIB);
}

#[test]
fn cgroup_v1_limits_are_found() {
    let tree = Tree::v1("/a/b");
    tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
        .write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "50000\n")
        .write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n")
        .write("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us", "-1\n")
        .write("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us", "100000\n")
        .write("sys/fs/cgroup/memory/memory.limit_in_bytes", V1_UNLIMITED)
        .write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", &(3 * GIB).to_string())
        .write("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", &(2 * GIB).to_string())
        .write(
            "sys/fs/cgroup/memory/a/b/memory.stat",
            &format!("inactive_file 7\ntotal_inactive_file {GIB}\ntotal_active_file 0\n"),
        );
    let machine = tree.detect();
    assert_eq!(machine.cpu.allowed_milli, 500);
    assert_eq!(machine.memory.limit, Some(3 * GIB));
    assert_eq!(machine.memory.available, 2 * GIB);
    assert_eq!(
        machine.memory.limit_source.as_deref(),
        Some("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes")
    );
}

#[test]
fn a_container_that_sees_only_its_own_group_finds_its_limits() {
    let tree = Tree::v1("/docker/abc");
    tree.write(
        "proc/self/mountinfo",
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
    )
    .write("sys/fs/cgroup/memory/memory.limit_in_bytes", &GIB.to_string());
    let machine = tree.detect();
    assert_eq!(machine.memory.limit, Some(GIB));
    // Its usage cannot be read, so only the limit itself bounds what is available.
    assert_eq!(machine.memory.available, GIB);
}

#[test]
fn a_hybrid_system_keeps_a_controller_in_either_hierarchy() {
    let tree = Tree::v1("/");
    tree.write("sys/fs/cgroup/unified/memory.max", &(5 * GIB).to_string());
    tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000")
        .write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
    let machine = tree.detect();
    assert_eq!(machine.memory.limit, Some(5 * GIB));
    assert_eq!(machine.cpu.allowed_milli, 2000);
}

#[test]
fn a_limit_above_what_is_fitted_limits_nothing() {
    let tree = Tree::v2("/");
    tree.write("sys/fs/cgroup/memory.max", &(64 * GIB).to_string());
    assert_eq!(tree.detect().memory.limit, None);
}

/// A card of the display driver and its node of the compute driver.
fn amd(tree: &Tree, card: u32, pci: &str, device: &str, vram: u64, node: Option<&str>) {
    let at = format!("sys/devices/pci/{pci}");
    tree.write(&format!("{at}/vendor"), "0x1002\n")
        .write(&format!("{at}/device"), &format!("{device}\n"))
        .write(&format!("{at}/mem_info_vram_total"), &format!("{vram}\n"))
        .write(&format!("{at}/product_name"), "\n")
        .write(&format!("{at}/hwmon/hwmon3/power1_cap"), "750000000\n")
        .write(&format!("{at}/uevent"), &format!("DRIVER=amdgpu\nPCI_SLOT_NAME={pci}\n"));
    fs::create_dir_all(tree.0.path().join(format!("{at}/drm/renderD{}", 128 + card)))
        .expect("folder");
    tree.link(&format!("sys/class/drm/card{card}/device"), &format!("../../../devices/pci/{pci}"));
    tree.write(&format!("sys/class/drm/card{card}-DP-1/status"), "x");
    if let Some(properties) = node {
        tree.write(
            &format!("sys/class/kfd/kfd/topology/nodes/{}/properties", card + 2),
            properties,
        );
    }
    tree.write(
        "sys/class/kfd/kfd/topology/nodes/0/properties",
        "cpu_cores_count 64\nsimd_count 0\nvendor_id 0\nlocation_id 0\n",
    );
}

#[test]
fn an_mi300x_is_recognised() {
    let tree = Tree::machine();
    let vram = 192 * GIB;
    // 0xc100 → 0000:c1:00.0
    let node = "simd_count 1216\nsimd_per_cu 4\nvendor_id 4098\nlocation_id 49408\ndomain 0\n\
                drm_render_minor 129\ngfx_target_version 90402\n";
    amd(&tree, 1, "0000:c1:00.0", "0x74a1", vram, Some(node));
    let machine = tree.detect();
    assert_eq!(
        machine.accelerators,
        [Accelerator {
            name: "AMD Instinct MI300X".into(),
            vendor: "amd".into(),
            catalogue: Some("MI300X".into()),
            memory: vram,
            isa: Some("gfx942".into()),
            power_watts: Some(750.0),
            id: "0000:c1:00.0".into(),
            seen_by: "sysfs".into(),
        }]
    );
    let hip = &machine.backends[1];
    assert_eq!((hip.name.as_str(), hip.usable), ("hip", false));
    assert!(hip.reason.contains("MI300X"), "{}", hip.reason);
    assert!(hip.reason.contains("/dev/kfd is not there"), "{}", hip.reason);
}

#[test]
fn an_mi250x_is_two_devices() {
    let tree = Tree::machine();
    for (card, pci, location) in [(0, "0000:29:00.0", 0x2900), (1, "0000:2c:00.0", 0x2c00)] {
        let node = format!(
            "simd_count 440\nvendor_id 4098\nlocation_id {location}\ngfx_target_version 90010\n"
        );
        amd(&tree, card, pci, "0x7408", 64 * GIB, Some(&node));
    }
    let seen = tree.detect().accelerators;
    assert_eq!(seen.len(), 2);
    for die in &seen {
        assert_eq!(die.catalogue.as_deref(), Some("MI250X"));
        assert_eq!(die.isa.as_deref(), Some("gfx90a"));
        assert_eq!(die.memory, 64 * GIB);
    }
    assert_ne!(seen[0].id, seen[1].id);
}

#[test]
fn a_partitioned_device_is_its_parts() {
    let tree = Tree::machine();
    let node = "simd_count 152\nvendor_id 4098\nlocation_id 49408\ngfx_target_version 90402\n";
    amd(&tree, 0, "0000:c1:00.0", "0x74a1", 192 * GIB, Some(node));
    for part in 3..10 {
        tree.write(&format!("sys/class/kfd/kfd/topology/nodes/{part}/properties"), node);
    }
    let seen = tree.detect().accelerators;
    assert_eq!(seen.len(), 8);
    assert!(seen.iter().all(|a| a.memory == 24 * GIB));
    assert!(seen.iter().all(|a| a.catalogue.is_none()));
    assert_eq!(seen[7].id, "0000:c1:00.0#7");
}

#[test]
fn a_device_without_its_compute_driver_is_still_seen() {
    let tree = Tree::machine();
    amd(&tree, 0, "0000:03:00.0", "0x744c", 24 * GIB, None);
    amd(&tree, 1, "0000:04:00.0", "0x744c", 20 * GIB, None);
    let seen = tree.detect().accelerators;
    assert_eq!(seen[0].catalogue.as_deref(), Some("RX7900XTX"));
    assert_eq!(seen[0].isa, None);
    // The same id, but the smaller 7900 XT.
    assert_eq!(seen[1].catalogue, None);
    assert_eq!(seen[1].name, "AMD device 0x744c");
}

#[test]
fn nvidia_is_seen_without_nvml() {
    let tree = Tree::machine();
    tree.write(
        "proc/driver/nvidia/gpus/0000:17:00.0/information",
        "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 118\n\
         GPU UUID: \t GPU-3aa1a0f4-0000-1111-2222-333344445555\n\
         Bus Location: \t 0000:17:00.0\n",
    );
    let machine = tree.detect();
    let [gpu] = machine.accelerators.as_slice() else {
        panic!("{:?}", machine.accelerators);
    };
    assert_eq!(gpu.catalogue.as_deref(), Some("H100-SXM"));
    assert_eq!(gpu.id, "GPU-3aa1a0f4-0000-1111-2222-333344445555");
    assert_eq!((gpu.memory, gpu.seen_by.as_str()), (0, "proc"));
    assert!(machine.backends[0].reason.contains("H100"), "{machine:?}");
}

#[test]
fn a_device_whose_driver_is_not_loaded_is_told_of() {
    let tree = Tree::machine();
    let at = "sys/bus/pci/devices/0000:17:00.0";
    tree.write(&format!("{at}/vendor"), "0x10de").write(&format!("{at}/class"), "0x030200");
    let cuda = &tree.detect().backends[0];
    assert!(cuda.reason.contains("0000:17:00.0"), "{}", cuda.reason);
    assert!(cuda.reason.contains("driver is not loaded"), "{}", cuda.reason);
}

#[test]
fn backends_come_in_probing_order_and_the_processor_is_taken() {
    let machine = Tree::machine().detect();
    let names: Vec<&str> = machine.backends.iter().map(|b| b.name.as_str()).collect();
    assert_eq!(names, ["cuda", "hip", "vulkan", "cpu"]);
    let cpu = &machine.backends[3];
    assert!(cpu.usable, "{}", cpu.reason);
    assert!(
        cpu.reason.starts_with(&format!("taken: {} kernels", machine.cpu.variants[0])),
        "{}",
        cpu.reason
    );
    assert_eq!(machine.cpu.variants.last().map(String::as_str), Some("portable"));
}

#[test]
fn an_empty_system_and_one_without_permission_are_no_failure() {
    let empty = Tree(TempDir::new().expect("temporary folder"));
    let machine = empty.detect();
    assert!(machine.cpu.logical >= 1);
    assert_eq!(machine.memory.total, 0);

    let tree = Tree::v2("/job");
    tree.write("sys/fs/cgroup/job/memory.max", &GIB.to_string());
    amd(&tree, 0, "0000:03:00.0", "0x74a1", GIB, None);
    tree.write("dev/kfd", "");
    let forbid = |path: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = tree.0.path().join(path);
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).expect("permissions");
    };
    forbid("sys/fs/cgroup/job/memory.max");
    forbid("dev/kfd");
    let machine = tree.detect();
    let readable = fs::read(tree.0.path().join("dev/kfd")).is_ok();
    if readable {
        eprintln!("running as root, to whom nothing is forbidden: only the panic is tested");
    } else {
        assert_eq!(machine.memory.limit, None);
        let hip = &machine.backends[1];
        assert!(hip.reason.contains("no permission"), "{}", hip.reason);
    }
}

#[test]
fn this_machine_is_described_and_the_report_survives_json() {
    let machine = detect(&Roots::system());
    assert!(machine.memory.total > 0);
    assert!(machine.memory.available <= machine.memory.total);
    assert!(machine.cpu.allowed_milli >= 1);
    assert!(machine.cpu.allowed_milli <= machine.cpu.logical * 1000);
    let json = serde_json::to_string_pretty(&machine).expect("a report is JSON");
    eprintln!("{json}");
    let back: Machine = serde_json::from_str(&json).expect("reads back");
    assert_eq!(back, machine);
}

#[test]
fn rates_are_measured_within_about_the_time_given() {
    let cpu = petaflop_device::backend::cpu(None, 1).expect("a processor");
    let started = std::time::Instant::now();
    let rates = petaflop_device::measure(&cpu, GIB, std::time::Duration::from_millis(200));
    assert!(rates.gemm_gflops.is_finite() && rates.gemm_gflops > 0.1, "{rates:?}");
    assert!(rates.read_gb_s.is_finite() && rates.read_gb_s > 0.1, "{rates:?}");
    // One repetition beyond the time is allowed, on however slow a machine.
    assert!(started.elapsed().as_secs() < 20);
}

const FILES: &[&str] = &[
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/self/status",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "proc/driver/nvidia/gpus/0000:17:00.0/information",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory.current",
    "sys/fs/cgroup/memory.stat",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us",
    "sys/fs/cgroup/memory/memory.limit_in_bytes",
    "sys/class/drm/card0/device/vendor",
    "sys/class/drm/card0/device/device",
    "sys/class/drm/card0/device/uevent",
    "sys/class/drm/card0/device/mem_info_vram_total",
    "sys/class/kfd/kfd/topology/nodes/1/properties",
    "sys/class/kfd/kfd/topology/nodes/1/mem_banks/0/properties",
];

/// Words that such files are made of, put together wrongly, and bytes that no such file holds.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        "0x1002",
        "-1",
        "max",
        "18446744073709551615",
        "0",
        "1",
        "100000",
        ":",
        " ",
        "\n",
        "\t",
        " - ",
        "cgroup",
        "cgroup2",
        "/",
        "..",
        "memory",
        "cpu",
        "processor",
        "MemTotal:",
        "kB",
        "Cpus_allowed_list:",
        "4-2",
        "0-4294967295",
        ",",
        "simd_count",
        "location_id",
        "gfx_target_version",
        "size_in_bytes",
        "PCI_SLOT_NAME=",
        "Model:",
        "Bus Location:",
        "memory.max",
        "inactive_file",
        "36 35 98:0 / /sys/fs/cgroup rw",
        "0::/a/../../b",
    ]);
    let soup = prop::collection::vec(words, 0..40).prop_map(|w| w.concat().into_bytes());
    prop_oneof![soup, prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn garbage_is_read_as_nothing(contents in prop::collection::vec(garbage(), FILES.len())) {
        let dir = TempDir::new().expect("temporary folder");
        for (file, content) in FILES.iter().zip(contents) {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("folder");
            fs::write(path, content).expect("file");
        }
        let machine = detect(&Roots::files_under(dir.path()));
        prop_assert!(machine.cpu.allowed_milli >= 1);
        prop_assert!(machine.backends.iter().any(|b| b.usable));
    }
}
