//! `builtin:petaflop`: the text of this repository's own sources and documents,
//! as they were when this binary was built.

use petaflop_train::input::Builtins;

/// (path, text), sorted by path; written by `build.rs`.
const PETAFLOP: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/corpus.rs"));

/// Every text this binary brings along.
pub(crate) fn builtins() -> Builtins {
    let files = PETAFLOP
        .iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|&(path, text)| (path.to_owned(), text.to_owned()))
        .collect();
    Builtins::from([("builtin:petaflop".to_owned(), files)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_this_repository_in_order_without_what_is_generated() {
        assert!(PETAFLOP.is_sorted_by(|a, b| a.0 < b.0));
        let has = |path: &str| PETAFLOP.iter().any(|file| file.0 == path);
        assert!(
            has("runtime-image/cli/src/corpus.rs")
                && has("Cargo.toml")
                && has("docs/decisions/README.md")
        );
        assert!(PETAFLOP.iter().all(|(path, _)| !path.starts_with('/') && !path.contains("..")));
        assert!(
            PETAFLOP.iter().all(|(path, _)| !path.contains("/target/") && !path.ends_with(".lock"))
        );
        let bytes: usize = PETAFLOP.iter().map(|(_, text)| text.len()).sum();
        assert!((200_000..20_000_000).contains(&bytes), "{bytes} bytes");
    }
}
