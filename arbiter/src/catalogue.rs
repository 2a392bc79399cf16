//! The accelerator catalogue: what each device can do, and under which names providers, drivers
//! and node labels speak of it.
//!
//! The table is `data/gpus.csv`, embedded and parsed once. Memory is in the vendor's gigabytes:
//! the same 24 GB card reports 22 888 MiB to one API and 24 564 MiB to another, so requests are
//! compared with [`MEMORY_TOLERANCE_PERCENT`] and plans with whole 10⁹ bytes.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A request for memory is met by a device whose nominal memory is this much smaller: vendors,
/// drivers and clouds disagree about the same card.
pub const MEMORY_TOLERANCE_PERCENT: u64 = 8;

/// Who makes the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Apple.
    Apple,
    /// Intel.
    Intel,
    /// Amazon (Trainium, Inferentia).
    Aws,
}

impl Vendor {
    /// In lower case, as the catalogue writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Vendor::Nvidia => "nvidia",
            Vendor::Amd => "amd",
            Vendor::Apple => "apple",
            Vendor::Intel => "intel",
            Vendor::Aws => "aws",
        }
    }

    /// From the catalogue's or the API's spelling, in any case.
    pub fn from_name(name: &str) -> Option<Vendor> {
        [Vendor::Nvidia, Vendor::Amd, Vendor::Apple, Vendor::Intel, Vendor::Aws]
            .into_iter()
            .find(|vendor| vendor.as_str().eq_ignore_ascii_case(name))
    }
}

/// How sure the figures of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// General knowledge; check before it decides money.
    Low,
    /// Derived, or from a single page.
    Medium,
    /// Read in a table derived from the vendor's.
    High,
}

/// One row: an accelerator model. Rates are of one device, dense, accumulating in f32.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Accelerator {
    /// Key: `H100-SXM`, `A100-PCIe-80`, `MI300X`.
    pub key: String,
    /// Who makes it.
    pub vendor: Vendor,
    /// Generation: `hopper`, `cdna3`.
    pub arch: String,
    /// `SXM5`, `PCIe`, `OAM`, `SoC`.
    pub form: String,
    /// Memory in the vendor's gigabytes.
    pub memory_gb: f64,
    /// Memory bandwidth, 10⁹ bytes a second.
    pub memory_gb_s: f64,
    /// Peak f32, 10¹² operations a second.
    pub f32_tflops: Option<f64>,
    /// Peak bf16 matrix rate.
    pub bf16_tflops: Option<f64>,
    /// Best bf16 matrix rate that was measured.
    pub bf16_measured_tflops: Option<f64>,
    /// Board power in watts; of the whole machine for Apple.
    pub watts: Option<f64>,
    /// Software stacks: `cuda`, `rocm`, `vulkan`, `metal`, `habana`, `neuron`.
    pub stacks: Vec<String>,
    /// Architecture in the vendor's words: `sm_90`, `gfx942`.
    pub isa: String,
    /// RunPod's id of the type, where it rents it.
    pub runpod_id: Option<String>,
    /// AWS instance families that carry it.
    pub aws_families: Vec<String>,
    /// How sure the figures are.
    pub confidence: Confidence,
}

impl Accelerator {
    /// Nominal memory of one device in bytes, at 2³⁰ a gigabyte: for what people ask for.
    pub fn nominal_bytes(&self) -> u64 {
        (self.memory_gb * f64::from(1u32 << 30)) as u64
    }

    /// Memory of one device that a plan may count on, in bytes, at 10⁹ a gigabyte and, for memory
    /// shared with the processor, at the two thirds that Metal lets a process wire.
    pub fn plannable_bytes(&self) -> u64 {
        let bytes = (self.memory_gb * 1e9) as u64;
        if self.vendor == Vendor::Apple { bytes / 3 * 2 } else { bytes }
    }

    /// CUDA compute capability, from the ISA (`sm_90` is 9.0, `sm_103` is 10.3).
    pub fn compute_capability(&self) -> Option<(u32, u32)> {
        let digits: u32 = self.isa.strip_prefix("sm_")?.parse().ok()?;
        Some((digits / 10, digits % 10))
    }

    /// Whether several of them are linked by more than PCIe: boards of these forms are made for that.
    pub fn is_linked(&self) -> bool {
        ["SXM", "OAM", "custom"].iter().any(|form| self.form.starts_with(form))
    }

    /// Whether `name` asks for this model: its key, or the key's beginning up to a dash (`H100`, `A100-SXM`).
    pub fn answers_to(&self, name: &str) -> bool {
        let key = self.key.as_bytes();
        let name = name.as_bytes();
        key.len() >= name.len()
            && key[..name.len()].eq_ignore_ascii_case(name)
            && (key.len() == name.len() || key[name.len()] == b'-')
    }
}

/// The whole table.
#[derive(Debug)]
pub struct Catalogue {
    rows: Vec<Accelerator>,
    by_key: HashMap<String, usize>,
    by_name: HashMap<String, usize>,
}

/// A row of the table that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// Not the CSV form.
    #[error("accelerator catalogue: {0}")]
    Csv(#[from] csv::Error),
    /// A field that does not make sense.
    #[error(
        "accelerator catalogue, line {line}, column {column}: expected {expected}, found {found:?}"
    )]
    Field {
        /// Line of the file, from 1.
        line: u64,
        /// Column's name.
        column: &'static str,
        /// What would do.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// Two rows of one key.
    #[error("accelerator catalogue, line {line}: {key} is there twice")]
    Twice {
        /// Line of the second.
        line: u64,
        /// The key.
        key: String,
    },
}

/// Names that drivers and node labels use beside those in the table, in the normal form of [`normal`].
const OTHER_NAMES: &[(&str, &str)] = &[
    ("h100-80gb-hbm3", "H100-SXM"),
    ("h100-sxm5-80gb", "H100-SXM"),
    ("h100-pcie", "H100-PCIe"),
    ("h100-nvl", "H100-NVL"),
    ("gh200-480gb", "GH200"),
    ("gh200-96gb", "GH200"),
    ("h200", "H200-SXM"),
    ("h200-nvl", "H200-NVL"),
    ("b200", "B200"),
    ("b300-sxm6-ac", "B300"),
    ("gb200", "GB200"),
    ("a100-sxm4-80gb", "A100-SXM-80"),
    ("a100-sxm4-40gb", "A100-SXM-40"),
    ("a100-80gb-pcie", "A100-PCIe-80"),
    ("a100-pcie-80gb", "A100-PCIe-80"),
    ("a100-40gb-pcie", "A100-PCIe-40"),
    ("a100-pcie-40gb", "A100-PCIe-40"),
    ("a10g", "A10G"),
    ("a40", "A40"),
    ("a30", "A30"),
    ("l4", "L4"),
    ("l40", "L40"),
    ("l40s", "L40S"),
    ("rtx-pro-server-6000", "RTX-PRO-6000-SE"),
    ("rtx-6000-ada-generation", "RTX6000-Ada"),
    ("tesla-t4", "T4"),
    ("tesla-t4g", "T4g"),
    ("t4g", "T4g"),
    ("instinct-mi355x", "MI355X"),
    ("instinct-mi350x", "MI350X"),
    ("instinct-mi325x", "MI325X"),
    ("instinct-mi300x", "MI300X"),
    ("instinct-mi300a", "MI300A"),
    ("instinct-mi250x", "MI250X"),
    ("instinct-mi250", "MI250"),
    ("instinct-mi210", "MI210"),
    ("radeon-rx-7900-xtx", "RX7900XTX"),
    ("radeon-pro-w7900", "W7900"),
    ("radeon-pro-v520", "V520"),
    ("m2-ultra", "M2-Ultra-76"),
    ("m3-ultra", "M3-Ultra-80"),
    ("m4-max", "M4-Max-40"),
];

/// PCI device ids of AMD's parts (vendor 1002). Names in sysfs and labels are often missing.
const AMD_DEVICE_IDS: &[(&str, &str)] = &[
    ("740f", "MI210"),
    ("740c", "MI250"),
    ("7408", "MI250X"),
    ("74a0", "MI300A"),
    ("74a1", "MI300X"),
    ("74a9", "MI300X"),
    ("74b5", "MI300X"),
    ("74bd", "MI300X"),
    ("74a5", "MI325X"),
    ("75a0", "MI350X"),
    ("75a3", "MI355X"),
];

/// AWS families whose carrier depends on the size or the host: (family, what the instance type
/// must begin with, key). The first match wins; families with one carrier are read from the table.
const AWS_EXCEPTIONS: &[(&str, &str)] = &[("p5.4xlarge", "H100-SXM"), ("g5g.", "T4g")];

/// Names compared without vendor, case, spaces, underscores and the suffixes that sharing adds.
fn normal(name: &str) -> String {
    let mut text: String = name
        .trim()
        .chars()
        .map(|c| match c {
            ' ' | '_' => '-',
            other => other.to_ascii_lowercase(),
        })
        .collect();
    for prefix in ["nvidia-", "amd-", "apple-", "geforce-"] {
        if let Some(rest) = text.strip_prefix(prefix) {
            text = rest.to_owned();
        }
    }
    for suffix in ["-shared", "-oam"] {
        if let Some(rest) = text.strip_suffix(suffix) {
            text = rest.to_owned();
        }
    }
    text
}

impl Catalogue {
    /// The embedded table.
    pub fn embedded() -> &'static Catalogue {
        static TABLE: OnceLock<Catalogue> = OnceLock::new();
        TABLE.get_or_init(|| {
            Catalogue::parse(include_str!("../data/gpus.csv"))
                .expect("the embedded catalogue is checked by the tests")
        })
    }

    /// Reads a table with the columns of `data/gpus.csv`.
    ///
    /// # Errors
    /// A row that cannot be read, with its line.
    pub fn parse(text: &str) -> Result<Catalogue, CatalogueError> {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let headers = reader.headers()?.clone();
        let column = |name: &'static str| {
            headers.iter().position(|header| header == name).ok_or(CatalogueError::Field {
                line: 1,
                column: name,
                expected: "a column of this name",
                found: headers.iter().collect::<Vec<_>>().join(","),
            })
        };
        let at = Columns {
            key: column("gpu")?,
            vendor: column("vendor")?,
            arch: column("arch")?,
            form: column("form")?,
            memory: column("vram_gb")?,
            bandwidth: column("mem_bw_gb_s")?,
            f32: column("fp32_tflops")?,
            bf16: column("bf16_dense_tflops")?,
            measured: column("bf16_measured_matmul_tflops")?,
            watts: column("tdp_w")?,
            stacks: column("sw_stacks")?,
            isa: column("isa")?,
            runpod: column("runpod_gpu_id")?,
            aws: column("aws_families")?,
            confidence: column("confidence")?,
        };
        let mut rows: Vec<Accelerator> = Vec::new();
        let mut by_key = HashMap::new();
        let mut by_name = HashMap::new();
        for record in reader.records() {
            let record = record?;
            let row = at.read(&record)?;
            let line = record.position().map_or(0, csv::Position::line);
            if by_key.insert(row.key.clone(), rows.len()).is_some() {
                return Err(CatalogueError::Twice { line, key: row.key });
            }
            by_name.entry(normal(&row.key)).or_insert(rows.len());
            if let Some(id) = &row.runpod_id {
                by_name.entry(normal(id)).or_insert(rows.len());
            }
            rows.push(row);
        }
        for (name, key) in OTHER_NAMES {
            if let Some(row) = by_key.get(*key) {
                by_name.entry((*name).to_owned()).or_insert(*row);
            }
        }
        Ok(Catalogue { rows, by_key, by_name })
    }

    /// All rows, in the table's order.
    pub fn rows(&self) -> &[Accelerator] {
        &self.rows
    }

    /// The row of a key.
    pub fn get(&self, key: &str) -> Option<&Accelerator> {
        self.by_key.get(key).map(|&row| &self.rows[row])
    }

    /// Whether `name` asks for a model: as [`Accelerator::answers_to`], and of a model that has no row its
    /// whole name.
    pub fn answers(&self, model: &str, name: &str) -> bool {
        self.get(model).map_or_else(|| model.eq_ignore_ascii_case(name), |row| row.answers_to(name))
    }

    /// Position of a key's row.
    pub(crate) fn position(&self, key: &str) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    /// The row of RunPod's type id, compared exactly.
    pub fn by_runpod_id(&self, id: &str) -> Option<&Accelerator> {
        self.rows.iter().find(|row| row.runpod_id.as_deref() == Some(id))
    }

    /// The row of the accelerator in an AWS instance type (`p5.48xlarge`, `g6f.large`): by family.
    pub fn by_aws_instance_type(&self, instance_type: &str) -> Option<&Accelerator> {
        if let Some((_, key)) =
            AWS_EXCEPTIONS.iter().find(|(prefix, _)| instance_type.starts_with(prefix))
        {
            return self.get(key);
        }
        let (family, _) = instance_type.split_once('.')?;
        self.rows.iter().find(|row| row.aws_families.iter().any(|known| known == family))
    }

    /// The row of a name that a driver, a node label or a provider uses: `NVIDIA-H100-80GB-HBM3`,
    /// `AMD_Instinct_MI300X_OAM`, `Tesla-T4-SHARED`, `Apple M4 Max`, a RunPod id, or a key.
    /// A MIG slice (`…-MIG-1g.10gb`) is not its card and has no row.
    pub fn by_device_name(&self, name: &str) -> Option<&Accelerator> {
        let name = normal(name);
        if name.contains("-mig-") {
            return None;
        }
        self.by_name.get(&name).map(|&row| &self.rows[row])
    }

    /// The row of an AMD part by its PCI device id in hex (`74a1`, with or without `0x`).
    pub fn by_amd_device_id(&self, id: &str) -> Option<&Accelerator> {
        let id = id.trim().trim_start_matches("0x").to_ascii_lowercase();
        let (_, key) = AMD_DEVICE_IDS.iter().find(|(known, _)| *known == id)?;
        self.get(key)
    }
}

/// Where each column is.
struct Columns {
    key: usize,
    vendor: usize,
    arch: usize,
    form: usize,
    memory: usize,
    bandwidth: usize,
    f32: usize,
    bf16: usize,
    measured: usize,
    watts: usize,
    stacks: usize,
    isa: usize,
    runpod: usize,
    aws: usize,
    confidence: usize,
}

impl Columns {
    fn read(&self, record: &csv::StringRecord) -> Result<Accelerator, CatalogueError> {
        let line = record.position().map_or(0, csv::Position::line);
        let text = |index: usize| record.get(index).unwrap_or_default().trim();
        let wrong = |column: &'static str, expected: &'static str, index: usize| {
            CatalogueError::Field { line, column, expected, found: text(index).to_owned() }
        };
        let rate = |column: &'static str, index: usize| match text(index) {
            "" => Ok(None),
            other => match other.parse::<f64>() {
                Ok(value) if value.is_finite() && value > 0.0 => Ok(Some(value)),
                _ => Err(wrong(column, "a number above 0, or nothing", index)),
            },
        };
        let needed = |column: &'static str, index: usize| {
            rate(column, index)?.ok_or_else(|| wrong(column, "a number above 0", index))
        };
        let word = |column: &'static str, index: usize| match text(index) {
            "" => Err(wrong(column, "a word", index)),
            other => Ok(other.to_owned()),
        };
        // "g6f(fraction)" is the family g6f; "vulkan(moltenvk)" is vulkan.
        let list = |index: usize| {
            text(index)
                .split(';')
                .map(|part| part.split('(').next().unwrap_or_default().trim().to_owned())
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
        };
        Ok(Accelerator {
            key: word("gpu", self.key)?,
            vendor: Vendor::from_name(text(self.vendor))
                .ok_or_else(|| wrong("vendor", "nvidia, amd, apple, intel or aws", self.vendor))?,
            arch: word("arch", self.arch)?,
            form: word("form", self.form)?,
            memory_gb: needed("vram_gb", self.memory)?,
            memory_gb_s: needed("mem_bw_gb_s", self.bandwidth)?,
            f32_tflops: rate("fp32_tflops", self.f32)?,
            bf16_tflops: rate("bf16_dense_tflops", self.bf16)?,
            bf16_measured_tflops: rate("bf16_measured_matmul_tflops", self.measured)?,
            watts: rate("tdp_w", self.watts)?,
            stacks: list(self.stacks),
            isa: word("isa", self.isa)?,
            runpod_id: Some(text(self.runpod)).filter(|id| !id.is_empty()).map(str::to_owned),
            aws_families: list(self.aws),
            confidence: match text(self.confidence) {
                "high" => Confidence::High,
                "medium" => Confidence::Medium,
                "low" => Confidence::Low,
                _ => return Err(wrong("confidence", "high, medium or low", self.confidence)),
            },
        })
    }
}
