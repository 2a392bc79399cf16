//! Enough of XML to read an answer: elements and text.

#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    name: String,
    text: String,
    children: Vec<Node>,
}

impl Node {
    /// The root of a document; an empty one where it is none.
    pub(crate) fn parse(text: &str) -> Self {
        let mut open = vec![Self::default()];
        for part in text.split('<').skip(1) {
            let Some((tag, text)) = part.split_once('>') else { return Self::default() };
            if tag.starts_with('?') {
                continue;
            }
            if tag.starts_with('/') {
                let done = open.pop().unwrap_or_default();
                assert_eq!(tag.trim_start_matches('/'), done.name, "an element ends as it began");
                open.last_mut().unwrap().children.push(done);
                continue;
            }
            let name = tag.split(' ').next().unwrap_or_default().to_owned();
            let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
            open.push(Self { name, text, children: Vec::new() });
        }
        let mut root = open.pop().unwrap_or_default();
        root.children.pop().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Every element on a path.
    pub(crate) fn all(&self, path: &str) -> Vec<&Self> {
        path.split('/').fold(vec![self], |found, name| {
            let below = found.into_iter().flat_map(|node| &node.children);
            below.filter(|child| child.name == name).collect()
        })
    }

    /// The text of the first element on a path; empty where there is none.
    pub(crate) fn at(&self, path: &str) -> &str {
        self.all(path).first().map_or("", |node| &node.text)
    }

    /// Whether there is an element on a path.
    pub(crate) fn has(&self, path: &str) -> bool {
        !self.all(path).is_empty()
    }
}
