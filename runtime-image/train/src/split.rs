//! Which documents are held out for validation.
//!
//! Every document has a rank that depends on the seed and its own content alone,
//! so files that are added or renamed move few others across. Documents are taken
//! in the order of their ranks as long as they fit in `val_set_size` of all bytes.

use crate::document::{Body, Document};

/// The two halves of the data.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Trained on.
    pub train: Vec<Document>,
    /// Only measured.
    pub validation: Vec<Document>,
}

/// Splits by whole document; a single plain text is split at a line near its end.
/// Order is kept on both sides. Where nothing can be held out without taking more
/// than half, nothing is.
#[must_use]
pub fn split(documents: Vec<Document>, val_set_size: f64, seed: u64) -> Split {
    let total: u64 = documents.iter().map(Document::bytes).sum();
    // `val_set_size` is at most a half, so this is exact enough for any size of data.
    let wanted = (total as f64 * val_set_size) as u64;
    if wanted == 0 {
        return Split { train: documents, validation: Vec::new() };
    }
    if let [Document { body: Body::Text(text), .. }] = documents.as_slice() {
        return split_text(text, wanted);
    }
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.sort_by_key(|&i| rank(seed, &documents[i].id));
    let mut held_out = vec![false; documents.len()];
    let mut left = wanted;
    for &i in &order {
        if documents[i].bytes() <= left {
            left -= documents[i].bytes();
            held_out[i] = true;
        }
    }
    if left == wanted {
        // Every document is larger than the share: the smallest one, if it leaves enough to learn from.
        let smallest = order.iter().copied().min_by_key(|&i| documents[i].bytes());
        if let Some(i) = smallest.filter(|&i| documents[i].bytes() <= total / 2) {
            held_out[i] = true;
        }
    }
    let mut split = Split::default();
    for (document, held_out) in documents.into_iter().zip(held_out) {
        if held_out { &mut split.validation } else { &mut split.train }.push(document);
    }
    split
}

/// Uniform in all 64 bits, keyed by seed and content.
fn rank(seed: u64, id: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"validation").update(&seed.to_le_bytes()).update(id);
    *hasher.finalize().as_bytes()
}

/// Cuts after the line end that is nearest to `wanted` bytes before the end; in a
/// text of one line, between two characters.
fn split_text(text: &str, wanted: u64) -> Split {
    let ideal = text.len() - usize::try_from(wanted).unwrap_or(text.len());
    let half = text.len() / 2;
    let cut = text
        .match_indices('\n')
        .map(|(at, _)| at + 1)
        .filter(|&at| at >= half && at < text.len())
        .min_by_key(|&at| at.abs_diff(ideal))
        .unwrap_or_else(|| text.floor_char_boundary(ideal));
    let part = |part: &str| match part {
        "" => Vec::new(),
        _ => vec![Document::text(part.to_owned())],
    };
    Split { train: part(&text[..cut]), validation: part(&text[cut..]) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn texts(documents: &[Document]) -> Vec<String> {
        documents.iter().flat_map(Document::texts).map(str::to_owned).collect()
    }

    fn documents(texts: impl IntoIterator<Item = String>) -> Vec<Document> {
        texts.into_iter().map(Document::text).collect()
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_more_than_the_share_is_held_out(
            sizes in proptest::collection::vec(1usize..400, 2..60), share in 0.0f64..=0.5, seed: u64,
        ) {
            let all: Vec<String> =
                sizes.iter().enumerate().map(|(i, &n)| format!("{i:04}{}", "x".repeat(n))).collect();
            let total: usize = all.iter().map(String::len).sum();
            let Split { train, validation } = split(documents(all.clone()), share, seed);
            let held: usize = validation.iter().map(|d| d.bytes() as usize).sum();
            if validation.len() > 1 {
                prop_assert!(held as f64 <= total as f64 * share);
            }
            prop_assert!(held <= total / 2);
            let mut both = texts(&train);
            both.extend(texts(&validation));
            both.sort();
            prop_assert_eq!(both, all);
        }

        #[test]
        fn a_file_more_moves_at_most_one_other_of_its_size(n in 4usize..80, seed: u64) {
            let all: Vec<String> = (0..n).map(|i| format!("document {i:04}")).collect();
            let held = |texts_: &[String]| -> BTreeSet<String> {
                texts(&split(documents(texts_.to_vec()), 0.2, seed).validation).into_iter().collect()
            };
            let (few, many) = (held(&all[..n - 1]), held(&all));
            let moved = few.symmetric_difference(&many).filter(|text| **text != all[n - 1]).count();
            prop_assert!(moved <= 1, "{moved} moved");
        }
    }

    #[test]
    fn the_seed_decides_who_is_held_out_and_the_order_of_files_does_not() {
        let all: Vec<String> = (0..50).map(|i| format!("document {i:04}")).collect();
        let held = |all: &[String], seed| -> BTreeSet<String> {
            texts(&split(documents(all.to_vec()), 0.2, seed).validation).into_iter().collect()
        };
        let reversed: Vec<String> = all.iter().rev().cloned().collect();
        assert_eq!(held(&all, 1), held(&reversed, 1));
        assert_ne!(held(&all, 1), held(&all, 2));
        assert_eq!(held(&all, 1).len(), 10);
    }

    #[test]
    fn a_single_text_is_cut_at_a_line_near_its_end() {
        let text: String = (0..100).map(|i| format!("line {i:02}\n")).collect();
        let Split { train, validation } = split(documents([text.clone()]), 0.1, 7);
        assert_eq!(
            (texts(&train)[0].lines().count(), texts(&validation)[0].lines().count()),
            (90, 10)
        );
        assert!(texts(&train)[0].ends_with('\n'));
        let Split { train, validation } = split(documents(["ä".repeat(100)]), 0.1, 7);
        assert_eq!((train[0].bytes(), validation[0].bytes()), (180, 20));
    }

    #[test]
    fn a_huge_document_is_not_held_out() {
        let Split { train, validation } =
            split(documents(["a".repeat(10_000), "b".into()]), 0.00001, 0);
        assert_eq!((train.len(), validation.len()), (2, 0));
        let Split { train, validation } =
            split(documents(["a".repeat(900), "b".repeat(200)]), 0.1, 0);
        assert_eq!((texts(&train)[0].len(), texts(&validation)[0].len()), (900, 200));
    }
}
