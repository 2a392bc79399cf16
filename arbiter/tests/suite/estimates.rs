use petaflop_arbiter::estimate::{Corrections, Rates, launch_key, launch_seconds};
use petaflop_arbiter::support::{Backend, Level, Operation, SupportTable};
use petaflop_arbiter::workload::{Precision, Work};
use proptest::prelude::*;

use crate::worlds::{host, machine, now, only, training, with_devices, world};
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{Range, Term};
use petaflop_arbiter::offer::{MeasuredRates, Offer};
use petaflop_arbiter::world::World;

const RATES: Rates = Rates { flops: 1e11, bytes: 1e10, spread: 0.7 };

/// Tokens a second that a place is expected to train.
fn tokens(offer: Offer) -> Range {
    let plan = decide(&world(vec![offer], vec![training("job")]), now());
    only(&plan).ranked[0].cost.tokens_per_second.expect("known")
}

#[test]
fn a_measured_machine_is_estimated_by_its_measurements_and_more_surely() {
    let measured = tokens(host("0.02"));
    // 14 GFLOP at 0.6 · 120 GFLOP/s and 0.6 GB at 12 GB/s a step of 2048 tokens.
    let expected = 2048.0 / (14.0 / 72.0 + 0.05);
    assert!((measured.expected / expected - 1.0).abs() < 1e-9, "{measured:?}");
    let counted = tokens(machine("m", "0.7"));
    assert!(counted.low < counted.expected && counted.expected < counted.high);
    assert!(measured.high / measured.low < counted.high / counted.low);
}

#[test]
fn measurements_that_make_no_sense_are_not_used() {
    let with = |gemm_gflops, read_gb_s| {
        tokens(Offer { measured: Some(MeasuredRates { gemm_gflops, read_gb_s }), ..host("0.02") })
    };
    let counted = tokens(Offer { measured: None, ..host("0.02") });
    for (gemm, read) in [(0.0, 1.0), (-1.0, 1.0), (f64::NAN, 1.0), (1.0, f64::INFINITY)] {
        assert_eq!(with(gemm, read).expected, counted.expected);
    }
}

#[test]
fn the_engine_goes_to_accelerators_only_where_the_table_says_so() {
    let table = SupportTable::default();
    let level = |backend, isa, operation| table.level(backend, isa, operation, Precision::F32).0;
    for operation in [Operation::Train, Operation::Serve] {
        assert_eq!(level(Backend::Cpu, "x86_64", operation), Level::Verified);
        assert_eq!(level(Backend::Cpu, "aarch64", operation), Level::CompiledOnly);
        for (backend, isa) in [
            (Backend::Cuda, "sm_90"),
            (Backend::Hip, "gfx942"),
            (Backend::Vulkan, "sm_90"),
            (Backend::Metal, "apple9"),
            (Backend::Cpu, "riscv64"),
        ] {
            assert_eq!(level(backend, isa, operation), Level::None, "{isa}");
        }
    }
    assert_eq!(
        table.level(Backend::Cpu, "x86_64", Operation::Train, Precision::Bf16).0,
        Level::None
    );
    // A later engine that runs on Hopper is a row, not a change of code.
    let mut world =
        world(vec![with_devices(machine("h", "3"), "H100-SXM", 1)], vec![training("job")]);
    let mut row = world.support.rows[0].clone();
    row.backend = Backend::Cuda;
    row.isas = vec!["sm_90".into()];
    world.support.rows.push(row);
    let on_device = only(&decide(&world, now())).ranked[0].clone();
    assert_eq!(on_device.device, petaflop_arbiter::claim::Device::Accelerators);
    let fast = on_device.cost.tokens_per_second.expect("known").expected;
    assert!(fast > 10.0 * tokens(machine("m", "3")).expected);
    // And then device memory counts.
    if let Work::Training(work) = &mut world.workloads[0].work {
        work.arena_bytes = 79_500_000_000;
    }
    let plan = decide(&world, now());
    let (_, message) = crate::worlds::waits(only(&plan));
    assert!(message.contains("memory"), "{message}");
}

#[test]
fn past_runs_correct_the_estimate_and_make_it_surer() {
    let mut learned = Corrections::default();
    assert_eq!(learned.apply("k/train", None, RATES), RATES);
    let mut spread = RATES.spread;
    for run in 1..=40 {
        learned.record("k/train", 50.0, 100.0);
        let rates = learned.apply("k/train", None, RATES);
        assert!(rates.spread <= spread, "run {run}");
        spread = rates.spread;
        if run == 1 {
            assert!(rates.flops > 0.75 * RATES.flops, "one run does not turn everything");
        }
    }
    let rates = learned.apply("k/train", None, RATES);
    assert!((rates.flops / RATES.flops - 0.5).abs() < 0.03, "{rates:?}");
    assert!((rates.bytes / RATES.bytes - 0.5).abs() < 0.03);
    assert!(rates.spread >= 0.05, "never certain");
    assert_eq!(learned.apply("k/serve", None, RATES), RATES, "other work is not touched");
}

#[test]
fn two_that_catch_up_with_each_other_say_the_same_and_forget_nothing() {
    let learned = |runs: &[(&str, f64)]| {
        let mut all = Corrections::default();
        runs.iter().for_each(|(key, ratio)| all.record(key, *ratio, 1.0));
        all
    };
    let mut one = learned(&[("a/train", 2.0), ("a/train", 3.0), ("b/train", 4.0)]);
    let mut two = learned(&[("a/train", 5.0), ("b/train", 6.0), ("c/train", 7.0)]);
    two.catch_up(&one.entries);
    one.catch_up(&two.entries);
    assert_eq!(one, two);
    let expected =
        learned(&[("a/train", 2.0), ("a/train", 3.0), ("b/train", 4.0), ("c/train", 7.0)]);
    assert_eq!(one, expected);
    let before = one.clone();
    one.catch_up(&two.entries);
    assert_eq!(one, before, "nothing is counted twice");
}

#[test]
fn a_jobs_own_run_counts_more_than_anothers_and_both_count_together() {
    let mut others = Corrections::default();
    others.record("k/train", 50.0, 100.0);
    let own = Corrections::of_own_run("k/train", 50.0, 100.0).expect("it is measured");
    let rate = |learned: &Corrections, own| learned.apply("k/train", own, RATES);
    let nobody = Corrections::default();
    let (by_others, by_own) = (rate(&others, None), rate(&nobody, Some(&own)));
    assert!(by_own.flops < by_others.flops && by_own.spread < by_others.spread, "{by_own:?}");
    let both = rate(&others, Some(&own));
    assert!(both.flops < by_own.flops && both.spread < by_own.spread, "{both:?}");
    assert_eq!(nobody.apply("other/train", Some(&own), RATES), RATES, "of another device");
    assert_eq!(Corrections::of_own_run("k/train", f64::NAN, 1.0), None);
    // What several learned apart is what one would have learned.
    let mut apart = Corrections::default();
    let mut together = others.clone();
    together.record("a/train", 3.0, 1.0);
    apart.record("a/train", 3.0, 1.0);
    apart.take_in(&others.entries);
    assert_eq!(apart, together);
}

#[test]
fn what_launches_took_is_what_the_next_are_expected_to_take() {
    let start = |seconds: &[f64]| {
        let mut world = world(vec![machine("m", "0.7")], vec![training("job")]);
        for took in seconds {
            world.corrections.record(&launch_key("cloud"), *took, 60.0);
            world.corrections.record(&launch_key("other"), 1.0, 60.0);
        }
        let plan = decide(&world, now());
        let cost = only(&plan).ranked[0].cost.clone();
        let until = |what| cost.terms.iter().find(|term| term.what == what).expect("a term").millis;
        assert_eq!(until(Term::Work), {
            let fresh = decide(&World { corrections: Corrections::default(), ..world }, now());
            let cost = &only(&fresh).ranked[0].cost;
            cost.terms.iter().find(|term| term.what == Term::Work).expect("a term").millis
        });
        (until(Term::StartUp), until(Term::Image))
    };
    assert_eq!(start(&[]), (60_000, 3_000), "as nobody has measured");
    assert_eq!(start(&[60.0, 60.0]), (60_000, 3_000));
    let (one, _) = start(&[120.0]);
    assert!((75_000..76_000).contains(&one), "one launch does not turn everything: {one}");
    let (up, image) = start(&[120.0; 60]);
    assert!((115_000..120_000).contains(&up) && (5_700..6_000).contains(&image), "{up} {image}");
    assert!(start(&[30.0; 60]).0 < 32_000);
    let Work::Training(work) = training("job").work else { panic!("training") };
    // 300 MB of image and 2 MiB of inputs; then the checkpoint of 10 MiB too.
    let estimated = |resumed| launch_seconds(60_000, Some(1_000_000), &work, resumed);
    assert!((estimated(false) - 362.097_152).abs() < 1e-9, "{}", estimated(false));
    assert!((estimated(true) - estimated(false) - 10.485_76).abs() < 1e-9);
    assert!((launch_seconds(1_500, None, &work, true) - 1.5).abs() < 1e-9);
}

#[test]
fn broken_measurements_teach_nothing() {
    let mut learned = Corrections::default();
    for (measured, estimated) in [
        (0.0, 1.0),
        (-1.0, 1.0),
        (-1.0, -1.0),
        (1.0, 0.0),
        (f64::NAN, 1.0),
        (1.0, f64::NAN),
        (f64::INFINITY, 1.0),
        (1e9, 1.0),
    ] {
        learned.record("k/train", measured, estimated);
    }
    assert_eq!(learned, Corrections::default());
}

proptest! {
    #[test]
    fn the_order_of_keys_does_not_matter(keys in prop::collection::vec("[a-c]{1,2}", 1..12)) {
        let mut learned = Corrections::default();
        for key in &keys {
            learned.record(key, 2.0, 1.0);
        }
        for key in &keys {
            let seen = keys.iter().filter(|other| *other == key).count();
            let entry = learned.entries.iter().find(|entry| entry.key == *key).expect("learned");
            prop_assert_eq!(entry.runs as usize, seen);
            prop_assert!(learned.apply(key, None, RATES).flops > RATES.flops);
        }
        prop_assert!(learned.entries.is_sorted_by(|a, b| a.key < b.key));
    }
}
