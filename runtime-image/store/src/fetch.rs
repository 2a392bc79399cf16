//! Plain data of a place becomes a file or a folder of this machine, known by its digest.

use std::{collections::BTreeMap, path::Path as FilePath};

use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};

use crate::{
    ArtifactHash, Digest, StoreError,
    hash::{HashedFile, artifact_hash},
    place::{self, Credentials, Place},
    read::save,
};

/// Objects on their way at once: many are small.
const AT_ONCE: usize = 8;

/// Length and blake3 of a file that was written.
type Written = (u64, Digest);

/// Copies the object at `uri` (`s3://…`) to the file `to`, or all that lies below it to the folder `to`; `to` must not
/// be there yet. Gives the digest of what was written: as of an artifact, where an object by itself has the empty
/// path. `None`: there is nothing.
///
/// # Errors
/// What the place or the machine refuses; names that are none of files. Then `to` may hold a part.
pub async fn fetch(
    uri: &str,
    credentials: Option<&Credentials<'_>>,
    to: &FilePath,
) -> Result<Option<ArtifactHash>, StoreError> {
    // `s3://bucket` and `s3://bucket/folder/` are no objects.
    let mut refused = None;
    if let Some((parent, name)) = uri.rsplit_once('/')
        && !name.is_empty()
        && !parent.ends_with('/')
    {
        let parent = place::open(parent, credentials)?;
        match object(&parent, &Path::from(name), to).await {
            Ok(Some((length, content))) => {
                return Ok(Some(artifact_hash([HashedFile { path: "", length, content }])));
            }
            Ok(None) => {}
            // Whoever may not list the bucket hears this of what is not there, too.
            Err(error) if error.is_forbidden() => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    let place = place::open(uri, credentials)?;
    let listed: BTreeMap<String, u64> = place
        .objects
        .list(None)
        .map_ok(|meta| (meta.location.to_string(), meta.size))
        .try_collect()
        .await
        .map_err(|e| StoreError::backend(&place.name, e))?;
    let names: Vec<String> = listed
        .iter()
        .filter(|(name, size)| **size > 0 || !is_folder(name, &listed))
        .map(|(name, _)| name.clone())
        .collect();
    if names.is_empty() {
        return refused.map_or(Ok(None), Err);
    }
    let outside = |name: &&String| name.split('/').any(|part| matches!(part, "" | "." | ".."));
    if let Some(name) = names.iter().find(outside) {
        return Err(StoreError::BadInput {
            path: format!("{}/{name}", place.name),
            problem: "is no name of a file; rename it".into(),
        });
    }
    let fetched = stream::iter(names).map(|name| {
        let (place, to) = (&place, to.join(&name));
        async move {
            let written = object(place, &Path::from(name.as_str()), &to).await?;
            Ok::<_, StoreError>((name, written))
        }
    });
    let fetched: Vec<(String, Option<Written>)> =
        fetched.buffer_unordered(AT_ONCE).try_collect().await?;
    if let Some((name, _)) = fetched.iter().find(|(_, written)| written.is_none()) {
        return Err(StoreError::BadInput {
            path: format!("{}/{name}", place.name),
            problem: "was removed while it was read; leave inputs as they are".into(),
        });
    }
    let files = fetched.iter().filter_map(|(path, written)| {
        written.map(|(length, content)| HashedFile { path, length, content })
    });
    Ok(Some(artifact_hash(files)))
}

/// What consoles leave where somebody made a folder: an empty object of its name.
fn is_folder(name: &str, listed: &BTreeMap<String, u64>) -> bool {
    let below = format!("{name}/");
    name.is_empty()
        || listed.range(below.clone()..).next().is_some_and(|(next, _)| next.starts_with(&below))
}

/// One object to a file; `None`: there is none.
async fn object(place: &Place, name: &Path, to: &FilePath) -> Result<Option<Written>, StoreError> {
    let failed = |e| StoreError::backend(format!("{}/{name}", place.name), e);
    let content = match place.objects.get(name).await {
        Ok(found) => found.into_stream().map_err(failed),
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(e) if place::is_missing(&*place.objects, name, &e).await => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let (_, content) = save(content, to).await?;
    Ok(Some((content.count(), content.finalize().into())))
}
