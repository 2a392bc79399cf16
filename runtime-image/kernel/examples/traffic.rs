//! Prints what fused kernels move beside the sum of unfused ones: the rows of the table in
//! docs/kernels.md.

#![allow(clippy::print_stdout)] // what it is for

#[path = "../tests/common/traffic.rs"]
mod traffic;

fn main() {
    println!("| kernel | sizes | instead of | MB | unfused MB | ratio |");
    println!("|---|---|---|---|---|---|");
    for fused in traffic::fused() {
        println!("{}", fused.row());
    }
}
