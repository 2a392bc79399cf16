//! Session policies, as far as S3 is asked with them: `Allow` statements with actions, resources and
//! `StringLike`. Whatever else one says is refused where it is given, so that nothing is enforced less
//! than it reads.

use serde_json::Value;

/// A session policy that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Policy(Vec<Statement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Statement {
    actions: Vec<String>,
    resources: Vec<String>,
    /// Names of keys, and what their values must be like.
    conditions: Vec<(String, Vec<String>)>,
}

impl Policy {
    /// Reads one.
    pub(super) fn read(text: &str) -> Option<Self> {
        let document: Value = serde_json::from_str(text).ok()?;
        if document.get("Version")?.as_str()? != "2012-10-17" {
            return None;
        }
        let statements = document.get("Statement")?.as_array()?;
        statements.iter().map(Statement::read).collect::<Option<_>>().map(Self)
    }

    /// Whether it allows this; `context` is what the request says of itself.
    pub(super) fn allows(&self, action: &str, resource: &str, context: &[(&str, &str)]) -> bool {
        self.0.iter().any(|statement| statement.allows(action, resource, context))
    }
}

impl Statement {
    fn read(value: &Value) -> Option<Self> {
        let fields = value.as_object()?;
        let known = ["Sid", "Effect", "Action", "Resource", "Condition"];
        if fields.keys().any(|name| !known.contains(&name.as_str()))
            || fields.get("Effect")?.as_str()? != "Allow"
        {
            return None;
        }
        let mut conditions = Vec::new();
        if let Some(condition) = fields.get("Condition") {
            for (operator, keys) in condition.as_object()? {
                if operator != "StringLike" {
                    return None;
                }
                for (key, values) in keys.as_object()? {
                    conditions.push((key.clone(), texts(values)?));
                }
            }
        }
        let (actions, resources) = (texts(fields.get("Action")?)?, texts(fields.get("Resource")?)?);
        Some(Self { actions, resources, conditions })
    }

    fn allows(&self, action: &str, resource: &str, context: &[(&str, &str)]) -> bool {
        let any = |patterns: &[String], text: &str| patterns.iter().any(|p| is_like(p, text));
        // A key that the request does not have is like nothing.
        let met = |(key, patterns): &(String, Vec<String>)| {
            context.iter().any(|(name, value)| name == key && any(patterns, value))
        };
        any(&self.actions, action)
            && any(&self.resources, resource)
            && self.conditions.iter().all(met)
    }
}

/// One text, or a list of them.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(all) => all.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// `*` is any characters, `?` one.
fn is_like(pattern: &str, text: &str) -> bool {
    let (mut pattern, text) = (pattern.chars(), text);
    match pattern.next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = pattern.as_str();
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| is_like(rest, &text[at..]))
        }
        Some(wanted) => {
            let mut text = text.chars();
            text.next().is_some_and(|found| wanted == '?' || wanted == found)
                && is_like(pattern.as_str(), text.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_allowed_and_a_condition_needs_its_key() {
        let policy = Policy::read(
            r#"{"Version": "2012-10-17", "Statement": [
                {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": "arn:aws:s3:::b/own/*"},
                {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::b",
                 "Condition": {"StringLike": {"s3:prefix": ["own/*"]}}}]}"#,
        )
        .unwrap();
        let object = |action, name| policy.allows(action, &format!("arn:aws:s3:::b/{name}"), &[]);
        assert!(object("s3:GetObject", "own/a/b"));
        for (action, name) in [
            ("s3:GetObject", "other/a"),
            ("s3:DeleteObject", "own/a"),
            ("s3:GetObject", "own"),
            ("s3:GetObject", "ownership/a"),
        ] {
            assert!(!object(action, name), "{action} {name}");
        }
        let list = |context: &[_]| policy.allows("s3:ListBucket", "arn:aws:s3:::b", context);
        assert!(list(&[("s3:prefix", "own/x/")]));
        assert!(!list(&[("s3:prefix", "other/")]) && !list(&[("s3:prefix", "")]) && !list(&[]));
    }

    #[test]
    fn what_it_does_not_know_it_does_not_take() {
        let statement = |fields: &str| {
            format!(
                r#"{{"Version": "2012-10-17", "Statement": [{{"Action": "*", "Resource": "*", {fields}}}]}}"#
            )
        };
        assert!(Policy::read(&statement(r#""Effect": "Allow""#)).is_some());
        for fields in [
            r#""Effect": "Deny""#,
            r#""Effect": "Allow", "NotAction": "s3:*""#,
            r#""Effect": "Allow", "Condition": {"StringEquals": {"s3:prefix": "a"}}"#,
        ] {
            assert_eq!(Policy::read(&statement(fields)), None, "{fields}");
        }
    }
}
