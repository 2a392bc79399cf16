//! `petaflop`: the command line. Everything it does is in the library.

use std::process::ExitCode;

/// Lists and placement passes over thousands of objects leave much room behind among what stays. This one
/// gives it back (docs/figures.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    petaflop_operator::cli::main()
}
