//! The CustomResourceDefinitions, as they are installed, and their rules, as
//! they run without a server.
//!
//! What kube's derive makes is tightened here: no field is `nullable` (the API
//! server then prunes nulls before it fills in defaults, which is what a person
//! means by an empty value), and number formats are ones that Kubernetes knows.

use std::sync::OnceLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use serde_json::{Value as Json, json};

use crate::{
    ComputeClaim, ComputeProvider, FieldError, InferenceService, SpendBudget, TrainingJob,
};

/// Declares the kinds, so that none can be without its definition or its rules.
macro_rules! kinds {
    ($($kind:ident),+ $(,)?) => {
        /// The kinds' names, in the order in which they are printed.
        pub const KINDS: &[&str] = &[$(stringify!($kind)),+];

        /// Every kind, in the order in which they are printed.
        pub fn all() -> Vec<CustomResourceDefinition> {
            vec![$(tightened($kind::crd())),+]
        }

        /// The schema and rules of the kind with this name.
        pub fn kind(name: &str) -> Option<&'static Kind> {
            match name {
                $(stringify!($kind) => {
                    static KIND: OnceLock<Kind> = OnceLock::new();
                    Some(KIND.get_or_init(|| Kind::new(tightened($kind::crd()))))
                })+
                _ => None,
            }
        }
    };
}

kinds!(TrainingJob, InferenceService, ComputeClaim, ComputeProvider, SpendBudget);

/// Every kind as YAML documents, the same bytes each time.
pub fn yaml() -> String {
    all().iter().map(document).collect()
}

/// One kind as a YAML document, with its `---`.
pub fn document(crd: &CustomResourceDefinition) -> String {
    let mut json = serde_json::to_value(crd).expect("a CRD is plain JSON");
    whole_numbers(&mut json);
    let yaml = serde_saphyr::to_string(&json).expect("plain JSON can be written as YAML");
    format!("---\n{yaml}")
}

/// Writes bounds such as 100.0, which are floats in the type, as the whole numbers they are.
fn whole_numbers(json: &mut Json) {
    match json {
        Json::Number(number) => {
            if let Some(float) = number.as_f64()
                && number.is_f64()
                && float.fract() == 0.0
                && float.abs() < 9e15
            {
                *json = (float as i64).into();
            }
        }
        Json::Array(items) => items.iter_mut().for_each(whole_numbers),
        Json::Object(map) => map.values_mut().for_each(whole_numbers),
        Json::Null | Json::Bool(_) | Json::String(_) => {}
    }
}

/// One kind's schema and rules, ready to judge objects with.
pub struct Kind {
    /// The schema as installed, with the part of `metadata` that people write.
    pub(crate) manifest_schema: Json,
    rules: CompiledSchema,
}

impl Kind {
    fn new(crd: CustomResourceDefinition) -> Kind {
        let schema = crd
            .spec
            .versions
            .into_iter()
            .next()
            .and_then(|version| version.schema?.open_api_v3_schema);
        let schema = serde_json::to_value(schema).expect("a schema is plain JSON");
        let mut manifest_schema = schema.clone();
        manifest_schema["properties"]["apiVersion"] = json!({ "type": "string" });
        manifest_schema["properties"]["kind"] = json!({ "type": "string" });
        manifest_schema["properties"]["metadata"] = metadata_schema();
        // A manifest's status is not read.
        manifest_schema["properties"]["status"] = json!({});
        manifest_schema["required"] = json!(["metadata", "spec"]);
        let mut evaluated = schema;
        double_underscores(&mut evaluated);
        Kind { manifest_schema, rules: compile_schema(&evaluated) }
    }

    /// The rules that `object` breaks; against `old` also those of change. Both are judged with
    /// the schema's defaults filled in, as the API server does it.
    pub fn violations(&self, object: &Json, old: Option<&Json>) -> Vec<FieldError> {
        match Validator::new().validate_compiled(&self.rules, object, old) {
            Ok(()) => Vec::new(),
            Err(errors) => errors
                .into_iter()
                .map(|error| {
                    // A rule cannot name a field of metadata as its own.
                    let of_name =
                        error.field_path.is_empty() && error.message.starts_with("metadata.name ");
                    let path = if of_name { "metadata.name".to_owned() } else { error.field_path };
                    FieldError::new(path, error.message)
                })
                .collect(),
        }
    }
}

/// What of `metadata` a manifest may hold.
fn metadata_schema() -> Json {
    let strings = json!({ "type": "object", "additionalProperties": { "type": "string" }, "maxProperties": 1024 });
    json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": { "type": "string", "description": "Names the object within its kind", "minLength": 1, "maxLength": 253 },
            "namespace": { "type": "string", "minLength": 1, "maxLength": 63 },
            "labels": strings,
            "annotations": strings,
            // What a server adds and `kubectl get -o yaml` prints.
            "creationTimestamp": {}, "deletionGracePeriodSeconds": {}, "deletionTimestamp": {}, "finalizers": {},
            "generateName": {}, "generation": {}, "managedFields": {}, "ownerReferences": {}, "resourceVersion": {},
            "selfLink": {}, "uid": {}
        }
    })
}

/// Rewrites `self.max_steps` as `self.max__steps` in every rule: kube-cel 0.8 doubles single
/// underscores in field names, where Kubernetes' own escaping leaves them alone.
fn double_underscores(schema: &mut Json) {
    match schema {
        Json::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    Json::String(rule) if key == "rule" => *rule = rule.replace('_', "__"),
                    _ => double_underscores(value),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(double_underscores),
        _ => {}
    }
}

fn tightened(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
            tighten(schema);
        }
    }
    crd
}

fn tighten(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if schema.x_kubernetes_preserve_unknown_fields == Some(true) {
        schema.additional_properties = None;
    }
    // Bounds stand beside each of them.
    if schema.format.as_deref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = None;
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        tighten(property);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => tighten(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tighten),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tighten(values);
    }
}
