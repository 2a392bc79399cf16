//! Instance types. Those with accelerators: sizes from the EC2 API, list prices of us-east-1 as
//! generated on 2026-07-20 (0: not sold by the hour). Those without: sizes as they are, list prices
//! made.

/// An instance type.
#[derive(Clone, Debug)]
pub struct Kind {
    /// `g6.xlarge`.
    pub name: &'static str,
    /// Virtual processors.
    pub vcpus: u32,
    /// GiB of memory.
    pub memory: u32,
    /// What it has beside processors.
    pub accelerator: Option<Accelerator>,
    /// List price, micro-dollars an hour; 0: none.
    pub price: i64,
}

/// Accelerators of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accelerator {
    /// As EC2 calls it: `A100` for both sizes.
    pub name: &'static str,
    /// Thousandths of one: 125 is an eighth.
    pub permille: u32,
    /// MiB of memory of each, or of the part.
    pub mib: u32,
}

impl Accelerator {
    /// Who makes it.
    pub fn maker(&self) -> &'static str {
        match self.name {
            "Radeon Pro V520" => "AMD",
            "Gaudi (HL-205)" => "Habana",
            name if name.starts_with("Inf") || name.starts_with("Train") => "AWS",
            _ => "NVIDIA",
        }
    }
}

/// Which quota a type counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Those without accelerators.
    Standard,
    /// G and VT.
    G,
    /// P2, P3, P4; on demand every P.
    P,
    /// P5, spot.
    P5,
    /// P6, spot.
    P6,
    /// DL.
    Dl,
    /// Inf.
    Inf,
    /// Trn.
    Trn,
}

impl Kind {
    /// Its architecture.
    pub fn architecture(&self) -> &'static str {
        let arm = self.name.starts_with("g5g.") || self.name.starts_with("c7g.");
        if arm { "arm64" } else { "x86_64" }
    }

    /// Which quota it counts against.
    pub fn family(&self, spot: bool) -> Family {
        let name = self.name;
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        match () {
            () if starts(&["inf"]) => Family::Inf,
            () if starts(&["trn"]) => Family::Trn,
            () if starts(&["dl"]) => Family::Dl,
            () if starts(&["g", "vt"]) => Family::G,
            () if starts(&["p5"]) && spot => Family::P5,
            () if starts(&["p6"]) && spot => Family::P6,
            () if starts(&["p"]) => Family::P,
            () => Family::Standard,
        }
    }
}

/// Every type that is known.
pub fn kinds() -> Vec<Kind> {
    let plain = PLAIN.iter().map(|&(name, vcpus, memory, price)| Kind {
        name,
        vcpus,
        memory,
        accelerator: None,
        price,
    });
    let rows = ACCELERATED.iter();
    let accelerated = rows.map(|&(name, vcpus, memory, device, permille, mib, price)| Kind {
        name,
        vcpus,
        memory,
        accelerator: Some(Accelerator { name: device, permille, mib }),
        price,
    });
    plain.chain(accelerated).collect()
}

/// Type, vCPUs, GiB, made list price in micro-dollars an hour.
const PLAIN: &[(&str, u32, u32, i64)] = &[
    ("c7g.large", 2, 4, 72_500),
    ("c7i.large", 2, 4, 89_250),
    ("c7i.xlarge", 4, 8, 178_500),
    ("c7i.2xlarge", 8, 16, 357_000),
    ("m7i.large", 2, 8, 100_800),
    ("m7i.xlarge", 4, 16, 201_600),
    ("r7i.large", 2, 16, 132_300),
];

/// Type, vCPUs, GiB, accelerator, thousandths of it, MiB of each, micro-dollars an hour.
type Row = (&'static str, u32, u32, &'static str, u32, u32, i64);
#[rustfmt::skip]
const ACCELERATED: &[Row] = &[
    ("g4dn.xlarge", 4, 16, "T4", 1000, 16384, 526_000),
    ("g4dn.2xlarge", 8, 32, "T4", 1000, 16384, 752_000),
    ("g4dn.4xlarge", 16, 64, "T4", 1000, 16384, 1_204_000),
    ("g4dn.8xlarge", 32, 128, "T4", 1000, 16384, 2_176_000),
    ("g4dn.12xlarge", 48, 192, "T4", 4000, 16384, 3_912_000),
    ("g4dn.16xlarge", 64, 256, "T4", 1000, 16384, 4_352_000),
    ("g4dn.metal", 96, 384, "T4", 8000, 16384, 7_824_000),
    ("g4ad.xlarge", 4, 16, "Radeon Pro V520", 1000, 8192, 378_530),
    ("g4ad.2xlarge", 8, 32, "Radeon Pro V520", 1000, 8192, 541_170),
    ("g4ad.4xlarge", 16, 64, "Radeon Pro V520", 1000, 8192, 867_000),
    ("g4ad.8xlarge", 32, 128, "Radeon Pro V520", 2000, 8192, 1_734_000),
    ("g4ad.16xlarge", 64, 256, "Radeon Pro V520", 4000, 8192, 3_468_000),
    ("g5g.xlarge", 4, 8, "T4g", 1000, 16384, 420_000),
    ("g5g.2xlarge", 8, 16, "T4g", 1000, 16384, 556_000),
    ("g5g.4xlarge", 16, 32, "T4g", 1000, 16384, 828_000),
    ("g5g.8xlarge", 32, 64, "T4g", 1000, 16384, 1_372_000),
    ("g5g.16xlarge", 64, 128, "T4g", 2000, 16384, 2_744_000),
    ("g5g.metal", 64, 128, "T4g", 2000, 16384, 2_744_000),
    ("g5.xlarge", 4, 16, "A10G", 1000, 22888, 1_006_000),
    ("g5.2xlarge", 8, 32, "A10G", 1000, 22888, 1_212_000),
    ("g5.4xlarge", 16, 64, "A10G", 1000, 22888, 1_624_000),
    ("g5.8xlarge", 32, 128, "A10G", 1000, 22888, 2_448_000),
    ("g5.12xlarge", 48, 192, "A10G", 4000, 22888, 5_672_000),
    ("g5.16xlarge", 64, 256, "A10G", 1000, 22888, 4_096_000),
    ("g5.24xlarge", 96, 384, "A10G", 4000, 22888, 8_144_000),
    ("g5.48xlarge", 192, 768, "A10G", 8000, 22888, 16_288_000),
    ("g6.xlarge", 4, 16, "L4", 1000, 22888, 804_800),
    ("g6.2xlarge", 8, 32, "L4", 1000, 22888, 977_600),
    ("g6.4xlarge", 16, 64, "L4", 1000, 22888, 1_323_200),
    ("g6.8xlarge", 32, 128, "L4", 1000, 22888, 2_014_400),
    ("g6.12xlarge", 48, 192, "L4", 4000, 22888, 4_601_600),
    ("g6.16xlarge", 64, 256, "L4", 1000, 22888, 3_396_800),
    ("g6.24xlarge", 96, 384, "L4", 4000, 22888, 6_675_200),
    ("g6.48xlarge", 192, 768, "L4", 8000, 22888, 13_350_400),
    ("gr6.4xlarge", 16, 128, "L4", 1000, 22888, 1_539_200),
    ("gr6.8xlarge", 32, 256, "L4", 1000, 22888, 2_446_400),
    ("g6f.large", 2, 8, "L4", 125, 2861, 202_000),
    ("g6f.xlarge", 4, 16, "L4", 125, 2861, 237_500),
    ("g6f.2xlarge", 8, 32, "L4", 250, 5722, 475_000),
    ("g6f.4xlarge", 16, 64, "L4", 500, 11444, 950_000),
    ("gr6f.4xlarge", 16, 128, "L4", 500, 11444, 1_066_000),
    ("g6e.xlarge", 4, 32, "L40S", 1000, 45776, 1_861_000),
    ("g6e.2xlarge", 8, 64, "L40S", 1000, 45776, 2_242_080),
    ("g6e.4xlarge", 16, 128, "L40S", 1000, 45776, 3_004_240),
    ("g6e.8xlarge", 32, 256, "L40S", 1000, 45776, 4_528_560),
    ("g6e.12xlarge", 48, 384, "L40S", 4000, 45776, 10_492_640),
    ("g6e.16xlarge", 64, 512, "L40S", 1000, 45776, 7_577_190),
    ("g6e.24xlarge", 96, 768, "L40S", 4000, 45776, 15_065_590),
    ("g6e.48xlarge", 192, 1536, "L40S", 8000, 45776, 30_131_180),
    ("g7.2xlarge", 8, 32, "RTX PRO 4500", 1000, 32768, 2_520_000),
    ("g7.4xlarge", 16, 64, "RTX PRO 4500", 1000, 32768, 3_042_080),
    ("g7.8xlarge", 32, 128, "RTX PRO 4500", 1000, 32768, 4_086_240),
    ("g7.12xlarge", 48, 192, "RTX PRO 4500", 2000, 32768, 7_128_320),
    ("g7.24xlarge", 96, 384, "RTX PRO 4500", 4000, 32768, 14_256_640),
    ("g7.48xlarge", 192, 768, "RTX PRO 4500", 8000, 32768, 28_513_280),
    ("g7e.2xlarge", 8, 64, "RTX PRO Server 6000", 1000, 98304, 3_363_120),
    ("g7e.4xlarge", 16, 128, "RTX PRO Server 6000", 1000, 98304, 3_998_160),
    ("g7e.8xlarge", 32, 256, "RTX PRO Server 6000", 1000, 98304, 5_268_240),
    ("g7e.12xlarge", 48, 512, "RTX PRO Server 6000", 2000, 98304, 8_286_080),
    ("g7e.24xlarge", 96, 1024, "RTX PRO Server 6000", 4000, 98304, 16_572_160),
    ("g7e.48xlarge", 192, 2048, "RTX PRO Server 6000", 8000, 98304, 33_144_320),
    ("p3.2xlarge", 8, 61, "V100", 1000, 16384, 3_060_000),
    ("p3.8xlarge", 32, 244, "V100", 4000, 16384, 12_240_000),
    ("p3.16xlarge", 64, 488, "V100", 8000, 16384, 24_480_000),
    ("p3dn.24xlarge", 96, 768, "V100", 8000, 32768, 31_212_000),
    ("p4d.24xlarge", 96, 1152, "A100", 8000, 40960, 21_957_642),
    ("p4de.24xlarge", 96, 1152, "A100", 8000, 81920, 27_447_050),
    ("p5.4xlarge", 16, 256, "H100", 1000, 81920, 6_880_000),
    ("p5.48xlarge", 192, 2048, "H100", 8000, 81920, 55_040_000),
    ("p5e.48xlarge", 192, 2048, "H200", 8000, 144384, 0),
    ("p5en.48xlarge", 192, 2048, "H200", 8000, 144384, 63_296_000),
    ("p6-b200.48xlarge", 192, 2048, "B200", 8000, 183359, 113_932_800),
    ("p6-b300.48xlarge", 192, 4096, "B300", 8000, 275040, 142_416_000),
    ("inf1.xlarge", 4, 8, "Inferentia", 1000, 8192, 228_000),
    ("inf1.2xlarge", 8, 16, "Inferentia", 1000, 8192, 362_000),
    ("inf1.6xlarge", 24, 48, "Inferentia", 4000, 8192, 1_180_000),
    ("inf1.24xlarge", 96, 192, "Inferentia", 16000, 8192, 4_721_000),
    ("inf2.xlarge", 4, 16, "Inferentia2", 1000, 32768, 758_200),
    ("inf2.8xlarge", 32, 128, "Inferentia2", 1000, 32768, 1_967_860),
    ("inf2.24xlarge", 96, 384, "Inferentia2", 6000, 32768, 6_490_630),
    ("inf2.48xlarge", 192, 768, "Inferentia2", 12000, 32768, 12_981_270),
    ("trn1.2xlarge", 8, 32, "Trainium", 1000, 32768, 1_343_750),
    ("trn1.32xlarge", 128, 512, "Trainium", 16000, 32768, 21_500_000),
    ("trn1n.32xlarge", 128, 512, "Trainium", 16000, 32768, 24_780_000),
    ("trn2.3xlarge", 12, 128, "Trainium2", 1000, 524288, 0),
    ("trn2.48xlarge", 192, 2048, "Trainium2", 16000, 524288, 0),
    ("dl1.24xlarge", 96, 768, "Gaudi (HL-205)", 8000, 32768, 13_109_040),
];
