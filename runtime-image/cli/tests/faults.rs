//! What bad input and bad days get: a clear line, the right exit code, nothing
//! lost, and never an artifact made of damaged or changed things.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use common::{Bench, Ended, Tmpfs, not_tested};
use petaflop_plan::recipe::{DatasetKind, ModelSource};
use petaflop_store::report::Progress;

/// The folders of checkpoints, oldest first.
fn checkpoints(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("step-"))
        .collect();
    found.sort();
    found
}

/// Starts a job of 50 steps that writes a checkpoint after each, and stops it after some.
fn interrupted() -> (Bench, String) {
    let mut bench = Bench::slow(50);
    let (expected, _) = bench.train(&[]).artifact();
    bench.fresh("interrupted");
    bench.job.checkpoint_interval_seconds = 0;
    let mut started = bench.start(&[]);
    started.wait_for_checkpoint(10);
    started.signal("-TERM");
    assert_eq!(started.end().code, Some(75));
    assert_eq!(checkpoints(Path::new(&bench.job.checkpoints)).len(), 2, "the newest two are kept");
    (bench, expected)
}

fn skipped(ended: &Ended) -> Vec<&str> {
    let messages = ended.progress.iter().filter_map(|line| match line {
        Progress::Skipped { message } => Some(message.as_str()),
        _ => None,
    });
    messages.collect()
}

#[test]
fn a_corrupt_checkpoint_is_named_and_the_one_before_is_used() {
    let (bench, expected) = interrupted();
    let [before, newest] = checkpoints(Path::new(&bench.job.checkpoints)).try_into().unwrap();
    let state = newest.join("state.safetensors");
    let mut bytes = fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&state, bytes).unwrap();

    let resumed = bench.train(&[]);
    let skipped = skipped(&resumed);
    assert!(
        skipped.len() == 1
            && skipped[0].contains(newest.to_str().unwrap())
            && skipped[0].contains("another content"),
        "{skipped:?}"
    );
    let step = before.file_name().unwrap().to_string_lossy()[5..15].parse::<u64>().unwrap();
    assert_eq!(resumed.began_at(), step);
    assert_eq!(resumed.artifact(), (expected, false));
}

#[test]
fn with_no_good_checkpoint_the_job_starts_over() {
    let (bench, expected) = interrupted();
    for path in checkpoints(Path::new(&bench.job.checkpoints)) {
        let state = path.join("state.safetensors");
        let bytes = fs::read(&state).unwrap();
        fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    }
    let again = bench.train(&[]);
    assert_eq!(skipped(&again).len(), 2);
    assert_eq!(again.began_at(), 0);
    assert_eq!(again.artifact(), (expected, false));
}

#[test]
fn another_jobs_checkpoint_is_never_used() {
    let (mut bench, _) = interrupted();
    bench.job.recipe.seed += 1;
    let other = bench.train(&[]);
    assert!(
        skipped(&other).iter().all(|message| message.contains("belongs to another job")),
        "{other:?}"
    );
    assert_eq!(other.began_at(), 0);
    other.artifact();
}

#[test]
fn input_that_changes_while_the_job_runs_stops_it_without_an_artifact() {
    let mut bench = Bench::new(1_000_000);
    bench.job.checkpoint_interval_seconds = 0;
    let mut started = bench.start(&[]);
    started.wait_for_checkpoint(1);
    fs::write(bench.path("data/03.txt"), "something else\n").unwrap();
    let ended = started.end();
    let message = ended.failure(2);
    assert!(message.contains("was changed while the job ran (was blake3:"), "{message}");
    assert_eq!(bench.artifacts(), 0);
}

#[test]
fn input_that_changes_after_the_last_checkpoint_is_noticed_too() {
    let bench = Bench::new(400);
    let mut started = bench.start(&[]);
    started.wait_for("start", |line| matches!(line, Progress::Started { .. }));
    fs::write(bench.path("data/new.txt"), "one file more\n").unwrap();
    assert!(started.end().failure(2).contains("was changed while the job ran"));
    assert_eq!(bench.artifacts(), 0);
}

#[test]
fn another_digest_than_asked_for_starts_nothing() {
    let mut bench = Bench::new(3);
    let asked = format!("blake3:{}", "a".repeat(64));
    bench.job.inputs[0].digest = Some(asked.clone());
    let refused = bench.train(&[]);
    let message = refused.failure(2);
    assert!(
        message.contains(&asked) && message.contains(" is blake3:") && message.contains("'data'"),
        "{message}"
    );
    assert!(!bench.path("checkpoints").exists());
    // The digest it names is the one to give.
    let found = message.split(" is ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    bench.job.inputs[0].digest = Some(found);
    bench.train(&[]).artifact();
}

#[test]
fn data_that_cannot_be_trained_on_is_said_plainly() {
    let mut bench = Bench::new(3);
    let folder = bench.path("");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    fs::create_dir(bench.path("empty")).unwrap();
    let cases = [
        (file("latin1.txt", b"caf\xe9"), "latin1.txt: not UTF-8: the byte at offset 3"),
        (file("zero.txt", b""), "zero.txt: the file is empty"),
        (bench.path("empty").display().to_string(), "the folder holds no file with content"),
        (bench.path("missing").display().to_string(), "missing: No such file or directory"),
        ("gs://bucket/key".to_owned(), "the scheme 'gs' is not read"),
        (
            "builtin:nothing".to_owned(),
            "no such built-in text 'builtin:nothing'; this runtime has: builtin:petaflop",
        ),
        (format!("artifact:{}", "0".repeat(64)), "no artifact"),
    ];
    for (uri, expected) in cases {
        bench.job.inputs[0].uri = uri;
        let refused = bench.train(&[]);
        let message = refused.failure(2);
        assert!(message.contains(expected) && message.contains("input 'data'"), "{message}");
    }
    bench.job.inputs[0].uri = file("chat.jsonl", b"{\"messages\":[]}\nnot json\n");
    bench.job.recipe.datasets[0].kind = DatasetKind::ChatTemplate;
    let refused = bench.train(&[]);
    assert!(
        refused.failure(2).contains("chat.jsonl:1: no message of the assistant"),
        "{refused:?}"
    );
}

#[test]
fn a_malformed_job_is_refused_with_its_place() {
    let bench = Bench::new(3);
    let path = bench.write_job();
    let good = fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        ("\"sequence_len\": 32", "\"sequence_length\": 32", "unknown field `sequence_length`"),
        (
            "\"sequence_len\": 32",
            "\"sequence_len\": 65",
            "sequence_len: expected at most the model's 64 positions",
        ),
        ("\"val_set_size\": 0.1", "\"val_set_size\": 0.9", "val_set_size: expected 0 to 0.5"),
        ("\"name\": \"data\"", "\"name\": \"date\"", "the recipe has no use for 'date'"),
    ] {
        fs::write(&path, good.replace(from, to)).unwrap();
        let _ = fs::remove_file(bench.path("progress"));
        let mut command = common::runtime(&["train", "--job"]);
        command.arg(&path).arg("--progress").arg(bench.path("progress"));
        let refused = bench.ended(command.output().unwrap());
        assert!(refused.failure(2).contains(expected), "{expected}: {refused:?}");
    }
}

#[test]
fn two_runtimes_never_train_the_same_job_at_once() {
    let mut bench = Bench::new(1_000_000);
    bench.job.checkpoint_interval_seconds = 0;
    let mut first = bench.start(&[]);
    first.wait_for_checkpoint(1);
    let output = common::runtime(&["train", "--job"]).arg(bench.write_job()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(&format!("in use by process {}", first.child.id())), "{stderr}");
    first.signal("-TERM");
    assert_eq!(first.end().code, Some(75));
}

#[test]
fn a_job_too_large_for_the_machine_is_refused_before_it_takes_memory() {
    let mut bench = Bench::new(3);
    let ModelSource::Scratch(shape) = &mut bench.job.recipe.model else { panic!("from scratch") };
    (shape.layers, shape.hidden, shape.intermediate) = (200, 16_384, 65_536);
    let refused = bench.train(&[]);
    let message = refused.failure(3);
    assert!(message.contains("bytes of memory and this machine has"), "{message}");
}

#[test]
fn a_full_disk_stops_the_job_and_keeps_the_last_checkpoint() {
    let (mut bench, expected) = interrupted();
    let before = checkpoints(Path::new(&bench.job.checkpoints));
    // No file may grow beyond a few KiB: what a full disk looks like to a program, for any user.
    let limited = |bench: &Bench| {
        let _ = fs::remove_file(bench.path("progress"));
        let mut command = Command::new("bash");
        command.args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$@\"", "bash"]);
        let train = bench.command(&[]);
        command.arg(train.get_program()).args(train.get_args());
        bench.ended(command.output().unwrap())
    };
    let stopped = limited(&bench);
    let message = stopped.failure(1);
    assert!(
        message.contains("cannot write checkpoint")
            && message.contains("the last durable checkpoint is intact"),
        "{message}"
    );
    assert_eq!(checkpoints(Path::new(&bench.job.checkpoints)), before);
    assert_eq!(bench.train(&[]).artifact(), (expected.clone(), false));

    // The same on a file system that is really full.
    bench.fresh("full");
    let at = bench.path("checkpoints-full");
    let Some(_full) = Tmpfs::mount(&at, "size=48m") else {
        return not_tested("a really full file system", "mounting a tmpfs is not allowed");
    };
    bench.job.checkpoint_interval_seconds = 0;
    fs::write(at.join("filler"), vec![0; 44 << 20]).unwrap();
    let stopped = bench.train(&[]);
    let message = stopped.failure(1);
    assert!(
        message.contains("No space left on device") && message.contains("free some space"),
        "{message}"
    );
    fs::remove_file(at.join("filler")).unwrap();
    fs::remove_dir_all(&bench.job.store).ok();
    bench.job.checkpoint_interval_seconds = 3600;
    assert_eq!(bench.train(&[]).artifact(), (expected, false));
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let mut bench = Bench::new(3);
    bench.fresh("readonly");
    let at = bench.path("checkpoints-readonly");
    fs::create_dir_all(&at).unwrap();
    let mounted = Tmpfs::mount(&at, "size=1m");
    match &mounted {
        Some(mounted) => mounted.remount("ro"),
        None => fs::set_permissions(&at, fs::Permissions::from_mode(0o555)).unwrap(),
    }
    if mounted.is_none() && fs::write(at.join("probe"), "").is_ok() {
        return not_tested(
            "a read-only folder",
            "mounting a tmpfs is not allowed, and permissions do not bind this user",
        );
    }
    let refused = bench.train(&[]);
    let message = refused.failure(1);
    assert!(
        message.contains("checkpoints-readonly") && message.contains("may write to"),
        "{message}"
    );
    if mounted.is_none() {
        fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
    }
}
