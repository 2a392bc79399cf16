//! Folders to store, and an object store that dies at a chosen write.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

pub mod s3;

use std::{
    fmt, fs,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, local::LocalFileSystem,
    path::Path,
};

pub const KEY: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Writes these files under a new folder `at`.
pub fn folder(at: &FilePath, files: &[(&str, Vec<u8>)]) -> PathBuf {
    for (path, content) in files {
        let file = at.join(path);
        fs::create_dir_all(file.parent().expect("has a parent")).expect("folder");
        fs::write(file, content).expect("file");
    }
    at.to_path_buf()
}

/// All files under a folder, by relative path.
pub fn contents(dir: &FilePath) -> Vec<(String, Vec<u8>)> {
    petaflop_store::folder::files(dir)
        .expect("a folder of files")
        .into_iter()
        .map(|f| (f.path, fs::read(f.file).expect("readable")))
        .collect()
}

/// Bytes that do not repeat from chunk to chunk.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// How a process dies at a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Before anything of it reached the store.
    Before,
    /// Half of it is in a file of its own, not yet renamed.
    Torn,
    /// The write is done, but nobody was told.
    After,
}

/// A local store that dies at its n-th write or removal; what comes after fails, too.
#[derive(Debug)]
pub struct Mortal {
    inner: Arc<LocalFileSystem>,
    root: PathBuf,
    left: Arc<AtomicI64>,
    death: Death,
}

impl Mortal {
    pub fn new(root: &FilePath, at: i64, death: Death) -> Self {
        let inner = LocalFileSystem::new_with_prefix(root).expect("a folder");
        Self {
            inner: Arc::new(inner),
            root: root.to_path_buf(),
            left: Arc::new(AtomicI64::new(at)),
            death,
        }
    }

    /// Counts writes down from here on, for looking at after the store has it.
    pub fn left(&self) -> Arc<AtomicI64> {
        self.left.clone()
    }
}

fn dead() -> object_store::Error {
    object_store::Error::Generic { store: "Mortal", source: "the process died".into() }
}

impl fmt::Display for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mortal")
    }
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 {
            return self.inner.put_opts(location, payload, options).await;
        }
        if left == 0 {
            match self.death {
                Death::Before => {}
                Death::Torn => {
                    let whole: Vec<u8> = payload.iter().flatten().copied().collect();
                    let file = self.root.join(format!("{location}#1"));
                    fs::create_dir_all(file.parent().expect("has a parent")).expect("folder");
                    fs::write(file, &whole[..whole.len() / 2]).expect("torn file");
                }
                Death::After => {
                    self.inner.put_opts(location, payload, options).await?;
                }
            }
        }
        Err(dead())
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (inner, left, death) = (self.inner.clone(), self.left.clone(), self.death);
        locations
            .then(move |location| {
                let (inner, left) = (inner.clone(), left.clone());
                async move {
                    let location = location?;
                    let left = left.fetch_sub(1, Ordering::SeqCst);
                    if left > 0 || (left == 0 && death == Death::After) {
                        object_store::ObjectStoreExt::delete(&*inner, &location).await?;
                    }
                    if left > 0 { Ok(location) } else { Err(dead()) }
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
