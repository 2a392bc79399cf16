//! In which formats a model's matrices are kept, in files and in serving.

use crate::dtype::Dtype;
use crate::recipe::{Export, Quantization};
use crate::shape::{ModelShape, TensorInfo, TensorRole};

/// The embedding's matrix.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output projection, where it is not the embedding.
pub const HEAD: &str = "lm_head.weight";

/// The format of one matrix of a model that is served in `weights`. In q4_0 embedding and output
/// projection take q8_0: they are what four bits cost most.
pub fn served(weights: Dtype, matrix: &str) -> Dtype {
    match weights {
        Dtype::Q4_0 if [EMBEDDING, HEAD].contains(&matrix) => Dtype::Q8_0,
        other => other,
    }
}

/// The smallest format to serve matrices in, by name and format, that holds each as it is.
pub fn served_as<'a>(matrices: impl Iterator<Item = (&'a str, Dtype)> + Clone) -> Dtype {
    let holds = |weights: Dtype| {
        matrices.clone().all(|(name, found)| match served(weights, name) {
            Dtype::Q8_0 => matches!(found, Dtype::Q8_0 | Dtype::Q4_0),
            kept => kept == found,
        })
    };
    [Dtype::Q4_0, Dtype::Q8_0, Dtype::Bf16]
        .into_iter()
        .find(|&weights| holds(weights))
        .unwrap_or(Dtype::F32)
}

impl Quantization {
    /// The format that an exported file has this tensor in.
    pub fn keeps(self, tensor: &TensorInfo) -> Dtype {
        let blocks = tensor.shape.last().is_some_and(|width| width.is_multiple_of(32));
        match self {
            Self::Q8_0 | Self::Q4_0 if tensor.role != TensorRole::Matrix || !blocks => Dtype::F32,
            Self::None => Dtype::F32,
            Self::Q8_0 => Dtype::Q8_0,
            Self::Q4_0 => served(Dtype::Q4_0, &tensor.name),
        }
    }
}

impl Export {
    /// The format in which the exported model is served.
    pub fn served_as(self, shape: &ModelShape) -> Dtype {
        let Self::Gguf(quantization) = self else {
            return Dtype::F32;
        };
        let mut matrices = shape.tensors();
        matrices.retain(|tensor| tensor.role == TensorRole::Matrix);
        served_as(matrices.iter().map(|tensor| (&tensor.name[..], quantization.keeps(tensor))))
    }
}

#[cfg(test)]
mod tests {
    use super::{Dtype, EMBEDDING, HEAD, served_as};

    #[test]
    fn what_is_served_loses_no_bit_of_any_matrix() {
        use Dtype::{Bf16, F16, F32, Q4_0, Q8_0};
        for (embedding, block, head, expected) in [
            (Q8_0, Q4_0, Q8_0, Q4_0),
            (Q4_0, Q4_0, Q4_0, Q4_0),
            (Q8_0, Q8_0, Q4_0, Q8_0),
            (Bf16, Bf16, Bf16, Bf16),
            (Q8_0, Q4_0, Bf16, F32),
            (F16, F16, F16, F32),
        ] {
            let block = ("model.layers.0.mlp.up_proj.weight", block);
            let matrices = [(EMBEDDING, embedding), block, (HEAD, head)];
            assert_eq!(served_as(matrices.into_iter()), expected, "{matrices:?}");
        }
    }
}
