//! Whether the CRDs of a cluster know all that this operator writes. A field that they do not know
//! is dropped by the server without a word, and would be written again and again. Pure.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Map, Value};

/// Path of a field that our definition has and the served one lacks, as `TrainingJob.status.cost`.
/// `served` is the server's OpenAPI document (v3) of our group and version. A kind that is not in it
/// yet, for it is published a moment after its definition, is not judged.
pub fn unknown_field(
    ours: &[CustomResourceDefinition],
    version: &str,
    served: &Value,
) -> Option<String> {
    let schemas = served["components"]["schemas"].as_object()?;
    ours.iter().find_map(|definition| {
        let kind = &definition.spec.names.kind;
        let one = definition.spec.versions.iter().find(|one| one.name == version)?;
        let schema = one.schema.as_ref()?.open_api_v3_schema.as_ref()?;
        let ours = serde_json::to_value(schema).ok()?;
        let theirs = schemas.values().find(|schema| is_of(schema, kind))?;
        // apiVersion, kind and metadata are the server's own.
        ["spec", "status"].iter().find_map(|part| {
            let (ours, theirs) = (&ours["properties"][part], &theirs["properties"][part]);
            lacks(ours, theirs, &format!("{kind}.{part}"))
        })
    })
}

fn is_of(schema: &Value, kind: &str) -> bool {
    let kinds = schema["x-kubernetes-group-version-kind"].as_array();
    kinds.is_some_and(|kinds| kinds.iter().any(|of| of["kind"] == kind))
}

fn lacks(ours: &Value, theirs: &Value, path: &str) -> Option<String> {
    if ours.is_object() && theirs.is_null() {
        return Some(path.to_owned());
    }
    let none = Map::new();
    let fields = ours["properties"].as_object().unwrap_or(&none);
    let deeper = fields.iter().find_map(|(name, ours)| {
        lacks(ours, &theirs["properties"][name], &format!("{path}.{name}"))
    });
    deeper
        .or_else(|| lacks_below(ours, theirs, "items", &format!("{path}[]")))
        .or_else(|| lacks_below(ours, theirs, "additionalProperties", &format!("{path}.*")))
}

fn lacks_below(ours: &Value, theirs: &Value, key: &str, path: &str) -> Option<String> {
    ours[key].is_object().then(|| lacks(&ours[key], &theirs[key], path)).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As a server would publish our own definitions.
    fn served(ours: &[CustomResourceDefinition]) -> Value {
        let schemas = ours.iter().map(|definition| {
            let schema = &definition.spec.versions[0].schema;
            let mut schema =
                serde_json::to_value(schema).expect("a schema")["openAPIV3Schema"].take();
            let kind = &definition.spec.names.kind;
            schema["x-kubernetes-group-version-kind"] = json!([{ "kind": kind }]);
            (format!("dev.petaflop.v1alpha1.{kind}"), schema)
        });
        json!({ "components": { "schemas": Map::from_iter(schemas) } })
    }

    #[test]
    fn what_a_server_would_drop_is_named() {
        let ours = petaflop_crds::crds::all();
        let mut theirs = served(&ours);
        assert_eq!(unknown_field(&ours, "v1alpha1", &theirs), None);
        let job = &mut theirs["components"]["schemas"]["dev.petaflop.v1alpha1.TrainingJob"];
        let datasets =
            &mut job["properties"]["spec"]["properties"]["recipe"]["properties"]["datasets"];
        let item = datasets["items"]["properties"].as_object_mut().expect("properties");
        item.remove("path").expect("a path");
        assert_eq!(
            unknown_field(&ours, "v1alpha1", &theirs).as_deref(),
            Some("TrainingJob.spec.recipe.datasets[].path")
        );
        let schemas = theirs["components"]["schemas"].as_object_mut().expect("schemas");
        schemas.clear();
        assert_eq!(unknown_field(&ours, "v1alpha1", &theirs), None, "not published yet");
    }
}
