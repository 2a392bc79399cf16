//! How fast work goes on a device, how sure that is, and what past runs taught.
//!
//! The model is an additive roofline: a step takes operations ÷ sustained rate + bytes ÷ sustained
//! bandwidth. Sustained is what the machine was measured to do, or what the catalogue says times
//! an efficiency. The answer always comes with a range that about nine runs in ten should fall in,
//! and a device that has been used before is corrected by what it really did.

use serde::{Deserialize, Serialize};

use crate::catalogue::{Accelerator, Catalogue};
use crate::claim::Device;
use crate::decision::Range;
use crate::market::Class;
use crate::offer::{Arch, MeasuredRates};
use crate::support::{Backend, Operation};
use crate::workload::{Precision, ServingWork, TrainingWork};
use crate::world::Assumptions;

/// f32 matrix rate of one rented vCPU of unknown make, 10⁹ operations a second. A vCPU is half a
/// core: at 2.5 GHz with AVX2 its share of the peak is 40, of which a careless neighbour and an
/// unknown generation may leave a third.
const VCPU_GFLOPS: f64 = 12.0;

/// Memory bandwidth of one rented vCPU, 10⁹ bytes a second: a server's 200 over its 80 vCPUs.
const VCPU_GB_S: f64 = 2.5;

/// Share of the matrix rate that whole passes reach on a processor.
const CPU_EFFICIENCY: f64 = 0.6;

/// Share of the best measured matrix rate that whole passes reach on an accelerator.
const OF_MEASURED: f64 = 0.6;

/// Share of the peak rate that whole passes reach on an accelerator of which only the peak is known:
/// measured matrix rates are 0.8 of the peak on NVIDIA and 0.5 on AMD, whole passes 0.6 of that.
const OF_PEAK_CUDA: f64 = 0.45;
const OF_PEAK_OTHER: f64 = 0.3;

/// Share of the vendor's bandwidth that streaming kernels reach.
const OF_BANDWIDTH: f64 = 0.75;

/// Standard deviation of ln(true ÷ estimated rate): where rates were measured on the machine
/// itself, where the device is in the catalogue, and where only a count of vCPUs is known.
const SPREAD_MEASURED: f64 = 0.3;
const SPREAD_CATALOGUE: f64 = 0.45;
const SPREAD_VCPUS: f64 = 0.7;

/// Past runs weigh against the estimate as if the estimate itself were this many runs.
const PRIOR_RUNS: f64 = 2.0;

/// A job's own run on a device says as much about its next one there as this many runs of others.
const OWN_RUNS: u32 = 8;

/// Runs differ by this much (standard deviation of ln) however many were seen.
const SPREAD_FLOOR: f64 = 0.05;

/// Nine in ten of a normal distribution lie within this many standard deviations.
pub(crate) const NINE_IN_TEN: f64 = 1.645;

/// Sustained rates of a device, and how sure they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Operations a second.
    pub flops: f64,
    /// Bytes a second from the memory that computes.
    pub bytes: f64,
    /// Standard deviation of ln(true ÷ estimated).
    pub spread: f64,
}

/// The rates of a class's device, or `None` where nothing is known that an estimate could stand on
/// (no count of vCPUs, a device that is not in the catalogue).
pub fn rates(class: &Class, device: Device, precision: Precision) -> Option<Rates> {
    match device {
        Device::Cpu => cpu_rates(class),
        Device::Accelerators => {
            let row = &Catalogue::embedded().rows()[class.catalogue_row?];
            Some(accelerator_rates(row, precision))
        }
    }
}

fn cpu_rates(class: &Class) -> Option<Rates> {
    let good = |value: f64| value.is_finite() && value > 0.0;
    if let Some(MeasuredRates { gemm_gflops, read_gb_s }) = class.measured
        && good(gemm_gflops)
        && good(read_gb_s)
    {
        return Some(Rates {
            flops: gemm_gflops * 1e9 * CPU_EFFICIENCY,
            bytes: read_gb_s * 1e9,
            spread: SPREAD_MEASURED,
        });
    }
    let vcpus = f64::from(class.vcpu_milli.filter(|milli| *milli > 0)?) / 1000.0;
    Some(Rates {
        flops: vcpus * VCPU_GFLOPS * 1e9 * CPU_EFFICIENCY,
        bytes: vcpus * VCPU_GB_S * 1e9,
        spread: SPREAD_VCPUS,
    })
}

fn accelerator_rates(row: &Accelerator, precision: Precision) -> Rates {
    let of_peak =
        if row.stacks.iter().any(|stack| stack == "cuda") { OF_PEAK_CUDA } else { OF_PEAK_OTHER };
    let tflops = match precision {
        Precision::F32 => row.f32_tflops.map(|peak| peak * of_peak),
        Precision::Bf16 => row
            .bf16_measured_tflops
            .map(|rate| rate * OF_MEASURED)
            .or(row.bf16_tflops.map(|peak| peak * of_peak)),
    };
    Rates {
        // A part without the format computes it at the rate its memory allows at best.
        flops: tflops.unwrap_or(row.memory_gb_s / 1000.0) * 1e12,
        bytes: row.memory_gb_s * 1e9 * OF_BANDWIDTH,
        spread: SPREAD_CATALOGUE,
    }
}

/// Under which key runs on a device are remembered: `H100-SXM/train`, `cpu-x86_64/serve`;
/// processors whose rates were measured apart from those that were only counted.
pub fn correction_key(class: &Class, device: Device, operation: Operation) -> String {
    let device = match (device, &class.accelerators) {
        (Device::Accelerators, Some(devices)) => devices.model.as_str(),
        (Device::Accelerators, None) | (Device::Cpu, _) => {
            match (class.arch, class.measured.is_some()) {
                (Arch::X86_64, false) => "cpu-x86_64",
                (Arch::X86_64, true) => "cpu-x86_64-measured",
                (Arch::Aarch64, false) => "cpu-aarch64",
                (Arch::Aarch64, true) => "cpu-aarch64-measured",
            }
        }
    };
    format!("{device}/{}", operation.as_str())
}

/// Ends the key under which launches at a provider are remembered: `runpod/launch`.
const LAUNCH: &str = "/launch";

/// Under which key launches at a provider are remembered.
pub fn launch_key(provider: &str) -> String {
    format!("{provider}{LAUNCH}")
}

/// Seconds that a launch is estimated to take, from the asking until the job works, where none was measured: what measured
/// ones are held against. `startup_millis` and `fetch_bytes_per_second` as in [`ProviderState`]; a job that goes on, `resumed`,
/// fetches a checkpoint too.
///
/// [`ProviderState`]: crate::world::ProviderState
pub fn launch_seconds(
    startup_millis: i64,
    fetch_bytes_per_second: Option<u64>,
    work: &TrainingWork,
    resumed: bool,
) -> f64 {
    let checkpoint = if resumed { work.checkpoint_bytes } else { 0 };
    let image = Assumptions::default().image_bytes;
    let bytes = image.saturating_add(work.input_bytes).saturating_add(checkpoint);
    let fetch = |rate: u64| bytes as f64 / rate.max(1) as f64;
    startup_millis as f64 / 1_000.0 + fetch_bytes_per_second.map_or(0.0, fetch)
}

/// What past runs taught: for a device and an operation how measured rates compare with estimated ones, for a
/// provider how long launches took beside what was estimated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Corrections {
    /// One for each device and operation that was ever measured, sorted by key.
    pub entries: Vec<Correction>,
}

/// What was learned of one device and operation, or of launches at one provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Correction {
    /// As [`correction_key`] or [`launch_key`] makes it.
    pub key: String,
    /// Sum of ln(measured ÷ estimated): of rates, or of the times that launches took.
    pub sum_ln_ratio: f64,
    /// Runs that were measured.
    pub runs: u32,
}

impl Corrections {
    /// Takes in one run: what it did, and what the *uncorrected* estimate was. Rates that are not
    /// above zero, and ratios beyond 1000 either way (a broken clock), teach nothing.
    pub fn record(&mut self, key: &str, measured: f64, estimated: f64) {
        let ratio = measured / estimated;
        if !(1e-3..=1e3).contains(&ratio) || measured <= 0.0 {
            return;
        }
        let at = self.entries.binary_search_by(|entry| entry.key.as_str().cmp(key));
        let entry = match at {
            Ok(at) => &mut self.entries[at],
            Err(at) => {
                self.entries
                    .insert(at, Correction { key: key.to_owned(), sum_ln_ratio: 0.0, runs: 0 });
                &mut self.entries[at]
            }
        };
        entry.sum_ln_ratio += libm::log(ratio);
        entry.runs = entry.runs.saturating_add(1);
    }

    /// What one run taught, as its own job takes it: nothing where [`Corrections::record`] learns nothing.
    pub fn of_own_run(key: &str, measured: f64, estimated: f64) -> Option<Correction> {
        let mut one = Corrections::default();
        one.record(key, measured, estimated);
        let Correction { key, sum_ln_ratio, runs: _ } = one.entries.pop()?;
        let sum_ln_ratio = sum_ln_ratio * f64::from(OWN_RUNS);
        Some(Correction { key, sum_ln_ratio, runs: OWN_RUNS })
    }

    /// Takes over what others learned.
    pub fn take_in(&mut self, others: &[Correction]) {
        for other in others {
            match self.entries.binary_search_by(|entry| entry.key.cmp(&other.key)) {
                Ok(at) => {
                    let entry = &mut self.entries[at];
                    entry.sum_ln_ratio += other.sum_ln_ratio;
                    entry.runs = entry.runs.saturating_add(other.runs);
                }
                Err(at) => self.entries.insert(at, other.clone()),
            }
        }
    }

    /// Takes over what another process has written of the same runs: of each kind whoever has seen more of
    /// them, and as it is written where both have seen as many. Two that do so write no more in the end.
    pub fn catch_up(&mut self, written: &[Correction]) {
        for other in written {
            match self.entries.binary_search_by(|entry| entry.key.cmp(&other.key)) {
                Ok(at) if self.entries[at].runs > other.runs => {}
                Ok(at) => self.entries[at].clone_from(other),
                Err(at) => self.entries.insert(at, other.clone()),
            }
        }
    }

    /// How many times as long as estimated a launch at a provider usually takes: the mean of ln ratio with the estimate
    /// counted as two launches of ratio 1.
    pub fn launches(&self, provider: &str) -> f64 {
        let is_it = |entry: &&Correction| entry.key.strip_suffix(LAUNCH) == Some(provider);
        let known = self.entries.iter().find(is_it).filter(|known| known.sum_ln_ratio.is_finite());
        known.map_or(1.0, |known| {
            libm::exp(known.sum_ln_ratio / (f64::from(known.runs) + PRIOR_RUNS))
        })
    }

    /// The rates after what was learned, by others and by the job itself: the mean of ln ratio with the estimate counted as
    /// two runs of ratio 1, and the spread of that mean.
    pub fn apply(&self, key: &str, own: Option<&Correction>, rates: Rates) -> Rates {
        let at = self.entries.binary_search_by(|entry| entry.key.as_str().cmp(key));
        let known = at.ok().map(|at| &self.entries[at]);
        let all = known.into_iter().chain(own.filter(|own| own.key == key));
        let (sum_ln_ratio, runs) = all.fold((0.0, 0.0), |(sum, runs), entry| {
            (sum + entry.sum_ln_ratio, runs + f64::from(entry.runs))
        });
        if !sum_ln_ratio.is_finite() || runs == 0.0 {
            return rates;
        }
        let weight = runs + PRIOR_RUNS;
        let factor = libm::exp(sum_ln_ratio / weight);
        Rates {
            flops: rates.flops * factor,
            bytes: rates.bytes * factor,
            spread: (rates.spread * libm::sqrt(PRIOR_RUNS / weight)).max(SPREAD_FLOOR),
        }
    }
}

impl Rates {
    /// Seconds for so many operations and bytes.
    fn seconds(self, flops: f64, bytes: f64) -> f64 {
        flops / self.flops + bytes / self.bytes
    }

    /// A rate with its range.
    fn range(self, expected: f64) -> Range {
        let factor = libm::exp(NINE_IN_TEN * self.spread);
        Range { low: expected / factor, expected, high: expected * factor }
    }

    /// Tokens trained on a second.
    pub fn training(self, work: &TrainingWork) -> Range {
        let step = self.seconds(work.flops_per_step as f64, work.traffic_bytes_per_step as f64);
        self.range(work.tokens_per_step as f64 / step)
    }

    /// Tokens decoded a second with all sequences in use, and milliseconds from one token of a
    /// sequence to the next then.
    pub fn decoding(self, work: &ServingWork) -> (Range, f64) {
        let sequences = f64::from(work.max_sequences.max(1));
        let step = self.seconds(
            sequences * work.flops_per_token as f64,
            work.weight_bytes_per_step as f64 + sequences * work.cache_bytes_per_sequence as f64,
        );
        (self.range(sequences / step), step * 1000.0)
    }
}

/// The backends that could drive a device, in the catalogue's order (the vendor's own first).
pub(crate) fn backends(class: &Class, device: Device) -> impl Iterator<Item = Backend> {
    let stacks: &[String] = match (device, class.catalogue_row) {
        (Device::Accelerators, Some(row)) => &Catalogue::embedded().rows()[row].stacks,
        (Device::Accelerators, None) | (Device::Cpu, _) => &[],
    };
    let cpu = (device == Device::Cpu).then_some(Backend::Cpu);
    cpu.into_iter().chain(stacks.iter().filter_map(|stack| Backend::of_stack(stack)))
}
