//! What a store promises on a good day, and to those who ask it wrongly.

mod common;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use common::{KEY, contents, folder, noise};
use petaflop_store::{
    ArtifactHash, Digest, GcOptions, Keep, StoreError,
    blocking::Store,
    folder as folders,
    hash::{HashedFile, artifact_hash},
};
use proptest::prelude::*;
use tempfile::tempdir;

const MIB: usize = 1 << 20;

fn open(root: &Path) -> Store {
    Store::open(root.to_str().expect("UTF-8")).expect("a store")
}

#[test]
fn the_artifact_hash_is_as_written_down() {
    // blake3 over, for each path in byte order: u64 LE length of the path, the path, u64 LE
    // length of the content, 32 bytes of blake3 of the content.
    let files = [("m/x", &b"one"[..]), ("B", b""), ("m-z", b"two")];
    let hash = artifact_hash(files.map(|(path, content)| HashedFile {
        path,
        length: content.len() as u64,
        content: Digest::of(content),
    }));
    let mut bytes = Vec::new();
    for (path, content) in [("B", &b""[..]), ("m-z", b"two"), ("m/x", b"one")] {
        bytes.extend((path.len() as u64).to_le_bytes());
        bytes.extend(path.as_bytes());
        bytes.extend((content.len() as u64).to_le_bytes());
        bytes.extend(blake3::hash(content).as_bytes());
    }
    assert_eq!(hash.to_string(), blake3::hash(&bytes).to_hex().as_str());
    // As the lines of Python in docs/store.md give it.
    assert_eq!(
        hash.to_string(),
        "53c1455b75b1abbb19857e5c18209cafd7cb1bf5eb748970a9b276121dcf2476"
    );
}

#[test]
fn the_same_files_have_the_same_hash_in_any_store_and_without_one() {
    let dir = tempdir().expect("temporary folder");
    let files = [("model/x.bin", noise(5 * MIB, 1)), ("empty", vec![])];
    let first = folder(&dir.path().join("first"), &files);
    let second = folder(&dir.path().join("second"), &files);
    let stored = open(&dir.path().join("a")).put_artifact(&first).expect("stored");
    let again = open(&dir.path().join("b")).put_artifact(&second).expect("stored");
    assert_eq!(stored.hash, again.hash);
    assert_eq!(stored.hash, folders::hash(&first).expect("hash"));
    assert_eq!(stored.bytes, 5 * MIB as u64);
    let manifest = |store| {
        let name = format!("{store}/artifacts/{}.json", stored.hash);
        fs::read(dir.path().join(name)).expect("manifest")
    };
    assert_eq!(manifest("a"), manifest("b"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_is_put_comes_back(
        files in prop::collection::btree_map("[a-d]{1,3}(/[e-h ]{1,3}e){0,2}", prop::collection::vec(any::<u8>(), 0..2000), 1..8)
    ) {
        let dir = tempdir().expect("temporary folder");
        let source = dir.path().join("source");
        for (path, content) in &files {
            let file = source.join(path);
            // A name may be a file here and a folder there; the first to come stays.
            if fs::create_dir_all(file.parent().expect("has a parent")).is_ok() {
                let _ = fs::write(file, content);
            }
        }
        let store = open(&dir.path().join("store"));
        let hash = store.put_artifact(&source).expect("stored").hash;
        let copy = dir.path().join("deep/copy");
        store.materialise(hash, &copy).expect("files");
        store.materialise(hash, &copy).expect("the second time it is there already");
        prop_assert_eq!(contents(&source), contents(&copy));
        for (path, content) in contents(&source) {
            prop_assert_eq!(store.read_file(hash, &path).expect("file"), content);
        }
        prop_assert!(store.verify(None).expect("verified").findings.is_empty());
    }
}

#[test]
fn files_of_every_length_around_a_chunk_come_back() {
    let dir = tempdir().expect("temporary folder");
    let chunk = 4 * MIB;
    let files: Vec<(String, Vec<u8>)> = [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk]
        .into_iter()
        .map(|length| (format!("f{length}"), noise(length, length as u64)))
        .collect();
    let named: Vec<(&str, Vec<u8>)> = files.iter().map(|(p, c)| (p.as_str(), c.clone())).collect();
    let source = folder(&dir.path().join("source"), &named);
    let store = open(&dir.path().join("store"));
    let hash = store.put_artifact(&source).expect("stored").hash;
    store.materialise(hash, &dir.path().join("copy")).expect("files");
    assert_eq!(contents(&source), contents(&dir.path().join("copy")));
    let chunks: Vec<usize> =
        store.manifest(hash).expect("manifest").files.iter().map(|f| f.chunks.len()).collect();
    assert_eq!(chunks, [0, 1, 1, 1, 2, 2]); // f0 f1 f4194303 f4194304 f4194305 f8388608
}

#[test]
fn only_changed_chunks_travel() {
    let dir = tempdir().expect("temporary folder");
    let mut weights = noise(12 * MIB, 7);
    let source = folder(&dir.path().join("source"), &[("w", weights.clone())]);
    let store = open(&dir.path().join("store"));
    let first = store.put_artifact(&source).expect("stored");
    assert!(first.bytes_sent >= 12 * MIB as u64);
    assert_eq!(store.put_artifact(&source).expect("again").bytes_sent, 0);
    weights[5 * MIB] ^= 1;
    fs::write(source.join("w"), &weights).expect("changed");
    let second = store.put_artifact(&source).expect("stored");
    assert_ne!(second.hash, first.hash);
    assert!((4 * MIB as u64..5 * MIB as u64).contains(&second.bytes_sent), "{second:?}");
}

#[test]
fn a_folder_that_is_no_artifact_is_refused_by_name() {
    let dir = tempdir().expect("temporary folder");
    let store = open(&dir.path().join("store"));
    let refused = |name: &str, files: &[&str], expected: &str| {
        let files: Vec<(&str, Vec<u8>)> = files.iter().map(|f| (*f, vec![1])).collect();
        let source = folder(&dir.path().join(name), &files);
        let error = store.put_artifact(&source).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused("case", &["Model.bin", "model.bin"], "differ only in case");
    refused("folders", &["A/x", "a/y"], "differ only in case");
    refused("colon", &["a:b"], "contains `\\` or `:`");
    refused("control", &["a\nb"], "control character");
    fs::create_dir(dir.path().join("empty")).expect("folder");
    refused("empty", &[], "holds no file");

    let source = folder(&dir.path().join("link"), &[("file", vec![1])]);
    std::os::unix::fs::symlink("/etc/passwd", source.join("secret")).expect("link");
    let error = store.put_artifact(&source).expect_err("refused").to_string();
    assert!(error.contains("link/secret`: is a link"), "{error}");

    let error = store.put_artifact(&dir.path().join("absent")).expect_err("refused").to_string();
    assert!(error.contains("absent"), "{error}");
}

#[test]
fn a_store_elsewhere_is_refused_with_what_is_supported() {
    for uri in ["gs://b", "https://host/x", "memory:///"] {
        let error = Store::open(uri).expect_err("refused");
        assert!(matches!(error, StoreError::UnsupportedScheme { .. }));
        let text = error.to_string();
        assert!(text.contains(uri) && text.contains("file:///"), "{text}");
    }
    assert!(matches!(Store::open(""), Err(StoreError::BadUri { .. })));
    assert!(matches!(Store::open("file://host/x"), Err(StoreError::BadUri { .. })));
}

#[test]
fn a_folder_and_its_file_uri_are_the_same_store() {
    let dir = tempdir().expect("temporary folder");
    let root = dir.path().join("a store");
    let source = folder(&dir.path().join("source"), &[("x", vec![1])]);
    let hash = open(&root).put_artifact(&source).expect("stored").hash;
    let uri = format!("file://{}", root.display()).replace(' ', "%20");
    let store = Store::open(&uri).expect("a store");
    assert_eq!(store.list().expect("list")[0].hash, hash);
}

#[test]
fn short_hashes_name_what_they_alone_begin() {
    let dir = tempdir().expect("temporary folder");
    let store = open(&dir.path().join("store"));
    let artifacts = dir.path().join("store/artifacts");
    fs::create_dir_all(&artifacts).expect("folder");
    for first in ["abcd1", "abcd2", "ffff0"] {
        fs::write(artifacts.join(format!("{first:0<64}.json")), "{}").expect("file");
    }
    let full = format!("{:0<64}", "ffff0");
    assert_eq!(store.resolve("ffff").expect("found").to_string(), full);
    assert_eq!(store.resolve(&full).expect("found").to_string(), full);
    let error = store.resolve("abcd").expect_err("ambiguous").to_string();
    assert!(error.starts_with("ambiguous: `abcd` begins abcd1"), "{error}");
    assert!(error.contains("abcd2"), "{error}");
    assert!(matches!(store.resolve("0000"), Err(StoreError::NotFound { .. })));
    for bad in ["fff", "FFFF", "../x", "", "abcg"] {
        assert!(matches!(store.resolve(bad), Err(StoreError::BadHash(_))), "{bad}");
    }
}

#[test]
fn a_key_is_bound_once_and_found_in_its_namespace_only() {
    let dir = tempdir().expect("temporary folder");
    let store = open(&dir.path().join("store"));
    let put = |name: &str| {
        let source = folder(&dir.path().join(name), &[("x", name.into())]);
        store.put_artifact(&source).expect("stored").hash
    };
    let (one, two) = (put("one"), put("two"));
    assert_eq!(store.find_key(None, KEY).expect("looked"), None);
    store.bind_key(None, KEY, one).expect("bound");
    store.bind_key(None, KEY, one).expect("the same again");
    assert_eq!(store.find_key(None, KEY).expect("looked"), Some(one));
    assert_eq!(store.find_key(Some("team-a"), KEY).expect("looked"), None);
    let error = store.bind_key(None, KEY, two).expect_err("taken").to_string();
    assert!(error.contains("NUMERICS_VERSION"), "{error}");
    store.bind_key(Some("team-a"), KEY, two).expect("another namespace");
    assert_eq!(store.find_key(None, KEY).expect("looked"), Some(one));
    let keys = store.keys().expect("keys");
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[1].namespace.as_deref(), Some("team-a"));

    let absent: ArtifactHash = "0".repeat(64).parse().expect("a hash");
    assert!(matches!(store.bind_key(Some("b"), KEY, absent), Err(StoreError::NotFound { .. })));
    for namespace in ["", "-", "A", "a/b", "..", &"a".repeat(64)] {
        assert!(matches!(
            store.find_key(Some(namespace), KEY),
            Err(StoreError::BadKey { what: "namespace", .. })
        ));
    }
    assert!(matches!(store.find_key(None, "../x"), Err(StoreError::BadKey { what: "key", .. })));
}

#[test]
fn a_folder_with_other_content_is_never_overwritten() {
    let dir = tempdir().expect("temporary folder");
    let store = open(&dir.path().join("store"));
    let source = folder(&dir.path().join("source"), &[("x", vec![1])]);
    let hash = store.put_artifact(&source).expect("stored").hash;
    let target = folder(&dir.path().join("target"), &[("x", vec![2])]);
    let error = store.materialise(hash, &target).expect_err("occupied");
    assert!(matches!(error, StoreError::Occupied { .. }), "{error}");
    assert_eq!(fs::read(target.join("x")).expect("file"), [2]);
}

#[test]
fn gc_removes_what_nothing_refers_to_and_nothing_young() {
    let dir = tempdir().expect("temporary folder");
    let store = open(&dir.path().join("store"));
    let shared = noise(4 * MIB, 3);
    let put = |name: &str| {
        let mut content = shared.clone();
        content.extend(name.as_bytes());
        let source = folder(&dir.path().join(name), &[("x", content)]);
        store.put_artifact(&source).expect("stored").hash
    };
    let (kept, dropped) = (put("kept"), put("dropped"));
    let other = KEY.replace('a', "b");
    store.bind_key(None, KEY, kept).expect("bound");
    store.bind_key(None, &other, dropped).expect("bound");
    let options =
        |min_age, dry_run| GcOptions { keep: Keep::Only(BTreeSet::from([kept])), min_age, dry_run };

    let young = store.gc(&options(Duration::from_secs(3600), false)).expect("gc");
    assert_eq!((young.artifacts.len(), young.chunks), (0, 0));

    let dry = store.gc(&options(Duration::ZERO, true)).expect("gc");
    assert_eq!(dry.artifacts, [dropped]);
    assert_eq!((dry.keys, dry.chunks, dry.bytes), (1, 1, 7));
    assert!(store.verify(Some(dropped)).expect("still there").findings.is_empty());

    let wet = store.gc(&options(Duration::ZERO, false)).expect("gc");
    assert_eq!((wet.keys, wet.chunks, wet.bytes), (1, 1, 7));
    assert!(matches!(store.manifest(dropped), Err(StoreError::NotFound { .. })));
    assert_eq!(store.find_key(None, &other).expect("looked"), None);
    assert_eq!(store.find_key(None, KEY).expect("looked"), Some(kept));
    let report = store.verify(None).expect("verified");
    assert_eq!((report.artifacts, report.findings.len()), (1, 0));

    // Nothing more to do; with `All`, artifacts stay whatever their age.
    let all = GcOptions { keep: Keep::All, min_age: Duration::ZERO, dry_run: false };
    let again = store.gc(&all).expect("gc");
    assert_eq!((again.artifacts.len(), again.keys, again.chunks), (0, 0, 0));
    assert_eq!(store.list().expect("list").len(), 1);
}

#[test]
fn the_blocking_store_can_be_called_from_async_code() {
    let dir = tempdir().expect("temporary folder");
    let store = open(&dir.path().join("store"));
    let source = folder(&dir.path().join("source"), &[("x", vec![1])]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        store.put_artifact(&source).expect("stored");
    });
}
