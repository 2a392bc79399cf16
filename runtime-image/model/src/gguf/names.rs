//! What our tensors, and their rows, are called in a file.
//!
//! llama.cpp turns pairs of neighbours in the architecture `llama`, where we (as Hugging Face) turn
//! element i of a head with i + d/2. So such a file has the rows of queries and keys in another
//! order: of each head first 0, then d/2, then 1, then d/2 + 1, … (`LlamaModel.permute` in
//! llama.cpp's `convert_hf_to_gguf.py`). In `qwen2` and `qwen3` they are as ours.

use petaflop_plan::formats::{EMBEDDING, HEAD};
use petaflop_plan::shape::{ModelShape, RopeScaling};

use crate::rope;

/// Divisors of the frequencies, `[head_dim / 2]`.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// The architecture's name in a file.
pub(super) fn architecture(shape: &ModelShape) -> &'static str {
    match (shape.qkv_bias, shape.qk_norm) {
        (_, true) => "qwen3",
        (true, false) => "qwen2",
        (false, false) => "llama",
    }
}

/// Divisors of the frequencies, where the shape stretches them unevenly.
pub(super) fn divisors(shape: &ModelShape) -> Option<Vec<f32>> {
    matches!(shape.rope.scaling, RopeScaling::Llama3 { .. }).then(|| rope::divisors(shape))
}

/// The width of the heads whose rows this tensor has in the file's order; `None` where that is ours.
pub(super) fn turned(shape: &ModelShape, name: &str) -> Option<usize> {
    let rotated = name.ends_with(".q_proj.weight") || name.ends_with(".k_proj.weight");
    (rotated && architecture(shape) == "llama").then_some(shape.head_dim as usize)
}

/// Where a row of a turned tensor is in a file.
pub(super) fn row_in_file(row: usize, head: usize) -> usize {
    let (first, within) = (row / head * head, row % head);
    first + if within < head / 2 { 2 * within } else { 2 * (within - head / 2) + 1 }
}

/// What one of our tensors is called in a file.
pub(super) fn name_in_file(name: &str) -> String {
    let whole = [
        (EMBEDDING, "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        (HEAD, "output.weight"),
    ];
    if let Some((_, known)) = whole.iter().find(|(ours, _)| *ours == name) {
        return (*known).to_owned();
    }
    let parts = [
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let known = || {
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (module, kind) = rest.rsplit_once('.')?;
        let (_, theirs) = parts.iter().find(|(ours, _)| *ours == module)?;
        Some(format!("blk.{layer}.{theirs}.{kind}"))
    };
    known().unwrap_or_else(|| name.to_owned())
}
