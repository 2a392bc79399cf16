//! Where the programs of machines are: static ones, that are built apart from everything else.

use std::path::PathBuf;

use super::clouds::SandboxError;

/// A program of ours: what `PETAFLOP_…` names, or beside this program, or where cargo puts static ones.
pub(super) fn find(name: &'static str, variable: &'static str) -> Result<PathBuf, SandboxError> {
    if let Some(set) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(set));
    }
    let me = std::env::current_exe().unwrap_or_default();
    let folder = me.parent().unwrap_or(&me);
    let of_cargo = format!("../{}-unknown-linux-musl/release", std::env::consts::ARCH);
    [folder.join(of_cargo).join(name), folder.join(name)]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| SandboxError::Missing { name, beside: folder.to_owned(), variable })
}
