//! Whom TLS trusts. The agent runs in any image, and one that says nothing about it would leave it
//! without a way to the store: so certificates are brought along, and used where there are none.

use std::path::{Path, PathBuf};

/// Where an image made of Debian has them: ours.
pub const OURS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Their name beside the installed agent.
pub const BROUGHT: &str = "ca-certificates.crt";
/// Names the file to whoever speaks TLS.
pub const VARIABLE: &str = "SSL_CERT_FILE";

/// Where images have them: Debian and Alpine, Red Hat, SUSE.
const USUAL: [&str; 5] = [
    OURS,
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// The certificates that came with the agent in `folder`, where the image has none of its own.
pub fn brought(folder: &Path) -> Option<PathBuf> {
    let own = USUAL.iter().any(|path| Path::new(path).exists());
    among(folder, own || std::env::var_os(VARIABLE).is_some())
}

fn among(folder: &Path, own: bool) -> Option<PathBuf> {
    Some(folder.join(BROUGHT)).filter(|path| !own && path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_trusted_before_what_was_brought() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(among(folder.path(), false), None, "nothing was brought");
        let file = folder.path().join(BROUGHT);
        std::fs::write(&file, "certificates").expect("written");
        assert_eq!(among(folder.path(), true), None);
        assert_eq!(among(folder.path(), false), Some(file));
    }
}
