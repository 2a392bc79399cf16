//! The charts: what they render, what they refuse, and that what they render is least privilege,
//! restricted, and taken by a real server. After a change on purpose, `UPDATE=1 cargo test -p
//! petaflop-tests --test charts` writes the golden renderings and the tables of values anew.

mod support;
#[path = "charts/values.rs"]
mod words;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use petaflop_harness::{ControlPlane, Options, tools};
use serde_json::{Value, json};
use support::{chart, documents, helm, root};

const SETS: [&str; 3] = ["default", "production", "namespaced"];

fn values(set: &str) -> PathBuf {
    root().join("charts/petaflop").join(format!("ci/{set}-values.yaml"))
}

/// A chart, rendered as Argo CD does it: without a cluster.
fn rendered(set: &str) -> Result<String> {
    helm(["template", "petaflop", "--namespace", "petaflop-system"], |helm| {
        helm.args(["--api-versions", "monitoring.coreos.com/v1"]);
        helm.arg(chart("petaflop")).arg("--values").arg(values(set))
    })
}

fn objects(set: &str) -> Result<Vec<Value>> {
    documents(&rendered(set)?)
}

#[test]
fn the_charts_render_as_they_are_committed() -> Result<()> {
    for set in SETS {
        let text = rendered(set)?;
        ensure!(text == rendered(set)?, "{set}: another text the second time");
        // The CRDs are files that another test compares.
        let ours: String = text
            .split_inclusive("---\n")
            .filter(|document| !document.contains("# Source: petaflop/charts/petaflop-crds/"))
            .collect();
        let path = root().join(format!("tests/golden/charts/{set}.yaml"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &ours)?;
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        ensure!(
            committed == ours,
            "{} is not what the chart renders: see this file's head",
            path.display()
        );
    }
    Ok(())
}

#[test]
fn the_charts_have_nothing_to_lint() -> Result<()> {
    for set in SETS {
        helm(["lint", "--strict"], |helm| {
            helm.arg(chart("petaflop")).arg("--values").arg(values(set))
        })?;
    }
    helm(["lint", "--strict"], |helm| helm.arg(chart("petaflop-crds")))?;
    Ok(())
}

#[test]
fn the_crds_are_kept_or_not_as_the_value_says() -> Result<()> {
    for (keep, kept) in [("true", true), ("false", false)] {
        let text = helm(["template", "crds"], |helm| {
            helm.arg(chart("petaflop-crds")).args(["--set", &format!("keep={keep}")])
        })?;
        let rendered = documents(&text)?;
        let generated = petaflop_crds::crds::all();
        ensure!(rendered.len() == generated.len());
        for object in rendered {
            let policy = &object["metadata"]["annotations"]["helm.sh/resource-policy"];
            ensure!((*policy == "keep") == kept, "{policy}");
            let name = object["metadata"]["name"].as_str().context("a name")?;
            let path = chart("petaflop-crds").join(format!("files/{name}.yaml"));
            let file = documents(&std::fs::read_to_string(path)?)?.remove(0);
            ensure!(object["spec"] == file["spec"], "{name} changed on the way");
        }
    }
    Ok(())
}

#[test]
fn values_that_would_do_harm_are_refused() -> Result<()> {
    let file = "ledger.uri=file:///var/lib/petaflop/ledger,persistence.enabled=true";
    for (set, words) in [
        ("", "store.uri must be set"),
        ("store.uri=ftp://x", "does not match pattern"),
        ("store.uri=s3://b,replica=2", "additional properties 'replica' not allowed"),
        ("store.uri=s3://b,image.repo=x", "additional properties 'repo' not allowed"),
        ("store.uri=s3://b,resources.limit.cpu=1", "additional properties 'limit' not allowed"),
        (
            "store.uri=s3://b,nodesProvider.limits.daily=1",
            "additional properties 'daily' not allowed",
        ),
        ("store.uri=s3://b,replicas=3", "maximum: got 3, want 2"),
        ("store.uri=s3://b,replicas=0", "minimum: got 0, want 1"),
        ("store.uri=s3://b,replicas=2,leaderElection=false", "leaderElection"),
        ("store.uri=s3://b,strategy=RollingUpdate,leaderElection=false", "leaderElection"),
        ("store.uri=s3://b,strategy=Fast", "strategy"),
        (&format!("store.uri=s3://b,{file},replicas=2"), "replicas"),
        (&format!("store.uri=s3://b,{file},strategy=RollingUpdate"), "strategy"),
        ("store.uri=s3://b,ledger.uri=file:///var/lib/petaflop/ledger", "persistence"),
        ("store.uri=file:///var/lib/petaflop/store", "persistence"),
        ("store.uri=file:///var/lib/petaflop,persistence.enabled=true,replicas=2", "replicas"),
        (
            "store.uri=s3://b,ledger.uri=file:///tmp/ledger,persistence.enabled=true",
            "does not match pattern",
        ),
        ("store.uri=s3://b,uninstall.onRunningClaims=Ignore", "onRunningClaims"),
        ("store.uri=s3://b,image.digest=latest", "does not match pattern"),
        ("store.uri=s3://b,providerLabels.a=b\\,c", "does not match pattern"),
        ("store.uri=s3://b,serviceMonitor.enabled=true", "need the Prometheus operator"),
    ] {
        let outcome = helm(["template", "petaflop"], |helm| {
            helm.arg(chart("petaflop"));
            if set.is_empty() { helm } else { helm.args(["--set", set]) }
        });
        let error = outcome.err().with_context(|| format!("taken: {set}"))?.to_string();
        ensure!(error.contains(words), "{set}: {error}");
    }
    Ok(())
}

/// Every Pod template of a rendering, with the name of what makes it.
fn pods(objects: &[Value]) -> Vec<(String, Value)> {
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    objects
        .iter()
        .filter_map(|object| {
            let spec = match object["kind"].as_str()? {
                "Pod" => &object["spec"],
                "Deployment" | "Job" => &object["spec"]["template"]["spec"],
                "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
                _ => return None,
            };
            Some((name(object), spec.clone()))
        })
        .collect()
}

#[test]
fn every_pod_has_bounds_and_only_who_calls_the_server_has_a_token() -> Result<()> {
    for set in SETS {
        let pods = pods(&objects(set)?);
        ensure!(pods.len() == 4, "{set}: operator, audit, guard and test");
        for (name, spec) in pods {
            let token = !name.ends_with("selftest");
            ensure!(spec["automountServiceAccountToken"] == json!(token), "{set}: {name}");
            for container in spec["containers"].as_array().context("containers")? {
                let security = &container["securityContext"];
                ensure!(security["readOnlyRootFilesystem"] == json!(true), "{set}: {name}");
                ensure!(!container["resources"]["requests"]["memory"].is_null(), "{set}: {name}");
                ensure!(!container["resources"]["limits"]["memory"].is_null(), "{set}: {name}");
                let mut seen = BTreeSet::new();
                for variable in container["env"].as_array().into_iter().flatten() {
                    ensure!(
                        seen.insert(variable["name"].to_string()),
                        "{set}: {name}: {variable} twice"
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn nobody_is_given_more_than_is_needed() -> Result<()> {
    for set in SETS {
        let mut accounts = BTreeSet::new();
        for object in objects(set)? {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let services = |subject: &&Value| subject["kind"] == "ServiceAccount";
            for subject in object["subjects"].as_array().into_iter().flatten().filter(services) {
                accounts.insert(subject["name"].to_string());
            }
            for rule in object["rules"].as_array().into_iter().flatten() {
                let has = |field: &str, word: &str| {
                    rule[field].as_array().into_iter().flatten().any(|value| value == word)
                };
                ensure!(!rule.to_string().contains("\"*\""), "{set}: {kind} {name}: {rule}");
                if has("resources", "secrets") {
                    ensure!(
                        !has("verbs", "list") && !has("verbs", "watch"),
                        "{set}: {name}: {rule}"
                    );
                    let bound_by_hand = name.ends_with("-secret-reader") && kind == "ClusterRole";
                    let named =
                        rule["resourceNames"].is_array() || rule["verbs"] == json!(["create"]);
                    ensure!(
                        kind == "Role" && named || bound_by_hand,
                        "{set}: {kind} {name}: {rule}"
                    );
                }
                ensure!(!has("verbs", "impersonate") && !has("verbs", "escalate"), "{rule}");
                let people = name.ends_with("-editor");
                if has("resources", "computeclaims") && has("verbs", "create") {
                    ensure!(name.ends_with("-operator") && !people, "{set}: {name} writes claims");
                }
                // Who spends does not grant.
                let labels = &object["metadata"]["labels"];
                let editor = labels["rbac.authorization.k8s.io/aggregate-to-edit"] == "true";
                if has("resources", "spendbudgets")
                    && (has("verbs", "create") || has("verbs", "patch"))
                {
                    ensure!(!editor, "{set}: {name}");
                }
            }
        }
        ensure!(
            accounts.len() == 3,
            "{set}: operator, audit and guard each have their own: {accounts:?}"
        );
    }
    Ok(())
}

#[test]
fn the_audit_has_the_operators_volume_only_where_both_can_have_it() -> Result<()> {
    for (mode, mounted) in [("ReadWriteOnce", false), ("ReadWriteMany", true)] {
        let set = format!(
            "store.uri=file:///var/lib/petaflop/store,persistence.enabled=true,persistence.accessMode={mode}"
        );
        let text = helm(["template", "petaflop"], |helm| {
            helm.arg(chart("petaflop")).args(["--set", set.as_str()])
        })?;
        let objects = documents(&text)?;
        let claim = objects.iter().find(|object| object["kind"] == "PersistentVolumeClaim");
        ensure!(claim.context("a claim")?["spec"]["accessModes"] == json!([mode]), "{mode}");
        let pods = pods(&objects);
        let (_, audit) =
            pods.iter().find(|(name, _)| name.ends_with("-audit")).context("an audit")?;
        let (arguments, volumes) = (audit["containers"][0]["args"].to_string(), &audit["volumes"]);
        ensure!(arguments.contains("--terminate"), "{arguments}");
        ensure!(arguments.contains("--ledger-uri=file://") == mounted, "{mode}: {arguments}");
        ensure!(volumes.to_string().contains("persistentVolumeClaim") == mounted, "{volumes}");
    }
    Ok(())
}

#[test]
fn with_watched_namespaces_nothing_namespaced_is_granted_everywhere() -> Result<()> {
    let namespaced =
        ["computeclaims", "trainingjobs", "pods", "services", "deployments", "spendbudgets"];
    let mut bound = BTreeSet::new();
    let objects = objects("namespaced")?;
    for binding in objects.iter().filter(|object| object["kind"] == "ClusterRoleBinding") {
        bound.insert(binding["roleRef"]["name"].to_string());
    }
    for role in objects.iter().filter(|object| object["kind"] == "ClusterRole") {
        if bound.contains(&role["metadata"]["name"].to_string()) {
            let rules = role["rules"].to_string();
            for resource in namespaced {
                ensure!(!rules.contains(&format!("\"{resource}\"")), "{resource}: {rules}");
            }
        }
    }
    let places: BTreeSet<&str> = objects
        .iter()
        .filter(|object| {
            object["kind"] == "RoleBinding" && object["metadata"]["name"] == "pf-operator"
        })
        .filter_map(|object| object["metadata"]["namespace"].as_str())
        .collect();
    ensure!(places.into_iter().eq(["team-a", "team-b"]));
    Ok(())
}

#[test]
fn the_provider_of_the_chart_is_one_that_the_crds_take() -> Result<()> {
    for set in SETS {
        let provider = objects(set)?
            .into_iter()
            .find(|object| object["kind"] == "ComputeProvider")
            .context("a provider")?;
        petaflop_crds::manifest::judge(provider.to_string().as_bytes(), set)?;
    }
    Ok(())
}

#[test]
fn the_alerts_fire_when_they_should() -> Result<()> {
    let rule = objects("production")?
        .into_iter()
        .find(|object| object["kind"] == "PrometheusRule")
        .context("a rule")?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("rules.yaml"), rule["spec"].to_string())?;
    let cases = include_str!("../golden/alerts.yaml");
    std::fs::write(folder.path().join("cases.yaml"), cases)?;
    for rule in rule["spec"]["groups"][0]["rules"].as_array().context("rules")? {
        let name = rule["alert"].as_str().context("a name")?;
        ensure!(cases.contains(&format!("alertname=\"{name}\"")), "{name} has no case");
    }
    for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "cases.yaml"]] {
        let output = Command::new(tools::promtool()?)
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .context("starting promtool")?;
        let words =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {words}");
    }
    Ok(())
}

#[test]
fn the_dashboard_asks_for_metrics_that_alerts_or_code_know() -> Result<()> {
    let map = objects("production")?
        .into_iter()
        .find(|object| object["kind"] == "ConfigMap")
        .context("a dashboard")?;
    let dashboard: Value =
        serde_json::from_str(map["data"]["petaflop.json"].as_str().context("its JSON")?)?;
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        ensure!(ids.insert(panel["id"].to_string()), "{}", panel["title"]);
        for target in panel["targets"].as_array().context("targets")? {
            let expression = target["expr"].as_str().context("a query")?;
            ensure!(expression.contains("petaflop_"), "{expression}");
        }
    }
    Ok(())
}

/// Through a release's whole life on a real server that runs no Pods.
#[tokio::test]
async fn helm_installs_upgrades_rolls_back_and_uninstalls() -> Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let kubeconfig: &Path = plane.admin().kubeconfig();
    let run = |arguments: &str, name: &str| {
        helm(["--kubeconfig", &kubeconfig.display().to_string()], |helm| {
            helm.args(arguments.split_whitespace());
            if name.is_empty() { helm } else { helm.arg(chart(name)) }
        })
    };
    let client = plane.client().await?;
    let count = async |uri: &str| -> Result<usize> {
        let list: Value = client.request(http::Request::get(uri).body(Vec::new())?).await?;
        Ok(list["items"].as_array().map_or(0, Vec::len))
    };
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let providers = "/apis/petaflop.dev/v1alpha1/computeproviders";
    let deployments = "/apis/apps/v1/namespaces/petaflop-system/deployments";

    run("install petaflop-crds --wait --timeout 60s", "petaflop-crds")?;
    ensure!(count(crds).await? == 5);

    let system = "--namespace petaflop-system";
    run(
        &format!("install petaflop {system} --create-namespace --set store.uri=s3://b/p"),
        "petaflop",
    )?;
    ensure!(count(providers).await? == 1 && count(deployments).await? == 1);

    // What it made may run where Pod Security is restricted: the server itself says so.
    let restricted = json!({ "metadata": { "labels": {
        "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"
    }}});
    Api::<Namespace>::all(client.clone())
        .patch("petaflop-system", &PatchParams::default(), &Patch::Merge(&restricted))
        .await?;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    for (name, spec) in pods(&objects("default")?) {
        let pod = json!({ "metadata": { "name": name }, "spec": spec });
        let pods: Api<Pod> = Api::namespaced(client.clone(), "petaflop-system");
        pods.create(&dry_run, &serde_json::from_value(pod)?).await.with_context(|| name)?;
    }

    let strategy = async || -> Result<String> {
        let uri = format!("{deployments}/petaflop");
        let object: Value = client.request(http::Request::get(uri).body(Vec::new())?).await?;
        Ok(object["spec"]["replicas"].to_string())
    };
    run(&format!("upgrade petaflop {system} --reuse-values --set replicas=2"), "petaflop")?;
    ensure!(strategy().await? == "2");
    run(&format!("rollback petaflop 1 {system}"), "")?;
    ensure!(strategy().await? == "1");

    // The guard's Pod runs nowhere here; that it refuses is tested where there is a node.
    run(&format!("uninstall petaflop {system} --no-hooks"), "")?;
    ensure!(count(providers).await? == 0 && count(deployments).await? == 0);

    run("uninstall petaflop-crds", "")?;
    ensure!(count(crds).await? == 5, "the CRDs are kept");
    run("upgrade --install petaflop-crds --take-ownership --set keep=false", "petaflop-crds")?;
    run("uninstall petaflop-crds --wait", "")?;
    ensure!(count(crds).await? == 0, "the CRDs go where they are not kept");
    Ok(())
}

/// By the server's own judgement: the cluster's roles have taken ours in, and the operator has what it needs.
#[tokio::test]
async fn people_and_operator_may_do_what_their_roles_say() -> Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let kubeconfig = plane.admin().kubeconfig().display().to_string();
    let install = |name: &str, more: &[&str]| {
        helm(["--kubeconfig", &kubeconfig, "install", name], |helm| {
            helm.arg(chart(name))
                .args(["--namespace", "petaflop-system", "--create-namespace"])
                .args(more)
        })
    };
    install("petaflop-crds", &["--wait"])?;
    install("petaflop", &["--set", "store.uri=s3://b/p"])?;
    let client = plane.client().await?;
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), "default");
    for role in ["view", "edit", "admin"] {
        let binding = json!({
            "metadata": { "name": role },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": role }]
        });
        bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
    }
    let may = async |user: &str, verb: &str, resource: &str, namespace: &str| -> Result<bool> {
        let (group, rest) = resource.split_once('/').context("group/resource")?;
        let (resource, subresource) = rest.split_once('/').unwrap_or((rest, ""));
        let review = json!({ "metadata": {}, "spec": { "user": user, "resourceAttributes": {
            "verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": namespace
        }}});
        let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
        let review =
            reviews.create(&PostParams::default(), &serde_json::from_value(review)?).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    };
    // The controller-manager gathers the roles in its own time.
    petaflop_harness::eventually("aggregated roles", Duration::from_secs(60), || async {
        match may("admin", "create", "petaflop.dev/spendbudgets", "default").await {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    let operator = "system:serviceaccount:petaflop-system:petaflop";
    let audit = "system:serviceaccount:petaflop-system:petaflop-audit";
    let guard = "system:serviceaccount:petaflop-system:petaflop-guard";
    for (user, verb, resource, namespace, expected) in [
        ("view", "list", "petaflop.dev/trainingjobs", "default", true),
        ("view", "get", "petaflop.dev/computeclaims/status", "default", true),
        ("view", "get", "petaflop.dev/trainingjobs/log", "default", true),
        ("view", "create", "petaflop.dev/trainingjobs", "default", false),
        ("view", "list", "petaflop.dev/trainingjobs", "kube-system", false),
        ("edit", "create", "petaflop.dev/trainingjobs", "default", true),
        ("edit", "patch", "petaflop.dev/inferenceservices/scale", "default", true),
        ("edit", "list", "petaflop.dev/spendbudgets", "default", true),
        ("edit", "patch", "petaflop.dev/spendbudgets", "default", false),
        ("edit", "create", "petaflop.dev/computeclaims", "default", false),
        ("edit", "patch", "petaflop.dev/trainingjobs/status", "default", false),
        ("admin", "create", "petaflop.dev/computeclaims", "default", false),
        ("admin", "create", "petaflop.dev/computeproviders", "", false),
        (operator, "create", "petaflop.dev/computeclaims", "default", true),
        (operator, "update", "petaflop.dev/computeclaims/status", "default", true),
        (operator, "create", "petaflop.dev/trainingjobs", "default", false),
        (operator, "create", "/pods", "default", true),
        (operator, "create", "/pods/exec", "default", false),
        (operator, "get", "/secrets", "default", false),
        (operator, "list", "/secrets", "petaflop-system", false),
        (operator, "create", "coordination.k8s.io/leases", "petaflop-system", true),
        (operator, "create", "coordination.k8s.io/leases", "default", false),
        (operator, "create", "authentication.k8s.io/tokenreviews", "", true),
        (audit, "list", "petaflop.dev/computeclaims", "default", true),
        (audit, "delete", "petaflop.dev/computeclaims", "default", false),
        (guard, "list", "petaflop.dev/computeclaims", "default", true),
        (guard, "patch", "petaflop.dev/trainingjobs", "default", true),
        (guard, "list", "petaflop.dev/computeproviders", "", true),
        (guard, "patch", "petaflop.dev/computeproviders", "", false),
        (guard, "delete", "petaflop.dev/trainingjobs", "default", false),
    ] {
        let found = may(user, verb, resource, namespace).await?;
        ensure!(found == expected, "{user} may {verb} {resource} in {namespace:?}: {found}");
    }
    Ok(())
}

/// Everything that any set renders is taken by a server strictly: no field that does not exist.
#[tokio::test]
async fn a_server_knows_every_field() -> Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let kubeconfig = plane.admin().kubeconfig().display().to_string();
    helm(["--kubeconfig", &kubeconfig, "install", "petaflop-crds", "--wait"], |helm| {
        helm.arg(chart("petaflop-crds"))
    })?;
    let client = plane.client().await?;
    for namespace in ["petaflop-system", "team-a", "team-b"] {
        let object = serde_json::from_value(json!({ "metadata": { "name": namespace } }))?;
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object).await?;
    }
    for set in SETS {
        let objects: Vec<Value> = objects(set)?
            .into_iter()
            // Kinds of the Prometheus operator, which is not here.
            .filter(|object| object["apiVersion"] != "monitoring.coreos.com/v1")
            .collect();
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("objects.json");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        std::fs::write(&file, list.to_string())?;
        let output = Command::new(tools::kubectl()?)
            .args(["--kubeconfig", &kubeconfig, "apply", "--server-side", "--dry-run=server"])
            .args(["--validate=strict", "--force-conflicts", "--filename"])
            .arg(&file)
            .output()
            .context("starting kubectl")?;
        ensure!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
