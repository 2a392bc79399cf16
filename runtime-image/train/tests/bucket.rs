//! Checkpoints on a real S3 server: one whose writer is killed is gone on with, counted on the way.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../../store/tests/common/counting.rs"]
mod counting;
#[path = "../../store/tests/common/s3.rs"]
mod s3;

use std::process::Command;

use counting::Relay;
use petaflop_train::checkpoint::{Bucket, Files};
use s3::Server;

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 4 << 20;
/// A checkpoint, and what of it each step changes.
const WHOLE: u64 = 32 * MIB;
const CHANGED: u64 = 24 * MIB;
/// Headers, questions, names and manifests: at most this much beside chunks.
const AROUND: u64 = 128 << 10;
const URI: &str = "s3://bucket/checkpoints";
const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Set for a process of its own: the step to write.
const STEP: &str = "PETAFLOP_TEST_STEP";

/// A state that differs from step to step, but for its last chunks.
fn files(step: u64) -> Files {
    let bytes = (0..WHOLE / 8).flat_map(|i| {
        let of = if i < CHANGED / 8 { step } else { 0 };
        (i ^ (of << 40)).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()
    });
    Files::from([
        ("state".to_owned(), bytes.collect::<Vec<u8>>().into()),
        ("tokenizer".to_owned(), vec![7; 100_000].into()),
    ])
}

/// A machine that writes this step to the bucket; what is newest there, it says before and after.
fn machine(server: &Server, relay: &Relay, step: u64) -> Command {
    let mut machine = Command::new(std::env::current_exe().unwrap());
    machine
        .args(["--exact", "a_step_is_written_where_another_process_says", "--nocapture"])
        .envs(server.credentials())
        .env("AWS_ENDPOINT_URL", relay.url())
        .env(STEP, step.to_string());
    machine
}

/// What [`machine`] runs; by itself it has nothing to do.
#[test]
fn a_step_is_written_where_another_process_says() {
    let Some(step) = std::env::var_os(STEP) else { return };
    let step = step.into_string().unwrap().parse().unwrap();
    let bucket = Bucket::open(URI, KEY, 2).unwrap();
    let newest = |bucket: &Bucket| {
        let newest = bucket.newest(|skipped| panic!("{skipped}")).unwrap()?;
        assert!(newest.files == files(newest.step), "step {}", newest.step);
        Some(newest.step)
    };
    println!("\nfound {:?}", newest(&bucket));
    let written = bucket.write_in_background(step, files(step)).wait().unwrap();
    println!("\nsent {}", written.sent);
    assert_eq!(newest(&bucket), Some(step));
}

/// What it found, and the bytes that it says it sent.
fn run(machine: &mut Command) -> (String, u64) {
    let output = machine.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    let word = |what: &str| said.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    (word("found ").to_owned(), word("sent ").parse().unwrap())
}

#[test]
fn a_checkpoint_whose_writer_was_killed_goes_on_where_it_was_and_what_stays_is_not_sent() {
    let server = Server::start();
    let relay = Relay::before(&server.credentials()["AWS_ENDPOINT_URL"]);
    let (found, first) = run(&mut machine(&server, &relay, 1));
    assert_eq!(found, "None");
    assert!(first > WHOLE && first < WHOLE + 2 * AROUND, "{first}");
    relay.take();

    // Four chunks are on their way at once: with more than that sent, one at least has arrived.
    relay.hold_up_after(18 * MIB);
    let mut killed = machine(&server, &relay, 2).spawn().unwrap();
    relay.wait_until_held_up();
    killed.kill().unwrap();
    killed.wait().unwrap();
    relay.go_on();

    // Another machine finds the whole one, comes to the same step, and sends no more than the rest.
    let (found, second) = run(&mut machine(&server, &relay, 2));
    assert_eq!(found, "Some(1)");
    let travelled = relay.take();
    assert!(second <= CHANGED - CHUNK + AROUND, "{second}");
    assert!(travelled >= second && travelled < second + AROUND, "{travelled}");

    // The oldest goes with what it alone used; the two that are kept are whole.
    let (found, third) = run(&mut machine(&server, &relay, 3));
    assert_eq!(found, "Some(2)");
    assert!(third > CHANGED && third < CHANGED + AROUND, "{third}");
    let kept = bytes(&server.root.path().join("bucket/checkpoints/chunks"));
    assert!(kept > WHOLE + CHANGED && kept < WHOLE + CHANGED + 2 * AROUND, "{kept}");
}

/// Bytes below a folder.
fn bytes(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.metadata().unwrap() {
            dir if dir.is_dir() => bytes(&entry.path()),
            file => file.len(),
        })
        .sum()
}
