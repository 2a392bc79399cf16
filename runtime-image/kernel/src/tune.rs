//! Autotuning of products: which tiles each kind of product takes.
//!
//! Tiles change no bit of a result, so that the calls themselves are the measurement: the first
//! calls of a kind take [`TILES`] in turn, [`ROUNDS`] times, and the fastest is kept. Nothing is
//! computed twice, and what tries may lose over the usual tiles is bounded.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How a product is cut. Its working memory stays within that of the usual tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Most rows of a task.
    pub(crate) rows: usize,
    /// Steps of k between which a tile's chains stay in registers; a multiple of 32.
    pub(crate) steps: usize,
    /// Most panels of a task whose k has several blocks.
    pub(crate) panels: usize,
    /// Tasks wanted for each thread.
    pub(crate) tasks: usize,
    /// Rows up to which a quantised panel is read as it is; above, it is made f32 once a block.
    pub(crate) direct: usize,
}

impl Tiles {
    /// What is taken where nothing was measured.
    pub(crate) const USUAL: Tiles =
        Tiles { rows: 120, steps: 256, panels: 10, tasks: 4, direct: 8 };
}

/// All that are tried, the usual ones first.
pub const TILES: [Tiles; 10] = [
    Tiles::USUAL,
    Tiles { tasks: 2, ..Tiles::USUAL },
    Tiles { tasks: 8, ..Tiles::USUAL },
    Tiles { rows: 48, panels: 20, ..Tiles::USUAL },
    Tiles { rows: 240, panels: 5, ..Tiles::USUAL },
    Tiles { steps: 128, ..Tiles::USUAL },
    Tiles { steps: 512, panels: 7, ..Tiles::USUAL },
    Tiles { rows: 72, steps: 384, ..Tiles::USUAL },
    // From here on for quantised weights only.
    Tiles { direct: 0, ..Tiles::USUAL },
    Tiles { direct: 32, ..Tiles::USUAL },
];
/// How many of them make a difference where weights are f32.
pub(crate) const F32_TILES: usize = 8;
const USUAL: usize = 0;

/// Times that each is tried.
pub const ROUNDS: usize = 3;
/// Others than the usual tiles must take less than this share of their time.
const BETTER: f64 = 0.97;

/// Which of [`TILES`] by product: what the best tiles depend on, in words.
pub type Table = BTreeMap<String, usize>;

/// Chooses tiles, by what earlier calls took.
pub struct Tuner {
    state: Mutex<State>,
    budget: Duration,
    decided: Box<dyn Fn(&Table) + Send + Sync>,
}

#[derive(Default)]
struct State {
    table: Table,
    trials: BTreeMap<String, Trial>,
    lost: Duration,
}

/// The least time of each of [`TILES`], and how many calls were begun.
struct Trial {
    least: [Duration; TILES.len()],
    begun: usize,
}

/// Which of [`TILES`] a call takes.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// Without looking at the time.
    Settled(usize),
    /// And its time is wanted.
    Try(usize),
}

impl Tuner {
    /// Begins with what is known. All tries together may lose `budget` over the usual tiles;
    /// `decided` gets the whole table each time that it has grown.
    pub fn new(
        known: Table,
        budget: Duration,
        decided: impl Fn(&Table) + Send + Sync + 'static,
    ) -> Tuner {
        let state = Mutex::new(State { table: known, ..State::default() });
        Tuner { state, budget, decided: Box::new(decided) }
    }

    /// Runs a product with the tiles that are best, or that it is the turn of.
    pub(crate) fn run<R>(&self, product: &str, tried: usize, f: impl FnOnce(Tiles) -> R) -> R {
        let turn = match self.lock().choose(product, tried, self.budget) {
            Turn::Settled(tiles) => return f(TILES[tiles]),
            Turn::Try(tiles) => tiles,
        };
        let before = Instant::now();
        let result = f(TILES[turn]);
        let taken = before.elapsed();
        let grown = {
            let mut state = self.lock();
            state.took(product, tried, turn, taken).then(|| state.table.clone())
        };
        if let Some(table) = grown {
            (self.decided)(&table);
        }
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A table is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What a call takes, of the first `tried` of [`TILES`].
    fn choose(&mut self, product: &str, tried: usize, budget: Duration) -> Turn {
        if let Some(tiles) = self.table.get(product) {
            return Turn::Settled(*tiles);
        }
        let fresh = || Trial { least: [Duration::MAX; TILES.len()], begun: 0 };
        let trial = self.trials.entry(product.to_owned()).or_insert_with(fresh);
        if self.lost >= budget || trial.begun >= tried * ROUNDS {
            return Turn::Settled(USUAL);
        }
        trial.begun += 1;
        Turn::Try((trial.begun - 1) % tried)
    }

    /// Notes a call's time. Whether that was the last that was missing.
    fn took(&mut self, product: &str, tried: usize, turn: usize, taken: Duration) -> bool {
        let Some(trial) = self.trials.get_mut(product) else { return false };
        trial.least[turn] = trial.least[turn].min(taken);
        self.lost += taken.saturating_sub(trial.least[0]);
        if trial.begun < tried * ROUNDS || trial.least[..tried].contains(&Duration::MAX) {
            return false;
        }
        let best = (0..tried).min_by_key(|&i| trial.least[i]).unwrap_or(0);
        let worth = trial.least[best].as_secs_f64() < BETTER * trial.least[0].as_secs_f64();
        self.table.insert(product.to_owned(), if worth { best } else { USUAL });
        self.trials.remove(product);
        true
    }
}

/// FNV-1a of all parts, for names of caches: nobody gains by two that are equal.
pub const fn digest(parts: &[&[u8]]) -> u64 {
    let (mut hash, mut i) = (0xcbf2_9ce4_8422_2325u64, 0);
    while i < parts.len() {
        let mut j = 0;
        while j < parts[i].len() {
            hash = (hash ^ parts[i][j] as u64).wrapping_mul(0x100_0000_01b3);
            j += 1;
        }
        i += 1;
    }
    hash
}

/// Of the sources whose speed is measured: with others, nothing that was found holds.
pub fn sources() -> u64 {
    digest(&[
        include_bytes!("tune.rs"),
        include_bytes!("gemm.rs"),
        include_bytes!("product.rs"),
        include_bytes!("isa/avx512.rs"),
        include_bytes!("isa/avx2.rs"),
        include_bytes!("isa/neon.rs"),
        include_bytes!("isa/portable.rs"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_secs(2);
    const ALL: usize = TILES.len();

    #[test]
    fn tiles_work_within_the_memory_of_the_usual_ones() {
        // In panel widths.
        let floats = |t: Tiles| t.rows * t.panels + t.steps;
        for tiles in TILES {
            assert!(floats(tiles) <= floats(Tiles::USUAL), "{tiles:?}");
            assert!(tiles.steps.is_multiple_of(32), "{tiles:?}");
        }
    }

    /// Goes through all calls of a trial, each taking the microseconds that `taken` says.
    fn tried_out(taken: impl Fn(usize) -> u64) -> Turn {
        let mut state = State::default();
        for call in 0..ALL * ROUNDS {
            assert_eq!(state.choose("product", ALL, BUDGET), Turn::Try(call % ALL));
            let taken = Duration::from_micros(taken(call % ALL));
            assert_eq!(state.took("product", ALL, call % ALL, taken), call + 1 == ALL * ROUNDS);
        }
        state.choose("product", ALL, BUDGET)
    }

    #[test]
    fn the_fastest_tiles_are_kept_but_for_a_gain_that_noise_may_be() {
        assert_eq!(tried_out(|turn| if turn == 4 { 90 } else { 100 }), Turn::Settled(4));
        assert_eq!(tried_out(|turn| if turn == 4 { 98 } else { 100 }), Turn::Settled(USUAL));
    }

    #[test]
    fn tries_that_have_lost_the_budget_are_the_last() {
        let mut state = State::default();
        for taken in [Duration::from_millis(1), BUDGET + Duration::from_millis(2)] {
            let Turn::Try(turn) = state.choose("product", ALL, BUDGET) else { panic!("no try") };
            state.took("product", ALL, turn, taken);
        }
        assert_eq!(state.choose("product", ALL, BUDGET), Turn::Settled(USUAL));
    }
}
