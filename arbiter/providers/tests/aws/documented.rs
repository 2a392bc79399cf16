//! docs/providers/aws.md names a test for each of AWS's ways. Every one of them is there. Its policy
//! allows every call that is made.

use std::path::Path;

const PAGE: &str = include_str!("../../../../docs/providers/aws.md");

#[test]
fn every_test_that_the_page_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for name in PAGE.split('`').filter(|text| text.contains("::") && !text.contains(' ')) {
        let (module, test) = name.split_once("::").expect("a module and a test");
        let agent = ["../../runtime-image/agent/src", "../../runtime-image/agent/tests/suite"];
        let files = ["tests/aws", "src/aws", agent[0], agent[1]].map(|folder| here.join(folder));
        let wanted = format!("fn {test}(");
        let there = files.iter().any(|folder| {
            let text = std::fs::read_to_string(folder.join(format!("{module}.rs")));
            text.is_ok_and(|text| text.contains(&wanted))
        });
        assert!(there, "docs/providers/aws.md names {name}, which is no test");
        named += 1;
    }
    assert!(named > 40, "only {named} tests are named");
}

#[test]
fn the_policy_is_json_and_allows_each_call_and_no_other_of_ec2s() {
    let (_, rest) = PAGE.split_once("```json\n").expect("a policy");
    let (policy, _) = rest.split_once("```").expect("its end");
    let policy: serde_json::Value = serde_json::from_str(policy).expect("JSON");
    let statements = policy["Statement"].as_array().expect("statements");
    let mut allowed: Vec<&str> = statements
        .iter()
        .flat_map(|one| one["Action"].as_array().expect("actions"))
        .filter_map(|action| action.as_str()?.strip_prefix("ec2:"))
        .collect();
    allowed.sort_unstable();
    allowed.dedup();
    // As the client calls them: `ec2.describe_instances()`, `send_with` for RunInstances.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/aws");
    let sources: String = ["mod.rs", "look.rs", "ours.rs"]
        .map(|file| std::fs::read_to_string(folder.join(file)).expect("a source"))
        .concat();
    let mut called: Vec<String> = sources
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| {
            ["describe_", "terminate_instances", "delete_volume", "cancel_spot"]
                .iter()
                .any(|start| word.starts_with(start))
        })
        .map(|word| {
            let words = word.split('_').map(|part| {
                let (first, rest) = part.split_at(1);
                format!("{}{rest}", first.to_ascii_uppercase())
            });
            words.collect()
        })
        // The one name of a module among them.
        .filter(|name: &String| name != "DescribeSubnetsFluentBuilder")
        .chain(["RunInstances".to_owned(), "CreateTags".to_owned()])
        .collect();
    called.sort_unstable();
    called.dedup();
    assert_eq!(allowed, called);
}

#[test]
fn every_test_against_a_server_stands_at_a_statement_of_the_page() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aws");
    let mut missing = Vec::new();
    for file in std::fs::read_dir(folder).expect("the tests") {
        let path = file.expect("a file").path();
        let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&path).expect("a source");
        let tests = source.split("#[tokio::test]\nasync fn ").skip(1);
        let names = tests.filter_map(|rest| rest.split('(').next());
        let names = names.map(|test| format!("{module}::{test}"));
        missing.extend(names.filter(|name| !PAGE.contains(&format!("`{name}`"))));
    }
    assert!(missing.is_empty(), "tests that stand at no statement: {missing:?}");
}
