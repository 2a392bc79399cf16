//! The CPU a kernel runs on: the instruction set chosen at start, and threads.

use crate::tune::{Tiles, Tuner};
use rayon::prelude::*;
use std::fmt;
use std::str::FromStr;

/// A family of vector instructions that the kernels are instantiated for. Which
/// one runs never changes a bit of any result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// x86-64 with AVX-512 F, BW, DQ and VL: 16 lanes.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C: 8 lanes.
    Avx2,
    /// AArch64: 4 lanes.
    Neon,
    /// Any processor: plain Rust, with fused multiply-add in software where the
    /// target has none (slow, the same bits).
    Portable,
}

/// The processor lacks the instruction set that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this processor cannot run the {0} kernels; it can run: {available}", available = Isa::list())]
pub struct UnsupportedIsa(pub Isa);

/// The name of no instruction set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown kernel variant {0:?}; expected avx512, avx2, neon or portable")]
pub struct ParseIsaError(pub String);

impl Isa {
    /// What this processor can run, best first; never empty.
    pub fn available() -> Vec<Isa> {
        [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable]
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && Isa::Avx2.is_available()
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            Isa::Portable => true,
            _ => false,
        }
    }

    fn list() -> String {
        Isa::available().iter().map(Isa::to_string).collect::<Vec<_>>().join(", ")
    }

    fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Portable => "portable",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = ParseIsaError;
    fn from_str(s: &str) -> Result<Isa, ParseIsaError> {
        [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable]
            .into_iter()
            .find(|isa| isa.name() == s)
            .ok_or_else(|| ParseIsaError(s.to_owned()))
    }
}

/// Instructions and threads that kernels run on. Neither changes a result.
pub struct Cpu {
    isa: Isa,
    threads: usize,
    pool: Option<rayon::ThreadPool>,
    tuner: Option<Tuner>,
}

impl Cpu {
    /// Takes `isa`, or the best one here, and starts `threads` threads (0 counts as 1).
    ///
    /// # Errors
    /// The processor cannot run `isa`.
    ///
    /// # Panics
    /// The system refuses to start a thread.
    pub fn new(isa: Option<Isa>, threads: usize) -> Result<Cpu, UnsupportedIsa> {
        let isa = isa.unwrap_or_else(|| Isa::available()[0]);
        if !isa.is_available() {
            return Err(UnsupportedIsa(isa));
        }
        let threads = threads.max(1);
        let pool = (threads > 1).then(|| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|i| format!("kernel-{i}"))
                .build()
                .expect("threads can be started")
        });
        Ok(Cpu { isa, threads, pool, tuner: None })
    }

    /// The same, whose products take the tiles that were the fastest.
    pub fn autotuned(self, tuner: Tuner) -> Cpu {
        Cpu { tuner: Some(tuner), ..self }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `f` on this CPU's threads, so that many kernels called in a row do not
    /// each wake them anew. Worth wrapping around a whole training step.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(f),
            None => f(),
        }
    }
}

/// Pointers that tasks on several threads share.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(T);
// SAFETY: whoever made it promised that tasks write disjoint parts.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// # Safety
    /// What it points to is borrowed for as long as the tasks run, and they write
    /// disjoint parts that no other task reads.
    pub(crate) unsafe fn new(pointers: T) -> Shared<T> {
        Shared(pointers)
    }

    /// The pointers.
    pub(crate) fn get(&self) -> T {
        self.0
    }
}

/// Work, in multiply-adds or the like, below which waking threads costs more than it gains.
const SERIAL: usize = 1 << 19;

impl Cpu {
    /// Runs a product of so much `work` with the best of the first `tried` tiles.
    pub(crate) fn tuned<R>(
        &self,
        product: impl FnOnce() -> String,
        tried: usize,
        work: usize,
        f: impl FnOnce(Tiles) -> R,
    ) -> R {
        match &self.tuner {
            Some(tuner) if work >= SERIAL => tuner.run(&product(), tried, f),
            _ => f(Tiles::USUAL),
        }
    }

    /// Runs `f` on every task, on all threads if `work` is worth it. Which thread runs
    /// a task, and in which order, must not matter to the result.
    pub(crate) fn each<T: Send>(
        &self,
        work: usize,
        tasks: impl Iterator<Item = T>,
        f: impl Fn(T) + Sync,
    ) {
        match &self.pool {
            Some(pool) if work >= SERIAL => {
                let tasks: Vec<T> = tasks.collect();
                pool.install(|| tasks.into_par_iter().with_max_len(1).for_each(&f));
            }
            _ => tasks.for_each(f),
        }
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {} threads", self.isa, self.threads)
    }
}
