//! The servers: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::DeleteParams;
use tokio::sync::OnceCell;

use crate::access::{Access, file_name};
use crate::audit::{self, Writes};
use crate::certificates::Authority;
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::node::{Ground, Node};
use crate::options::{Options, Part};
use crate::process::{Component, Launch};
use crate::proxy::Proxy;
use crate::servers::{self, Reach};
use crate::state::{Medium, State};
use crate::{eventually, kubernetes, ports};

/// How long a server may take to be ready, on a machine busy with other tests.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running control plane. Everything of it ends when it is dropped, or when
/// the test process does.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order: a node while its server still answers, processes
    // before their folder.
    node: Option<Node>,
    scheduler: Option<Component>,
    scheduler_port: u16,
    controller_manager: Option<Component>,
    apiserver: Component,
    etcd: Component,
    etcd_url: String,
    address: SocketAddr,
    admin: Access,
    authority: Authority,
    state: Arc<State>,
}

impl ControlPlane {
    /// Starts the servers and waits until they are ready: some 4 s, after the
    /// once that they are built.
    ///
    /// # Errors
    /// Something is missing, or a server did not come up: with its log's end.
    pub async fn start(options: Options) -> Result<Self> {
        // Building takes minutes and is not asynchronous.
        tokio::task::spawn_blocking(|| kubernetes::program("kube-controller-manager"))
            .await
            .map_err(|failure| Error::Unfit(failure.to_string()))??;

        let ground = if options.node { Some(Ground::new()?) } else { None };
        let state = Arc::new(State::new(Medium::Memory)?);
        let authority = Authority::new(&state)?;
        let server = |part: Part, launch: Launch| {
            Component::start(part.program(), options.extend(part, launch), &state)
        };

        let (etcd_url, launch) = servers::etcd(&state)?;
        let etcd = server(Part::Etcd, launch)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        let reach = Reach::new(address, ground.as_ref());
        let apiserver =
            server(Part::Apiserver, servers::apiserver(&state, &authority, &reach, &etcd_url)?)?;

        let url = format!("https://{address}");
        let all_powerful = |authority: &Authority, user: &str| -> Result<Access> {
            let identity = authority.client(user, user, &["system:masters"])?;
            Access::by_certificate(&state, user, &url, &authority.certificate, &identity)
        };
        let admin = all_powerful(&authority, "admin")?;
        let mut plane = Self {
            node: None,
            scheduler: None,
            scheduler_port: ports::free()?,
            controller_manager: None,
            apiserver,
            etcd,
            etcd_url,
            address,
            admin,
            authority,
            state: Arc::clone(&state),
        };
        plane.ready().await?;

        if options.controller_manager {
            let access = all_powerful(&plane.authority, "system:kube-controller-manager")?;
            let launch = servers::controller_manager(&state, &plane.authority, &access)?;
            plane.controller_manager = Some(server(Part::ControllerManager, launch)?);
        }
        if options.scheduler {
            let access = all_powerful(&plane.authority, "system:kube-scheduler")?;
            plane.scheduler =
                Some(server(Part::Scheduler, servers::scheduler(&access, plane.scheduler_port)?)?);
        }
        plane.ready().await?;
        if let Some(ground) = ground {
            let url = format!("https://{}:{}", reach.advertised, address.port());
            let client = plane.client().await?;
            plane.node = Some(Node::start(ground, &url, &plane.authority, client).await?);
        }
        Ok(plane)
    }

    /// The control plane that the tests of one binary share, started by the
    /// first. Take a [`Namespace`] of your own in it, and start your own plane
    /// to kill or pause servers.
    ///
    /// # Panics
    /// It cannot be started: no test of the binary can say anything then.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                match Self::start(Options::default()).await {
                    Ok(plane) => plane,
                    Err(error) => panic!("no control plane to test against: {error}"),
                }
            })
            .await
    }

    /// Waits until etcd and the API server answer, and the controllers and the
    /// scheduler work, each unless the test killed it: to be called after a
    /// restart.
    ///
    /// # Errors
    /// A server ended by itself, or is not ready in time; with the end of its log.
    pub async fn ready(&self) -> Result<()> {
        let client = self.admin.client().await?;
        self.wait_for("kube-apiserver", &[&self.etcd, &self.apiserver], || ok(&client, "/readyz"))
            .await?;
        if let Some(manager) = self.controller_manager.as_ref().filter(|part| part.is_wanted()) {
            self.controllers_work(manager, &client).await?;
        }
        if let Some(scheduler) = self.scheduler.as_ref().filter(|part| part.is_wanted()) {
            let own = own_client(self.scheduler_port)?;
            self.wait_for("kube-scheduler", &[scheduler], || ok(&own, "/readyz")).await?;
        }
        Ok(())
    }

    /// A controller gives every namespace its default ServiceAccount. That of
    /// kube-public, which nobody uses, is taken away: it has to come again.
    async fn controllers_work(&self, manager: &Component, client: &kube::Client) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "kube-public");
        let failed = || Error::api("ServiceAccount kube-public/default");
        let old = accounts.get_opt("default").await.map_err(failed())?;
        if old.is_some() {
            accounts.delete("default", &DeleteParams::default()).await.map_err(failed())?;
        }
        let old = old.and_then(|account| account.metadata.uid);
        self.wait_for("kube-controller-manager", &[manager], || async {
            let now = accounts.get("default").await.map_err(|e| e.to_string())?;
            if now.metadata.uid == old { Err("not deleted yet".into()) } else { Ok(()) }
        })
        .await
    }

    /// Asks until the answer is good, or a process that it depends on has ended.
    async fn wait_for<F>(
        &self,
        name: &str,
        depends_on: &[&Component],
        check: impl Fn() -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<(), String>>,
    {
        let awaited = async {
            eventually(&format!("{name} ready"), PATIENCE, || async {
                // A paused server accepts a connection and never answers.
                let answer = tokio::time::timeout(Duration::from_secs(5), check()).await;
                answer.unwrap_or_else(|_| Err("no answer in 5 s".into()))
            })
            .await
        };
        let watched = async {
            loop {
                for component in depends_on {
                    component.must_be_up()?;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let outcome = tokio::select! {
            outcome = awaited => outcome,
            ended = watched => ended,
        };
        outcome.map_err(|error| match error {
            Error::Late { what, within, missing } => {
                let logs: Vec<_> = depends_on
                    .iter()
                    .map(|part| {
                        format!("\nend of the log of {}:\n{}", part.name(), part.log_tail())
                    })
                    .collect();
                Error::Late { what, within, missing: missing + &logs.concat() }
            }
            other => other,
        })
    }

    /// etcd.
    pub fn etcd(&self) -> &Component {
        &self.etcd
    }

    /// kube-apiserver.
    pub fn apiserver(&self) -> &Component {
        &self.apiserver
    }

    /// kube-controller-manager.
    ///
    /// # Panics
    /// This plane was started without.
    pub fn controller_manager(&self) -> &Component {
        self.controller_manager.as_ref().expect("this plane has no controller-manager")
    }

    /// kube-scheduler.
    ///
    /// # Panics
    /// This plane was started without.
    pub fn scheduler(&self) -> &Component {
        self.scheduler.as_ref().expect("this plane has no scheduler")
    }

    /// The node that runs containers.
    ///
    /// # Panics
    /// This plane was started without.
    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("this plane has no node")
    }

    /// Where the API server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate of the authority that signed the server's.
    pub fn authority(&self) -> &Path {
        &self.authority.certificate
    }

    /// May do everything (`system:masters`); called `admin` in the audit log.
    pub fn admin(&self) -> &Access {
        &self.admin
    }

    /// A client that may do everything; see [`Access::client`].
    ///
    /// # Errors
    /// As [`Access::client`].
    pub async fn client(&self) -> Result<kube::Client> {
        self.admin.client().await
    }

    /// A user in at most two groups, who may do what RBAC gives to either;
    /// nothing by itself.
    ///
    /// # Errors
    /// More groups, or the files cannot be written.
    pub fn user(&self, name: &str, groups: &[&str]) -> Result<Access> {
        let identity = self.authority.client(&file_name(name), name, groups)?;
        let authority = &self.authority.certificate;
        Access::by_certificate(&self.state, name, &self.url(), authority, &identity)
    }

    /// A ServiceAccount that exists, by a token of one hour.
    ///
    /// # Errors
    /// The API server gives no token.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<Access> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let what = format!("a token for ServiceAccount {namespace}/{name}");
        let wish = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(3600), ..Default::default() },
            ..Default::default()
        };
        let request = accounts
            .create_token_request(name, &Default::default(), &wish)
            .await
            .map_err(Error::api(&what))?;
        let token = request
            .status
            .ok_or_else(|| Error::Unfit(format!("{what}: an answer without status")))?
            .token;
        let user = format!("system:serviceaccount:{namespace}:{name}");
        Access::by_token(&self.state, &user, &self.url(), &self.authority.certificate, &token)
    }

    /// A new namespace whose name starts with `prefix`, for one test.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn namespace(&self, prefix: &str) -> Result<Namespace> {
        Namespace::create(&self.admin, prefix, self.controller_manager.is_some()).await
    }

    /// What is written from here on, by whom, as the audit log has it.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn writes(&self) -> Result<Writes> {
        Writes::from_here(&self.admin, self.state.path(audit::LOG)).await
    }

    /// A network of one's own before the API server.
    ///
    /// # Errors
    /// No port can be bound.
    pub fn proxy(&self) -> Result<Proxy> {
        Proxy::before(self.address)
    }

    /// Starts a program under test as one more process of this cluster: it can be
    /// paused, killed and started again like the servers, its output goes to
    /// [`Component::log`], and it ends when it is dropped or the test process
    /// does. `name` is its own on this plane.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, name: &str, program: Launch) -> Result<Component> {
        Component::start(name, program, &self.state)
    }

    pub(crate) fn etcd_url(&self) -> &str {
        &self.etcd_url
    }
}

async fn ok(client: &kube::Client, path: &str) -> Result<(), String> {
    let request = http::Request::get(path).body(Vec::new()).map_err(|e| e.to_string())?;
    client.request_text(request).await.map(drop).map_err(|e| e.to_string())
}

/// For a server's own port, where it shows a certificate that it made itself.
fn own_client(port: u16) -> Result<kube::Client> {
    let url = http::Uri::try_from(format!("https://127.0.0.1:{port}"))
        .map_err(|error| Error::Unfit(error.to_string()))?;
    let mut config = kube::Config::new(url);
    config.accept_invalid_certs = true;
    kube::Client::try_from(config).map_err(Error::api("making a client"))
}
