//! What travels to a real S3 server, counted on the way: nothing twice, whatever cut it off.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::{fs, path::Path, process::Command};

use common::{contents, folder, noise, s3::Server};
use counting::Relay;
use petaflop_store::blocking::Store;

const MIB: usize = 1 << 20;
const CHUNK: u64 = 4 << 20;
/// Headers, questions whether a chunk is there, and the manifest: at most this much beside chunks.
const AROUND: u64 = 128 << 10;
const URI: &str = "s3://bucket/store";
/// Set for the process that is to be killed: the folder that it stores.
const TO_BE_KILLED: &str = "PETAFLOP_TEST_FOLDER";

/// A client of the server through the relay, in a process of its own: a client that can be killed.
fn client(server: &Server, relay: &Relay, folder: &Path) -> Command {
    let mut client = Command::new(std::env::current_exe().unwrap());
    client
        .args(["--exact", "a_folder_is_stored_where_another_process_says", "--nocapture"])
        .envs(server.credentials())
        .env("AWS_ENDPOINT_URL", relay.url())
        .env(TO_BE_KILLED, folder);
    client
}

/// What [`client`] runs; by itself it has nothing to do.
#[test]
fn a_folder_is_stored_where_another_process_says() {
    let Some(folder) = std::env::var_os(TO_BE_KILLED) else { return };
    let stored = Store::open(URI).unwrap().put_artifact(Path::new(&folder)).unwrap();
    println!("\nsent {}", stored.bytes_sent);
}

/// Bytes that it says it sent.
fn sent(client: &mut Command) -> u64 {
    let output = client.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    let sent = said.lines().find_map(|line| line.strip_prefix("sent ")).unwrap_or_else(|| {
        panic!("it said nothing: {said}");
    });
    sent.parse().unwrap()
}

/// How many full chunks the server has.
fn held(server: &Server) -> u64 {
    let chunks = server.root.path().join("bucket/store/chunks");
    let Ok(folders) = fs::read_dir(chunks) else { return 0 };
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    files.filter(|file| file.as_ref().unwrap().metadata().unwrap().len() == CHUNK).count() as u64
}

#[test]
fn an_upload_whose_process_was_killed_goes_on_where_it_was() {
    let server = Server::start();
    let relay = Relay::before(&server.credentials()["AWS_ENDPOINT_URL"]);
    let dir = tempfile::tempdir().unwrap();
    let files = [("config.json", b"{}".to_vec()), ("model", noise(40 * MIB, 5))];
    let source = folder(&dir.path().join("source"), &files);
    let all = 40 * MIB as u64;

    // Four chunks are on their way at once: with more than that sent, one at least has arrived.
    relay.hold_up_after(22 * MIB as u64);
    let mut killed = client(&server, &relay, &source).spawn().unwrap();
    relay.wait_until_held_up();
    killed.kill().unwrap();
    killed.wait().unwrap();
    let there = held(&server);
    assert!((1..10).contains(&there), "{there}");
    relay.go_on();

    let said = sent(&mut client(&server, &relay, &source));
    let travelled = relay.take();
    let left = all - there * CHUNK;
    assert!(travelled >= said && travelled <= said + AROUND, "{travelled} {said}");
    assert!(said <= left + AROUND, "{said} of {left}");

    // It is the artifact, every byte of it checked.
    let credentials = server.credentials();
    let store =
        petaflop_store::Store::open_with(URI, Some(&common::s3::borrowed(&credentials))).unwrap();
    let hash = petaflop_store::folder::hash(&source).unwrap();
    let copy = dir.path().join("copy");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.materialise(hash, &copy)).unwrap();
    assert_eq!(contents(&copy), contents(&source));
}

#[test]
fn only_chunks_that_changed_travel() {
    let server = Server::start();
    let relay = Relay::before(&server.credentials()["AWS_ENDPOINT_URL"]);
    let dir = tempfile::tempdir().unwrap();
    let mut content = noise(40 * MIB, 6);
    let source = folder(&dir.path().join("source"), &[("model", content.clone())]);
    assert!(sent(&mut client(&server, &relay, &source)) > 40 * MIB as u64);
    assert!(relay.take() > 40 * MIB as u64);

    assert_eq!(sent(&mut client(&server, &relay, &source)), 0);
    let questions = relay.take();
    assert!(questions < AROUND, "{questions}");

    // A byte in the third chunk, and the file goes on behind its end.
    content[9 * MIB] ^= 1;
    content.extend(noise(MIB, 7));
    fs::write(source.join("model"), content).unwrap();
    let said = sent(&mut client(&server, &relay, &source));
    let changed = CHUNK + MIB as u64;
    assert!(said >= changed && said < changed + AROUND, "{said}");
    let travelled = relay.take();
    assert!(travelled >= said && travelled < said + AROUND, "{travelled}");
}
