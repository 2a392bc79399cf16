//! Who asks the API server, and by which way: a kubeconfig file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use crate::certificates::Identity;
use crate::error::{Error, Result};
use crate::proxy::Proxy;
use crate::state::State;

/// One identity's way into the cluster.
#[derive(Clone, Debug)]
pub struct Access {
    name: String,
    /// The `user` of the kubeconfig.
    credentials: Value,
    authority: PathBuf,
    file: PathBuf,
    state: Arc<State>,
}

impl Access {
    pub(crate) fn by_certificate(
        state: &Arc<State>,
        name: &str,
        url: &str,
        authority: &Path,
        identity: &Identity,
    ) -> Result<Self> {
        let credentials =
            json!({ "client-certificate": identity.certificate, "client-key": identity.key });
        Self::new(state, name, url, authority, credentials)
    }

    pub(crate) fn by_token(
        state: &Arc<State>,
        name: &str,
        url: &str,
        authority: &Path,
        token: &str,
    ) -> Result<Self> {
        Self::new(state, name, url, authority, json!({ "token": token }))
    }

    fn new(
        state: &Arc<State>,
        name: &str,
        url: &str,
        authority: &Path,
        credentials: Value,
    ) -> Result<Self> {
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": { "server": url, "certificate-authority": authority } }],
            "users": [{ "name": name, "user": credentials }],
            "contexts": [{ "name": name, "context": { "cluster": "test", "user": name } }],
            "current-context": name,
        });
        let file =
            state.write(format!("{}.kubeconfig", file_name(name)), kubeconfig.to_string())?;
        let (name, authority) = (name.to_owned(), authority.to_owned());
        Ok(Self { name, credentials, authority, file, state: Arc::clone(state) })
    }

    /// The same identity, but every connection goes through this proxy.
    ///
    /// # Errors
    /// The kubeconfig cannot be written.
    pub fn through(&self, proxy: &Proxy) -> Result<Self> {
        let name = format!("{} by {}", self.name, proxy.address().port());
        let url = format!("https://{}", proxy.address());
        Self::new(&self.state, &name, &url, &self.authority, self.credentials.clone())
    }

    /// The kubeconfig, for `--kubeconfig` and `KUBECONFIG`.
    pub fn kubeconfig(&self) -> &Path {
        &self.file
    }

    /// The client's settings, to be changed before a client is made of them.
    ///
    /// # Errors
    /// The client does not take the kubeconfig.
    pub async fn config(&self) -> Result<Config> {
        let failed =
            |source| Error::Kubeconfig { path: self.file.clone(), source: Box::new(source) };
        let kubeconfig = Kubeconfig::read_from(&self.file).map_err(failed)?;
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(failed)
    }

    /// A new client. Its connections live on the calling runtime, and each
    /// `#[tokio::test]` has its own: make one a test, never share one.
    /// It does not repeat requests by itself.
    ///
    /// # Errors
    /// The client does not take the kubeconfig.
    pub async fn client(&self) -> Result<kube::Client> {
        let mut config = self.config().await?;
        config.default_retry = false;
        kube::Client::try_from(config).map_err(Error::api("making a client"))
    }
}

/// A new file name for each call, even by the same user: several tests may be
/// one at the same time, and names may hold colons and slashes.
pub(crate) fn file_name(user: &str) -> String {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let plain: String =
        user.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{plain}-{}", CALLS.fetch_add(1, Ordering::Relaxed))
}
