//! Checks a located tree against a kind's OpenAPI schema: the same schema that
//! the API server is given, with messages for people.

use std::collections::HashMap;

use regex::Regex;
use serde_json::Value as Json;

use super::names::{meant, unknown_help};
use super::tree::{Entry, Node, Place, Value};
use crate::compute_provider::aws;
use crate::scalar::{DECIMAL_PATTERN, MONEY_PATTERN, QUANTITY_PATTERN, SPAN_PATTERN};

/// What is wrong, where, and how to mend it.
pub(super) struct Finding {
    pub(super) at: Place,
    pub(super) path: String,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

/// What each pattern of the schemas means, in words.
const PATTERNS: &[(&str, &str)] = &[
    (
        MONEY_PATTERN,
        "dollars as a decimal string such as \"2.50\" (at most 9 digits before the point and 6 after)",
    ),
    (QUANTITY_PATTERN, "a quantity such as 8, 500m, 0.5 or 64Gi"),
    (SPAN_PATTERN, "a span of time such as 90s, 45m, 52h or 2d12h"),
    (DECIMAL_PATTERN, "a number of 0 or more, as text, such as \"0.05\" or \"1.5e3\""),
    (crate::compute_provider::CUDA_PATTERN, "a version of CUDA such as 12.8"),
    (crate::compute_provider::DATA_CENTER_PATTERN, "a data centre of RunPod's such as EU-RO-1"),
    (crate::compute_provider::ADDRESS_PATTERN, "an address such as https://api.runpod.io"),
    (aws::REGION_PATTERN, "a region of AWS's such as us-east-1"),
    (aws::ZONE_PATTERN, "the id of a zone such as use1-atl2-az1"),
    (aws::SUBNET_PATTERN, "the id of a subnet such as subnet-0123456789abcdef0"),
    (aws::GROUP_PATTERN, "the id of a security group such as sg-0123456789abcdef0"),
    (
        aws::INSTANCE_PATTERN,
        "a family of instance types such as g6e, or one type such as c7a.xlarge",
    ),
    (aws::PROFILE_PATTERN, "the name of an instance profile, not its ARN"),
    (aws::PARAMETER_PATTERN, "a parameter of SSM such as /aws/service/…/image_id"),
    (aws::DEVICE_PATTERN, "a device such as /dev/xvda"),
    (crate::compute_provider::NAMESPACE_PATTERN, "the name of a namespace, or \"*\" for all"),
    (crate::shared::ACCELERATOR_PATTERN, "an accelerator's name such as H100 or A100-SXM-80"),
    (crate::shared::CAPABILITY_PATTERN, "a compute capability such as \"8.0\""),
    (
        crate::shared::ENV_PATTERN,
        "a name of letters, digits and '_' that does not start with a digit",
    ),
    (crate::shared::ABSOLUTE_PATTERN, "an absolute path"),
    (crate::shared::URL_PATH_PATTERN, "an absolute path of a URL (/health)"),
    (
        crate::shared::LABEL_PATTERN,
        "lower-case letters, digits and '-', with a letter or digit at both ends",
    ),
    (crate::shared::DNS_NAME_PATTERN, "a DNS name in lower case"),
    (crate::shared::HASH_PATTERN, "64 lower-case hex digits"),
    (crate::shared::DIGEST_PATTERN, "blake3: and 64 lower-case hex digits"),
    (crate::shared::STORE_PATTERN, "an s3:// or file:// URI"),
    (
        crate::shared::INPUT_PATTERN,
        "a URI of s3://, https://, file://, configmap://, artifact:<64 hex digits> or builtin:petaflop",
    ),
];

/// Checks a document against a kind's schema. `text` is what the document was read from.
pub(super) fn check(tree: &Node, schema: &Json, text: &str) -> Vec<Finding> {
    let mut checker = Checker { lines: text.lines().collect(), findings: Vec::new() };
    checker.value(tree, tree.locate(""), schema, "");
    checker.findings
}

/// What was found so far, and the source to quote from.
struct Checker<'a> {
    lines: Vec<&'a str>,
    findings: Vec<Finding>,
}

impl Checker<'_> {
    fn report(&mut self, at: Place, path: &str, message: String, help: Option<String>) {
        self.findings.push(Finding { at, path: path.to_owned(), message, help });
    }

    /// A scalar as it is written, which for 2.50 is not how a float prints.
    fn written(&self, node: &Node) -> String {
        let Place { line, column, length } = node.at;
        let line = self.lines.get(line.wrapping_sub(1)).copied().unwrap_or_default();
        let text: String = line.chars().skip(column.saturating_sub(1)).take(length).collect();
        match text.trim() {
            "" => node.value.to_string(),
            text => text.to_owned(),
        }
    }

    fn value(&mut self, node: &Node, at: Place, schema: &Json, path: &str) {
        let value = &node.value;
        if schema.get("x-kubernetes-int-or-string").is_some() {
            let problem = match value {
                Value::Text(text) => pattern_problem(text, schema),
                Value::Integer(number) => pattern_problem(&number.to_string(), schema),
                Value::Number(_) => {
                    let written = self.written(node);
                    let message =
                        format!("expected {}, found {written} without quotes", expected(schema));
                    return self.report(
                        at,
                        path,
                        message,
                        Some(format!("put it in quotes: \"{written}\"")),
                    );
                }
                other => Some(format!("expected {}, found {other}", expected(schema))),
            };
            return problem.into_iter().for_each(|message| self.report(at, path, message, None));
        }
        let kind = schema.get("type").and_then(Json::as_str).unwrap_or_default();
        match (kind, value) {
            ("object", Value::Map(entries)) => self.map(node, entries, at, schema, path),
            ("array", Value::List(items)) => self.list(items, at, schema, path),
            ("string", Value::Text(text)) => {
                if let Some((message, help)) = text_problem(text, schema) {
                    self.report(at, path, message, help);
                }
            }
            ("string", Value::Bool(_) | Value::Integer(_) | Value::Number(_)) => {
                let written = self.written(node);
                let message =
                    format!("expected {}, found {written} without quotes", expected(schema));
                self.report(at, path, message, Some(format!("put it in quotes: \"{written}\"")));
            }
            ("boolean", Value::Bool(_)) => {}
            ("integer" | "number", Value::Integer(number)) => {
                self.range(*number as f64, at, schema, path)
            }
            ("number", Value::Number(number)) => self.range(*number, at, schema, path),
            ("number" | "integer" | "boolean", Value::Text(text)) if reads_as(kind, text) => {
                let message = format!("expected {}, found the text {value}", expected(schema));
                self.report(at, path, message, Some(format!("take the quotes away: {text}")));
            }
            ("object" | "array" | "string" | "boolean" | "integer" | "number", _) => {
                self.report(
                    at,
                    path,
                    format!("expected {}, found {value}", expected(schema)),
                    None,
                );
            }
            // A schema without a type takes anything.
            _ => {}
        }
    }

    fn range(&mut self, number: f64, at: Place, schema: &Json, path: &str) {
        let bound = |name: &str| schema.get(name).and_then(Json::as_f64);
        let message = match (bound("minimum"), bound("maximum")) {
            (Some(least), _) if number < least => {
                format!("expected at least {}, found {}", shown(least), shown(number))
            }
            (_, Some(most)) if number > most => {
                format!("expected at most {}, found {}", shown(most), shown(number))
            }
            _ => return,
        };
        self.report(at, path, message, None);
    }

    fn map(&mut self, node: &Node, entries: &[Entry], at: Place, schema: &Json, path: &str) {
        let join = |key: &str| {
            if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
        };
        if let Some(most) = schema.get("maxProperties").and_then(Json::as_u64)
            && entries.len() as u64 > most
        {
            self.report(
                at,
                path,
                format!("expected at most {most} entries, found {}", entries.len()),
                None,
            );
        }
        let known = schema.get("properties").and_then(Json::as_object);
        let values = schema.get("additionalProperties").filter(|values| values.is_object());
        let open = schema.get("x-kubernetes-preserve-unknown-fields").is_some();
        let names: Vec<&str> =
            known.into_iter().flat_map(|known| known.keys()).map(String::as_str).collect();
        let mut misspelt = Vec::new();
        for entry in entries {
            let path = join(&entry.key);
            let Some(inner) = known.and_then(|known| known.get(&entry.key)).or(values) else {
                if !open {
                    let meant = meant(&entry.key, &names);
                    misspelt.extend(meant);
                    let help = unknown_help(&entry.key, meant, &names);
                    self.report(entry.key_at, &path, "unknown field".to_owned(), Some(help));
                }
                continue;
            };
            let at = match entry.node.value {
                Value::Map(_) | Value::List(_) => entry.key_at,
                _ => entry.node.at,
            };
            // A null is a field that was left out: what is required is missed below.
            if !matches!(entry.node.value, Value::Null) {
                self.value(&entry.node, at, inner, &path);
            }
        }
        for name in schema
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
        {
            let entry = node.get(name);
            let missing = entry.is_none_or(|entry| matches!(entry.node.value, Value::Null));
            // Whoever misspelt it has been told.
            if missing && !misspelt.contains(&name) {
                let inner = known.and_then(|known| known.get(name));
                let message = format!(
                    "required field is missing: expected {}",
                    inner.map_or("a value".to_owned(), expected)
                );
                let help = inner
                    .and_then(|inner| inner.get("description"))
                    .and_then(Json::as_str)
                    .map(first_line);
                self.report(entry.map_or(at, |entry| entry.key_at), &join(name), message, help);
            }
        }
    }

    fn list(&mut self, items: &[Node], at: Place, schema: &Json, path: &str) {
        let count = items.len() as u64;
        let bound = |name: &str| schema.get(name).and_then(Json::as_u64);
        let message = match (bound("minItems"), bound("maxItems")) {
            (Some(least), _) if count < least => {
                Some(format!("expected at least {least} in the list, found {count}"))
            }
            (_, Some(most)) if count > most => {
                Some(format!("expected at most {most} in the list, found {count}"))
            }
            _ => None,
        };
        if let Some(message) = message {
            return self.report(at, path, message, None);
        }
        let inner = schema.get("items").unwrap_or(&Json::Null);
        for (index, item) in items.iter().enumerate() {
            self.value(item, item.at, inner, &format!("{path}[{index}]"));
        }
        // Sets and maps by key, as Kubernetes merges them: nothing twice.
        let mut seen = HashMap::new();
        for (index, item) in items.iter().enumerate() {
            let Some(identity) = identity(item, schema) else {
                continue;
            };
            match seen.get(&identity) {
                Some(first) => {
                    let message =
                        format!("{identity} stands here twice: it is {path}[{first}] already");
                    self.report(item.at, &format!("{path}[{index}]"), message, None);
                }
                None => {
                    seen.insert(identity, index);
                }
            }
        }
    }
}

/// What tells an item of a set, or of a map by key, from the others.
fn identity(item: &Node, schema: &Json) -> Option<String> {
    match schema.get("x-kubernetes-list-type").and_then(Json::as_str)? {
        "set" => match &item.value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            _ => None,
        },
        "map" => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Json::as_array)?;
            let texts: Option<Vec<&str>> =
                keys.iter().filter_map(Json::as_str).map(|key| item.text(key)).collect();
            texts.map(|texts| texts.join("/"))
        }
        _ => None,
    }
}

/// A bound or a number, the shorter way.
fn shown(number: f64) -> String {
    match number.abs() {
        size if size != 0.0 && !(1e-4..1e15).contains(&size) => format!("{number:e}"),
        _ => number.to_string(),
    }
}

/// Whether the text would be a value of this type without its quotes.
fn reads_as(kind: &str, text: &str) -> bool {
    match kind {
        "integer" => text.parse::<i64>().is_ok(),
        "number" => text.parse::<f64>().is_ok(),
        _ => matches!(text, "true" | "false"),
    }
}

/// What a schema wants, in words.
fn expected(schema: &Json) -> String {
    if let Some(words) = pattern_words(schema) {
        return words.to_owned();
    }
    if let Some(values) = schema.get("enum").and_then(Json::as_array) {
        let values: Vec<&str> = values.iter().filter_map(Json::as_str).collect();
        return format!("one of {}", values.join(", "));
    }
    match schema.get("type").and_then(Json::as_str) {
        Some("object") => "a map".to_owned(),
        Some("array") => "a list".to_owned(),
        Some("string") => "text".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("integer") => "a whole number".to_owned(),
        Some("number") => "a number".to_owned(),
        _ => "a value".to_owned(),
    }
}

fn pattern_words(schema: &Json) -> Option<&'static str> {
    let pattern = schema.get("pattern").and_then(Json::as_str)?;
    PATTERNS.iter().find(|(known, _)| *known == pattern).map(|(_, words)| *words)
}

/// A description's first line, for a help.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}

/// What is wrong with a text, and how to mend it.
fn text_problem(text: &str, schema: &Json) -> Option<(String, Option<String>)> {
    if let Some(values) = schema.get("enum").and_then(Json::as_array) {
        let values: Vec<&str> = values.iter().filter_map(Json::as_str).collect();
        if values.contains(&text) {
            return None;
        }
        let help = crate::nearest(text, &values).map(|near| format!("did you mean {near}?"));
        return Some((format!("expected {}, found {text:?}", expected(schema)), help));
    }
    let length = text.chars().count() as u64;
    let bound = |name: &str| schema.get(name).and_then(Json::as_u64);
    let message = match (bound("minLength"), bound("maxLength")) {
        (Some(1), _) if length < 1 && pattern_words(schema).is_none() => {
            Some(format!("expected text, found {text:?}"))
        }
        (_, Some(most)) if length > most => {
            Some(format!("expected at most {most} characters, found {length}"))
        }
        _ => match schema.get("format").and_then(Json::as_str) {
            Some("date-time") if text.parse::<jiff::Timestamp>().is_err() => Some(format!(
                "expected a point in time such as 2027-01-31T18:00:00Z (RFC 3339), found {text:?}"
            )),
            _ => pattern_problem(text, schema),
        },
    };
    message.map(|message| (message, None))
}

/// How a text misses its schema's pattern.
fn pattern_problem(text: &str, schema: &Json) -> Option<String> {
    let pattern = schema.get("pattern").and_then(Json::as_str)?;
    if Regex::new(pattern).is_ok_and(|regex| regex.is_match(text)) {
        return None;
    }
    Some(format!("expected {}, found {}", expected(schema), Value::Text(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pattern in a schema.
    fn patterns(schema: &Json, found: &mut Vec<String>) {
        match schema {
            Json::Object(map) => {
                for (key, value) in map {
                    match value {
                        Json::String(pattern) if key == "pattern" => found.push(pattern.clone()),
                        _ => patterns(value, found),
                    }
                }
            }
            Json::Array(items) => items.iter().for_each(|item| patterns(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_pattern_of_the_schemas_has_words() {
        let mut found = Vec::new();
        for kind in crate::crds::all() {
            patterns(&serde_json::to_value(kind).unwrap(), &mut found);
        }
        assert!(found.len() > 20);
        for pattern in found {
            assert!(PATTERNS.iter().any(|(known, _)| *known == pattern), "{pattern} has no words");
            assert!(Regex::new(&pattern).is_ok(), "{pattern}");
            assert!(
                !pattern.contains(r"\d"),
                "{pattern}: means ASCII digits to Go and any digit to us"
            );
        }
    }
}
