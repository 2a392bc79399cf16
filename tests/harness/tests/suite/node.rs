//! A real node: containers run on it, say something, and are reached. Root only.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::PostParams;
use petaflop_harness::node::{self, BUSYBOX, DEBIAN, Image};
use petaflop_harness::{ControlPlane, Options, eventually, tools};
use serde_json::json;

/// The web server in the container.
const SERVE: &str = "httpd -f -p 8080 -h /www";
const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn containers_run_speak_and_are_reached_by_their_service() {
    if !tools::is_root() {
        assert!(std::env::var_os("CI").is_none(), "not tested: a real node needs root");
        eprintln!("not run here: a real node needs root");
        return;
    }
    let plane = ControlPlane::start(Options::default().with_node()).await.unwrap();
    let namespace = plane.namespace("node").await.unwrap();
    let client = plane.client().await.unwrap();
    let post = PostParams::default();

    // A web server, behind a Service.
    let labels = json!({ "app": "web" });
    let server = json!({
        "metadata": { "name": "web", "labels": labels },
        "spec": { "containers": [{
            "name": "web",
            "image": BUSYBOX,
            "imagePullPolicy": "Never",
            "command": ["sh", "-c", format!("mkdir /www; echo answered > /www/index.html; exec {SERVE}")],
            "readinessProbe": { "httpGet": { "port": 8080 }, "periodSeconds": 1 },
        }] },
    });
    let service = json!({
        "metadata": { "name": "web" },
        "spec": { "selector": labels, "ports": [{ "port": 80, "targetPort": 8080 }] },
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace.name());
    pods.create(&post, &serde_json::from_value(server).unwrap()).await.unwrap();
    let services: Api<Service> = Api::namespaced(client.clone(), namespace.name());
    let service = services.create(&post, &serde_json::from_value(service).unwrap()).await.unwrap();
    let address: IpAddr = service.spec.unwrap().cluster_ip.unwrap().parse().unwrap();

    // From the host, where the tests are.
    eventually("an answer from the Service's address", SOON, || async {
        ask((address, 80).into())
            .map_err(|e| e.to_string())
            .and_then(|answer| if answer.ends_with("answered\n") { Ok(()) } else { Err(answer) })
    })
    .await
    .unwrap();

    // From a container of an image built here, on a base with glibc: another
    // one by its Service, and the API server by its own.
    let folder = tempfile::tempdir().unwrap();
    let containerfile =
        format!("FROM {DEBIAN} AS first\nRUN echo made here > /made\nFROM first\nRUN rm /made\n");
    std::fs::write(folder.path().join("Containerfile"), containerfile).unwrap();
    let base = node::debian_base().unwrap();
    let image = Image::new(folder.path(), "localhost/asks:1").target("first").on(&base);
    plane.node().build_image(&image).unwrap();
    let script = format!(
        "cat /made; exec 3<> /dev/tcp/{address}/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3; \
         exec 4<> /dev/tcp/$KUBERNETES_SERVICE_HOST/443 && echo reached"
    );
    let job = json!({
        "metadata": { "name": "asks" },
        "spec": { "backoffLimit": 0, "template": { "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "asks",
                "image": "localhost/asks:1",
                "imagePullPolicy": "Never",
                "command": ["bash", "-c", script],
            }],
        } } },
    });
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace.name());
    jobs.create(&post, &serde_json::from_value(job).unwrap()).await.unwrap();
    let ended = eventually("the Job's end", SOON, || async {
        let job = jobs.get("asks").await.map_err(|e| e.to_string())?;
        let status = job.status.unwrap_or_default();
        let ended = status.succeeded.or(status.failed).is_some();
        if ended { Ok(status.succeeded) } else { Err(format!("{status:?}")) }
    })
    .await
    .unwrap();

    let output = Command::new(tools::kubectl().unwrap())
        .arg("--kubeconfig")
        .arg(plane.admin().kubeconfig())
        .args(["--namespace", namespace.name(), "logs", "job/asks"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "made here\nanswered\nreached\n",
        "{output:?}"
    );
    assert_eq!(ended, Some(1));

    // The web server still runs; nothing of the node outlives the plane.
    let folder = plane.node().containerd().log().ancestors().nth(2).unwrap().to_owned();
    assert!(folder.exists());
    assert_eq!(running(SERVE).len(), 1);
    drop(namespace);
    drop(plane);
    assert_eq!(running(SERVE), [0_u32; 0]);
    assert!(!folder.exists(), "{} is still there", folder.display());
}

/// Processes of this machine with exactly this command line.
fn running(command: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let id = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let line = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
    processes
        .filter_map(|entry| id(entry.ok()?))
        .filter(|pid| {
            line(pid).is_ok_and(|line| line.trim_end_matches('\0').replace('\0', " ") == command)
        })
        .collect()
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
