//! Answers as XML, written from front to back.

use std::fmt::{Display, Write};

/// XML that grows.
#[derive(Debug, Default)]
pub(crate) struct Xml(String);

impl Xml {
    /// `<name>value</name>`.
    pub(crate) fn leaf(&mut self, name: &str, value: impl Display) -> &mut Self {
        let value = value.to_string();
        let text = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        // A String takes whatever it is given.
        let _ = write!(self.0, "<{name}>{text}</{name}>");
        self
    }

    pub(crate) fn maybe(&mut self, name: &str, value: Option<impl Display>) -> &mut Self {
        match value {
            Some(value) => self.leaf(name, value),
            None => self,
        }
    }

    /// An element with others in it.
    pub(crate) fn within(&mut self, name: &str, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let _ = write!(self.0, "<{name}>");
        inside(self);
        let _ = write!(self.0, "</{name}>");
        self
    }

    /// A list as the query protocol has it: a wrapper of `<item>`.
    pub(crate) fn items<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut item: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.within(name, |xml| {
            for each in items {
                xml.within("item", |xml| item(xml, each));
            }
        })
    }

    /// A list of texts.
    pub(crate) fn texts<T: Display>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
    ) -> &mut Self {
        self.within(name, |xml| {
            for each in items {
                xml.leaf("item", each);
            }
        })
    }

    /// `tagSet`, where there are any.
    pub(crate) fn tags(&mut self, tags: &[(String, String)]) -> &mut Self {
        if tags.is_empty() {
            return self;
        }
        self.items("tagSet", tags, |xml, (key, value)| {
            xml.leaf("key", key).leaf("value", value);
        })
    }

    /// What was written elsewhere.
    pub(crate) fn append(&mut self, other: Self) {
        self.0.push_str(&other.0);
    }

    /// The whole document: `root` with its attributes around it.
    pub(crate) fn document(self, root: &str, namespace: &str) -> String {
        let body = self.0;
        let namespace =
            if namespace.is_empty() { String::new() } else { format!(" xmlns=\"{namespace}\"") };
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root}{namespace}>{body}</{root}>")
    }
}
