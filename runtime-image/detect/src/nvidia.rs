//! NVIDIA devices: by NVML, which is loaded where the driver is installed, else by
//! what the driver shows under /proc.

use nvml_wrapper::{Device, Nvml, error::NvmlError};
use petaflop_plan::machine::Accelerator;

use crate::{
    accelerators::{Seen, pci_address},
    catalogue,
    roots::{Roots, number, text},
};

/// What was seen, and why not more.
pub(crate) fn look(roots: &Roots) -> Seen {
    let mut seen = Seen::default();
    if roots.drivers() {
        match by_nvml() {
            Ok(found) => return found,
            Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound) => {}
            Err(e) => seen.notes.push(format!("NVML: {e}")),
        }
    }
    for dir in roots.entries("/proc/driver/nvidia/gpus") {
        let Some(information) = text(&dir.join("information")) else {
            continue;
        };
        let field = |name: &str| {
            information.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                let value = value.trim();
                (key.trim() == name && !value.is_empty()).then(|| value.to_owned())
            })
        };
        let Some(name) = field("Model") else {
            continue;
        };
        let pci = field("Bus Location").and_then(|p| pci_address(&p));
        let Some(id) = field("GPU UUID").filter(|uuid| !uuid.contains('?')).or_else(|| pci.clone())
        else {
            continue;
        };
        let accelerator = Accelerator {
            catalogue: catalogue::nvidia(&name),
            name,
            vendor: "nvidia".into(),
            memory: 0,
            isa: None,
            power_watts: None,
            id,
            seen_by: "proc".into(),
        };
        seen.add(accelerator, pci);
    }
    if seen.devices.is_empty()
        && let Some(address) = on_the_bus(roots)
    {
        seen.notes.push(format!("an NVIDIA device is at {address}, but its driver is not loaded"));
    }
    seen
}

/// The PCI address of a display or 3D controller of NVIDIA's.
fn on_the_bus(roots: &Roots) -> Option<String> {
    roots
        .entries("/sys/bus/pci/devices")
        .into_iter()
        .find(|dir| {
            number(&dir.join("vendor")) == Some(0x10de)
                && number(&dir.join("class")).is_some_and(|class| class >> 16 == 0x03)
        })
        .and_then(|dir| pci_address(dir.file_name()?.to_str()?))
}

fn by_nvml() -> Result<Seen, NvmlError> {
    let nvml = Nvml::init()?;
    let mut seen = Seen::default();
    for index in 0..nvml.device_count()? {
        // One device that cannot be asked (fallen off the bus) does not hide the others.
        if let Err(e) = nvml.device_by_index(index).and_then(|device| add(&mut seen, &device)) {
            seen.notes.push(format!("NVML: device {index}: {e}"));
        }
    }
    Ok(seen)
}

fn add(seen: &mut Seen, device: &Device<'_>) -> Result<(), NvmlError> {
    let pci = device.pci_info().ok().and_then(|p| pci_address(&p.bus_id));
    let isa = device.cuda_compute_capability().ok().map(|c| format!("sm_{}{}", c.major, c.minor));
    let enabled = device.mig_mode().is_ok_and(|mode| mode.current == 1);
    if enabled {
        // Work runs on the instances; the whole device is not to be had.
        for index in 0..device.mig_device_count()? {
            // Empty places answer "not found".
            let Ok(instance) = device.mig_device_by_index(index) else {
                continue;
            };
            let accelerator = Accelerator {
                name: instance.name()?,
                vendor: "nvidia".into(),
                catalogue: None,
                memory: instance.memory_info()?.total,
                isa: isa.clone(),
                power_watts: None,
                id: instance.uuid()?,
                seen_by: "nvml".into(),
            };
            seen.add(accelerator, pci.clone());
        }
        return Ok(());
    }
    let name = device.name()?;
    let accelerator = Accelerator {
        catalogue: catalogue::nvidia(&name),
        name,
        vendor: "nvidia".into(),
        memory: device.memory_info()?.total,
        isa,
        power_watts: device
            .power_management_limit()
            .ok()
            .map(|milliwatts| f64::from(milliwatts) / 1000.0),
        id: device.uuid()?,
        seen_by: "nvml".into(),
    };
    seen.add(accelerator, pci);
    Ok(())
}
