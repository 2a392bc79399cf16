use super::*;

fn read(path: &Path) -> Result<Source, Error> {
    let input =
        recipe::Input { name: "data".into(), uri: path.display().to_string(), digest: None };
    Source::read(&input, Role::Text, &Builtins::new())
}

fn problem(path: &Path) -> String {
    let error = read(path).unwrap_err();
    assert_eq!(error.class(), crate::Class::BadInput);
    error.to_string()
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

#[test]
fn a_folder_is_read_in_the_order_of_its_paths() {
    let dir = folder(&[
        ("b/1.txt", b"one"),
        ("a.txt", b"two"),
        ("b.txt", b"three"),
        (".git/x", b"no"),
        ("e", b""),
    ]);
    let source = read(dir.path()).unwrap();
    let paths: Vec<&str> = source.texts.iter().map(|text| text.path.as_str()).collect();
    assert_eq!(paths, ["a.txt", "b.txt", "b/1.txt"]);
    assert_eq!(source.left_out, 0);
}

#[test]
fn the_digest_is_of_paths_and_contents_alone() {
    let files: [(&str, &[u8]); 2] = [("x/1", b"one"), ("y", b"two")];
    let (a, b) = (folder(&files), folder(&files));
    assert_eq!(read(a.path()).unwrap().digest, read(b.path()).unwrap().digest);
    for other in [[("x/1", b"one" as &[u8]), ("y", b"twO")], [("x/2", b"one"), ("y", b"two")]] {
        assert_ne!(read(folder(&other).path()).unwrap().digest, read(a.path()).unwrap().digest);
    }
    // A file's own name is not its content.
    let dir = folder(&[("p", b"same"), ("q", b"same")]);
    let digest = |name| read(&dir.path().join(name)).unwrap().digest;
    assert_eq!(digest("p"), digest("q"));
}

#[test]
fn what_is_not_text_is_left_out_of_a_folder_and_refused_alone() {
    let dir = folder(&[("good", b"text"), ("latin1", b"caf\xe9"), ("binary", b"a\0b")]);
    let source = read(dir.path()).unwrap();
    assert_eq!((source.texts.len(), source.left_out), (1, 2));
    let latin1 = problem(&dir.path().join("latin1"));
    assert!(latin1.contains("latin1: not UTF-8: the byte at offset 3"), "{latin1}");
    let binary = problem(&dir.path().join("binary"));
    assert!(binary.contains("binary: not text: there is a NUL byte at offset 1"), "{binary}");
    fs::remove_file(dir.path().join("good")).unwrap();
    assert!(problem(dir.path()).contains("none of its 2 files is UTF-8"));
}

#[test]
fn nothing_to_read_is_said_plainly() {
    let dir = folder(&[("zero", b""), ("sub/.hidden", b"x")]);
    for (path, expected) in [
        ("zero", "zero: the file is empty"),
        ("sub", "the folder holds no file with content"),
        ("missing", "missing: No such file or directory"),
    ] {
        let problem = problem(&dir.path().join(path));
        assert!(problem.contains(expected) && problem.starts_with("input 'data': "), "{problem}");
    }
    let input = recipe::Input { name: "data".into(), uri: "gs://b/k".into(), digest: None };
    let error = Source::read(&input, Role::Text, &Builtins::new()).unwrap_err().to_string();
    assert!(error.contains("the scheme 'gs' is not read"), "{error}");
}

#[test]
fn links_are_followed_and_loops_are_refused() {
    let dir = folder(&[("real/text", b"text")]);
    std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
    assert_eq!(read(dir.path()).unwrap().texts.len(), 2);
    std::os::unix::fs::symlink(dir.path(), dir.path().join("real/loop")).unwrap();
    assert!(problem(dir.path()).contains("leads back to a folder that holds it"));
    fs::remove_file(dir.path().join("real/loop")).unwrap();
    std::os::unix::fs::symlink("self", dir.path().join("self")).unwrap();
    assert!(problem(dir.path()).contains("self: Too many levels of symbolic links"));
}

#[test]
fn a_change_is_noticed_and_a_touch_is_not_one() {
    let dir = folder(&[("a", b"text"), ("b", b"more")]);
    let mut source = read(dir.path()).unwrap();
    source.still_the_same().unwrap();
    let file = fs::File::options().append(true).open(dir.path().join("a")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    source.still_the_same().unwrap();
    source.verify().unwrap();
    fs::write(dir.path().join("a"), "teXt").unwrap();
    let error = source.still_the_same().unwrap_err();
    assert!(matches!(&error, Error::Changed { before, after, .. } if before != after), "{error}");
    fs::remove_dir_all(dir.path()).unwrap();
    assert!(source.verify().unwrap_err().to_string().contains("No such file"));
}
