//! The same promises over a real S3 server, also while it is killed.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use common::{
    KEY, contents, folder, noise,
    s3::{Server, borrowed},
};
use petaflop_store::{
    Digest, GcOptions, Keep, Objects, Store, StoreError,
    fetch::fetch,
    hash::{HashedFile, artifact_hash},
    logs::{LogReader, LogWriter},
    place,
};

fn store_of(server: &Server) -> Store {
    let credentials = server.credentials();
    Store::open_with("s3://bucket/some/prefix", Some(&borrowed(&credentials))).unwrap()
}

#[tokio::test]
async fn an_artifact_is_stored_named_read_and_removed() {
    let server = Server::start();
    let store = store_of(&server);
    let dir = tempfile::tempdir().unwrap();
    let files = [("config.json", b"{}".to_vec()), ("big/model.safetensors", noise(11 << 20, 1))];
    let source = folder(&dir.path().join("source"), &files);
    let stored = store.put_artifact(&source).await.unwrap();
    assert_eq!(stored.hash, petaflop_store::folder::hash(&source).unwrap());
    assert_eq!(store.put_artifact(&source).await.unwrap().bytes_sent, 0);
    store.materialise(stored.hash, &dir.path().join("copy")).await.unwrap();
    assert_eq!(contents(&dir.path().join("copy")), contents(&source));
    assert_eq!(store.list().await.unwrap()[0].bytes, stored.bytes);

    store.bind_key(Some("team"), KEY, stored.hash).await.unwrap();
    store.bind_key(Some("team"), KEY, stored.hash).await.unwrap();
    assert_eq!(store.find_key(Some("team"), KEY).await.unwrap(), Some(stored.hash));
    assert_eq!(store.find_key(None, KEY).await.unwrap(), None);
    // Create is conditional on the server's side: another name for the key is refused.
    let other = folder(&dir.path().join("other"), &[("x", vec![1])]);
    let other = store.put_artifact(&other).await.unwrap().hash;
    let taken = store.bind_key(Some("team"), KEY, other).await;
    assert!(matches!(taken, Err(StoreError::KeyTaken { .. })), "{taken:?}");

    // Damage is found whoever did it.
    let chunk = fs::read_dir(server.root.path().join("bucket/some/prefix/chunks"))
        .unwrap()
        .map(|d| fs::read_dir(d.unwrap().path()).unwrap().next().unwrap().unwrap().path())
        .find(|p| p.metadata().unwrap().len() == 4 << 20)
        .unwrap();
    let mut bytes = fs::read(&chunk).unwrap();
    bytes[77] ^= 1;
    fs::write(&chunk, bytes).unwrap();
    let damaged = store.materialise(stored.hash, &dir.path().join("again")).await;
    assert!(matches!(damaged, Err(StoreError::Damaged(_))), "{damaged:?}");
    assert!(!dir.path().join("again").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_for_half_a_minute_loses_and_spoils_nothing() {
    let mut server = Server::start();
    let store = store_of(&server);
    let dir = tempfile::tempdir().unwrap();
    let source = folder(&dir.path().join("source"), &[("model", noise(160 << 20, 2))]);
    let expected = petaflop_store::folder::hash(&source).unwrap();
    let putting = tokio::spawn({
        let (store, source) = (store.clone(), source.clone());
        async move { store.put_artifact(&source).await }
    });
    // In the middle of it.
    let chunks = server.root.path().join("bucket/some/prefix/chunks");
    while fs::read_dir(&chunks).map_or(0, Iterator::count) < 5 {
        assert!(!putting.is_finished(), "too fast to be interrupted");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.kill();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!putting.is_finished());
    server.again();
    let stored = match putting.await.unwrap() {
        Ok(stored) => stored,
        // It may say so and stop; another try then goes on with what is there.
        Err(error) => {
            assert!(error.to_string().contains("some/prefix"), "{error}");
            store.put_artifact(&source).await.unwrap()
        }
    };
    assert_eq!(stored.hash, expected);
    let report = store.verify(None).await.unwrap();
    assert!(report.findings.is_empty(), "{report:?}");
}

#[tokio::test]
async fn a_place_that_cannot_be_used_is_an_error_that_names_it_and_no_secret() {
    let server = Server::start();
    let mut credentials = server.credentials();
    credentials.insert("AWS_SECRET_ACCESS_KEY", "wrong-canary".into());
    let cases = [("s3://bucket/x", credentials), ("s3://absent/x", server.credentials())];
    for (uri, credentials) in cases {
        let store = Store::open_with(uri, Some(&borrowed(&credentials))).unwrap();
        let error = store.list().await.unwrap_err();
        let text = format!("{error} {error:?} {store:?}");
        assert!(text.contains(uri) && !text.contains("canary"), "{text}");
    }
    for uri in ["s3://", "s3:///x", "s3://b/x?y=z", "s3://user@b/x"] {
        let refused = Store::open(uri);
        assert!(matches!(refused, Err(StoreError::BadUri { .. })), "{uri} {refused:?}");
    }
}

#[tokio::test]
async fn gc_takes_what_is_old_and_unreferenced_and_a_writer_notices_it() {
    let server = Server::start();
    let store = store_of(&server);
    let dir = tempfile::tempdir().unwrap();
    let source = folder(&dir.path().join("source"), &[("x", noise(5 << 20, 3))]);
    let hash = store.put_artifact(&source).await.unwrap().hash;
    let root = server.root.path().join("bucket/some/prefix");
    fs::remove_file(root.join(format!("artifacts/{hash}.json"))).unwrap();
    let options = GcOptions { keep: Keep::All, min_age: Duration::ZERO, dry_run: false };
    // Whatever is asked for, what is young stays: it may belong to an upload under way.
    let report = store.gc(&options).await.unwrap();
    assert_eq!((report.chunks, report.young), (0, 2));
    age(&root.join("chunks"), Duration::from_secs(47 * 3600));
    assert_eq!(store.gc(&options).await.unwrap().chunks, 0);
    // A writer does not count on chunks of that age: it writes them again.
    let stored = store.put_artifact(&source).await.unwrap();
    assert!(stored.bytes_sent > 5 << 20);
    fs::remove_file(root.join(format!("artifacts/{hash}.json"))).unwrap();
    age(&root.join("chunks"), Duration::from_secs(49 * 3600));
    let report = store.gc(&options).await.unwrap();
    assert_eq!((report.chunks, report.young), (2, 0));
    store.put_artifact(&source).await.unwrap();
    assert!(store.verify(None).await.unwrap().findings.is_empty());
}

/// Makes all files look older. The server gives their times as those of its objects.
fn age(dir: &Path, age: Duration) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            self::age(&path, age);
        } else {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(std::time::SystemTime::now() - age).unwrap();
        }
    }
}

#[test]
fn plain_objects_are_written_listed_read_and_removed() {
    let server = Server::start();
    let credentials = server.credentials();
    let objects = Objects::open_with("s3://bucket/a", Some(&borrowed(&credentials))).unwrap();
    for length in [0, 5, 3 << 20] {
        let bytes = noise(length, 4);
        objects.put("dir/name", &bytes).unwrap();
        assert!(objects.get("dir/name").unwrap() == Some(bytes), "{length}");
    }
    objects.put("other", b"x").unwrap();
    assert_eq!(objects.list(Some("dir")).unwrap(), ["dir/name".to_owned()].into());
    assert_eq!(objects.list(None).unwrap(), ["dir/name".to_owned(), "other".to_owned()].into());
    objects.remove("dir/name").unwrap();
    objects.remove("dir/name").unwrap();
    assert_eq!(objects.get("dir/name").unwrap(), None);
}

#[tokio::test]
async fn an_object_or_all_below_it_becomes_files_and_is_known_by_its_digest() {
    let server = Server::start();
    let credentials = server.credentials();
    let given = borrowed(&credentials);
    let dir = tempfile::tempdir().unwrap();
    let files = [("a.txt", b"one".to_vec()), ("deep/er/b.bin", noise(3 << 20, 2))];
    let source = folder(&server.root.path().join("bucket/data/set"), &files);
    // As consoles make folders.
    fs::write(server.root.path().join("bucket/data/empty"), b"").unwrap();
    let hash = petaflop_store::folder::hash(&source).unwrap();
    for (uri, name) in [("s3://bucket/data/set", "whole"), ("s3://bucket/data/set/", "slash")] {
        let to = dir.path().join(name);
        assert_eq!(fetch(uri, Some(&given), &to).await.unwrap(), Some(hash));
        assert_eq!(contents(&to), contents(&source));
    }
    let single = dir.path().join("single");
    let found = fetch("s3://bucket/data/set/a.txt", Some(&given), &single).await.unwrap().unwrap();
    assert_eq!(fs::read(&single).unwrap(), b"one");
    let content = Digest::of(b"one");
    assert_eq!(found, artifact_hash([HashedFile { path: "", length: 3, content }]));
    let nothing = dir.path().join("nothing");
    assert_eq!(fetch("s3://bucket/data/no", Some(&given), &nothing).await.unwrap(), None);
    assert!(!nothing.exists());

    // Neither a key that does not open it nor a bucket that is not there is taken for an empty one.
    let wrong = BTreeMap::from([("AWS_SECRET_ACCESS_KEY", "other")]);
    let wrong = given.iter().map(|(k, v)| (*k, *v)).chain(wrong).collect();
    fetch("s3://bucket/data/set", Some(&wrong), &nothing).await.unwrap_err();
    fetch("s3://elsewhere/data", Some(&given), &nothing).await.unwrap_err();
}

#[tokio::test]
async fn output_is_read_as_it_was_written_from_any_machine() {
    let server = Server::start();
    let credentials = server.credentials();
    let objects = place::objects("s3://bucket/store", Some(&borrowed(&credentials))).unwrap();
    let prefix = petaflop_store::logs::prefix("team", "job", "trj-job-1");
    let mut writer = LogWriter::new(objects.clone(), &prefix);
    let mut reader = LogReader::new(objects, &prefix);
    assert_eq!(reader.next().await.unwrap(), None);
    writer.write("first\n".into()).await.unwrap();
    writer.write("second\n".into()).await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), "first\n");
    assert_eq!(reader.next().await.unwrap().unwrap(), "second\n");
    assert_eq!((reader.next().await.unwrap(), reader.exit().await.unwrap()), (None, None));
    writer.finish("{}".into()).await.unwrap();
    assert_eq!(reader.exit().await.unwrap().unwrap(), "{}");
}
