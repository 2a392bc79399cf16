//! Everything in `invalid.yaml` is refused, at the field it names, in the words it gives;
//! everything in `valid.yaml` is accepted. A server that has the CRDs must judge the same way.

use petaflop_crds::{crds, manifest};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// One row of the table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    kind: String,
    set: Map<String, Value>,
    was: Option<Map<String, Value>>,
    #[serde(default)]
    path: String,
    #[serde(default)]
    expect: String,
    help: Option<String>,
    by: Option<String>,
    #[serde(default)]
    more: bool,
}

fn table() -> Vec<Case> {
    serde_saphyr::from_str(include_str!("invalid.yaml")).expect("the table can be read")
}

/// A valid object of the kind, patched.
fn patched(kind: &str, patches: &Map<String, Value>) -> Value {
    let bases: Map<String, Value> =
        serde_saphyr::from_str(include_str!("bases.yaml")).expect("the bases can be read");
    let mut object = json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": kind, "metadata": { "name": "case" },
        "spec": bases[kind]
    });
    for (path, value) in patches {
        let mut at = &mut object;
        for step in path.split('.') {
            at = &mut at[step];
        }
        *at = value.clone();
    }
    object
}

/// As the API server has it before it judges: a null is a field that was left out.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

fn refused(case: &Case) -> Vec<(String, String, Option<String>)> {
    let mut object = patched(&case.kind, &case.set);
    if let Some(was) = &case.was {
        let kind = crds::kind(&case.kind).expect("a kind");
        let mut old = patched(&case.kind, was);
        without_nulls(&mut object);
        without_nulls(&mut old);
        return kind
            .violations(&object, Some(&old))
            .into_iter()
            .map(|e| (e.path, e.message, None))
            .collect();
    }
    let yaml = serde_saphyr::to_string(&object).expect("an object can be written");
    let json = object.to_string();
    let read = |text: &str| match manifest::judge(text.as_bytes(), "case") {
        Ok(()) => Vec::new(),
        Err(errors) => {
            errors.0.into_iter().map(|e| (e.path, e.message, e.help)).collect::<Vec<_>>()
        }
    };
    let (from_yaml, from_json) = (read(&yaml), read(&json));
    assert_eq!(from_yaml, from_json, "YAML and JSON are judged alike\n{yaml}");
    from_yaml
}

#[test]
fn every_invalid_spec_is_refused_at_its_field() {
    let table = table();
    assert!(table.len() >= 250, "only {} cases", table.len());
    let mut wrong = Vec::new();
    for case in &table {
        let errors = refused(case);
        let found = errors.iter().any(|(path, message, help)| {
            *path == case.path
                && message.contains(&case.expect)
                && case
                    .help
                    .as_ref()
                    .is_none_or(|wanted| help.as_ref().is_some_and(|help| help.contains(wanted)))
        });
        if !found || (errors.len() > 1 && !case.more) {
            wrong.push(format!("{} {:?} was {:?}: {errors:#?}", case.kind, case.set, case.was));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), table.len(), wrong.join("\n"));
}

#[test]
fn messages_of_rules_are_the_ones_that_a_server_gives() {
    let schemas = serde_json::to_string(&crds::all()).expect("a CRD is plain JSON");
    for case in table().iter().filter(|case| case.by.as_deref() == Some("rule")) {
        let words = serde_json::to_string(&case.expect).expect("text");
        assert!(schemas.contains(words.trim_matches('"')), "{}: {}", case.path, case.expect);
    }
}

#[test]
fn every_valid_spec_is_accepted() {
    let table: Vec<Case> =
        serde_saphyr::from_str(include_str!("valid.yaml")).expect("the table can be read");
    for case in &table {
        let errors = refused(case);
        assert!(errors.is_empty(), "{} {:?}: {errors:#?}", case.kind, case.set);
    }
}
