//! `petaflop-runtime bench`: rates of our kernels and models on this machine, beside its
//! roofline (Williams et al. 2009), measured in the same run: what takes longer to compute at the
//! peak of fused multiply-adds than to move at the rate of a read stream is bound by the one, else
//! by the other.

mod kernels;
mod made_up;
mod serving;
mod training;
mod turns;

use std::{fs, sync::Arc, time::Instant};

use petaflop_device::Roots;
use petaflop_kernel::{
    Cpu,
    bench::{self, Rate},
};
use serde_json::{Map, Value, json};

use crate::{
    bytes::{self, human},
    exit::{Code, Failure, print},
    job::{Compute, On},
};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// All of these at their default sizes
    All {
        #[command(flatten)]
        common: Common,
    },
    /// f32 matrix product
    Gemm {
        #[command(flatten)]
        size: kernels::Gemm,
        #[command(flatten)]
        common: Common,
    },
    /// One row times a packed weight matrix
    Gemv {
        #[command(flatten)]
        size: kernels::Gemv,
        #[command(flatten)]
        common: Common,
    },
    /// Causal attention, forward
    Attention {
        #[command(flatten)]
        size: kernels::Attention,
        #[command(flatten)]
        common: Common,
    },
    /// RMSNorm, forward
    Norm {
        #[command(flatten)]
        size: kernels::Rows,
        #[command(flatten)]
        common: Common,
    },
    /// Cross-entropy of rows of logits
    Loss {
        #[command(flatten)]
        size: kernels::Rows,
        #[command(flatten)]
        common: Common,
    },
    /// Copying memory
    Copy {
        #[command(flatten)]
        size: Stream,
        #[command(flatten)]
        common: Common,
    },
    /// Reading memory
    Read {
        #[command(flatten)]
        size: Stream,
        #[command(flatten)]
        common: Common,
    },
    /// Fused multiply-adds on registers alone
    Fma {
        #[command(flatten)]
        common: Common,
    },
    /// Training steps (forward, backward, clipping, AdamW) of a Llama-shaped model on random tokens
    Training {
        #[command(flatten)]
        shape: training::Shape,
        #[command(flatten)]
        on: On,
        #[command(flatten)]
        common: Common,
    },
    /// The prompt of one sequence through a model of SmolLM2-135M's shape and random weights
    Prefill {
        #[command(flatten)]
        size: serving::Serving,
        #[command(flatten)]
        common: Common,
    },
    /// Tokens of one sequence, one after another, after such a prompt
    Decode {
        #[command(flatten)]
        size: serving::Serving,
        #[command(flatten)]
        common: Common,
    },
    /// From the start of this process to the logits after the first token
    FirstToken {
        #[command(flatten)]
        size: serving::Serving,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args, Debug)]
struct Common {
    /// How long to measure each
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

/// Memory to go through.
#[derive(clap::Args, Debug)]
struct Stream {
    /// Bytes to go through over and over [default: eight times the last cache]
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse)]
    size: Option<u64>,
}

/// Bytes of the read stream beside what is bound by arithmetic, or is not larger itself.
const STREAM: u64 = 256 << 20;

/// Bytes that no cache of this machine holds much of: eight times the last one, or [`STREAM`].
fn beyond_caches() -> u64 {
    let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").into_iter().flatten().flatten();
    let sizes = caches.filter_map(|cache| {
        let text = fs::read_to_string(cache.path().join("size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<u64>().ok()
    });
    ((sizes.max().unwrap_or(0) * 8) << 10).max(STREAM)
}

/// What was measured.
struct Measured {
    what: String,
    rate: Rate,
    /// What else is known of it.
    facts: Map<String, Value>,
}

impl Measured {
    fn new(what: impl Into<String>, rate: Rate) -> Self {
        Self { what: what.into(), rate, facts: Map::new() }
    }

    fn with(mut self, fact: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(fact.to_owned(), value.into());
        self
    }

    /// Adds what the generic variant did of as many tokens, in seconds, where it was measured.
    fn beside_generic(self, tokens: f64, seconds: f64, generic: Option<f64>) -> Self {
        match generic {
            None => self,
            Some(generic) => self
                .with("generic_tokens_per_second", tokens / generic)
                .with("over_generic", generic / seconds),
        }
    }

    /// The members of its JSON object.
    fn members(&self, roofline: &Roofline) -> Map<String, Value> {
        let Self { what, rate, facts } = self;
        let mut members = Map::from_iter([
            ("what".to_owned(), json!(what)),
            ("seconds".to_owned(), json!(rate.seconds)),
        ]);
        let rates = [("gflops", rate.flops, rate.gflops()), ("gb_s", rate.bytes, rate.gb_s())];
        for (name, _, rate) in rates.into_iter().filter(|(_, counted, _)| *counted > 0.0) {
            members.insert(name.to_owned(), json!(rate));
        }
        members.insert("of_roofline".to_owned(), json!(roofline.share(rate)));
        members.extend(facts.clone());
        members
    }
}

/// What this machine does at most, of the same run.
struct Roofline {
    fma_peak_gflops: f64,
    read_gb_s: f64,
}

impl Roofline {
    fn measure(cpu: &Cpu, stream: usize, millis: u64) -> Self {
        Self {
            fma_peak_gflops: bench::fma(cpu, millis).gflops(),
            read_gb_s: bench::read(cpu, stream, millis).gb_s(),
        }
    }

    /// The least time that it allows ÷ the time that was taken. Above 1 where caches hold
    /// what is counted as moved.
    fn share(&self, rate: &Rate) -> f64 {
        let computed = rate.flops / 1e9 / self.fma_peak_gflops;
        let moved = rate.bytes / 1e9 / self.read_gb_s;
        computed.max(moved) / rate.seconds
    }
}

pub(crate) fn run(args: &Args, started: Instant) -> Result<Code, Failure> {
    let (common, size) = match &args.what {
        What::Copy { size, common } | What::Read { size, common } => {
            (common, size.size.unwrap_or_else(beyond_caches))
        }
        What::All { common } | What::Gemv { common, .. } => (common, beyond_caches()),
        What::Gemm { common, .. }
        | What::Attention { common, .. }
        | What::Norm { common, .. }
        | What::Loss { common, .. }
        | What::Fma { common }
        | What::Training { common, .. }
        | What::Prefill { common, .. }
        | What::Decode { common, .. }
        | What::FirstToken { common, .. } => (common, STREAM),
    };
    let machine = petaflop_device::detect(&Roots::system());
    let cpu = Arc::new(common.compute.cpu(&machine)?);
    let millis = (common.seconds.clamp(0.0, 3600.0) * 1000.0) as u64;
    // The stream that the roofline is of must fit beside what is measured.
    let stream =
        usize::try_from(size.min(machine.memory.available / 4)).unwrap_or(usize::MAX).max(64);
    let measured = match &args.what {
        What::All { .. } => all(&cpu, stream, millis)?,
        What::Gemm { size, .. } => vec![size.measure(&cpu, millis)],
        What::Gemv { size, .. } => vec![size.measure(&cpu, stream, millis)],
        What::Attention { size, .. } => vec![size.measure(&cpu, millis)?],
        What::Norm { size, .. } => vec![size.norm(&cpu, millis)],
        What::Loss { size, .. } => vec![size.loss(&cpu, millis)],
        What::Copy { .. } => vec![copy(&cpu, stream, millis)],
        What::Read { .. } => vec![read(&cpu, stream, millis)],
        What::Fma { .. } => vec![Measured::new("fma", bench::fma(&cpu, millis))],
        What::Training { shape, on, .. } => {
            vec![shape.measure(&cpu, on.device(&machine)?, millis)?]
        }
        What::Prefill { size, .. } => vec![size.prefill(&cpu, millis)?],
        What::Decode { size, .. } => vec![size.decode(&cpu, millis)?],
        What::FirstToken { size, .. } => vec![size.first_token(&cpu, started)?],
    };
    let roofline = Roofline::measure(&cpu, stream, millis);
    report(&measured, &roofline, &cpu, common.json)?;
    Ok(Code::Done)
}

fn copy(cpu: &Cpu, bytes: usize, millis: u64) -> Measured {
    Measured::new("copy", bench::copy(cpu, bytes, millis)).with("bytes", bytes)
}

fn read(cpu: &Cpu, bytes: usize, millis: u64) -> Measured {
    Measured::new("read", bench::read(cpu, bytes, millis)).with("bytes", bytes)
}

fn all(cpu: &Arc<Cpu>, stream: usize, millis: u64) -> Result<Vec<Measured>, Failure> {
    let serving = serving::Serving::default();
    let mut all = kernels::all(cpu, stream, millis)?;
    all.extend([
        copy(cpu, stream, millis),
        training::Shape::default().measure(cpu, None, millis)?,
        serving.prefill(cpu, millis)?,
        serving.decode(cpu, millis)?,
    ]);
    Ok(all)
}

/// One JSON object; or a table, and beneath it what else is known where it is of one thing.
fn report(
    measured: &[Measured],
    roofline: &Roofline,
    cpu: &Cpu,
    json: bool,
) -> Result<(), Failure> {
    let machine = json!({
        "isa": cpu.isa().to_string(),
        "threads": cpu.threads(),
        "fma_peak_gflops": roofline.fma_peak_gflops,
        "read_gb_s": roofline.read_gb_s,
    });
    let mut rows: Vec<_> = measured.iter().map(|one| one.members(roofline)).collect();
    if json {
        let object = match &mut rows[..] {
            [one] => {
                one.extend(machine.as_object().cloned().unwrap_or_default());
                json!(one)
            }
            several => json!({ "machine": machine, "rows": several }),
        };
        print(object)?;
        return Ok(());
    }
    print(format_args!(
        "roofline of this run, {} × {} threads: {:.1} GFLOP/s, {:.1} GB/s",
        cpu.isa(),
        cpu.threads(),
        roofline.fma_peak_gflops,
        roofline.read_gb_s
    ))?;
    print(format_args!("{:<38} {:>10} {:>10} {:>12}", "", "GFLOP/s", "GB/s", "of roofline"))?;
    for Measured { what, rate, .. } in measured {
        let shown = |counted: f64, rate: f64| {
            if counted > 0.0 { format!("{rate:.1}") } else { "–".to_owned() }
        };
        let (gflops, gb_s) = (shown(rate.flops, rate.gflops()), shown(rate.bytes, rate.gb_s()));
        let share = 100.0 * roofline.share(rate);
        print(format_args!("{what:<38} {gflops:>10} {gb_s:>10} {share:>10.0} %"))?;
    }
    for (name, value) in measured.iter().flat_map(|one| &one.facts) {
        let people = match value.as_u64() {
            Some(bytes) if name.ends_with("bytes") => format!("  ({})", human(bytes)),
            _ => String::new(),
        };
        print(format_args!("{name:<28} {value}{people}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use petaflop_kernel::bench::Rate;

    use super::Roofline;

    #[test]
    fn the_slower_of_computing_and_moving_is_the_roof() {
        let roofline = Roofline { fma_peak_gflops: 100.0, read_gb_s: 10.0 };
        // Moving 10 GB takes 1 s; computing at the peak 0.5 s.
        let moved = Rate { flops: 50e9, bytes: 10e9, seconds: 2.0 };
        assert!((roofline.share(&moved) - 0.5).abs() < 1e-12);
        assert!((moved.gflops() - 25.0).abs() < 1e-12 && (moved.gb_s() - 5.0).abs() < 1e-12);
        let computed = Rate { flops: 200e9, ..moved };
        assert!((roofline.share(&computed) - 1.0).abs() < 1e-12);
    }
}
