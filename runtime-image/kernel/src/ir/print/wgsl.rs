//! WGSL, for Vulkan and (through naga) Metal.
//!
//! All buffers are bound for reading and writing: they may be parts of one arena, of which
//! nothing can be bound as read-only while another part is written. WGSL promises neither
//! the rounding of division and square root nor that `fma` is fused; how near a device
//! must come is written in `docs/kernels.md`.

use super::{shared, statements};
use crate::ir::kernel::{Kernel, Type};
use std::fmt::Write as _;

const PRELUDE: &str = "\
var<private> infinity_bits: u32 = 0x7f800000u;
fn bf16_of(word: u32, at: u32) -> f32 { return bitcast<f32>((word >> (at % 2u * 16u)) << 16u); }
fn byte_of(word: u32, at: u32) -> f32 { return f32(extractBits(bitcast<i32>(word), at % 4u * 8u, 8u)); }
";

/// A whole shader of one kernel. Binding 0 holds the sizes and numbers, 1 and on the buffers
/// in the order of [`Kernel::buffers`].
pub fn print(kernel: &Kernel) -> String {
    let statements = statements(kernel);
    let mut text = String::new();
    // Only the words of the prelude that are used.
    for (line, word) in PRELUDE.lines().zip(["infinity", "bf16_of", "byte_of"]) {
        if statements.contains(word) {
            let _ = writeln!(text, "{line}");
        }
    }
    text.push_str("struct Parameters {\n");
    for dim in &kernel.dims {
        let _ = writeln!(text, "    {dim}: u32,");
    }
    for number in &kernel.numbers {
        let _ = writeln!(text, "    {number}: f32,");
    }
    text.push_str("}\n@group(0) @binding(0) var<uniform> params: Parameters;\n");
    for (i, (name, ty, _)) in kernel.buffers().iter().enumerate() {
        let ty = if *ty == Some(Type::F32) { "f32" } else { "u32" };
        let binding = i + 1;
        let _ = writeln!(
            text,
            "@group(0) @binding({binding}) var<storage, read_write> {name}: array<{ty}>;"
        );
    }
    for (name, len) in shared(kernel) {
        let _ = writeln!(text, "var<workgroup> {name}: array<f32, {len}>;");
    }
    let [x, y, z] = kernel.block();
    let _ = write!(
        text,
        "@compute @workgroup_size({x}, {y}, {z})
fn {}(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_id) local: vec3u,
    @builtin(num_workgroups) groups: vec3u,
) {{
",
        kernel.name
    );
    if statements.contains("infinity") {
        text.push_str("    let infinity = bitcast<f32>(infinity_bits);\n");
    }
    for word in kernel.dims.iter().chain(&kernel.numbers) {
        let _ = writeln!(text, "    let {word} = params.{word};");
    }
    for line in statements.lines().filter(|line| !line.trim_start().starts_with('#')) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("}\n");
    text
}
