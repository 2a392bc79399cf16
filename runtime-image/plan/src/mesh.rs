//! How a job is spread over devices.

use serde::{Deserialize, Serialize};

/// Devices along each way of splitting a job. Only one device is built so far;
/// anything else is refused by [`Mesh::validate`], never ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mesh {
    /// Copies of the model that each take a share of the batch.
    pub data: u32,
    /// Devices that share every matrix.
    pub tensor: u32,
    /// Devices that each hold a run of layers.
    pub pipeline: u32,
}

impl Mesh {
    /// One device.
    pub const ONE: Self = Self { data: 1, tensor: 1, pipeline: 1 };

    /// Devices in all.
    pub const fn devices(self) -> u64 {
        self.data as u64 * self.tensor as u64 * self.pipeline as u64
    }

    /// # Errors
    /// Anything but one device, in words.
    pub fn validate(self) -> Result<(), String> {
        if self == Self::ONE {
            return Ok(());
        }
        Err(format!(
            "mesh: expected data 1, tensor 1, pipeline 1 (splitting over devices is not built yet), found data {}, tensor {}, pipeline {}",
            self.data, self.tensor, self.pipeline
        ))
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self::ONE
    }
}
