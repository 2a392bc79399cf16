//! Tiles that autotuning tries and takes change no bit.

mod common;
use common::{same_bits, values};
use petaflop_kernel::tune::{ROUNDS, TILES, Table, Tuner};
use petaflop_kernel::*;
use std::sync::mpsc;
use std::time::Duration;

/// Rows, depth, columns: more than a block of each, none a multiple of a tile.
const SHAPE: Dims = Dims { t: 130, k: 544, n: 530 };

#[test]
fn every_call_has_the_bits_of_the_usual_tiles() {
    let Dims { t, k, n } = SHAPE;
    let (x, w) = (values(t * k, 1), values(n * k, 2));
    let (mut q8, mut q4) = (vec![0; n * k / 32 * Q8_0_BYTES], vec![0; n * k / 32 * Q4_0_BYTES]);
    quantize_q8_0(&w, &mut q8);
    quantize_q4_0(&w, &mut q4);
    for isa in Isa::available() {
        let plain = Cpu::new(Some(isa), 2).unwrap();
        for (name, weight) in
            [("f32", Weight::F32(&w)), ("q8_0", Weight::Q8_0(&q8)), ("q4_0", Weight::Q4_0(&q4))]
        {
            let packed = PackedWeight::new(&plain, weight, n, k);
            let run = |cpu: &Cpu| {
                let mut y = vec![0.0; t * n];
                linear_packed(cpu, &x, &packed, &mut y, t, Epilogue::NONE);
                y
            };
            let expected = run(&plain);
            let (decided, table) = mpsc::channel();
            let tuner = Tuner::new(Table::new(), Duration::MAX, move |table| {
                drop(decided.send(table.clone()));
            });
            let tuned = Cpu::new(Some(isa), 2).unwrap().autotuned(tuner);
            // All tries, and one call that takes what came of them.
            let tries = if name == "f32" { TILES.len() - 2 } else { TILES.len() } * ROUNDS;
            for call in 0..=tries {
                same_bits(&format!("{isa} {name}, call {call}"), &expected, &run(&tuned));
                assert_eq!(
                    table.try_recv().is_ok(),
                    call + 1 == tries,
                    "{isa} {name}, call {call}"
                );
            }
        }
    }
}
