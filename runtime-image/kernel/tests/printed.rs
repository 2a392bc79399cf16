//! Printed kernels as golden text: one of each archetype in both languages, and a digest
//! of all of them, so that a change of any shows.

use petaflop_kernel::ir::catalogue::kernel;
use petaflop_kernel::ir::ops::TABLE;
use petaflop_kernel::ir::print::{c, wgsl};

#[test]
fn printed_kernels_are_as_they_were() {
    insta::assert_snapshot!("prelude_cuda", c::prelude(c::Dialect::Cuda));
    insta::assert_snapshot!("prelude_hip", c::prelude(c::Dialect::Hip));
    for name in [
        "rms_norm",
        "swiglu",
        "rms_norm_gain_grad",
        "sum_segments",
        "embedding_q8_0",
        "dropout",
        "cross_entropy",
        "linear_swiglu_q8_0",
        "linear_dw",
        "attention_forward",
        "attention_dkv",
    ] {
        let kernel = kernel(name).expect("it is in the catalogue");
        insta::assert_snapshot!(format!("{name}_cuda"), c::body(&kernel));
        insta::assert_snapshot!(format!("{name}_wgsl"), wgsl::print(&kernel));
    }
}

#[test]
fn the_documentations_table_of_operations_is_the_codes() {
    let page = include_str!("../../../docs/kernels.md");
    for row in &TABLE {
        let text = match row.text {
            "" => "by its loop".to_owned(),
            text => format!("`{}`", text.replace('|', "\\|")),
        };
        let line = format!("| `{}` | {} | {text} | {} |", row.name, row.types, row.meaning);
        assert!(page.contains(&line), "docs/kernels.md lacks: {line}");
    }
}
