//! Shapes of published models by size, for "would it fit?".

use petaflop_plan::shape::ModelShape;
use serde_json::json;

/// The sizes that are known: the Llama 3.1 and 3.2 text models.
pub const NAMES: &[&str] = &["1b", "3b", "8b", "70b", "405b"];

/// (name, width, blocks, query heads, inner width, tied embeddings); from the models' own config.json.
const SHAPES: &[(&str, u32, u32, u32, u32, bool)] = &[
    ("1b", 2048, 16, 32, 8192, true),
    ("3b", 3072, 28, 24, 8192, true),
    ("8b", 4096, 32, 32, 14_336, false),
    ("70b", 8192, 80, 64, 28_672, false),
    ("405b", 16_384, 126, 128, 53_248, false),
];

/// The shape of a known size.
pub fn known(name: &str) -> Option<ModelShape> {
    let wanted = name.to_ascii_lowercase();
    let (_, width, blocks, heads, inner, tied) =
        SHAPES.iter().find(|(known, ..)| *known == wanted)?;
    ModelShape::from_hf_config(&json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "intermediate_size": inner,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": tied,
    }))
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        let published = [
            ("1b", 1_235_814_400_u64),
            ("3b", 3_212_749_824),
            ("8b", 8_030_261_248),
            ("70b", 70_553_706_496),
            ("405b", 405_853_388_800),
        ];
        for (name, count) in published {
            let shape = known(name).expect("a known size");
            assert_eq!(shape.parameters(), count, "{name}");
        }
        assert_eq!(NAMES.len(), SHAPES.len());
        assert!(known("7b").is_none());
    }
}
