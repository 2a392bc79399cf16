//! `petaflop`: the command line. Everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    petaflop_operator::cli::main()
}
