//! The processor and the memory, as this process may use them.

use petaflop_plan::machine::{Cpu, Memory};

use crate::{
    cgroup::Limits,
    roots::{Roots, count_of_list},
};

/// Flags that kernels are chosen by, now or when faster ones come.
const FEATURES: &[&str] = &[
    // x86-64
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    // AArch64
    "asimd",
    "asimdhp",
    "asimddp",
    "fphp",
    "bf16",
    "i8mm",
    "sve",
    "sve2",
];

/// Without kernel variants: whoever has kernels knows which pass here.
pub(crate) fn cpu(roots: &Roots, limits: &Limits) -> Cpu {
    let info = roots.text("/proc/cpuinfo").unwrap_or_default();
    let here = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let logical = match values(&info, "processor").count() {
        0 => here(),
        n => n as u32,
    };
    let affinity = roots
        .text("/proc/self/status")
        .and_then(|status| count_of_list(values(&status, "Cpus_allowed_list").next()?))
        .filter(|n| *n > 0)
        .unwrap_or(logical)
        .min(logical);
    let allowed = u64::from(affinity) * 1000;
    let allowed = limits.cpu_milli.map_or(allowed, |quota| quota.min(allowed));
    let flags = values(&info, "flags").chain(values(&info, "Features")).next().unwrap_or_default();
    let mut features: Vec<String> = flags
        .split_whitespace()
        .filter(|flag| FEATURES.contains(flag))
        .map(str::to_owned)
        .collect();
    features.sort();
    features.dedup();
    Cpu {
        model: model(&info),
        logical,
        allowed_milli: u32::try_from(allowed).unwrap_or(u32::MAX).max(1),
        variants: Vec::new(),
        features,
        measured: None,
    }
}

/// x86 names the model; AArch64 gives numbers (Arm's Main ID Register: implementer and part).
fn model(info: &str) -> String {
    if let Some(name) = values(info, "model name").next() {
        return name.to_owned();
    }
    let field = |name| values(info, name).next().unwrap_or("?");
    let (implementer, part) = (field("CPU implementer"), field("CPU part"));
    match (implementer, part) {
        ("0x41", "0xd0c") => "Arm Neoverse N1".into(),
        ("0x41", "0xd40") => "Arm Neoverse V1".into(),
        ("0x41", "0xd49") => "Arm Neoverse N2".into(),
        ("0x41", "0xd4f") => "Arm Neoverse V2".into(),
        ("?", "?") => format!("unknown {} processor", std::env::consts::ARCH),
        _ => format!("Arm implementer {implementer} part {part}"),
    }
}

pub(crate) fn memory(roots: &Roots, limits: &Limits) -> Memory {
    let info = roots.text("/proc/meminfo").unwrap_or_default();
    let field = |name| -> Option<u64> {
        let kib = values(&info, name).next()?.strip_suffix("kB")?.trim();
        kib.parse::<u64>().ok()?.checked_mul(1024)
    };
    let total = field("MemTotal").unwrap_or(0);
    // A limit above what is fitted limits nothing.
    let limit = limits.memory.clone().filter(|(limit, _)| total == 0 || *limit < total);
    let free = field("MemAvailable").or(field("MemFree")).unwrap_or(0);
    let available = limits.memory_left.map_or(free, |left| left.min(free));
    Memory {
        total,
        limit: limit.as_ref().map(|(limit, _)| *limit),
        available,
        limit_source: limit.map(|(_, file)| file),
    }
}

/// The values of all lines `name : value`.
fn values<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}
