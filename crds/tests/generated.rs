//! The committed CRDs are the ones that the types generate. After a change on
//! purpose, `make generate` (or `UPDATE=1 cargo test -p petaflop-crds --test
//! generated`) writes them anew.

use std::path::Path;

use petaflop_crds::crds;

#[test]
fn the_committed_crds_are_the_generated_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
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
fn generated_crds_read_back_as_they_were() {
    for crd in crds::all() {
        let text = crds::document(&crd);
        let read = serde_saphyr::from_str(&text).expect("what we write can be read");
        assert!(crds::document(&read) == text, "{:?} changed on the way", crd.metadata.name);
    }
}
