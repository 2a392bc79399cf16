//! From documents to samples of one length.
//!
//! All documents of a split become one stream, each preceded and the last one
//! followed by `<|endoftext|>`. Sample `i` reads the tokens `[i·T, (i+1)·T)` of the
//! stream and predicts those one further; the last sample is filled up with
//! positions that are no targets. Which sample is trained on is a function of the
//! step alone, so a run resumes exactly from its step number.

use petaflop_model::rng::Philox;

/// Says in a counter's last word that it orders samples; other uses of the seed have other words.
const ORDER: u32 = 0x6f72_6472;

/// A stream of tokens and which of them are to be predicted.
#[derive(Clone, Debug)]
pub struct Stream {
    tokens: Vec<u32>,
    is_target: Vec<bool>,
    separator: u32,
    sequence_len: usize,
}

impl Stream {
    /// An empty stream; `separator` stands between documents.
    #[must_use]
    pub fn new(separator: u32, sequence_len: usize) -> Self {
        Self {
            tokens: vec![separator],
            is_target: vec![false],
            separator,
            sequence_len: sequence_len.max(1),
        }
    }

    /// Adds a document: its tokens, each with whether it is a target. The end of the document is one too.
    pub fn push(&mut self, document: impl IntoIterator<Item = (u32, bool)>) {
        for (token, is_target) in document {
            self.tokens.push(token);
            self.is_target.push(is_target);
        }
        self.tokens.push(self.separator);
        self.is_target.push(true);
    }

    /// Tokens that are predicted or read for a prediction.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens.len() as u64 - 1
    }

    /// Tokens that are to be predicted.
    #[must_use]
    pub fn targets(&self) -> u64 {
        self.is_target.iter().filter(|&&is_target| is_target).count() as u64
    }

    /// Samples, the last one perhaps filled up.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.tokens().div_ceil(self.sequence_len as u64)
    }

    /// Writes sample `index` into two rows of the sequence length: what is read and
    /// what is to be predicted, `ignored` where nothing is. A sample beyond the last
    /// holds no target.
    ///
    /// # Panics
    /// The rows are not of the sequence length.
    pub fn fill(&self, index: u64, inputs: &mut [u32], targets: &mut [u32], ignored: u32) {
        assert_eq!((inputs.len(), targets.len()), (self.sequence_len, self.sequence_len));
        let start = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(self.sequence_len);
        for (i, (input, target)) in inputs.iter_mut().zip(targets).enumerate() {
            let at = start.saturating_add(i);
            *input = self.tokens.get(at).copied().unwrap_or(self.separator);
            *target = match (self.tokens.get(at + 1), self.is_target.get(at + 1)) {
                (Some(&token), Some(true)) => token,
                _ => ignored,
            };
        }
    }
}

/// In which order a split's samples are trained on: every epoch a permutation of
/// its own, keyed by (seed, epoch).
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    samples: u64,
    /// The epoch whose permutation is at hand.
    epoch: Option<u64>,
    permutation: Vec<u32>,
}

impl Order {
    /// The order of so many samples.
    #[must_use]
    pub fn new(seed: u64, samples: u64) -> Self {
        Self { seed, samples, epoch: None, permutation: Vec::new() }
    }

    /// The sample that is trained on at this place, counted from the first step's first sample.
    pub fn sample(&mut self, position: u64) -> u64 {
        let samples = self.samples.max(1);
        let (epoch, at) = (position / samples, position % samples);
        if self.epoch != Some(epoch) {
            self.permutation = permutation(self.seed, epoch, samples);
            self.epoch = Some(epoch);
        }
        u64::from(self.permutation[usize::try_from(at).expect("a permutation fits in memory")])
    }
}

/// The samples in the order of random numbers keyed by (seed, epoch, sample).
fn permutation(seed: u64, epoch: u64, samples: u64) -> Vec<u32> {
    let samples = u32::try_from(samples).expect("fewer than 2^32 samples");
    let philox = Philox::new(seed);
    let random = |sample| {
        let [a, b, _, _] = philox.block([sample, epoch as u32, (epoch >> 32) as u32, ORDER]);
        u64::from(a) << 32 | u64::from(b)
    };
    let mut keyed: Vec<(u64, u32)> = (0..samples).map(|sample| (random(sample), sample)).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, sample)| sample).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IGNORED: u32 = u32::MAX;

    fn rows(stream: &Stream, index: u64) -> (Vec<u32>, Vec<u32>) {
        let mut rows = (vec![0; stream.sequence_len], vec![0; stream.sequence_len]);
        stream.fill(index, &mut rows.0, &mut rows.1, IGNORED);
        rows
    }

    #[test]
    fn documents_are_separated_and_targets_are_one_further() {
        let mut stream = Stream::new(0, 4);
        stream.push([(5, true), (6, true)]);
        stream.push([(7, false), (8, true)]);
        // 0 5 6 0 7 8 0
        assert_eq!((stream.tokens(), stream.samples()), (6, 2));
        assert_eq!(rows(&stream, 0), (vec![0, 5, 6, 0], vec![5, 6, 0, IGNORED]));
        assert_eq!(rows(&stream, 1), (vec![7, 8, 0, 0], vec![8, 0, IGNORED, IGNORED]));
        assert_eq!(rows(&stream, 2), (vec![0; 4], vec![IGNORED; 4]));
    }

    proptest! {
        #[test]
        fn every_token_is_a_target_exactly_once(
            documents in proptest::collection::vec(proptest::collection::vec(1u32..900, 0..40), 1..20), len in 1usize..17,
        ) {
            let mut stream = Stream::new(0, len);
            let mut expected = Vec::new();
            for document in &documents {
                stream.push(document.iter().map(|&token| (token, true)));
                expected.extend(document);
                expected.push(0);
            }
            let seen: Vec<u32> =
                (0..stream.samples()).flat_map(|i| rows(&stream, i).1).filter(|&t| t != IGNORED).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn an_epoch_is_a_permutation_and_a_place_needs_no_history(samples in 1u64..300, seed: u64, epoch in 0u64..5) {
            let mut order = Order::new(seed, samples);
            let mut seen: Vec<u64> = (0..samples).map(|i| order.sample(epoch * samples + i)).collect();
            let mut fresh = Order::new(seed, samples);
            prop_assert_eq!(fresh.sample(epoch * samples + samples / 2), seen[(samples / 2) as usize]);
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..samples).collect::<Vec<_>>());
        }
    }

    #[test]
    fn seeds_and_epochs_differ() {
        let orders: Vec<Vec<u32>> =
            [(1, 0), (1, 1), (2, 0)].map(|(seed, epoch)| permutation(seed, epoch, 100)).into();
        assert!(orders[0] != orders[1] && orders[0] != orders[2] && orders[1] != orders[2]);
    }
}
