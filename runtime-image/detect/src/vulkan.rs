//! Whatever Vulkan sees: through the loader of the system, where there is one.

use std::ffi::CStr;

use ash::{Entry, Instance, vk};
use petaflop_plan::machine::Accelerator;

use crate::{accelerators::Seen, catalogue, roots::Roots};

/// What was seen, and why not more.
pub(crate) fn look(roots: &Roots) -> Seen {
    let mut seen = Seen::default();
    if !roots.drivers() {
        return seen;
    }
    // SAFETY: runs the initialisers of the system's own Vulkan loader; this
    // process has not replaced it and does not unload it while in use.
    let entry = match unsafe { Entry::load() } {
        Ok(entry) => entry,
        Err(_) => {
            seen.notes.push("no Vulkan loader on this system".into());
            return seen;
        }
    };
    let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_1);
    let create = vk::InstanceCreateInfo::default().application_info(&application);
    // SAFETY: `create` and what it points to live through the call; no extension
    // or layer is asked for. The instance is destroyed below, before `entry` goes.
    let instance = match unsafe { entry.create_instance(&create, None) } {
        Ok(instance) => instance,
        Err(e) => {
            seen.notes.push(format!("no Vulkan driver: {e}"));
            return seen;
        }
    };
    // SAFETY: the instance is alive.
    match unsafe { instance.enumerate_physical_devices() } {
        Ok(devices) if devices.is_empty() => seen.notes.push("Vulkan lists no device".into()),
        Ok(devices) => {
            for device in devices {
                add(&mut seen, &instance, device);
            }
        }
        Err(e) => seen.notes.push(format!("Vulkan lists no device: {e}")),
    }
    // SAFETY: made above, used nowhere else, and nothing made from it is left.
    unsafe { instance.destroy_instance(None) };
    seen
}

fn add(seen: &mut Seen, instance: &Instance, device: vk::PhysicalDevice) {
    // SAFETY: `device` was listed by this living instance, here and below.
    let plain = unsafe { instance.get_physical_device_properties(device) };
    let name =
        plain.device_name_as_c_str().unwrap_or(c"unnamed device").to_string_lossy().into_owned();
    if plain.device_type == vk::PhysicalDeviceType::CPU {
        seen.notes.push(format!("`{name}` is this processor, emulating a device"));
        return;
    }
    let (uuid, pci) = identity(instance, device, plain.api_version);
    // SAFETY: as above.
    let memory = unsafe { instance.get_physical_device_memory_properties(device) };
    let bytes = memory
        .memory_heaps_as_slice()
        .iter()
        .filter(|heap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
        .map(|heap| heap.size)
        .fold(0u64, u64::saturating_add);
    let vendor = match plain.vendor_id {
        0x10de => "nvidia",
        0x1002 => "amd",
        0x8086 => "intel",
        0x106b => "apple",
        _ => "other",
    };
    let row = match vendor {
        "nvidia" => catalogue::nvidia(&name),
        "amd" => catalogue::amd(plain.device_id.into(), bytes).map(|(row, _)| row.to_owned()),
        _ => None,
    };
    let accelerator = Accelerator {
        name,
        vendor: vendor.into(),
        catalogue: row,
        memory: bytes,
        isa: None,
        power_watts: None,
        id: pci.clone().unwrap_or(uuid),
        seen_by: "vulkan".into(),
    };
    seen.add(accelerator, pci);
}

/// The device's UUID, which is stable across processes, and its PCI address where the driver tells.
fn identity(
    instance: &Instance,
    device: vk::PhysicalDevice,
    api_version: u32,
) -> (String, Option<String>) {
    if api_version < vk::API_VERSION_1_1 {
        return ("vulkan".into(), None);
    }
    // SAFETY: `device` belongs to this living instance.
    let extensions =
        unsafe { instance.enumerate_device_extension_properties(device) }.unwrap_or_default();
    let has_pci = extensions.iter().any(|e| {
        e.extension_name_as_c_str().unwrap_or(c"") as &CStr == ash::ext::pci_bus_info::NAME
    });
    let mut id = vk::PhysicalDeviceIDProperties::default();
    let mut bus = vk::PhysicalDevicePCIBusInfoPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut id);
    if has_pci {
        properties = properties.push_next(&mut bus);
    }
    // SAFETY: device and instance as above, both of version 1.1 or later; the
    // chain holds the bus structure only where its extension is supported.
    unsafe { instance.get_physical_device_properties2(device, &mut properties) };
    let hex: String = id.device_uuid.iter().map(|b| format!("{b:02x}")).collect();
    let uuid =
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    let pci = has_pci.then(|| {
        format!(
            "{:04x}:{:02x}:{:02x}.{:x}",
            bus.pci_domain, bus.pci_bus, bus.pci_device, bus.pci_function
        )
    });
    (uuid, pci)
}
