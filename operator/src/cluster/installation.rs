//! Where [`Installation`] is kept in a cluster: a Secret in the operator's namespace, made once and
//! kept, with the uid that its machines carry and the root of its keys. Two releases in one
//! cluster, or a cluster restored from a backup of another, never sweep each other's machines.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use petaflop_agent_api::keys::OperatorRoot;

use crate::cluster::error::{Error, is_conflict};
use crate::installation::Installation;

/// Name of the Secret.
pub const SECRET: &str = "petaflop-installation";
const UID: &str = "uid";
const ROOT: &str = "root";

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// The API server refuses.
    #[error(transparent)]
    Api(#[from] Error),
    /// No randomness.
    #[error("no uid could be made: {0}")]
    Random(#[from] std::io::Error),
    /// The Secret is not what we wrote.
    #[error(
        "Secret {namespace}/{SECRET} is damaged: {what}; restore it from a backup, for machines that run know only its key"
    )]
    Damaged {
        /// Its namespace.
        namespace: String,
        /// What is wrong.
        what: &'static str,
    },
}

impl Installation {
    /// Reads the Secret; `None`: there is none, so nothing was ever bought from here.
    ///
    /// # Errors
    /// The API server refuses, or the Secret is damaged.
    pub async fn read(client: &Client, namespace: &str) -> Result<Option<Self>, InstallationError> {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let secret = api.get_opt(SECRET).await.map_err(Error::api("reading the installation"))?;
        secret.map(|secret| parse(namespace, &secret)).transpose()
    }

    /// Reads the Secret, or makes it; of two operators that start at once both use the same one.
    ///
    /// # Errors
    /// As [`Installation::read`].
    pub async fn of(client: &Client, namespace: &str) -> Result<Self, InstallationError> {
        if let Some(known) = Self::read(client, namespace).await? {
            return Ok(known);
        }
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let made = Secret {
            metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
            immutable: Some(true),
            data: Some(BTreeMap::from([
                (UID.to_owned(), ByteString(crate::uid::random()?.into_bytes())),
                (ROOT.to_owned(), ByteString(OperatorRoot::generate().to_bytes().to_vec())),
            ])),
            ..Secret::default()
        };
        match api.create(&PostParams::default(), &made).await {
            Ok(secret) => parse(namespace, &secret),
            Err(error) if is_conflict(&error) => match Self::read(client, namespace).await? {
                Some(known) => Ok(known),
                None => Err(InstallationError::Damaged {
                    namespace: namespace.to_owned(),
                    what: "it came and went",
                }),
            },
            Err(error) => Err(Error::api("making the installation")(error).into()),
        }
    }
}

fn parse(namespace: &str, secret: &Secret) -> Result<Installation, InstallationError> {
    let damaged = |what| InstallationError::Damaged { namespace: namespace.to_owned(), what };
    let entry = |key| secret.data.as_ref().and_then(|data| data.get(key));
    let uid = entry(UID).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
    let uid = uid.filter(|uid| uid.len() == 36).ok_or_else(|| damaged("it has no uid"))?;
    let root: [u8; 32] = entry(ROOT)
        .and_then(|bytes| bytes.0.as_slice().try_into().ok())
        .ok_or_else(|| damaged("its root is not 32 bytes"))?;
    Ok(Installation { uid, root: OperatorRoot::from_bytes(root) })
}
