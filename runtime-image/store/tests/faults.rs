//! Crashes, damage, two writers, and disks that are full or read-only.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use common::{Death, KEY, Mortal, contents, folder, noise};
use petaflop_store::{Digest, GcOptions, Keep, Store, StoreError, blocking};
use tempfile::tempdir;

const MIB: usize = 1 << 20;

fn open(root: &Path) -> blocking::Store {
    blocking::Store::open(root.to_str().expect("UTF-8")).expect("a store")
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

/// Verifies clean, shows the artifact whole or not at all, and takes it again under the same hash.
fn check_after_crash(root: &Path, source: &Path, what: &str) {
    let store = open(root);
    let report = store.verify(None).expect("readable");
    assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
    let bound = store.find_key(None, KEY).expect("looked");
    if let Some(hash) = bound {
        assert!(store.manifest(hash).is_ok(), "{what}");
    }
    let expected = petaflop_store::folder::hash(source).expect("hash");
    let stored = store.put_artifact(source).expect("the retry");
    assert_eq!(stored.hash, expected, "{what}");
    store.bind_key(None, KEY, stored.hash).expect("bound");
    let all_old = GcOptions { keep: Keep::All, min_age: Duration::ZERO, dry_run: false };
    store.gc(&all_old).expect("gc");
    let copy = root.with_extension("copy");
    store.materialise(stored.hash, &copy).expect("files");
    assert_eq!(contents(source), contents(&copy), "{what}");
    let mut torn = Vec::new();
    find(root, &mut |path| {
        if path.to_string_lossy().contains('#') {
            torn.push(path.to_path_buf());
        }
    });
    assert!(torn.is_empty(), "{what}: {torn:?}");
}

fn find(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).expect("folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, visit);
        } else {
            visit(&path);
        }
    }
}

#[test]
fn a_crash_at_any_write_leaves_a_clean_store_that_a_retry_completes() {
    let dir = tempdir().expect("temporary folder");
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model/weights", noise(9 * MIB, 1)),
        ("tokenizer", noise(1000, 2)),
    ];
    let source = folder(&dir.path().join("source"), &files);
    let mut points = 0;
    for death in [Death::Before, Death::Torn, Death::After] {
        for at in 0.. {
            let what = format!("{death:?} {at}");
            let root = dir.path().join(format!("{death:?}-{at}"));
            fs::create_dir(&root).expect("folder");
            let mortal = Mortal::new(&root, at, death);
            let left = mortal.left();
            let store = Store::over(Arc::new(mortal), "mortal");
            let done = run(async {
                let stored = store.put_artifact(&source).await?;
                store.bind_key(None, KEY, stored.hash).await
            });
            let died = left.load(Ordering::SeqCst) < 0;
            assert_eq!(done.is_err(), died, "{what}: {done:?}");
            check_after_crash(&root, &source, &what);
            fs::remove_dir_all(&root).expect("removed");
            if !died {
                break;
            }
            points += 1;
        }
    }
    // Five chunks, the manifest, the key; dead before, in the middle of, and after each.
    assert_eq!(points, 3 * 7);
}

#[test]
fn a_crash_at_any_removal_of_gc_leaves_a_clean_store() {
    let dir = tempdir().expect("temporary folder");
    let source = folder(&dir.path().join("source"), &[("w", noise(9 * MIB, 1))]);
    let everything =
        GcOptions { keep: Keep::Only(Default::default()), min_age: Duration::ZERO, dry_run: false };
    for death in [Death::Before, Death::After] {
        for at in 0.. {
            let what = format!("{death:?} {at}");
            let root = dir.path().join(format!("{death:?}-{at}"));
            let store = open(&root);
            let hash = store.put_artifact(&source).expect("stored").hash;
            store.bind_key(None, KEY, hash).expect("bound");
            let mortal = Mortal::new(&root, at, death);
            let left = mortal.left();
            let done = run(Store::over(Arc::new(mortal), "mortal").gc(&everything));
            let died = left.load(Ordering::SeqCst) < 0;
            assert_eq!(done.is_err(), died, "{what}");
            check_after_crash(&root, &source, &what);
            fs::remove_dir_all(&root).expect("removed");
            if !died {
                assert_eq!(at, 5, "key, manifest, three chunks");
                break;
            }
        }
    }
}

#[test]
fn a_killed_process_leaves_a_clean_store() {
    let dir = tempdir().expect("temporary folder");
    let source =
        folder(&dir.path().join("source"), &[("w", noise(40 * MIB, 5)), ("x", noise(MIB, 6))]);
    // How long a whole run takes here, so that kills fall all over it.
    let started = Instant::now();
    let mut whole = child("put", &dir.path().join("whole"), &source).spawn().expect("a child");
    assert!(whole.wait().expect("ended").success());
    let took = started.elapsed();
    let mut killed = 0;
    for round in 0..10 {
        let root = dir.path().join(format!("killed-{round}"));
        let mut victim = child("put", &root, &source).spawn().expect("a child");
        std::thread::sleep(took * (round + 1) / 11);
        victim.kill().expect("SIGKILL");
        killed += u32::from(!victim.wait().expect("ended").success());
        check_after_crash(&root, &source, &format!("round {round}"));
        fs::remove_dir_all(&root).expect("removed");
    }
    assert!(killed > 0, "every child was done before it was killed");
}

/// This test binary again, to do one thing to a store in a process of its own.
fn child(what: &str, root: &Path, source: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "in_a_process_of_its_own", "--nocapture"])
        .env("STORE_CHILD", what)
        .env("STORE_ROOT", root)
        .env("STORE_SOURCE", source)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Does nothing unless started by [`child`].
#[test]
fn in_a_process_of_its_own() {
    let Some(what) = std::env::var_os("STORE_CHILD") else {
        return;
    };
    let path = |name: &str| PathBuf::from(std::env::var_os(name).expect("set by the parent"));
    let (root, source) = (path("STORE_ROOT"), path("STORE_SOURCE"));
    let store = open(&root);
    match what.to_str() {
        Some("put") => {
            let stored = store.put_artifact(&source).expect("stored");
            store.bind_key(None, KEY, stored.hash).expect("bound");
        }
        Some("full") => {
            let small = folder(&root.with_file_name("small"), &[("x", vec![1])]);
            let small = store.put_artifact(&small).expect("fits").hash;
            let error = store.put_artifact(&source).expect_err("full");
            assert!(matches!(error, StoreError::Full { .. }), "{error}");
            assert!(error.to_string().contains("chunks/"), "{error}");
            let report = store.verify(None).expect("readable");
            assert_eq!((report.artifacts, report.findings.len()), (1, 0));
            // What is materialised on a full disk does not appear, either.
            let other = open(&source.with_file_name("other"));
            let hash = other.put_artifact(&source).expect("stored elsewhere").hash;
            let target = root.with_file_name("target");
            let error = other.materialise(hash, &target).expect_err("full");
            assert!(matches!(error, StoreError::Full { .. }), "{error}");
            assert!(!target.exists());
            store.materialise(small, &target).expect("the half-written folder made room");
        }
        Some("read-only") => {
            let hash = store.list().expect("list")[0].hash;
            assert_eq!(store.read_file(hash, "x").expect("readable"), [1]);
            assert_eq!(store.verify(None).expect("readable").findings, []);
            let error = store.put_artifact(&source).expect_err("not writable");
            assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains(root.to_str().expect("UTF-8")), "{text}");
        }
        other => panic!("unknown: {other:?}"),
    }
}

/// Runs the child where `mount` was done before, in a mount namespace of its own: as root, or
/// as an ordinary user where the system lets him be root inside of one.
fn in_a_mount(mount: &str, child: Command) {
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private"]);
    let uid = fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m));
    if uid.ok() != Some(0) {
        inside.arg("--map-root-user");
    }
    let script = format!("({mount}) || exit 99; exec \"$@\"");
    inside.args(["sh", "-c", &script, "sh"]).arg(child.get_program()).args(child.get_args());
    for (name, value) in child.get_envs() {
        inside.env(name, value.expect("set, not removed"));
    }
    let output = inside.output().expect("unshare is part of util-linux");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(99) || said.contains("unshare: ") {
        eprintln!("NOT TESTED, for want of the right to mount: {mount}: {said}");
        assert!(
            std::env::var_os("CI").is_none(),
            "where CI is set, what is not tested is a failure"
        );
        return;
    }
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_full_disk_is_named_and_loses_nothing() {
    let dir = tempdir().expect("temporary folder");
    let source = folder(&dir.path().join("source"), &[("w", noise(9 * MIB, 1))]);
    let mount = dir.path().join("disk");
    fs::create_dir(&mount).expect("folder");
    in_a_mount(
        &format!("mount -t tmpfs -o size=6m tmpfs {}", mount.display()),
        child("full", &mount.join("store"), &source),
    );
}

#[test]
fn a_read_only_store_can_be_read_and_says_so_when_written() {
    let dir = tempdir().expect("temporary folder");
    let source = folder(&dir.path().join("source"), &[("x", vec![1])]);
    let root = dir.path().join("store");
    open(&root).put_artifact(&source).expect("stored");
    fs::write(source.join("x"), [2]).expect("another artifact");
    in_a_mount(
        &format!("mount --bind {0} {0} && mount -o remount,bind,ro {0}", root.display()),
        child("read-only", &root, &source),
    );
}

#[test]
fn a_flipped_byte_anywhere_is_named_and_never_used() {
    let dir = tempdir().expect("temporary folder");
    let root = dir.path().join("store");
    let files = [("model/weights", noise(5 * MIB, 1)), ("t", b"tokens".to_vec())];
    let source = folder(&dir.path().join("source"), &files);
    let store = open(&root);
    let hash = store.put_artifact(&source).expect("stored").hash;
    store.bind_key(None, KEY, hash).expect("bound");
    let mut objects = Vec::new();
    find(&root, &mut |path| {
        if !path.ends_with(".lock") {
            objects.push(path.to_path_buf());
        }
    });
    assert_eq!(objects.len(), 5, "three chunks, manifest, key");
    for object in objects {
        let good = fs::read(&object).expect("readable");
        let places = [0, good.len() / 3, good.len() / 2, good.len() - 2];
        let mut damaged: Vec<Option<Vec<u8>>> = places
            .into_iter()
            .map(|at| {
                let mut bytes = good.clone();
                bytes[at] ^= 0x04;
                Some(bytes)
            })
            .collect();
        damaged.push(Some(good[..good.len() / 2].to_vec())); // cut off
        damaged.push(Some(Vec::new()));
        damaged.push(Some([&good[..], b"x"].concat())); // longer
        damaged.push(None); // gone
        for bytes in damaged {
            let what = format!("{object:?} {:?}", bytes.as_ref().map(Vec::len));
            match &bytes {
                Some(bytes) => fs::write(&object, bytes).expect("damaged"),
                None => fs::remove_file(&object).expect("removed"),
            }
            let is_key = object.starts_with(root.join("keys"));
            let is_manifest = object.starts_with(root.join("artifacts"));
            if is_key {
                // Another hash, or none: never a hit.
                assert_eq!(store.find_key(None, KEY).expect("looked"), None, "{what}");
            } else {
                let copy = dir.path().join("copy");
                let error = store.materialise(hash, &copy).expect_err(&what);
                assert!(!copy.exists(), "{what}");
                if is_manifest && bytes.is_none() {
                    assert!(matches!(error, StoreError::NotFound { .. }), "{what}");
                } else {
                    let text = error.to_string();
                    assert!(matches!(error, StoreError::Damaged(_)), "{what}: {text}");
                    assert!(text.contains(&hash.to_string()), "{text}");
                    assert!(text.contains("run the job again"), "{text}");
                    assert!(text.contains(object.to_str().expect("UTF-8")), "{what}: {text}");
                    let in_file = text.contains("`model/weights`") || text.contains("`t`");
                    assert!(in_file != is_manifest, "{what}: {text}");
                }
            }
            if is_manifest {
                assert_eq!(store.find_key(None, KEY).expect("looked"), None, "{what}");
            }
            // A key that is gone is a key that was never bound.
            let findings = store.verify(None).expect("readable").findings;
            assert_eq!(findings.is_empty(), is_key && bytes.is_none(), "{what}");
            // The mend it names works.
            assert_eq!(store.put_artifact(&source).expect(&what).hash, hash);
            store.bind_key(None, KEY, hash).expect(&what);
            assert_eq!(store.find_key(None, KEY).expect("looked"), Some(hash));
            let findings = store.verify(None).expect("readable").findings;
            assert!(findings.is_empty(), "{what}: {findings:?}");
            assert_eq!(fs::read(&object).expect("mended"), good, "{what}");
        }
    }
}

#[test]
fn good_chunks_in_the_wrong_order_are_found_out() {
    let dir = tempdir().expect("temporary folder");
    let root = dir.path().join("store");
    let source = folder(&dir.path().join("source"), &[("w", noise(8 * MIB, 1))]);
    let store = open(&root);
    let hash = store.put_artifact(&source).expect("stored").hash;
    let file = root.join(format!("artifacts/{hash}.json"));
    let mut manifest = store.manifest(hash).expect("manifest");
    manifest.files[0].chunks.swap(0, 1);
    let json = serde_json::to_vec(&(manifest.chunk_bytes, &manifest.files)).expect("JSON");
    manifest.checksum = Digest::of(&json);
    fs::write(&file, serde_json::to_vec(&manifest).expect("JSON")).expect("written");
    for error in [
        store.materialise(hash, &dir.path().join("copy")).expect_err("wrong"),
        store.read_file(hash, "w").map(drop).expect_err("wrong"),
    ] {
        assert!(matches!(error, StoreError::Damaged(_)), "{error}");
    }
    assert_eq!(store.verify(None).expect("readable").findings.len(), 1);
}

#[test]
fn two_writers_of_the_same_artifact_and_key_agree() {
    let dir = tempdir().expect("temporary folder");
    let root = dir.path().join("store");
    let same = folder(&dir.path().join("same"), &[("w", noise(9 * MIB, 1))]);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u8)
            .map(|i| {
                let own = folder(
                    &dir.path().join(format!("own-{i}")),
                    &[("w", noise(9 * MIB, 1)), ("own", vec![i])],
                );
                let (root, same) = (&root, &same);
                scope.spawn(move || {
                    let store = open(root);
                    let first = store.put_artifact(same).expect("stored").hash;
                    store.bind_key(None, KEY, first).expect("bound");
                    store.put_artifact(&own).expect("stored");
                    first
                })
            })
            .collect();
        let hashes: Vec<_> = writers.into_iter().map(|w| w.join().expect("a writer")).collect();
        assert!(hashes.iter().all(|h| *h == hashes[0]));
    });
    let report = open(&root).verify(None).expect("readable");
    assert_eq!((report.artifacts, report.findings.len()), (5, 0));
}

#[test]
fn two_readers_that_materialise_to_one_place_agree() {
    let dir = tempdir().expect("temporary folder");
    let root = dir.path().join("store");
    let source = folder(&dir.path().join("source"), &[("w", noise(9 * MIB, 1))]);
    let hash = open(&root).put_artifact(&source).expect("stored").hash;
    let target = dir.path().join("target");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| open(&root).materialise(hash, &target).expect("files"));
        }
    });
    assert_eq!(contents(&source), contents(&target));
    let names: Vec<_> =
        fs::read_dir(dir.path()).expect("folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 3, "no partial folder is left: {names:?}");
}

#[test]
fn gc_waits_for_nobody_and_disturbs_nobody() {
    let dir = tempdir().expect("temporary folder");
    let root = dir.path().join("store");
    let source = folder(&dir.path().join("source"), &[("w", noise(4 * MIB, 1))]);
    let store = open(&root);
    let all_old = GcOptions { keep: Keep::All, min_age: Duration::ZERO, dry_run: false };
    // A writer in another process holds the same lock.
    let lock = fs::File::create(root.join(".lock")).expect("the lock file");
    lock.lock_shared().expect("locked");
    assert!(matches!(store.gc(&all_old), Err(StoreError::Busy { .. })));
    drop(lock);
    store.gc(&all_old).expect("gc");
    // Writers and a gc that thinks everything is old, all at once.
    std::thread::scope(|scope| {
        let gc = scope.spawn(|| {
            let store = open(&root);
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                match store.gc(&all_old) {
                    Ok(_) | Err(StoreError::Busy { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        });
        while !gc.is_finished() {
            store.put_artifact(&source).expect("stored");
            assert!(store.verify(None).expect("readable").findings.is_empty());
        }
        gc.join().expect("gc");
    });
}

#[test]
fn gc_and_writers_on_one_thread_do_not_wait_for_each_other_for_ever() {
    let dir = tempdir().expect("temporary folder");
    let source = folder(&dir.path().join("source"), &[("w", noise(MIB, 1))]);
    let store = Store::open(dir.path().join("store").to_str().expect("UTF-8")).expect("a store");
    run(async {
        for _ in 0..20 {
            let all_old = GcOptions { keep: Keep::All, min_age: Duration::ZERO, dry_run: false };
            let (swept, stored) = futures::join!(store.gc(&all_old), store.put_artifact(&source));
            assert!(matches!(swept, Ok(_) | Err(StoreError::Busy { .. })), "{swept:?}");
            stored.expect("stored");
        }
    });
    assert_eq!(open(&dir.path().join("store")).verify(None).expect("readable").findings, []);
}

#[test]
fn a_file_that_changes_while_it_is_stored_is_refused() {
    let dir = tempdir().expect("temporary folder");
    let store = open(&dir.path().join("store"));
    let source = folder(&dir.path().join("source"), &[("w", noise(40 * MIB, 1))]);
    let file = source.join("w");
    std::thread::scope(|scope| {
        let put = scope.spawn(|| store.put_artifact(&source));
        // Whenever this happens, the file's length is not what it was.
        while !put.is_finished() {
            let file = fs::File::options().append(true).open(&file).expect("file");
            let length = file.metadata().expect("metadata").len();
            file.set_len(length + 1).expect("longer");
        }
        match put.join().expect("no panic") {
            Err(StoreError::BadInput { problem, .. }) => {
                assert!(problem.contains("changed while it was stored"), "{problem}");
            }
            other => panic!("{other:?}"),
        }
    });
    assert!(store.list().expect("list").is_empty());
}
