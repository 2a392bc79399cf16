//! Whether the machine has the accelerators that it was bought for: looked at once, before the task
//! is started, so that nobody pays for an H100 to train on its processor.
//!
//! Where the image has our runtime, what that detected through the drivers' own libraries counts.
//! An image of the user's has none: there the driver's device files are opened, which the kernel
//! refuses where the driver is not loaded, the device is not passed in, or has fallen off the bus.
//! Whether a device computes right, only its kernels show. Makers other than NVIDIA and AMD cannot
//! be looked for, and are taken at their word.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use petaflop_agent_api::task::Accelerators;
use serde_json::Value;

/// A driver that has not answered after this long does not work.
const LIMIT: Duration = Duration::from_secs(20);

/// Of what a provider says a device has: a card reports a little less than its name says.
const LEAST_PERCENT: u128 = 85;

/// What of the promise is not there, in words; `None`: nothing is missing. `facts` is what the
/// runtime detected, or null; `root` is where the system's files are.
pub(crate) async fn lack(promised: &Accelerators, facts: &Value, root: &Path) -> Option<String> {
    let (wanted, facts, root) = (promised.clone(), facts.clone(), root.to_owned());
    // Opening a broken device may take for ever.
    let look =
        tokio::task::spawn_blocking(move || judge(&wanted, &Seen::of(&wanted, &facts, &root)));
    let why = match tokio::time::timeout(LIMIT, look).await {
        Ok(Ok(why)) => why?,
        Ok(Err(error)) => format!("looking for it failed: {error}"),
        Err(_) => format!("its driver has not answered within {} s", LIMIT.as_secs()),
    };
    let Accelerators { count, model, .. } = promised;
    Some(format!("bought for {count} × {model}, which cannot be used: {why}"))
}

/// A device that a driver shows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Device {
    /// As the driver names it.
    name: String,
    /// Key in the accelerator catalogue, where that is certain.
    model: Option<String>,
    /// Bytes; 0 where nobody told.
    memory: u64,
}

/// What there is of one maker.
#[derive(Debug, Default)]
struct Seen {
    devices: Vec<Device>,
    /// What kept more from being seen.
    notes: Vec<String>,
    /// Nobody here can look for devices of this maker.
    unknown: bool,
}

/// What is missing of the promise.
fn judge(promised: &Accelerators, seen: &Seen) -> Option<String> {
    if seen.unknown {
        return None;
    }
    let is_it = |device: &&Device| {
        let told = device.model.as_deref();
        told.is_none_or(|model| family(model).eq_ignore_ascii_case(family(&promised.model)))
    };
    let is_whole = |device: &&Device| {
        let least = u128::from(promised.memory.unwrap_or(0)) * LEAST_PERCENT / 100;
        device.memory == 0 || u128::from(device.memory) >= least
    };
    let there = seen.devices.iter().filter(is_it).filter(is_whole).count();
    if u32::try_from(there).unwrap_or(u32::MAX) >= promised.count {
        return None;
    }
    let found = seen.devices.iter().map(|device| match device.memory {
        0 => device.name.clone(),
        bytes => format!("{} with {} MiB", device.name, bytes >> 20),
    });
    let found: Vec<String> = found.collect();
    let found = match found.is_empty() {
        true => "no device is there".to_owned(),
        false => format!("{there} of {} will do: {}", found.len(), found.join(", ")),
    };
    Some([vec![found], seen.notes.clone()].concat().join("; "))
}

/// `H100` of `H100-SXM`: forms of one model are told apart by nobody in the same way.
fn family(model: &str) -> &str {
    model.split('-').next().unwrap_or(model)
}

impl Seen {
    fn of(promised: &Accelerators, facts: &Value, root: &Path) -> Self {
        let Some(vendor @ ("nvidia" | "amd")) = promised.vendor.as_deref() else {
            tracing::warn!(model = promised.model, "cannot be looked for: taken at its word");
            return Self { unknown: true, ..Self::default() };
        };
        let opened = if vendor == "nvidia" { nvidia(root) } else { amd(root) };
        match facts["accelerators"].as_array() {
            Some(devices) => Self::detected(vendor, devices, facts, opened),
            None => opened,
        }
    }

    /// What the runtime saw. A device that it knows from the kernel alone may not be passed in.
    fn detected(vendor: &str, devices: &[Value], facts: &Value, opened: Self) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let here = |device: &&Value| {
            device["vendor"] == vendor
                && (device["seen_by"] == "nvml" || !opened.devices.is_empty())
        };
        let devices = devices.iter().filter(here).map(|device| Device {
            name: text(&device["name"]).unwrap_or_default(),
            model: text(&device["catalogue"]),
            memory: device["memory"].as_u64().unwrap_or(0),
        });
        let backend = if vendor == "nvidia" { "cuda" } else { "hip" };
        let said = facts["backends"].as_array().into_iter().flatten();
        let said = said.filter(|one| one["name"] == backend);
        let said = said.filter_map(|one| Some(format!("{backend}: {}", one["reason"].as_str()?)));
        let notes = said.chain(opened.notes).collect();
        Self { devices: devices.collect(), notes, unknown: false }
    }
}

/// NVIDIA's: `/dev/nvidia<minor>`, as many as open; of a device that is in parts, the parts.
fn nvidia(root: &Path) -> Seen {
    let mut seen = Seen::default();
    let names = names(root);
    for (minor, path) in numbered(&root.join("dev"), "nvidia") {
        match open(&path) {
            Ok(()) => {
                let known = names.iter().find(|(known, _)| *known == minor);
                let name = known.map_or_else(|| format!("/dev/nvidia{minor}"), |(_, n)| n.clone());
                seen.devices.push(Device { name, ..Device::default() });
            }
            Err(error) => seen.notes.push(format!("/dev/nvidia{minor}: {error}")),
        }
    }
    // Each part (MIG) has two capabilities: of its memory, and of its processors.
    let parts = numbered(&root.join("dev/nvidia-caps"), "nvidia-cap").len() / 2;
    if !seen.devices.is_empty() {
        let part = || Device { name: "a part of it".to_owned(), ..Device::default() };
        seen.devices.resize_with(parts.max(seen.devices.len()), part);
    }
    seen
}

/// What the driver calls its devices, by their minor number.
fn names(root: &Path) -> Vec<(u32, String)> {
    let folders = entries(&root.join("proc/driver/nvidia/gpus"));
    let texts = folders.iter().filter_map(|gpu| fs::read_to_string(gpu.join("information")).ok());
    let named = texts.filter_map(|text| {
        let field = |name: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
            pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
        };
        Some((field("Device Minor")?.parse().ok()?, field("Model")?))
    });
    named.collect()
}

/// AMD's: the compute nodes of `/dev/kfd` whose render device is there.
fn amd(root: &Path) -> Seen {
    let mut seen = Seen::default();
    if let Err(error) = open(&root.join("dev/kfd")) {
        seen.notes.push(format!("/dev/kfd: {error}"));
        return seen;
    }
    for node in entries(&root.join("sys/class/kfd/kfd/topology/nodes")) {
        let Ok(properties) = fs::read_to_string(node.join("properties")) else { continue };
        let number = |name: &str| {
            let mut words = properties.lines().filter_map(|line| line.split_once(' '));
            words.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse().ok())
        };
        // A processor is a node too, without vector units.
        let (Some(1..), Some(render)) = (number("simd_count"), number("drm_render_minor")) else {
            continue;
        };
        let name = format!("/dev/dri/renderD{render}");
        match open(&root.join(&name[1..])) {
            Ok(()) => seen.devices.push(Device { name, ..Device::default() }),
            Err(error) => seen.notes.push(format!("{name}: {error}")),
        }
    }
    seen
}

fn open(device: &Path) -> std::io::Result<()> {
    File::options().read(true).write(true).open(device).map(drop)
}

/// Files called `prefix` and a number.
fn numbered(folder: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let number = |path: PathBuf| {
        let number = path.file_name()?.to_str()?.strip_prefix(prefix)?.parse().ok()?;
        Some((number, path))
    };
    entries(folder).into_iter().filter_map(number).collect()
}

/// In order; none where there is no such folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GB: u64 = 1_000_000_000;

    fn promised(vendor: &str, count: u32) -> Accelerators {
        let (vendor, model) = (Some(vendor.to_owned()), "H100-SXM".to_owned());
        Accelerators { vendor, model, count, memory: Some(80 * GB) }
    }

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        root
    }

    fn lacks(promised: &Accelerators, facts: &Value, files: &[(&str, &str)]) -> Option<String> {
        judge(promised, &Seen::of(promised, facts, machine(files).path()))
    }

    #[test]
    fn without_our_runtime_the_drivers_device_files_must_open() {
        let driver = (
            "proc/driver/nvidia/gpus/0000:17:00.0/information",
            "Model: \t X\nDevice Minor: \t 0\n",
        );
        let control = ("dev/nvidiactl", "");
        // A driver that is loaded is no device that is passed in.
        let none = lacks(&promised("nvidia", 1), &Value::Null, &[driver, control]);
        assert_eq!(none.as_deref(), Some("no device is there"));
        let one = [driver, control, ("dev/nvidia0", "")];
        assert_eq!(lacks(&promised("nvidia", 1), &Value::Null, &one), None);
        let two = lacks(&promised("nvidia", 2), &Value::Null, &one);
        assert_eq!(two.as_deref(), Some("1 of 1 will do: X"));
        // One that is gone from the bus: there, and not to be opened.
        let gone = [("dev/nvidia0/it-is-a-folder", "")];
        let gone = lacks(&promised("nvidia", 1), &Value::Null, &gone).expect("a lack");
        assert!(gone.starts_with("no device is there; /dev/nvidia0: "), "{gone}");
        // Parts of one device count one by one.
        let caps = ["3", "4", "5", "6"].map(|n| format!("dev/nvidia-caps/nvidia-cap{n}"));
        let parts: Vec<_> = caps.iter().map(|path| (path.as_str(), "")).chain(one).collect();
        assert_eq!(lacks(&promised("nvidia", 2), &Value::Null, &parts), None);
        assert!(lacks(&promised("nvidia", 3), &Value::Null, &parts).is_some());
    }

    #[test]
    fn amds_compute_nodes_count_where_their_render_device_is_passed_in() {
        let node = |n: u32| format!("sys/class/kfd/kfd/topology/nodes/{n}/properties");
        let (cpu, a, b) = (node(0), node(1), node(2));
        let gpus = [
            (cpu.as_str(), "simd_count 0\ndrm_render_minor 0\n"),
            (a.as_str(), "simd_count 1216\ndrm_render_minor 128\n"),
            (b.as_str(), "simd_count 1216\ndrm_render_minor 129\n"),
            ("dev/dri/renderD128", ""),
        ];
        let closed = lacks(&promised("amd", 1), &Value::Null, &gpus).expect("a lack");
        assert!(closed.contains("/dev/kfd: "), "{closed}");
        let open: Vec<_> = gpus.into_iter().chain([("dev/kfd", "")]).collect();
        assert_eq!(lacks(&promised("amd", 1), &Value::Null, &open), None);
        let two = lacks(&promised("amd", 2), &Value::Null, &open).expect("a lack");
        assert!(two.contains("/dev/dri/renderD129: "), "{two}");
    }

    #[test]
    fn what_the_runtime_detected_must_be_what_was_promised() {
        let facts = |seen_by: &str, model: Value, memory: u64| {
            json!({
                "accelerators": [{
                    "name": "NVIDIA X", "vendor": "nvidia", "catalogue": model,
                    "memory": memory, "seen_by": seen_by,
                }],
                "backends": [{ "name": "cuda", "usable": false, "reason": "left: said so" }],
            })
        };
        let one = promised("nvidia", 1);
        assert_eq!(lacks(&one, &facts("nvml", json!("H100-PCIe"), 79 * GB), &[]), None);
        assert_eq!(lacks(&one, &facts("nvml", Value::Null, 0), &[]), None);
        let table = [
            facts("nvml", json!("A100-SXM-80"), 80 * GB),
            facts("nvml", json!("H100-SXM"), 40 * GB),
            // Known from the kernel alone, and not passed in.
            facts("proc", Value::Null, 0),
            json!({ "accelerators": [], "backends": [{ "name": "cuda", "reason": "left: said so" }] }),
        ];
        for wrong in &table {
            let lack = lacks(&one, wrong, &[]).expect("a lack");
            assert!(lack.ends_with("cuda: left: said so"), "{lack}");
        }
        assert_eq!(lacks(&one, &table[2], &[("dev/nvidia0", "")]), None);
        assert!(lacks(&promised("amd", 1), &facts("nvml", Value::Null, 80 * GB), &[]).is_some());
    }

    #[test]
    fn makers_that_nobody_here_can_look_for_are_taken_at_their_word() {
        assert_eq!(lacks(&promised("aws", 1), &Value::Null, &[]), None);
        let nobody = Accelerators { vendor: None, ..promised("nvidia", 1) };
        assert_eq!(lacks(&nobody, &Value::Null, &[]), None);
    }
}
