//! AMD devices: the compute nodes of the kernel driver (kfd), joined by render
//! node and PCI address with what the display driver (drm) says of the board. A
//! device with two dies, or one that is partitioned, is several.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use petaflop_plan::machine::Accelerator;

use crate::{
    accelerators::{Seen, pci_address},
    catalogue,
    roots::{Roots, entries, number, text, word},
};

const VENDOR: u64 = 0x1002;

/// What was seen, and why not more.
pub(crate) fn look(roots: &Roots) -> Seen {
    let boards = boards(roots);
    let nodes = nodes(roots);
    let mut seen = Seen::default();
    for board in &boards {
        let own: Vec<&Node> = nodes
            .iter()
            .filter(|node| match &board.pci {
                Some(pci) => node.pci.as_ref() == Some(pci),
                None => node.render.is_some() && node.render == board.render,
            })
            .collect();
        if own.is_empty() {
            seen.add(board.accelerator(None, None, 1), board.pci.clone());
        }
        for (index, node) in own.iter().enumerate() {
            let part = (own.len() > 1).then_some(index);
            seen.add(board.accelerator(Some(node), part, own.len() as u64), board.pci.clone());
        }
    }
    if !seen.devices.is_empty() {
        let device = roots.path("/dev/kfd");
        match std::fs::File::options().read(true).write(true).open(device) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => seen.notes.push(
                "/dev/kfd: no permission (add the user to the groups render and video)".into(),
            ),
            Err(_) => {
                seen.notes.push("/dev/kfd is not there (load amdgpu, or pass the device in)".into())
            }
        }
    }
    seen
}

/// A card of the display driver.
struct Board {
    dir: PathBuf,
    device: u64,
    pci: Option<String>,
    render: Option<u64>,
}

impl Board {
    /// One of `of` equal parts of the board, where it is in parts.
    fn accelerator(&self, node: Option<&Node>, part: Option<usize>, of: u64) -> Accelerator {
        let address = self.pci.clone().unwrap_or_else(|| {
            let name = self.dir.parent().and_then(Path::file_name);
            name.unwrap_or_default().to_string_lossy().into_owned()
        });
        let board_memory = number(&self.dir.join("mem_info_vram_total"));
        let known = catalogue::amd(self.device, board_memory.unwrap_or(0));
        let name = word(&self.dir.join("product_name"))
            .or_else(|| known.map(|(_, name)| name.to_owned()))
            .unwrap_or_else(|| format!("AMD device 0x{:04x}", self.device));
        let node_memory = node.and_then(|node| node.memory);
        Accelerator {
            name,
            vendor: "amd".into(),
            // A part of a partitioned device is not the device in the catalogue.
            catalogue: known.filter(|_| part.is_none()).map(|(key, _)| key.to_owned()),
            memory: match part {
                None => board_memory.or(node_memory).unwrap_or(0),
                Some(_) => node_memory.or(board_memory.map(|bytes| bytes / of)).unwrap_or(0),
            },
            isa: node.and_then(|node| node.isa.clone()),
            power_watts: entries(&self.dir.join("hwmon"))
                .iter()
                .find_map(|hwmon| number(&hwmon.join("power1_cap")))
                .map(|microwatts| microwatts as f64 / 1e6),
            id: match part {
                None => address,
                Some(part) => format!("{address}#{part}"),
            },
            seen_by: "sysfs".into(),
        }
    }
}

fn boards(roots: &Roots) -> Vec<Board> {
    let mut boards = BTreeMap::new();
    for card in roots.entries("/sys/class/drm") {
        let name = card.file_name().unwrap_or_default().to_string_lossy();
        // `card0-DP-1` is a socket of card0.
        let is_card = name
            .strip_prefix("card")
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let dir = card.join("device");
        if !is_card || number(&dir.join("vendor")) != Some(VENDOR) {
            continue;
        }
        let Some(device) = number(&dir.join("device")) else {
            continue;
        };
        let pci = text(&dir.join("uevent")).and_then(|uevent| {
            uevent.lines().find_map(|line| pci_address(line.strip_prefix("PCI_SLOT_NAME=")?))
        });
        let render = entries(&dir.join("drm")).iter().find_map(|entry| {
            let name = entry.file_name()?.to_str()?;
            name.strip_prefix("renderD")?.parse().ok()
        });
        let order = (pci.clone(), card.clone());
        let board = Board { dir, device, pci, render };
        boards.insert(order, board);
    }
    boards.into_values().collect()
}

/// A compute node of the kernel driver.
struct Node {
    isa: Option<String>,
    memory: Option<u64>,
    render: Option<u64>,
    pci: Option<String>,
}

fn nodes(roots: &Roots) -> Vec<Node> {
    let mut dirs = roots.entries("/sys/class/kfd/kfd/topology/nodes");
    dirs.sort_by_key(|dir| {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        name.parse::<u64>().unwrap_or(u64::MAX)
    });
    dirs.iter().filter_map(|dir| node(dir)).collect()
}

fn node(dir: &Path) -> Option<Node> {
    let properties = text(&dir.join("properties"))?;
    let get = |name| property(&properties, name);
    // Processors are nodes, too; they have no SIMD units.
    if get("simd_count")? == 0 || get("vendor_id").is_some_and(|vendor| vendor != VENDOR) {
        return None;
    }
    let memory = entries(&dir.join("mem_banks"))
        .iter()
        .filter_map(|bank| property(&text(&bank.join("properties"))?, "size_in_bytes"))
        .fold(0u64, u64::saturating_add);
    let pci = get("location_id").map(|id| {
        let domain = get("domain").unwrap_or(0);
        // Bus, device and function, as the kernel packs them; what is above is the partition.
        let (bus, device, function) = (id >> 8 & 0xff, id >> 3 & 0x1f, id & 0x7);
        format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    });
    Some(Node {
        isa: get("gfx_target_version").filter(|v| *v > 0).map(gfx),
        memory: (memory > 0).then_some(memory),
        render: get("drm_render_minor"),
        pci,
    })
}

/// 90402 → gfx942, 90010 → gfx90a, 110000 → gfx1100: major·10000 + minor·100 + step, the last two in hex.
fn gfx(version: u64) -> String {
    let (major, minor, step) = (version / 10_000, version / 100 % 100, version % 100);
    format!("gfx{major}{minor:x}{step:x}")
}

fn property(properties: &str, name: &str) -> Option<u64> {
    properties.lines().find_map(|line| {
        let value = line.trim().strip_prefix(name)?.strip_prefix(' ')?;
        value.trim().parse().ok()
    })
}
