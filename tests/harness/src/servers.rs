//! The servers' command lines: each as near to what a cluster's installer gives
//! it as loopback and a minute's life allow.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::access::Access;
use crate::audit;
use crate::certificates::Authority;
use crate::error::Result;
use crate::node::Ground;
use crate::process::Launch;
use crate::state::State;
use crate::{kubernetes, ports};

pub(crate) fn etcd(state: &State) -> Result<(String, Launch)> {
    let url = format!("http://127.0.0.1:{}", ports::free()?);
    let peer = format!("http://127.0.0.1:{}", ports::free()?);
    let launch = kubernetes::program("etcd")?.arguments([
        format!("--data-dir={}", state.path("etcd").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // Survives the death of the process, not of the machine.
        "--unsafe-no-fsync".into(),
    ]);
    Ok((url, launch))
}

/// Where the API server listens, and as what others reach it.
pub(crate) struct Reach {
    listen: SocketAddr,
    /// As the cluster's own processes and Pods reach it, on the same port.
    pub(crate) advertised: Ipv4Addr,
    services: String,
    /// The address of its own Service.
    service: Ipv4Addr,
    has_node: bool,
}

impl Reach {
    /// On loopback, unless a node has to reach it.
    pub(crate) fn new(address: SocketAddr, ground: Option<&Ground>) -> Self {
        match ground.map(|ground| &ground.namespaces) {
            None => Self {
                listen: address,
                advertised: Ipv4Addr::LOCALHOST,
                services: "10.96.0.0/24".into(),
                service: Ipv4Addr::new(10, 96, 0, 1),
                has_node: false,
            },
            Some(namespaces) => Self {
                listen: (Ipv4Addr::UNSPECIFIED, address.port()).into(),
                advertised: namespaces.host(),
                services: namespaces.services(),
                service: namespaces.kubernetes(),
                has_node: true,
            },
        }
    }
}

pub(crate) fn apiserver(
    state: &State,
    authority: &Authority,
    reach: &Reach,
    etcd_url: &str,
) -> Result<Launch> {
    let addresses = [Ipv4Addr::LOCALHOST, reach.advertised, reach.service].map(IpAddr::from);
    let hosts = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let serving = authority.server("kube-apiserver", &addresses, &hosts)?;
    let (private, public) = authority.signing_keys()?;
    let policy = state.write("audit-policy.json", audit::POLICY)?;
    let launch = kubernetes::program("kube-apiserver")?.arguments([
        format!("--etcd-servers={etcd_url}"),
        format!("--bind-address={}", reach.listen.ip()),
        format!("--advertise-address={}", reach.advertised),
        format!("--secure-port={}", reach.listen.port()),
        format!("--tls-cert-file={}", serving.certificate.display()),
        format!("--tls-private-key-file={}", serving.key.display()),
        format!("--client-ca-file={}", authority.certificate.display()),
        format!("--service-cluster-ip-range={}", reach.services),
        "--allow-privileged=true".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={}", public.display()),
        format!("--service-account-signing-key-file={}", private.display()),
        "--shutdown-delay-duration=0s".into(),
        "--profiling=false".into(),
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", state.path(audit::LOG).display()),
        // MiB; a rotation would lose writes from the count.
        "--audit-log-maxsize=4096".into(),
    ]);
    if !reach.has_node {
        // Loopback is no endpoint that a Service may have.
        return Ok(launch.argument("--endpoint-reconciler-type=none"));
    }
    let user = "kube-apiserver-kubelet-client";
    let identity = authority.client(user, user, &["system:masters"])?;
    Ok(launch.arguments([
        // The node's name is known to no resolver.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--kubelet-client-certificate={}", identity.certificate.display()),
        format!("--kubelet-client-key={}", identity.key.display()),
    ]))
}

pub(crate) fn controller_manager(
    state: &State,
    authority: &Authority,
    access: &Access,
) -> Result<Launch> {
    Ok(kubernetes::program("kube-controller-manager")?.arguments([
        format!("--kubeconfig={}", access.kubeconfig().display()),
        "--leader-elect=false".into(),
        format!(
            "--service-account-private-key-file={}",
            state.path("pki/service-accounts.key").display()
        ),
        format!("--root-ca-file={}", authority.certificate.display()),
        "--use-service-account-credentials=false".into(),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={}", ports::free()?),
        "--profiling=false".into(),
    ]))
}

pub(crate) fn scheduler(access: &Access, port: u16) -> Result<Launch> {
    Ok(kubernetes::program("kube-scheduler")?.arguments([
        format!("--kubeconfig={}", access.kubeconfig().display()),
        "--leader-elect=false".into(),
        "--authentication-skip-lookup".into(),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={port}"),
        "--profiling=false".into(),
    ]))
}
