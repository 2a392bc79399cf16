//! The Deployment of a service's gateways, the Service that selects them, and the Ingress before that
//! where a route is wanted: what they are, and whether what is there is that.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::Ingress;
use kube::ResourceExt;
use petaflop_crds::InferenceService;
use petaflop_crds::inference_service::Route;
use serde_json::{Value, json};

use crate::cluster::inference_service::port;

/// Label of all that belongs to gateways; its value is the InferenceService's name.
pub const GATEWAY_LABEL: &str = "petaflop.dev/gateway";
/// Port of a gateway for requests.
const REQUESTS: u16 = 8080;
/// Port of a gateway for health, metrics, and the operator.
pub const OWN: u16 = 8081;
/// Seconds that a gateway may take to end: five until nobody sends it anything new, and as long as an answer may take.
const GRACE_SECONDS: u32 = 330;

/// What differs between clusters.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// Image that the gateways run.
    pub image: &'a str,
    /// The operator's public key.
    pub operator_key: &'a str,
}

/// Name of the Deployment.
pub fn deployment_name(service: &InferenceService) -> String {
    format!("{}-gateway", service.name_any())
}

/// Their Deployment. It names no number of replicas: whoever wants more scales it.
pub fn deployment(service: &InferenceService, given: Given<'_>) -> Deployment {
    let name = service.name_any();
    let pull: Vec<Value> =
        service.spec.image_pull_secrets.iter().map(|secret| json!({"name": secret.name})).collect();
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "own", "scheme": "HTTP"},
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    let pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "imagePullSecrets": pull,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [{
            "name": "gateway",
            "image": given.image,
            "command": ["petaflop", "gateway"],
            "env": [
                {"name": "PETAFLOP_OPERATOR_KEY", "value": given.operator_key},
                {"name": "PETAFLOP_GATEWAY_ADDRESS", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
                {"name": "PETAFLOP_LOG", "value": "info"},
            ],
            "ports": [
                {"name": "requests", "containerPort": REQUESTS, "protocol": "TCP"},
                {"name": "own", "containerPort": OWN, "protocol": "TCP"},
            ],
            "readinessProbe": probe("/readyz", 2, 1),
            "livenessProbe": probe("/healthz", 10, 6),
            "resources": {
                "requests": {"cpu": "20m", "memory": "32Mi"},
                "limits": {"memory": "512Mi"},
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
        }],
    });
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(service, &deployment_name(service)),
        "spec": {
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {GATEWAY_LABEL: name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {GATEWAY_LABEL: name}}, "spec": pod},
        },
    });
    serde_json::from_value(object).expect("a Deployment")
}

/// What clients talk to.
pub fn service(service: &InferenceService) -> Service {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(service, &service.name_any()),
        "spec": {
            "selector": {GATEWAY_LABEL: service.name_any()},
            "ports": [{
                "name": "http",
                "port": port(service),
                "targetPort": "requests",
                "protocol": "TCP",
                "appProtocol": "http",
            }],
        },
    });
    serde_json::from_value(object).expect("a Service")
}

/// What lets clients in from outside of the cluster, where a host is named.
pub fn ingress(service: &InferenceService) -> Option<Ingress> {
    let Route { host, ingress_class_name, tls_secret_name } = &service.spec.route;
    let host = host.as_deref()?;
    let tls = tls_secret_name.iter().map(|name| json!({"hosts": [host], "secretName": name}));
    let object = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata(service, &service.name_any()),
        "spec": {
            "ingressClassName": ingress_class_name,
            "rules": [{
                "host": host,
                "http": {"paths": [{
                    "path": "/",
                    "pathType": "Prefix",
                    "backend": {"service": {"name": service.name_any(), "port": {"name": "http"}}},
                }]},
            }],
            "tls": tls.collect::<Vec<_>>(),
        },
    });
    Some(serde_json::from_value(object).expect("an Ingress"))
}

/// Where clients find it.
pub fn url(service: &InferenceService) -> String {
    let Route { host, ingress_class_name: _, tls_secret_name } = &service.spec.route;
    match (host, tls_secret_name) {
        (Some(host), Some(_)) => format!("https://{host}"),
        (Some(host), None) => format!("http://{host}"),
        (None, _) => {
            let namespace = service.namespace().unwrap_or_default();
            format!("http://{}.{namespace}.svc:{}", service.name_any(), port(service))
        }
    }
}

fn metadata(service: &InferenceService, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": service.namespace(),
        "labels": {GATEWAY_LABEL: service.name_any(), "app.kubernetes.io/managed-by": "petaflop"},
        "ownerReferences": [{
            "apiVersion": petaflop_crds::API_VERSION,
            "kind": "InferenceService",
            "name": service.name_any(),
            "uid": service.uid(),
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    })
}

/// Whether everything that is wanted stands in what is there; what else stands there is the API
/// server's or somebody's.
pub fn holds(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| holds(there.get(key).unwrap_or(&Value::Null), wanted))
        }
        // Lists have an order, and nothing is added to them.
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len() && there.iter().zip(wanted).all(|(t, w)| holds(t, w))
        }
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (there, wanted) => there == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_add_is_left_alone_and_what_they_change_is_noticed() {
        let wanted = json!({"spec": {"ports": [{"port": 8080}], "secrets": []}});
        let there = json!({
            "metadata": {"annotations": {"somebody": "was here"}},
            "spec": {"ports": [{"port": 8080, "nodePort": 30000}], "clusterIP": "10.0.0.1"},
        });
        assert!(holds(&there, &wanted));
        for changed in [
            json!({"spec": {"ports": [{"port": 80}]}}),
            json!({"spec": {"ports": [{"port": 8080}, {"port": 22}]}}),
            json!({"spec": {}}),
        ] {
            assert!(!holds(&changed, &wanted), "{changed}");
        }
    }

    #[test]
    fn a_gateway_holds_nothing_secret_and_has_no_rights() {
        let service: InferenceService = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u"},
            "spec": {"model": {"trainingJob": "train"}, "port": 9000},
        }))
        .expect("a service");
        let given = Given { image: "petaflop:1", operator_key: "public" };
        let objects = json!([deployment(&service, given), super::service(&service)]);
        let pod = &objects[0]["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], json!(false));
        assert_eq!(pod["containers"][0]["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        assert!(!objects.to_string().contains("secretKeyRef"));
        assert_eq!(objects[1]["spec"]["ports"][0]["port"], json!(9000));
        assert_eq!(objects[1]["metadata"]["ownerReferences"][0]["uid"], json!("u"));
        assert_eq!(
            (ingress(&service), url(&service).as_str()),
            (None, "http://chat.team.svc:9000")
        );
    }
}
