//! A job's result is one hash: at any thread count, on any kernel variant, and
//! however often it was interrupted.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use std::fs;

use common::{Bench, not_run, runtime};
use petaflop_kernel::Isa;
use petaflop_store::report::Progress;

#[test]
fn threads_and_kernel_variants_do_not_change_the_artifact() {
    let mut bench = Bench::new(6);
    let (expected, cached) = bench.train(&["--threads", "1"]).artifact();
    assert!(!cached);
    for flags in [&["--threads", "2"][..], &["--threads", "3"]] {
        bench.fresh(&flags.concat());
        assert_eq!(bench.train(flags).artifact(), (expected.clone(), false), "{flags:?}");
    }
    for isa in [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable] {
        let name = isa.to_string();
        bench.fresh(&name);
        if Isa::available().contains(&isa) {
            assert_eq!(
                bench.train(&["--isa", &name]).artifact(),
                (expected.clone(), false),
                "{isa}"
            );
        } else {
            not_run(&format!("training with {isa}"), "this processor lacks it");
            let refused = bench.train(&["--isa", &name]);
            assert!(refused.failure(2).contains("this processor cannot run the"), "{refused:?}");
        }
    }
}

#[test]
fn fifty_steps_equal_twenty_five_a_kill_and_the_rest() {
    let mut bench = Bench::slow(50);
    let (expected, _) = bench.train(&[]).artifact();

    bench.fresh("killed");
    bench.job.checkpoint_interval_seconds = 0;
    let mut started = bench.start(&[]);
    started.wait_for_checkpoint(25);
    started.signal("-9");
    let killed = started.end();
    assert_eq!(killed.signal, Some(9), "{killed:?}");
    assert_eq!(bench.artifacts(), 0);

    let resumed = bench.train(&["--threads", "1"]);
    assert!((25..50).contains(&resumed.began_at()), "{resumed:?}");
    assert_eq!(resumed.artifact(), (expected, false));
}

#[test]
fn a_job_that_is_asked_to_stop_goes_on_later_to_the_same_artifact() {
    let mut bench = Bench::slow(50);
    let (expected, _) = bench.train(&[]).artifact();
    for signal in ["-TERM", "-INT"] {
        bench.fresh(signal);
        // Every step writes a checkpoint, which leaves the time to interrupt.
        bench.job.checkpoint_interval_seconds = 0;
        let mut started = bench.start(&[]);
        started.wait_for_checkpoint(3);
        started.signal(signal);
        let stopped = started.end();
        assert_eq!(stopped.code, Some(75), "{stopped:?}");
        let Some(Progress::Stopped { step }) = stopped.progress.last() else {
            panic!("{stopped:?}")
        };
        assert!(stopped.stderr.contains("start the same job again to go on"), "{stopped:?}");

        let resumed = bench.train(&[]);
        assert_eq!(resumed.began_at(), *step);
        assert_eq!(resumed.artifact(), (expected.clone(), false));
    }
}

#[test]
fn the_same_key_again_is_a_cache_hit_that_trains_nothing() {
    let mut bench = Bench::new(4);
    let (expected, _) = bench.train(&[]).artifact();
    // Where checkpoints go and how often is not in the key.
    bench.job.checkpoints = bench.path("elsewhere").display().to_string();
    bench.job.checkpoint_interval_seconds = 7;
    let again = bench.train(&[]);
    assert_eq!(again.artifact(), (expected.clone(), true));
    assert!(!again.progress.iter().any(|line| matches!(line, Progress::Started { .. })));
    let Some(Progress::Finished { summary, key, .. }) = again.progress.last() else {
        panic!("{again:?}")
    };
    assert_eq!(summary["steps"], 4);

    let output = runtime(&["key", "--job"]).arg(bench.write_job()).output().unwrap();
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (facts["key"].as_str(), facts["cached"].as_str()),
        (Some(key.as_str()), Some(expected.as_str()))
    );
    // Another seed is another job.
    bench.job.recipe.seed += 1;
    let output = runtime(&["key", "--job"]).arg(bench.write_job()).output().unwrap();
    let other: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_ne!(other["key"], facts["key"]);
    assert!(other["cached"].is_null());
    assert_eq!(other["digests"], facts["digests"]);
}

#[test]
fn the_report_says_what_was_learned_and_the_plan_was_kept() {
    let bench = Bench::new(40);
    let ended = bench.train(&[]);
    ended.artifact();
    let Some(Progress::Finished { summary, .. }) = ended.progress.last() else {
        panic!("{ended:?}")
    };
    let number = |path: &str| {
        summary
            .pointer(path)
            .and_then(serde_json::Value::as_f64)
            .unwrap_or_else(|| panic!("{path}: {summary}"))
    };
    assert!(number("/loss_end") < number("/loss_start") - 0.5, "{summary}");
    assert!(
        number("/validation_end/bits_per_byte") < number("/validation_start/bits_per_byte"),
        "{summary}"
    );
    // A random model spreads its guess over the vocabulary.
    assert!((number("/loss_start") - f64::ln(300.0)).abs() < 0.3, "{summary}");
    assert_eq!(number("/planned_bytes"), number("/arena_bytes"));
    assert!(number("/peak_rss_bytes") > number("/arena_bytes"));
    assert!(number("/xz_bits_per_byte") > 0.0 && number("/tokens_per_second") > 0.0);
    let curve = fs::read_to_string(bench.path("checkpoints").join("loss.svg")).unwrap();
    assert!(curve.contains("40 of 40 steps"));
}

#[test]
fn a_fresh_run_of_a_finished_job_makes_the_same_artifact_again() {
    let mut bench = Bench::new(6);
    let (expected, _) = bench.train(&[]).artifact();
    assert_eq!(bench.train(&[]).artifact(), (expected.clone(), true));
    bench.job.checkpoints = bench.path("checkpoints-again").display().to_string();
    assert_eq!(bench.train(&["--fresh"]).artifact(), (expected.clone(), false));
    assert_eq!(bench.artifacts(), 1, "one artifact, one key");
    assert_eq!(bench.train(&[]).artifact(), (expected, true));
}
