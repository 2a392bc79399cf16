//! All accelerators, each once, whoever saw it.

use petaflop_plan::machine::Accelerator;

/// What one source saw, and what kept it from seeing more.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub devices: Vec<Device>,
    pub notes: Vec<String>,
}

/// An accelerator, and what tells it from others.
#[derive(Debug)]
pub(crate) struct Device {
    pub accelerator: Accelerator,
    pub pci: Option<String>,
}

impl Seen {
    pub(crate) fn add(&mut self, accelerator: Accelerator, pci: Option<String>) {
        self.devices.push(Device { accelerator, pci });
    }

    /// Adds what `self` does not hold yet: `other` knows less of the same devices.
    pub(crate) fn merge(&mut self, other: Seen) {
        let before = self.devices.len();
        for device in other.devices {
            let known = self.devices[..before]
                .iter()
                .any(|known| same(known, &device));
            if !known {
                self.devices.push(device);
            }
        }
        self.notes.extend(other.notes);
    }
}

/// By PCI address, else by UUID; where one of them has neither in common with the
/// other, a device of the same vendor is taken for the same: better one too few than one counted twice.
fn same(a: &Device, b: &Device) -> bool {
    let bare = |id: &str| id.trim_start_matches("GPU-").to_ascii_lowercase();
    match (&a.pci, &b.pci) {
        (Some(a), Some(b)) => a == b,
        _ => {
            bare(&a.accelerator.id) == bare(&b.accelerator.id)
                || a.accelerator.vendor == b.accelerator.vendor
        }
    }
}

/// `00000000:17:00.0` and `0000:17:00.0` are the same place: the second form, in lower case.
pub(crate) fn pci_address(text: &str) -> Option<String> {
    let mut fields = text.trim().split([':', '.']);
    let mut hex = || u32::from_str_radix(fields.next()?, 16).ok();
    let (domain, bus, device, function) = (hex()?, hex()?, hex()?, hex()?);
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}
