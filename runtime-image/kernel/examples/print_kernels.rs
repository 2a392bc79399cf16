//! Prints every kernel for every family into a folder: `print_kernels FOLDER`. What
//! `make kernels` compiles.

use petaflop_kernel::ir::catalogue;
use petaflop_kernel::ir::print::{c, wgsl};
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or(std::io::ErrorKind::InvalidInput)?);
    std::fs::create_dir_all(&folder)?;
    for kernel in catalogue() {
        for (text, ending) in [
            (c::print(&kernel, c::Dialect::Cuda), "cu"),
            (c::print(&kernel, c::Dialect::Hip), "hip"),
            (wgsl::print(&kernel), "wgsl"),
        ] {
            std::fs::write(folder.join(format!("{}.{ending}", kernel.name)), text)?;
        }
    }
    Ok(())
}
