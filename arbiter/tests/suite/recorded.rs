//! A world that is written down and read back is the same world, to the last bit of every number.

use petaflop_arbiter::decide::decide;
use petaflop_arbiter::estimate::Correction;
use petaflop_arbiter::market::Market;
use petaflop_arbiter::offer::{MeasuredRates, Offer};
use petaflop_arbiter::world::Recorded;
use proptest::prelude::*;

use crate::worlds::{after, host, now, training, world};

/// Any finite number by its bits, a decimal as people write it, and those that decimal readers get wrong: just beside a power
/// of two, the smallest ones, halfway between two.
fn awkward() -> impl Strategy<Value = f64> {
    let beside = |(power, step): (i32, i64)| {
        f64::from_bits((2.0_f64.powi(power).to_bits() as i64 + step) as u64)
    };
    prop_oneof![
        prop::num::f64::ANY.prop_filter("a number", |number| number.is_finite()),
        (1..1_000_000_i64, 1..12_i32)
            .prop_map(|(digits, point)| digits as f64 / 10.0_f64.powi(point)),
        (-1_000..1_000_i32, -3..4_i64).prop_map(beside),
        Just(5e-324),
        Just(2.225_073_858_507_201e-308),
        Just(9_007_199_254_740_993.0_f64.next_up()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_world_with_any_numbers_is_read_back_bit_for_bit_and_decides_the_same(
        (gemm_gflops, read_gb_s, rate) in (awkward(), awkward(), awkward()),
        (spot_losses_per_hour, other_losses_per_hour) in (awkward(), awkward()),
        sum_ln_ratio in awkward(),
    ) {
        let offer = Offer {
            measured: Some(MeasuredRates { gemm_gflops, read_gb_s }),
            interruptions_per_hour: Some(rate),
            ..host("0.01")
        };
        let mut job = training("a");
        let of = |key: &str| Correction { key: key.to_owned(), sum_ln_ratio, runs: 3 };
        job.finish_by = Some(after(86_400));
        job.measured = Some(of("cpu-x86_64-measured/train"));
        let mut world = world(Vec::new(), vec![job]);
        world.market = Market::new(vec![offer]).into();
        world.corrections.entries = vec![of("cpu-x86_64-measured/train")];
        world.assumptions.spot_losses_per_hour = spot_losses_per_hour;
        world.assumptions.other_losses_per_hour = other_losses_per_hour;
        let recorded = Recorded { now: now(), world };
        let text = serde_json::to_string(&recorded).expect("it is written");
        let read: Recorded = serde_json::from_str(&text).expect("it is read");
        prop_assert_eq!(serde_json::to_string(&read).expect("it is written"), text);
        prop_assert_eq!(read.hash(), recorded.hash());
        prop_assert_eq!(&read, &recorded);
        prop_assert_eq!(decide(&read.world, read.now), decide(&recorded.world, recorded.now));
    }
}
