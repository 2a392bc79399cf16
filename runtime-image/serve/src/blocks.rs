//! Which blocks of the key/value cache are free.

/// Tokens in one block.
pub(crate) use petaflop_plan::plan::KV_BLOCK_TOKENS as BLOCK_TOKENS;

/// The blocks of the cache, by number.
#[derive(Debug)]
pub(crate) struct Blocks {
    free: Vec<u32>,
    total: usize,
}

impl Blocks {
    /// All free.
    pub(crate) fn new(total: u32) -> Self {
        Blocks {
            // The lowest numbers are taken first.
            free: (0..total).rev().collect(),
            total: total as usize,
        }
    }

    /// Blocks for this many tokens, in the order of positions, or none at all.
    pub(crate) fn allocate(&mut self, tokens: usize) -> Option<Vec<u32>> {
        let count = tokens.div_ceil(BLOCK_TOKENS as usize);
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    /// Takes blocks back.
    pub(crate) fn release(&mut self, blocks: Vec<u32>) {
        self.free.extend(blocks);
    }

    /// In all.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Not free.
    pub(crate) fn used(&self) -> usize {
        self.total - self.free.len()
    }
}
