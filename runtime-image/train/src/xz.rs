//! What a general compressor makes of the same text: the yardstick beside a
//! model's bits per byte.

use std::thread::JoinHandle;

use liblzma::stream::{Action, Check, Status, Stream};

use crate::{document::Document, split::Split};

/// Beyond this many bytes the comparison would take longer than people wait for it.
pub const LARGEST: u64 = 64 << 20;

/// A measurement that runs beside the training.
pub struct Measurement(Option<JoinHandle<Option<f64>>>);

impl Measurement {
    /// Starts measuring; nothing is measured without validation text or beyond [`LARGEST`].
    #[must_use]
    pub fn start(split: &Split) -> Self {
        let bytes = |documents: &[Document]| documents.iter().map(Document::bytes).sum::<u64>();
        if split.validation.is_empty() || bytes(&split.train) + bytes(&split.validation) > LARGEST {
            return Self(None);
        }
        let text = |documents: &[Document]| -> String {
            documents.iter().flat_map(Document::texts).collect()
        };
        let (train, validation) = (text(&split.train), text(&split.validation));
        Self(Some(std::thread::spawn(move || bits_per_byte(train, &validation))))
    }

    /// Waits for the result: bits for each byte of the validation text.
    #[must_use]
    pub fn wait(self) -> Option<f64> {
        self.0?.join().ok().flatten()
    }
}

/// 8 · (xz(train + validation) − xz(train)) ÷ bytes of validation.
fn bits_per_byte(train: String, validation: &str) -> Option<f64> {
    let alone = compressed(train.as_bytes())?;
    let mut both = train;
    both.push_str(validation);
    let both = compressed(both.as_bytes())?;
    Some(8.0 * (both as f64 - alone as f64) / validation.len() as f64)
}

/// Bytes of one xz stream at preset 9 extreme.
fn compressed(bytes: &[u8]) -> Option<u64> {
    const EXTREME: u32 = 1 << 31;
    let mut stream = Stream::new_easy_encoder(9 | EXTREME, Check::Crc64).ok()?;
    let mut out = vec![0; 1 << 16];
    loop {
        let from = usize::try_from(stream.total_in()).ok()?;
        match stream.process(&bytes[from..], &mut out, Action::Finish).ok()? {
            Status::StreamEnd => return Some(stream.total_out()),
            _ => continue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size by the xz program (xz-utils 5.4.1) of the same bytes: `xz -9e --stdout | wc -c`.
    #[test]
    fn the_size_is_that_of_the_xz_program() {
        let text: String = (0..20_000).map(|i| format!("{} squared is {}\n", i, i * i)).collect();
        assert_eq!(compressed(text.as_bytes()), Some(SIZE_BY_XZ));
    }
    const SIZE_BY_XZ: u64 = 69_308;

    #[test]
    fn text_that_was_seen_before_costs_almost_nothing() {
        let text: String = (0..5_000).map(|i| format!("line {}\n", i * 7919 % 10_007)).collect();
        let seen = bits_per_byte(text.clone(), &text[..20_000]).unwrap();
        let fresh = bits_per_byte("x".into(), &text[..20_000]).unwrap();
        assert!(seen < 0.1 && fresh > 0.5, "{seen} {fresh}");
    }
}
