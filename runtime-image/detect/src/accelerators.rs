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
            let known = self.devices[..before].iter().any(|known| same(known, &device));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(devices: &[(&str, &str, Option<&str>)]) -> Seen {
        let mut seen = Seen::default();
        for (vendor, id, pci) in devices {
            let accelerator = Accelerator {
                name: "a device".into(),
                vendor: (*vendor).into(),
                catalogue: None,
                memory: 1,
                isa: None,
                power_watts: None,
                id: (*id).into(),
                seen_by: "test".into(),
            };
            seen.add(accelerator, pci.map(str::to_owned));
        }
        seen
    }

    fn merged(
        first: &[(&str, &str, Option<&str>)],
        second: &[(&str, &str, Option<&str>)],
    ) -> Vec<String> {
        let mut all = seen(first);
        all.merge(seen(second));
        all.devices.into_iter().map(|d| d.accelerator.id).collect()
    }

    #[test]
    fn a_device_that_several_sources_see_is_one() {
        let (a, b) = (Some("0000:17:00.0"), Some("0000:65:00.0"));
        let two = [("nvidia", "GPU-1", a), ("nvidia", "GPU-2", b)];
        assert_eq!(merged(&two, &[("nvidia", "0000:65:00.0", b)]), ["GPU-1", "GPU-2"]);
        // By UUID, which Vulkan writes without the prefix.
        assert_eq!(merged(&[("nvidia", "GPU-AB", a)], &[("nvidia", "ab", None)]), ["GPU-AB"]);
        // Nothing in common: of the same vendor, so not counted again.
        assert_eq!(merged(&[("amd", "x", None)], &[("amd", "y", b)]), ["x"]);
    }

    #[test]
    fn equal_devices_at_different_places_are_several() {
        let (a, b) = (Some("0000:17:00.0"), Some("0000:65:00.0"));
        assert_eq!(merged(&[("amd", "x", a)], &[("amd", "y", b)]), ["x", "y"]);
        assert_eq!(merged(&[], &[("apple", "x", None), ("apple", "y", None)]), ["x", "y"]);
        assert_eq!(merged(&[("nvidia", "x", a)], &[("amd", "y", None)]), ["x", "y"]);
    }

    #[test]
    fn pci_addresses_are_written_in_one_way() {
        for text in ["00000000:C1:00.0", "0000:c1:00.0", " 0:c1:0.0\n"] {
            assert_eq!(pci_address(text).as_deref(), Some("0000:c1:00.0"));
        }
        for text in ["", "c1:00.0", "0000:xx:00.0", "nonsense"] {
            assert_eq!(pci_address(text), None);
        }
    }
}
