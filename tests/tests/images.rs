//! The images, built without a registry from the repository's own Containerfiles, as restricted Pods
//! of a real node: not root, no file to write to, and still everything they need.

mod node;

use anyhow::{Context, Result, ensure};
use petaflop_harness::node::BUSYBOX;
use serde_json::Value;

/// Runs each image's program where Pod Security is strictest; what they print, by container.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: images}
spec:
  restartPolicy: Never
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  initContainers:
    - {name: install, image: "petaflop-agent:VERSION", args: [install, /petaflop], securityContext: SECURITY, volumeMounts: MOUNTS}
  containers:
    - {name: operator, image: "petaflop:VERSION", command: [petaflop, --version], securityContext: SECURITY}
    - {name: crds, image: "petaflop:VERSION", args: [crds], securityContext: SECURITY}
    - {name: runtime, image: "petaflop-runtime:VERSION", args: [detect, --json], securityContext: SECURITY}
    - {name: path, image: "petaflop-runtime:VERSION", command: [petaflop-runtime, --version], securityContext: SECURITY}
    - {name: agent, image: "BUSYBOX", command: [/petaflop/petaflop-agent, --version], securityContext: FOREIGN, volumeMounts: MOUNTS}
    - {name: trust, image: "BUSYBOX", command: [grep, -c, BEGIN, /petaflop/ca-certificates.crt], securityContext: FOREIGN, volumeMounts: MOUNTS}
  volumes: [{name: petaflop, emptyDir: {}}]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_image_runs_restricted_and_the_agent_enters_any_other() -> Result<()> {
    let chart = std::fs::read_to_string(node::at_root("charts/petaflop/Chart.yaml"))?;
    ensure!(
        chart.contains(&format!("\nappVersion: {}\n", node::VERSION)),
        "the chart names other images than `make images` makes"
    );
    let Some(site) = node::start().await? else { return Ok(()) };
    site.restricted_namespace("images")?;
    let security = r#"{"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}"#;
    // A stranger's image says nothing of its user.
    let pod = POD
        .replace("FOREIGN", &format!("{security}, \"runAsUser\": 1000}}"))
        .replace("SECURITY", &format!("{security}}}"))
        .replace("MOUNTS", r#"[{"name": "petaflop", "mountPath": "/petaflop"}]"#)
        .replace("VERSION", node::VERSION)
        .replace("BUSYBOX", BUSYBOX);
    site.apply("images", &pod)?;
    let ended = site.kubectl(
        "wait --namespace images pod/images --for=jsonpath={.status.phase}=Succeeded --timeout=90s",
    );
    let said = |container: &str| {
        site.kubectl(&format!("logs --namespace images images --container {container}"))
    };
    if let Err(error) = ended {
        let state =
            site.kubectl("get --namespace images pod/images --output jsonpath={.status}")?;
        return Err(error.context(state));
    }
    ensure!(said("operator")?.trim() == format!("petaflop {}", node::VERSION));
    ensure!(said("crds")?.contains("trainingjobs.petaflop.dev"));
    ensure!(said("path")?.trim() == format!("petaflop-runtime {}", node::VERSION));
    ensure!(said("agent")?.trim() == format!("petaflop-agent {}", node::VERSION));
    ensure!(
        said("trust")?.trim().parse::<u32>()? > 50,
        "few certificates for an image that has none"
    );
    let detected = said("runtime")?;
    let machine: Value = serde_json::from_str(&detected).context(detected)?;
    ensure!(machine["cpu"]["variants"].is_array(), "{machine}");
    Ok(())
}
