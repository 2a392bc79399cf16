//! A progress file is written by one process, read by another, and cut off by crashes.

use std::{fs, io::Write};

use petaflop_store::report::{Progress, ProgressReader, ProgressWriter};
use proptest::prelude::*;
use tempfile::tempdir;

fn step(step: u64) -> Progress {
    Progress::Step { step, loss: 1.5, learning_rate: 1e-3, tokens_per_second: 100.0 }
}

#[test]
fn what_is_written_is_read_once_and_in_order() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("progress.jsonl");
    let mut reader = ProgressReader::new(&path);
    assert_eq!(reader.poll().expect("not there yet"), []);
    let mut writer = ProgressWriter::append(&path).expect("a file");
    writer.write(&step(1)).expect("written");
    writer.write(&step(2)).expect("written");
    assert_eq!(reader.poll().expect("read"), [step(1), step(2)]);
    assert_eq!(reader.poll().expect("read"), []);
    writer.write(&Progress::Stopped { step: 2 }).expect("written");
    assert_eq!(reader.poll().expect("read"), [Progress::Stopped { step: 2 }]);
    assert_eq!(reader.skipped(), 0);
}

#[test]
fn a_line_is_read_when_it_is_whole() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("progress.jsonl");
    let line = serde_json::to_string(&step(1)).expect("JSON") + "\n";
    let mut file = fs::File::create(&path).expect("file");
    let mut reader = ProgressReader::new(&path);
    for byte in &line.as_bytes()[..line.len() - 1] {
        file.write_all(&[*byte]).expect("written");
        assert_eq!(reader.poll().expect("read"), []);
    }
    file.write_all(b"\n").expect("written");
    assert_eq!(reader.poll().expect("read"), [step(1)]);
}

#[test]
fn a_writer_goes_on_after_a_crash_without_losing_its_first_line() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("progress.jsonl");
    fs::write(&path, "{\"event\":\"st").expect("file");
    let mut reader = ProgressReader::new(&path);
    assert_eq!(reader.poll().expect("read"), []);
    let mut writer = ProgressWriter::append(&path).expect("a file");
    writer.write(&step(9)).expect("written");
    assert_eq!(reader.poll().expect("read"), [step(9)]);
    assert_eq!(reader.skipped(), 1);
}

#[test]
fn garbage_and_endless_lines_are_skipped_and_counted() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("progress.jsonl");
    let good = serde_json::to_vec(&step(3)).expect("JSON");
    let endless = vec![b'x'; 3 << 20];
    let lines: [&[u8]; 6] = [b"\xff\xfe", b"{}", b"", &endless, b"null", &good];
    fs::write(&path, [lines.join(&b'\n'), b"\n".to_vec()].concat()).expect("file");
    let mut reader = ProgressReader::new(&path);
    assert_eq!(reader.poll().expect("read"), [step(3)]);
    assert_eq!(reader.skipped(), 4);
}

#[test]
fn a_replaced_file_is_read_from_its_beginning() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("progress.jsonl");
    let mut writer = ProgressWriter::append(&path).expect("a file");
    writer.write(&step(1)).expect("written");
    writer.write(&step(2)).expect("written");
    let mut reader = ProgressReader::new(&path);
    assert_eq!(reader.poll().expect("read").len(), 2);
    fs::remove_file(&path).expect("removed");
    let mut writer = ProgressWriter::append(&path).expect("a file");
    writer.write(&step(7)).expect("written");
    assert_eq!(reader.poll().expect("read"), [step(7)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn however_it_arrives_every_good_line_is_read(
        lines in prop::collection::vec(prop_oneof![(0u64..100).prop_map(Ok), "[^\n]{0,20}".prop_map(Err)], 0..30),
        cuts in prop::collection::vec(1usize..50, 1..10),
    ) {
        let dir = tempdir().expect("temporary folder");
        let path = dir.path().join("progress.jsonl");
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for line in lines {
            match line {
                Ok(n) => {
                    bytes.extend(serde_json::to_vec(&step(n)).expect("JSON"));
                    expected.push(step(n));
                }
                Err(garbage) => bytes.extend(garbage.bytes()),
            }
            bytes.push(b'\n');
        }
        let mut file = fs::File::create(&path).expect("file");
        let mut reader = ProgressReader::new(&path);
        let mut read = Vec::new();
        let mut cuts = cuts.into_iter().cycle();
        while !bytes.is_empty() {
            let cut = cuts.next().unwrap_or(1).min(bytes.len());
            file.write_all(&bytes.drain(..cut).collect::<Vec<_>>()).expect("written");
            read.extend(reader.poll().expect("read"));
        }
        prop_assert_eq!(read, expected);
    }
}
