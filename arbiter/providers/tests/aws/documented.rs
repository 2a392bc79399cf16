//! docs/providers/aws.md names a test for each of AWS's ways. Every one of them is there. Its policy
//! allows every call that is made.

use std::path::Path;

use crate::page;

const PAGE: &str = include_str!("../../../../docs/providers/aws.md");

#[test]
fn every_test_that_the_page_names_exists() {
    page::names_tests_that_exist(
        PAGE,
        &[
            "tests/aws",
            "src/aws",
            "../../runtime-image/agent/src",
            "../../runtime-image/agent/tests/suite",
        ],
    );
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
    page::lacks_no_test_of(PAGE, "tests/aws");
}
