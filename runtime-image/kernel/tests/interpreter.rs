//! Recorded kernels, interpreted, against the CPU's instance of the same bodies: equal to
//! the bit. This checks recorder, catalogue and archetypes, not the mathematics.

mod common;
use common::cases::{Plain, cases, floats};
use common::{near, same_bits};
use petaflop_kernel::ir::ops::{Op, TABLE};
use petaflop_kernel::ir::record::Step;
use petaflop_kernel::ir::{Launch, catalogue, interpret};
use petaflop_kernel::val::threefry;
use std::collections::BTreeSet;

#[test]
fn every_kernel_has_the_bits_of_the_processors_instance() {
    let mut run = BTreeSet::new();
    for case in cases() {
        let memory = case.run(|kernel, launch, memory| {
            run.insert(kernel.name.clone());
            interpret(kernel, launch, memory).expect("the case fits the kernel");
        });
        for (name, want) in &case.cpu {
            same_bits(&format!("{}: {name}", case.name), want, &floats(&memory[name]));
        }
        for (name, want) in &case.naive {
            let what = format!("{}: {name}", case.name);
            near(&what, &floats(&memory[name]), want, case.tolerance);
        }
    }
    let all: BTreeSet<String> = catalogue().into_iter().map(|k| k.name).collect();
    assert_eq!(run, all, "kernels that have cases, and all");
}

fn operations(steps: &[Step], used: &mut BTreeSet<Op>) {
    for step in steps {
        match step {
            Step::Const { .. } => used.extend([Op::Const]),
            Step::Param { .. } => used.extend([Op::Param]),
            Step::Do { op, .. } => used.extend([*op]),
            Step::Load { .. } => used.extend([Op::Load]),
            Step::Store { .. } => used.extend([Op::Store]),
            Step::Each { body } => {
                used.insert(Op::Each);
                operations(body, used);
            }
            Step::Reduce { op, body, .. } => {
                used.insert(*op);
                operations(&body.steps, used);
            }
            Step::Chain { left, right, .. } => {
                used.insert(Op::Chain);
                operations(&left.steps, used);
                operations(&right.steps, used);
            }
        }
    }
}

#[test]
fn no_operation_of_the_table_is_idle() {
    let mut used = BTreeSet::new();
    for kernel in catalogue() {
        kernel.programs.iter().for_each(|program| operations(program, &mut used));
    }
    let idle: Vec<_> = TABLE.iter().filter(|row| !used.contains(&row.op)).collect();
    assert!(idle.is_empty(), "{idle:?}");
}

#[test]
fn the_generator_gives_the_published_words() {
    // Known answers of Random123's threefry2x32, 20 rounds.
    for (key, counter, want) in [
        ([0, 0], [0, 0], [0x6b20_0159, 0x99ba_4efe]),
        ([u32::MAX; 2], [u32::MAX; 2], [0x1cb9_96fc, 0xbb00_2be7]),
        ([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3], [0xc492_3a9c, 0x483d_f7a0]),
    ] {
        let got = threefry(key.map(Plain), counter.map(Plain)).map(|w| w.0);
        assert_eq!(got, want, "{got:x?}");
    }
}

#[test]
fn a_launch_that_does_not_fit_is_refused_before_it_starts() {
    let kernel = petaflop_kernel::ir::catalogue::kernel("rms_norm").expect("it is there");
    let fits = Launch { dims: vec![("rows", 2), ("n", 3)], numbers: vec![("eps", 1e-5)] };
    let words = |name: &str| match name {
        "x" | "y" => Some(6),
        "gain" => Some(3),
        "rstd" => Some(2),
        _ => None,
    };
    assert_eq!(kernel.check(&fits, &words), Ok(()));
    let longer = Launch { dims: vec![("rows", 2), ("n", 4)], ..fits.clone() };
    let wrong = [
        (kernel.check(&longer, &words), "x [rows * n] has 6 words of 8"),
        (kernel.check(&Launch::default(), &words), "sizes []"),
        (kernel.check(&Launch { numbers: vec![], ..fits.clone() }, &words), "numbers []"),
        (kernel.check(&fits, &|_| None), "no buffer x"),
    ];
    for (result, expected) in wrong {
        let problem = result.expect_err(expected).to_string();
        assert!(problem.contains(expected), "{problem}");
    }
    let attention = petaflop_kernel::ir::catalogue::kernel("attention_forward").expect("there");
    let heads = ["batch", "seq", "heads", "kv_heads", "head_dim"];
    let dims = heads.into_iter().zip([1, 1, 3, 2, 4]).collect();
    let result =
        attention.check(&Launch { dims, numbers: vec![("scale", 1.0)] }, &|_| Some(1 << 20));
    assert!(result.is_err_and(|e| e.to_string().contains("do not share")));
}
