//! From a URI to the object store behind it: a folder, or a bucket that speaks S3.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use futures::TryStreamExt;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredentialProvider},
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};

use crate::StoreError;

/// One request, a chunk's upload included.
const REQUEST: Duration = Duration::from_secs(120);
/// How long a server may be away before a call gives up. Signatures are good for 15 minutes.
const PATIENCE: Duration = Duration::from_secs(240);

/// What opens a place, named as the environment names it: `AWS_ACCESS_KEY_ID`,
/// `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, ….
pub type Credentials<'a> = BTreeMap<&'a str, &'a str>;

/// An opened place.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// The folder or URI, for messages.
    pub(crate) name: String,
    /// Of a local one.
    pub(crate) root: Option<PathBuf>,
}

/// The objects at a URI as [`crate::Store::open`] understands it, for what is no
/// artifact: logs, checkpoints. Without credentials those of the environment are used.
///
/// # Errors
/// As [`crate::Store::open`].
pub fn objects(
    uri: &str,
    credentials: Option<&Credentials<'_>>,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    Ok(open(uri, credentials)?.objects)
}

/// Whether the URI names a bucket rather than a folder of this machine.
pub fn is_remote(uri: &str) -> bool {
    uri.starts_with("s3://")
}

pub(crate) fn open(uri: &str, credentials: Option<&Credentials<'_>>) -> Result<Place, StoreError> {
    if is_remote(uri) {
        return open_s3(uri, credentials);
    }
    let root = folder_of(uri)?;
    std::fs::create_dir_all(&root).map_err(|e| StoreError::io(&root, e).writing())?;
    let root = root.canonicalize().map_err(|e| StoreError::io(&root, e))?;
    let name = root.display().to_string();
    let objects = LocalFileSystem::new_with_prefix(&root)
        .map_err(|e| StoreError::backend(&name, e))?
        .with_fsync(true);
    Ok(Place { objects: Arc::new(objects), name, root: Some(root) })
}

/// A bucket, and who may ask it.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What the names of all objects begin with, without a slash at its ends; empty: nothing.
    pub prefix: String,
    /// Where it is.
    pub region: String,
    /// Of a server that is not Amazon's.
    pub endpoint: Option<String>,
    /// Signs what is asked.
    pub keys: AwsCredentialProvider,
}

/// The bucket of a URI, `None` for a folder.
///
/// # Errors
/// As [`crate::Store::open`].
pub fn bucket(
    uri: &str,
    credentials: Option<&Credentials<'_>>,
) -> Result<Option<Bucket>, StoreError> {
    if !is_remote(uri) {
        return Ok(None);
    }
    let (name, prefix) = parts(uri)?;
    let builder = builder(credentials);
    let said = |key| builder.get_config_value(&key);
    let endpoint = said(AmazonS3ConfigKey::S3Endpoint).or(said(AmazonS3ConfigKey::Endpoint));
    let region = said(AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
    let built = builder.with_bucket_name(&name).build();
    let keys = built.map_err(|e| StoreError::backend(uri, e))?.credentials().clone();
    Ok(Some(Bucket { name, prefix: prefix.to_string(), region, endpoint, keys }))
}

/// Whether "forbidden" means "not there". S3 tells them apart only to whoever may list the whole bucket;
/// whoever may list a part of it finds out there.
pub(crate) async fn is_missing(
    objects: &dyn ObjectStore,
    object: &Path,
    error: &object_store::Error,
) -> bool {
    if !matches!(error, object_store::Error::PermissionDenied { .. }) {
        return false;
    }
    let mut folder: Vec<_> = object.parts().collect();
    folder.pop();
    if folder.is_empty() {
        return false;
    }
    let mut listing = objects.list(Some(&Path::from_iter(folder)));
    loop {
        match listing.try_next().await {
            Ok(Some(meta)) if meta.location == *object => return false,
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Whether one of two places is in the other, or is the other. A folder and a bucket are apart.
///
/// # Errors
/// A URI that cannot be read.
pub fn overlap(one: &str, other: &str) -> Result<bool, StoreError> {
    if !is_remote(one) || !is_remote(other) {
        return Ok(!is_remote(one) && !is_remote(other) && {
            let (one, other) = (folder_of(one)?, folder_of(other)?);
            one.starts_with(&other) || other.starts_with(&one)
        });
    }
    let ((one, below_one), (other, below_other)) = (parts(one)?, parts(other)?);
    let within = below_one.prefix_matches(&below_other) || below_other.prefix_matches(&below_one);
    Ok(one == other && within)
}

/// The bucket that a place is in; `None`: it is a folder.
///
/// # Errors
/// A URI that cannot be read.
pub fn bucket_name(uri: &str) -> Result<Option<String>, StoreError> {
    is_remote(uri).then(|| Ok(parts(uri)?.0)).transpose()
}

/// Bucket and prefix.
fn parts(uri: &str) -> Result<(String, Path), StoreError> {
    let bad = |problem: &str| StoreError::BadUri { uri: uri.into(), problem: problem.into() };
    let url = url::Url::parse(uri).map_err(|e| bad(&e.to_string()))?;
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(bad("has a query, fragment or user"));
    }
    let bucket = url.host_str().filter(|b| !b.is_empty()).ok_or_else(|| bad("names no bucket"))?;
    let prefix = Path::from_url_path(url.path()).map_err(|e| bad(&e.to_string()))?;
    Ok((bucket.to_owned(), prefix))
}

fn builder(credentials: Option<&Credentials<'_>>) -> AmazonS3Builder {
    // TLS needs to know whose arithmetic to use; whoever was first has decided.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match credentials {
        None => AmazonS3Builder::from_env(),
        Some(given) => {
            given.iter().fold(AmazonS3Builder::new(), |builder, (name, value)| {
                match name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                    Ok(key) => builder.with_config(key, *value),
                    Err(_) => builder,
                }
            })
        }
    }
}

fn open_s3(uri: &str, credentials: Option<&Credentials<'_>>) -> Result<Place, StoreError> {
    let (bucket, prefix) = parts(uri)?;
    let mut builder = builder(credentials);
    let plain = |key| {
        builder.get_config_value(&key).is_some_and(|endpoint| endpoint.starts_with("http://"))
    };
    let allow_http = plain(AmazonS3ConfigKey::Endpoint) || plain(AmazonS3ConfigKey::S3Endpoint);
    builder = builder
        .with_bucket_name(bucket)
        .with_client_options(ClientOptions::new().with_timeout(REQUEST).with_allow_http(allow_http))
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(200),
                max_backoff: Duration::from_secs(5),
                base: 2.0,
            },
            max_retries: 200,
            retry_timeout: PATIENCE,
        });
    let bucket = builder.build().map_err(|e| StoreError::backend(uri, e))?;
    let objects: Arc<dyn ObjectStore> = if prefix.as_ref().is_empty() {
        Arc::new(bucket)
    } else {
        Arc::new(PrefixStore::new(bucket, prefix))
    };
    Ok(Place { objects, name: uri.trim_end_matches('/').into(), root: None })
}

fn folder_of(uri: &str) -> Result<PathBuf, StoreError> {
    let bad = |problem: &str| StoreError::BadUri { uri: uri.into(), problem: problem.into() };
    if uri.is_empty() {
        return Err(bad("is empty"));
    }
    let Some((scheme, _)) = uri.split_once("://") else {
        return Ok(PathBuf::from(uri));
    };
    if scheme != "file" {
        return Err(StoreError::UnsupportedScheme { uri: uri.into(), scheme: scheme.into() });
    }
    let url = url::Url::parse(uri).map_err(|e| bad(&e.to_string()))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("has a query or fragment"));
    }
    url.to_file_path().map_err(|()| bad("is not a local absolute path"))
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn a_place_in_another_is_known_however_it_is_written() {
        for (one, other, within) in [
            ("s3://b/store", "s3://b/store/", true),
            ("s3://b/store/ledger/x", "s3://b/store", true),
            ("s3://b", "s3://b/store", true),
            ("s3://b/%73tore/x", "s3://b/store", true),
            ("s3://b/data/../store/x", "s3://b/store", true),
            ("s3://b/data/%2e%2e/store/x", "s3://b/store", true),
            ("s3://b/store2", "s3://b/store", false),
            ("s3://c/store", "s3://b/store", false),
            ("file:///store/x", "/store", true),
            ("s3://b/store", "/store", false),
        ] {
            assert_eq!(overlap(one, other).ok(), Some(within), "{one} {other}");
            assert_eq!(overlap(other, one).ok(), Some(within), "{other} {one}");
        }
        assert!(overlap("s3://b/..%2Fstore", "s3://b/store").is_err());
    }
}
