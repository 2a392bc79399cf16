//! The committed CRDs are the ones that the types generate. After a change on
//! purpose, `make generate` (or `UPDATE=1 cargo test -p petaflop-crds --test
//! generated`) writes them anew.

use std::path::Path;

use petaflop_crds::crds;

#[test]
fn the_committed_crds_are_the_generated_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/petaflop-crds/files");
    for crd in crds::all() {
        let path = folder
            .join(format!("{}.yaml", crd.metadata.name.as_deref().expect("a CRD has a name")));
        let generated = crds::document(&crd);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &generated).expect("the folder can be written");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == generated,
            "{} is not what the types generate: run `make generate` and commit it",
            path.display()
        );
    }
}

#[test]
fn no_file_is_left_of_a_kind_that_is_gone() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/petaflop-crds/files");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("can be read").file_name().to_string_lossy().into_owned())
        .collect();
    let mut kinds: Vec<String> = crds::all()
        .iter()
        .map(|crd| format!("{}.yaml", crd.metadata.name.as_deref().unwrap_or_default()))
        .collect();
    files.sort();
    kinds.sort();
    assert_eq!(files, kinds);
}

#[test]
fn a_chart_may_hold_the_crds_as_text() {
    for crd in crds::all() {
        let text = crds::document(&crd);
        assert!(!text.contains("{{"), "{:?} would be taken for a template", crd.metadata.name);
        assert_eq!(text.matches("\nspec:\n").count(), 1, "where the chart puts annotations");
        // Client-side `kubectl apply` repeats an object in an annotation of at most 256 KiB.
        assert!(text.len() < 256 << 10, "{:?}: {} bytes", crd.metadata.name, text.len());
    }
}

#[test]
fn generated_crds_read_back_as_they_were() {
    for crd in crds::all() {
        let text = crds::document(&crd);
        let read = serde_saphyr::from_str(&text).expect("what we write can be read");
        assert!(crds::document(&read) == text, "{:?} changed on the way", crd.metadata.name);
    }
}
