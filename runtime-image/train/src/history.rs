//! What was measured so far: goes into every checkpoint, so that a resumed run
//! ends with the same record.

use serde::{Deserialize, Serialize};

use crate::{curve, error::Error};

/// Losses so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Mean training loss of each step, nats a token.
    pub losses: Vec<f64>,
    /// (steps done, loss in nats a token, bits per byte) of the validation split.
    pub validation: Vec<(u64, f64, f64)>,
}

impl History {
    /// For a checkpoint.
    ///
    /// # Errors
    /// None for finite losses.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|error| Error::Internal(error.to_string()))
    }

    /// From a checkpoint.
    ///
    /// # Errors
    /// What the bytes are instead.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// As a picture.
    #[must_use]
    pub fn curve(&self, title: &str) -> String {
        let validation: Vec<(u64, f64)> =
            self.validation.iter().map(|&(step, loss, _)| (step, loss)).collect();
        curve::svg(title, &self.losses, &validation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_bit_of_a_loss_survives_a_checkpoint(losses: Vec<f64>, step: u64, a: f64, b: f64) {
            let history = History { losses, validation: vec![(step, a, b)] };
            if history.losses.iter().chain([&a, &b]).all(|loss| loss.is_finite()) {
                let read = History::from_bytes(&history.to_bytes().unwrap()).unwrap();
                let bits = |h: &History| h.losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
                proptest::prop_assert_eq!(bits(&read), bits(&history));
                proptest::prop_assert_eq!(read.validation[0].1.to_bits(), a.to_bits());
            }
        }
    }
}
