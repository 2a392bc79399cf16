//! The operator's rights, exactly as the chart gives them: read from its rendering.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;

const CHART: &str = include_str!("../../golden/charts/default.yaml");

/// Lets a user do in this namespace what the chart's operator may do in its own, and everywhere what
/// that may do everywhere.
pub(crate) async fn give(client: &Client, user: &str, namespace: &str) -> Result<()> {
    let everywhere = ClusterRole {
        metadata: named(user),
        rules: Some(rules("ClusterRole", "petaflop-operator")?),
        ..ClusterRole::default()
    };
    let own = Role {
        metadata: named("operator-own"),
        rules: Some(rules("Role", "petaflop-operator-own")?),
    };
    let subject = || {
        Some(vec![Subject {
            kind: "User".into(),
            name: user.to_owned(),
            api_group: Some("rbac.authorization.k8s.io".into()),
            namespace: None,
        }])
    };
    let role = |kind: &str, name: &str| RoleRef {
        api_group: "rbac.authorization.k8s.io".into(),
        kind: kind.into(),
        name: name.into(),
    };
    let binding = ClusterRoleBinding {
        metadata: named(user),
        role_ref: role("ClusterRole", user),
        subjects: subject(),
    };
    let own_binding = RoleBinding {
        metadata: named("operator-own"),
        role_ref: role("Role", "operator-own"),
        subjects: subject(),
    };
    let params = PostParams::default();
    Api::all(client.clone()).create(&params, &everywhere).await?;
    Api::all(client.clone()).create(&params, &binding).await?;
    Api::namespaced(client.clone(), namespace).create(&params, &own).await?;
    Api::namespaced(client.clone(), namespace).create(&params, &own_binding).await?;
    Ok(())
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

fn rules(kind: &str, name: &str) -> Result<Vec<PolicyRule>> {
    let found = CHART.split("\n---").find(|text| {
        text.lines().any(|line| line == format!("kind: {kind}"))
            && text.lines().any(|line| line == format!("  name: {name}"))
    });
    let role: WithRules = yaml(found.with_context(|| format!("{kind} {name} in the chart"))?)?;
    ensure!(!role.rules.is_empty(), "{kind} {name} gives nothing");
    Ok(role.rules)
}

#[derive(serde::Deserialize)]
struct WithRules {
    rules: Vec<PolicyRule>,
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T> {
    Ok(serde_saphyr::from_str(text)?)
}
