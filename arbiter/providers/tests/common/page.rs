//! A page of docs/providers and the tests that it names, held against each other.

use std::fs;
use std::path::Path;

/// Every test that the page names, `module::test`, is in one of these folders of the package.
pub(crate) fn names_tests_that_exist(page: &str, folders: &[&str]) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for name in page.split('`').filter(|text| text.contains("::") && !text.contains(' ')) {
        let (module, test) = name.split_once("::").expect("a module and a test");
        let wanted = format!("fn {test}(");
        let there = folders.iter().any(|folder| {
            let text = fs::read_to_string(here.join(folder).join(format!("{module}.rs")));
            text.is_ok_and(|text| text.contains(&wanted))
        });
        assert!(there, "the page names {name}, which is no test");
        named += 1;
    }
    assert!(named > 40, "only {named} tests are named");
}

/// Every test of the folder that talks to a server stands in the page.
pub(crate) fn lacks_no_test_of(page: &str, folder: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut missing = Vec::new();
    for file in fs::read_dir(folder).expect("the tests") {
        let path = file.expect("a file").path();
        let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let source = fs::read_to_string(&path).expect("a source");
        let tests = source.split("#[tokio::test]\nasync fn ").skip(1);
        let names = tests.filter_map(|rest| rest.split('(').next());
        let names = names.map(|test| format!("{module}::{test}"));
        missing.extend(names.filter(|name| !page.contains(&format!("`{name}`"))));
    }
    assert!(missing.is_empty(), "tests that stand at no statement: {missing:?}");
}
