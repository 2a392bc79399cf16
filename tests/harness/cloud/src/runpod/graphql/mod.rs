//! RunPod's GraphQL: what REST v2 has not (spot, and deadlines that the server keeps), and what old
//! clients ask. Errors come in a 200.
//!
//! | module | holds |
//! |---|---|
//! | `parse` | a document: fields, arguments, variables |
//! | `schema` | which fields there are |
//! | `query` | prices, stock, pods |
//! | `mutate` | buying, stopping, ending, credentials |

mod mutate;
mod parse;
mod query;
mod schema;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::parse::{Document, Field};
use super::answer::Answer;
use super::keys::Scope;
use super::world::World;
use crate::faults::{Fault, Operation};

/// A request that could be read.
pub(crate) struct Request {
    document: Document,
    variables: Value,
}

#[derive(Deserialize)]
struct Body {
    query: String,
    #[serde(default)]
    variables: Value,
}

/// An error of a field: what is said, and its code.
pub(crate) struct Wrong {
    message: String,
    code: &'static str,
}

impl Wrong {
    fn new(message: &str) -> Self {
        Self { message: message.to_owned(), code: "INTERNAL_SERVER_ERROR" }
    }

    fn input(message: String) -> Self {
        Self { message, code: "BAD_USER_INPUT" }
    }
}

/// Errors in a 200, as GraphQL has them.
pub(crate) fn failure(message: &str, code: &str) -> Answer {
    Answer::ok(json!({ "errors": [{ "message": message, "extensions": { "code": code } }] }))
}

impl Request {
    /// Reads a request and holds it against the schema.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Answer> {
        let body: Body = serde_json::from_slice(body)
            .map_err(|error| failure(&error.to_string(), "BAD_REQUEST"))?;
        let document =
            parse::parse(&body.query).map_err(|error| failure(&error, "GRAPHQL_PARSE_FAILED"))?;
        let root = if document.mutation { "Mutation" } else { "Query" };
        let complaints = schema::complaints(root, &document.fields);
        if let Some(first) = complaints.first() {
            return Err(failure(first, "GRAPHQL_VALIDATION_FAILED"));
        }
        Ok(Self { document, variables: body.variables })
    }

    /// What kind of call it is, by its first field.
    pub(crate) fn operation(&self) -> Operation {
        match self.document.fields.first().map(|field| field.name.as_str()) {
            Some("podFindAndDeployOnDemand" | "podRentInterruptable") => Operation::Create,
            Some("podResume" | "podBidResume" | "podStop") => Operation::Change,
            Some("podTerminate") => Operation::End,
            Some("gpuTypes" | "dataCenters") => Operation::Quote,
            Some("pod") => Operation::Read,
            Some("myself") => Operation::List,
            _ => Operation::Other,
        }
    }

    /// It asks for what is told without a key.
    pub(crate) fn is_public(&self) -> bool {
        let public = |field: &Field| ["gpuTypes", "dataCenters"].contains(&field.name.as_str());
        !self.document.mutation && self.document.fields.iter().all(public)
    }

    /// Does what is asked, field by field.
    pub(crate) fn answer(
        &self,
        world: &mut World,
        scope: Option<&Scope>,
        faults: &[Fault],
    ) -> Answer {
        let Self { document, variables } = self;
        let (mut data, mut errors) = (Map::new(), Vec::new());
        for field in &document.fields {
            let root = if document.mutation { "Mutation" } else { "Query" };
            let outcome = if document.mutation {
                mutate::field(world, field, variables, scope, faults)
            } else {
                query::field(world, field, variables, scope)
            };
            let value = match (outcome, schema::field(root, &field.name)) {
                (Ok(value), Some(kind)) => project(world, kind, &value, &field.fields, variables),
                (Ok(_), None) => Value::Null,
                (Err(wrong), _) => {
                    errors.push(json!({ "message": wrong.message, "path": [field.alias],
                        "extensions": { "code": wrong.code } }));
                    Value::Null
                }
            };
            data.insert(field.alias.clone(), value);
        }
        let mut body = Map::new();
        if !errors.is_empty() {
            body.insert("errors".to_owned(), Value::Array(errors));
        }
        body.insert("data".to_owned(), Value::Object(data));
        Answer::ok(Value::Object(body))
    }
}

/// Of a value of a type, only what is asked for.
fn project(world: &World, kind: &str, value: &Value, fields: &[Field], variables: &Value) -> Value {
    match value {
        _ if kind.is_empty() => value.clone(),
        Value::Array(items) => {
            items.iter().map(|item| project(world, kind, item, fields, variables)).collect()
        }
        Value::Object(members) => {
            let asked = fields.iter().map(|field| {
                let inner = schema::field(kind, &field.name).unwrap_or_default();
                let value = match (kind, field.name.as_str()) {
                    ("GpuType", "lowestPrice") => {
                        query::lowest_price(world, members, &field.argument("input", variables))
                    }
                    (_, name) => members.get(name).cloned().unwrap_or_default(),
                };
                (field.alias.clone(), project(world, inner, &value, &field.fields, variables))
            });
            Value::Object(asked.collect())
        }
        _ => Value::Null,
    }
}
