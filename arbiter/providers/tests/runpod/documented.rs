//! docs/providers/runpod.md names a test for each of RunPod's ways. Every one of them is there.

use std::path::Path;

const PAGE: &str = include_str!("../../../../docs/providers/runpod.md");

#[test]
fn every_test_that_the_page_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for name in PAGE.split('`').filter(|text| text.contains("::")) {
        let (module, test) = name.split_once("::").expect("a module and a test");
        let files = ["tests/runpod", "src/runpod"].map(|folder| here.join(folder));
        let wanted = format!("fn {test}(");
        let there = files.iter().any(|folder| {
            let text = std::fs::read_to_string(folder.join(format!("{module}.rs")));
            text.is_ok_and(|text| text.contains(&wanted))
        });
        assert!(there, "docs/providers/runpod.md names {name}, which is no test");
        named += 1;
    }
    assert!(named > 40, "only {named} tests are named");
}
