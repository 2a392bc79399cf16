use super::*;

const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn files(content: &str) -> Files {
    Files::from([("state".to_owned(), content.as_bytes().to_vec().into())])
}

fn open(dir: &Path) -> Folder {
    Folder::open(dir, KEY, 2).unwrap()
}

fn newest(folder: &Folder) -> (Option<u64>, Vec<String>) {
    let mut skipped = Vec::new();
    let step =
        folder.newest(|message| skipped.push(message)).unwrap().map(|checkpoint| checkpoint.step);
    (step, skipped)
}

#[test]
fn the_newest_two_are_kept_and_the_newest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let folder = open(dir.path());
    assert_eq!(newest(&folder), (None, vec![]));
    for step in [9, 10, 100] {
        folder.write(step, &files(&step.to_string())).unwrap();
    }
    let mut kept = folder.names().unwrap();
    kept.sort();
    assert_eq!(
        kept,
        ["lock", "step-0000000010-0123456789abcdef", "step-0000000100-0123456789abcdef"]
    );
    assert_eq!(folder.newest(|_| ()).unwrap().unwrap().files["state"], b"100"[..]);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 6] = [
        ("another content", |dir| {
            let mut bytes = fs::read(dir.join("state")).unwrap();
            bytes[0] ^= 1;
            fs::write(dir.join("state"), bytes).unwrap();
        }),
        ("has 3 bytes, its manifest says 6", |dir| fs::write(dir.join("state"), "two").unwrap()),
        ("state: No such file", |dir| fs::remove_file(dir.join("state")).unwrap()),
        ("manifest.json: No such file", |dir| fs::remove_file(dir.join(MANIFEST)).unwrap()),
        ("manifest.json: EOF", |dir| fs::write(dir.join(MANIFEST), "{").unwrap()),
        ("says step 1", |dir| {
            let json = fs::read_to_string(dir.join(MANIFEST)).unwrap();
            fs::write(dir.join(MANIFEST), json.replace("\"step\": 2", "\"step\": 1")).unwrap();
        }),
    ];
    for (problem, damage) in cases {
        let dir = tempfile::tempdir().unwrap();
        let folder = open(dir.path());
        folder.write(1, &files("first")).unwrap();
        damage(&folder.write(2, &files("second")).unwrap());
        let (step, skipped) = newest(&folder);
        assert_eq!(step, Some(1), "{problem}");
        assert!(skipped.len() == 1 && skipped[0].contains(problem), "{problem}: {skipped:?}");
        assert!(skipped[0].contains("step-0000000002-"), "{skipped:?}");
        // Training gets there again and replaces it.
        folder.write(2, &files("second")).unwrap();
        assert_eq!(newest(&folder), (Some(2), vec![]));
    }
}

#[test]
fn another_jobs_checkpoint_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let other = KEY.replace('0', "f");
    let path = Folder::open(dir.path(), &other, 1).unwrap().write(7, &files("theirs")).unwrap();
    let folder = open(dir.path());
    let (step, skipped) = newest(&folder);
    assert_eq!(step, None);
    assert!(skipped[0].contains("belongs to another job"), "{skipped:?}");
    for step in 8..12 {
        folder.write(step, &files("ours")).unwrap();
    }
    assert!(path.exists());
    // The same content under our name is theirs still.
    fs::rename(&path, dir.path().join(folder.naming.name(20))).unwrap();
    let (step, skipped) = newest(&folder);
    assert_eq!(step, Some(11));
    assert!(skipped[0].contains("belongs to another job (key f123"), "{skipped:?}");
}

#[test]
fn what_a_crash_left_unfinished_is_removed_and_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = open(dir.path()).write(3, &files("whole")).unwrap();
    let unfinished = dir.path().join(format!("{WRITING}step-0000000004-0123456789abcdef"));
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("state"), "par").unwrap();
    let folder = open(dir.path());
    assert!(!unfinished.exists() && path.exists());
    assert_eq!(newest(&folder), (Some(3), vec![]));
}

#[test]
fn a_second_process_is_told_who_holds_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = open(dir.path());
    let error = Folder::open(dir.path(), KEY, 2).unwrap_err();
    assert!(
        error.to_string().contains(&format!("in use by process {}", std::process::id())),
        "{error}"
    );
    drop(folder);
    open(dir.path());
}

#[test]
fn a_write_that_fails_leaves_the_last_checkpoint_and_no_litter() {
    let dir = tempfile::tempdir().unwrap();
    let folder = open(dir.path());
    folder.write(1, &files("first")).unwrap();
    // A name that no file can have stands in for every refusal of the system.
    let impossible =
        Files::from([("state".to_owned(), vec![1].into()), ("x".repeat(300), vec![2].into())]);
    let error = folder.write_in_background(2, impossible).wait().unwrap_err();
    assert!(error.to_string().starts_with("cannot write checkpoint"), "{error}");
    let mut names = folder.names().unwrap();
    names.sort();
    assert_eq!(names, ["lock", "step-0000000001-0123456789abcdef"]);
    assert_eq!(newest(&folder), (Some(1), vec![]));
}

/// The same bucket again, as another machine would open it.
fn bucket(dir: &Path) -> Bucket {
    Bucket::open(&format!("file://{}", dir.display()), KEY, 2).unwrap()
}

fn newest_in(bucket: &Bucket) -> (Option<u64>, Vec<String>) {
    let mut skipped = Vec::new();
    let step =
        bucket.newest(|message| skipped.push(message)).unwrap().map(|checkpoint| checkpoint.step);
    (step, skipped)
}

#[test]
fn in_a_bucket_the_newest_two_are_kept_and_another_machine_reads_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    for step in [9, 10, 100] {
        let written =
            bucket(dir.path()).write_in_background(step, files(&step.to_string())).wait().unwrap();
        assert_eq!(written.step, step);
        assert!(written.path.ends_with(format!("step-{step:010}-0123456789abcdef")));
    }
    let other_machine = bucket(dir.path());
    assert_eq!(newest_in(&other_machine), (Some(100), vec![]));
    assert_eq!(other_machine.newest(|_| ()).unwrap().unwrap().files["state"], b"100"[..]);
    let kept = other_machine.names();
    assert_eq!(kept, ["step-0000000010-0123456789abcdef", "step-0000000100-0123456789abcdef"]);
    // What the first alone used is gone with it.
    assert_eq!(other_machine.unreferenced_chunks(), 0);
}

#[test]
fn in_a_bucket_a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 6] = [
        ("chunk is corrupt", |dir| fs::write(chunk(dir, "second"), "secone").unwrap()),
        ("chunk has 3 bytes, not 6", |dir| fs::write(chunk(dir, "second"), "two").unwrap()),
        ("chunk is missing", |dir| fs::remove_file(chunk(dir, "second")).unwrap()),
        ("names no artifact", |dir| fs::write(second(dir), "{").unwrap()),
        ("not a manifest", |dir| fs::write(artifact(dir), "{").unwrap()),
        ("no artifact", |dir| fs::remove_file(artifact(dir)).unwrap()),
    ];
    for (problem, damage) in cases {
        let dir = tempfile::tempdir().unwrap();
        let writer = bucket(dir.path());
        writer.write(1, &files("first")).unwrap();
        writer.write(2, &files("second")).unwrap();
        damage(dir.path());
        let (step, skipped) = newest_in(&writer);
        assert_eq!(step, Some(1), "{problem}");
        assert!(skipped.len() == 1 && skipped[0].contains(problem), "{problem}: {skipped:?}");
        assert!(skipped[0].contains("step-0000000002-"), "{skipped:?}");
        // Training gets there again and replaces it.
        writer.write(2, &files("second")).unwrap();
        assert_eq!(newest_in(&writer), (Some(2), vec![]));
    }
}

/// The chunk with this content.
fn chunk(bucket: &Path, content: &str) -> PathBuf {
    let hash = blake3::hash(content.as_bytes()).to_string();
    bucket.join(format!("chunks/{}/{hash}", &hash[..2]))
}

/// The name of step 2.
fn second(bucket: &Path) -> PathBuf {
    bucket.join("steps/step-0000000002-0123456789abcdef")
}

/// The manifest of the artifact that it names.
fn artifact(bucket: &Path) -> PathBuf {
    let hash = fs::read_to_string(second(bucket)).unwrap();
    bucket.join(format!("artifacts/{}.json", hash.trim_end()))
}

#[test]
fn what_a_lost_machine_left_unfinished_in_a_bucket_is_never_read_serves_and_then_goes() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("file://{}", dir.path().display());
    bucket(dir.path()).write(3, &files("whole")).unwrap();
    let theirs = Bucket::open(&uri, &KEY.replace('0', "f"), 2);
    theirs.unwrap().write(7, &files("theirs")).unwrap();
    // One upload lacks its name alone, another all but a chunk.
    bucket(dir.path()).write(4, &files("cut off")).unwrap();
    fs::remove_file(dir.path().join("steps/step-0000000004-0123456789abcdef")).unwrap();
    fs::create_dir_all(chunk(dir.path(), "part").parent().unwrap()).unwrap();
    fs::write(chunk(dir.path(), "part"), "part").unwrap();
    let bucket = bucket(dir.path());
    let (step, skipped) = newest_in(&bucket);
    assert_eq!(step, Some(3));
    assert!(skipped.len() == 1 && skipped[0].contains("belongs to another job"), "{skipped:?}");
    // It gets there again: all of it is there.
    let again = bucket.write_in_background(4, files("cut off")).wait().unwrap();
    assert_eq!(again.sent, 0);
    assert_eq!(newest_in(&bucket), (Some(4), skipped));
    // And then the rest is of no use to anybody.
    assert!(!chunk(dir.path(), "part").exists());
    // Removing what is old leaves another job's alone.
    for step in 8..11 {
        bucket.write(step, &files("ours")).unwrap();
    }
    assert_eq!(bucket.names().len(), 3);
    assert!(chunk(dir.path(), "theirs").exists() && !chunk(dir.path(), "cut off").exists());
}
