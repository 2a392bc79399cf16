//! CUDA-C and HIP-C: C++ that was taught WGSL's words.
//!
//! Compiled without contraction (NVRTC: `--fmad=false`; clang: the pragma below) all of it
//! rounds as IEEE 754 says, so that these kernels give the CPU's bits.

use super::{shared, statements};
use crate::ir::kernel::{Kernel, Type};
use std::fmt::Write as _;

/// Which compiler reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// NVRTC or nvcc.
    Cuda,
    /// hiprtc or clang; needs no header of either.
    Hip,
}

const CUDA: &str = "\
#define fma __fmaf_rn
#define sqrt __fsqrt_rn
#define round rintf
#define infinity __int_as_float(0x7f800000)
#define workgroupBarrier __syncthreads
#define GROUP(x) blockIdx.x
#define LOCAL(x) threadIdx.x
#define GROUPS(x) gridDim.x
";

const HIP: &str = "\
#pragma clang fp contract(off)
#ifndef __device__
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(n, ...) __attribute__((amdgpu_flat_work_group_size(1, n)))
#endif
#define fma __builtin_fmaf
#define sqrt __builtin_sqrtf
#define round __builtin_rintf
#define infinity __builtin_inff()
#define GROUP(x) __builtin_amdgcn_workgroup_id_##x()
#define LOCAL(x) __builtin_amdgcn_workitem_id_##x()
#define GROUPS(x) (__builtin_amdgcn_grid_size_##x() / __builtin_amdgcn_workgroup_size_##x())
static __device__ void workgroupBarrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, \"workgroup\");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, \"workgroup\");
}
";

const BOTH: &str = "\
#define let const auto
#define var auto
typedef unsigned int u32;
typedef int i32;
typedef float f32;
struct Three { u32 x, y, z; };
template <class T, u32 N> struct array {
    T all[N] = {};
    __device__ T& operator[](u32 i) { return all[i]; }
};
template <class T> static __device__ T select(T other, T then, bool yes) { return yes ? then : other; }
template <class To, class From> static __device__ To bitcast(From x) { return __builtin_bit_cast(To, x); }
static __device__ u32 least(u32 a, u32 b) { return a < b ? a : b; }
#define min least
static __device__ f32 bf16_of(u32 word, u32 at) { return bitcast<f32>((word >> (at % 2u * 16u)) << 16u); }
static __device__ f32 byte_of(u32 word, u32 at) { return f32(i32(word << (24u - at % 4u * 8u)) >> 24); }
";

/// The prelude that every kernel of a family needs once.
pub fn prelude(dialect: Dialect) -> String {
    let own = if dialect == Dialect::Cuda { CUDA } else { HIP };
    format!("{own}{BOTH}")
}

/// The kernel without its prelude.
pub fn body(kernel: &Kernel) -> String {
    let mut text = String::new();
    let name = &kernel.name;
    let parameters: Vec<String> = kernel
        .dims
        .iter()
        .map(|d| format!("u32 {d};"))
        .chain(kernel.numbers.iter().map(|n| format!("f32 {n};")))
        .collect();
    let _ = writeln!(text, "struct {name}_parameters {{ {} }};", parameters.join(" "));
    let mut arguments = vec![format!("const {name}_parameters params")];
    for (buffer, ty, _) in kernel.buffers() {
        let constant =
            if kernel.fields.iter().any(|f| f.name == buffer && f.written) { "" } else { "const " };
        let written = kernel.fields.iter().any(|f| f.name == buffer && f.index.is_empty());
        let constant = if written { "" } else { constant };
        let ty = if ty == Some(Type::F32) { "f32" } else { "u32" };
        arguments.push(format!("{constant}{ty}* __restrict__ {buffer}"));
    }
    // At least 512 threads a multiprocessor, so at most 128 registers each.
    let threads: u32 = kernel.block().iter().product();
    let _ = writeln!(
        text,
        "extern \"C\" __global__ void __launch_bounds__({threads}, {}) {name}(\n    {}) {{",
        512 / threads,
        arguments.join(",\n    ")
    );
    for (array, len) in shared(kernel) {
        let _ = writeln!(text, "    __shared__ f32 {array}[{len}];");
    }
    for (word, from) in [("group", "GROUP"), ("local", "LOCAL"), ("groups", "GROUPS")] {
        let _ = writeln!(text, "    const Three {word} = {{{from}(x), {from}(y), {from}(z)}};");
    }
    for word in kernel.dims.iter().chain(&kernel.numbers) {
        let _ = writeln!(text, "    let {word} = params.{word};");
    }
    text + &statements(kernel) + "}\n"
}

/// A whole source file of one kernel.
pub fn print(kernel: &Kernel, dialect: Dialect) -> String {
    format!("{}\n{}", prelude(dialect), body(kernel))
}
