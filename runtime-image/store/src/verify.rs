//! Reads everything and names what is damaged.

use futures::StreamExt;
use serde::Serialize;

use crate::{ArtifactHash, Damage, Digest, Store, StoreError, store::mend};

/// What [`Store::verify`] looked at, and found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Artifacts that were read.
    pub artifacts: usize,
    /// Files that were read.
    pub files: usize,
    /// Bytes that were read and hashed.
    pub bytes: u64,
    /// What is wrong, in the order of artifact and path; empty when all is well.
    pub findings: Vec<Damage>,
}

impl Store {
    /// Reads and hashes one artifact, or all artifacts and keys.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an artifact that is not there; why the store cannot be read.
    /// Damage is no error: it is what the report is for.
    pub async fn verify(&self, artifact: Option<ArtifactHash>) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport::default();
        if let Some(hash) = artifact {
            self.verify_artifact(hash, &mut report).await?;
            return Ok(report);
        }
        for (hash, _) in self.hashes().await? {
            match self.verify_artifact(hash, &mut report).await {
                Err(StoreError::NotFound { .. }) => {} // removed meanwhile
                other => other?,
            }
        }
        for (object, binding) in self.bindings().await? {
            let finding = match binding {
                Err(damage) => damage,
                Ok(binding) => match self.manifest(binding.artifact).await {
                    Err(StoreError::NotFound { .. }) => Damage {
                        artifact: Some(binding.artifact),
                        path: None,
                        object: self.place(&object),
                        problem: "the key names an artifact that is not there".into(),
                        mend: mend(),
                    },
                    // A damaged manifest was named above.
                    Ok(_) | Err(StoreError::Damaged(_)) => continue,
                    Err(e) => return Err(e),
                },
            };
            report.findings.push(finding);
        }
        Ok(report)
    }

    async fn verify_artifact(
        &self,
        hash: ArtifactHash,
        report: &mut VerifyReport,
    ) -> Result<(), StoreError> {
        report.artifacts += 1;
        let manifest = match self.manifest(hash).await {
            Ok(manifest) => manifest,
            Err(StoreError::Damaged(damage)) => {
                report.findings.push(*damage);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        for file in &manifest.files {
            report.files += 1;
            let before = report.findings.len();
            let mut content = blake3::Hasher::new();
            let mut chunks = std::pin::pin!(self.chunks(&manifest, file));
            while let Some(chunk) = chunks.next().await {
                match chunk {
                    Ok(bytes) => {
                        report.bytes += bytes.len() as u64;
                        content.update(&bytes);
                    }
                    Err(StoreError::Damaged(damage)) => report.findings.push(*damage),
                    Err(e) => return Err(e),
                }
            }
            if report.findings.len() == before {
                let content: Digest = content.finalize().into();
                match self.check_content(&manifest, file, content) {
                    Err(StoreError::Damaged(damage)) => report.findings.push(*damage),
                    other => other?,
                }
            }
        }
        Ok(())
    }
}
