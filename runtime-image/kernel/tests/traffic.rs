//! Fused kernels move fewer bytes than what they replace, counted of what was recorded.

#[path = "common/traffic.rs"]
mod traffic;

use petaflop_kernel::ir::catalogue::kernel;
use traffic::{bytes, fused};

#[test]
fn bytes_are_those_of_operands_loaded_and_stored() {
    let of = |name: &str, dims| bytes(&kernel(name).expect("it is in the catalogue"), dims);
    // x and y in, y out.
    assert_eq!(of("add", &[("count", 10)]), 3 * 40);
    // x and gain in, y and a number a row out.
    assert_eq!(of("rms_norm", &[("rows", 3), ("n", 5)]), 4 * (15 + 5 + 15 + 3));
    // What is added to is loaded only where something is added.
    let dims = [("m", 2), ("n", 3), ("depth", 32)];
    let bare = 4 * (2 * 32 + 3 * 32 + 2 * 3);
    assert_eq!(of("linear_f32", &dims), bare);
    assert_eq!(of("linear_f32_add", &dims), bare + 4 * 2 * 3);
    // A byte a weight, and a scale for 32 of them.
    assert_eq!(of("linear_q8_0", &dims), 4 * 2 * 32 + 3 * 32 + 4 * 3 + 4 * 2 * 3);
    // Of a table the rows that tokens name: two, of a hundred.
    let dims = [("rows", 2), ("n", 8), ("table_rows", 100)];
    assert_eq!(of("embedding_bf16", &dims), 4 * 2 + 2 * 16 + 4 * 16);
    // q, k, v in; out and a number a query out.
    let dims = [("batch", 1), ("seq", 4), ("heads", 2), ("kv_heads", 1), ("head_dim", 8)];
    assert_eq!(of("attention_forward", &dims), 4 * (64 + 32 + 32 + 64 + 8));
    assert_eq!(of("attention_dq", &dims), 4 * (64 + 32 + 32 + 64 + 8 + 8 + 64));
}

#[test]
fn every_fused_kernel_moves_less_than_what_it_replaces() {
    for fused in fused() {
        let (one, many) = (fused.bytes(), fused.unfused_bytes());
        assert!(one < many, "{}: {one} bytes fused, {many} unfused", fused.name);
    }
}

#[test]
fn the_documentations_table_of_bytes_is_the_counted_one() {
    let page = include_str!("../../../docs/kernels.md");
    for fused in fused() {
        let row = fused.row();
        assert!(page.contains(&row), "docs/kernels.md lacks: {row}");
    }
}
