//! NVIDIA's own compiler, called as the device calls it: every kernel becomes machine code, and
//! what does not comes back with the compiler's words. It needs no GPU. `make kernels` sets `PETAFLOP_NVRTC`.

use std::io::Write as _;

use petaflop_device::cuda;
use petaflop_device::driver::compiler::Compiler;
use petaflop_kernel::ir::catalogue::catalogue;
use petaflop_kernel::ir::print::c::{Dialect, print};

#[test]
fn every_kernel_becomes_machine_code_in_nvidias_compiler() {
    let Ok(library) = std::env::var("PETAFLOP_NVRTC") else {
        // Not by a macro, whose output the test harness swallows.
        let line = "\n##### NOT RUN HERE: kernels in NVRTC: `make kernels` installs it #####";
        let _ = writeln!(std::io::stderr(), "{line}");
        return;
    };
    let nvrtc = Compiler::open(Dialect::Cuda, &[&library]).expect("it was installed");
    let options = cuda::options("sm_90");
    for kernel in catalogue() {
        let code = nvrtc.compile(&print(&kernel, Dialect::Cuda), &options);
        let code = code.unwrap_or_else(|log| panic!("{}: {log}", kernel.name));
        assert!(code.starts_with(b"\x7fELF"), "{}: no CUBIN", kernel.name);
    }
    let log = nvrtc.compile("__global__ void wrong() { nonsense; }", &options).expect_err("wrong");
    assert!(log.contains("NVRTC_ERROR_COMPILATION") && log.contains("nonsense"), "{log}");
    let log = nvrtc.compile("", &cuda::options("sm_00")).expect_err("no such architecture");
    assert!(log.contains("invalid value for --gpu-architecture"), "{log}");
}
