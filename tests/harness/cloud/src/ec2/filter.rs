//! Filters: one of the values of each, `*` and `?` stand for anything.

#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub(crate) name: String,
    pub(crate) values: Vec<String>,
}

impl Filter {
    /// One of its values fits one of these.
    pub(crate) fn fits<'a>(&self, found: impl IntoIterator<Item = &'a str>) -> bool {
        found.into_iter().any(|text| self.values.iter().any(|pattern| like(pattern, text)))
    }
}

/// A thing fits all filters; `of` gives what it has under a filter's name.
pub(crate) fn all(filters: &[Filter], of: impl Fn(&str) -> Vec<String>) -> bool {
    filters.iter().all(|filter| {
        let found = of(&filter.name);
        filter.fits(found.iter().map(String::as_str))
    })
}

/// What a thing with these tags has under the name of a filter by tags.
pub(crate) fn tagged(tags: &[(String, String)], name: &str) -> Vec<String> {
    match name.strip_prefix("tag:") {
        Some(key) => {
            tags.iter().filter(|(known, _)| known == key).map(|(_, v)| v.clone()).collect()
        }
        None if name == "tag-key" => tags.iter().map(|(key, _)| key.clone()).collect(),
        None => Vec::new(),
    }
}

/// Whether a text is what a pattern says; a backslash takes its meaning from what follows it.
pub(crate) fn like(pattern: &str, text: &str) -> bool {
    fn at(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => {
                at(rest, text) || text.split_first().is_some_and(|(_, text)| at(pattern, text))
            }
            (Some(('?', rest)), Some((_, text))) => at(rest, text),
            (Some(('\\', rest)), Some((letter, text))) if rest.first() == Some(letter) => {
                at(&rest[1..], text)
            }
            (Some((wanted, rest)), Some((letter, text))) => wanted == letter && at(rest, text),
            _ => false,
        }
    }
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    at(&pattern, &text)
}

#[cfg(test)]
mod tests {
    use super::like;

    #[test]
    fn a_star_is_any_text_and_a_question_mark_any_letter() {
        assert!(like("g5.*", "g5.xlarge") && like("*", "") && like("p?d.*", "p4d.24xlarge"));
        assert!(!like("g5.*", "g5g.xlarge") && !like("g5", "g5.xlarge") && !like("?", ""));
        assert!(like(r"a\*", "a*") && !like(r"a\*", "ab"));
    }
}
