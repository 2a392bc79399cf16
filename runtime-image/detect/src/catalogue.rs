//! From the names that drivers use to the rows of the accelerator catalogue.
//!
//! Only what is certain: a name that is not here stays without a row, and whoever
//! prices it goes by its memory. Parts of devices (MIG, partitions) have no row.

/// Names without maker and series, blanks for dashes; rows.
const NVIDIA: &[(&str, &str)] = &[
    ("H100 80GB HBM3", "H100-SXM"),
    ("H100 PCIe", "H100-PCIe"),
    ("H100 NVL", "H100-NVL"),
    ("GH200 480GB", "GH200"),
    ("H200", "H200-SXM"),
    ("H200 NVL", "H200-NVL"),
    ("B200", "B200"),
    ("B300", "B300"),
    ("B300 SXM6 AC", "B300"),
    ("GB200", "GB200"),
    ("A100 SXM4 80GB", "A100-SXM-80"),
    ("A100 SXM4 40GB", "A100-SXM-40"),
    ("A100 80GB PCIe", "A100-PCIe-80"),
    ("A100 PCIE 40GB", "A100-PCIe-40"),
    ("A40", "A40"),
    ("A30", "A30"),
    ("A10G", "A10G"),
    ("RTX A6000", "A6000"),
    ("RTX A5000", "A5000"),
    ("L40S", "L40S"),
    ("L40", "L40"),
    ("L4", "L4"),
    ("RTX 6000 Ada Generation", "RTX6000-Ada"),
    ("RTX PRO 6000 Blackwell Workstation Edition", "RTX-PRO-6000-WS"),
    ("RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000-SE"),
    ("RTX PRO 6000 Blackwell Max Q Workstation Edition", "RTX-PRO-6000-MaxQ"),
    ("RTX PRO 4500 Blackwell", "RTX-PRO-4500"),
    ("RTX 5090", "RTX5090"),
    ("RTX 5080", "RTX5080"),
    ("RTX 4090", "RTX4090"),
    ("RTX 4080", "RTX4080"),
    ("RTX 3090", "RTX3090"),
    ("V100 SXM2 16GB", "V100-SXM2-16"),
    ("V100 SXM2 32GB", "V100-SXM2-32"),
    ("V100 PCIE 16GB", "V100-PCIe-16"),
    ("T4", "T4"),
    ("T4G", "T4g"),
];

/// The row of the NVIDIA device that the driver calls so.
pub(crate) fn nvidia(name: &str) -> Option<String> {
    let plain = name.replace('-', " ");
    let plain = plain
        .trim_start_matches("NVIDIA ")
        .trim_start_matches("Tesla ")
        .trim_start_matches("GeForce ");
    NVIDIA.iter().find(|(known, _)| *known == plain).map(|(_, row)| (*row).to_owned())
}

/// The row and the usual name of the AMD device with this PCI device id: names
/// differ between drivers and are often missing, ids do not. A device with two dies is
/// two devices here, each with half of the row's numbers, as its `memory` (bytes) shows.
pub(crate) fn amd(device: u64, memory: u64) -> Option<(&'static str, &'static str)> {
    Some(match device {
        0x740f => ("MI210", "AMD Instinct MI210"),
        0x740c => ("MI250", "AMD Instinct MI250"),
        0x7408 => ("MI250X", "AMD Instinct MI250X"),
        0x74a0 => ("MI300A", "AMD Instinct MI300A"),
        0x74a1 | 0x74a9 | 0x74b5 | 0x74bd => ("MI300X", "AMD Instinct MI300X"),
        0x74a5 => ("MI325X", "AMD Instinct MI325X"),
        0x75a0 => ("MI350X", "AMD Instinct MI350X"),
        0x75a3 => ("MI355X", "AMD Instinct MI355X"),
        // The 7900 XT, with 20 GB, has the same id.
        0x744c if memory > 22 << 30 => ("RX7900XTX", "AMD Radeon RX 7900 XTX"),
        0x7448 => ("W7900", "AMD Radeon PRO W7900"),
        0x7362 => ("V520", "AMD Radeon Pro V520"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CATALOGUE: &str = include_str!("../../../arbiter/data/gpus.csv");

    /// Row and the name that RunPod offers it by, which is the driver's, of all of a vendor's rows.
    fn rows(vendor: &str) -> Vec<(&'static str, &'static str)> {
        let mut lines = CATALOGUE.lines().map(|l| l.split(',').collect::<Vec<_>>());
        let header = lines.next().expect("a header");
        let column = |name| header.iter().position(|h| *h == name).expect(name);
        let (row, maker, name) = (column("gpu"), column("vendor"), column("runpod_gpu_id"));
        lines
            .filter(|fields| fields[maker] == vendor)
            .map(|fields| (fields[row], fields[name]))
            .collect()
    }

    #[test]
    fn every_name_leads_to_a_row_of_the_catalogue() {
        let nvidia = rows("nvidia");
        for (name, row) in NVIDIA {
            assert!(nvidia.iter().any(|(known, _)| known == row), "{name} → {row}");
        }
        let amd_rows = rows("amd");
        let found: Vec<_> = (0..=0xffff).filter_map(|id| amd(id, 24 << 30)).collect();
        assert!(found.len() > 10);
        for (row, name) in found {
            assert!(amd_rows.iter().any(|(known, _)| *known == row), "{name} → {row}");
        }
    }

    #[test]
    fn the_names_that_are_on_offer_lead_to_their_own_rows() {
        let mut tried = 0;
        for (row, name) in rows("nvidia") {
            if !name.is_empty() {
                assert_eq!(nvidia(name).as_deref(), Some(row), "{name}");
                tried += 1;
            }
        }
        assert!(tried > 10, "{tried}");
    }

    #[test]
    fn a_name_that_is_not_certain_has_no_row() {
        for name in
            ["", "NVIDIA", "NVIDIA H100", "NVIDIA A100", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
        {
            assert_eq!(nvidia(name), None, "{name}");
        }
        assert_eq!(amd(0x744c, 20 << 30), None);
    }
}
