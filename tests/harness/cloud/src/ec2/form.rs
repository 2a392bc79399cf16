//! A request of the query protocol: names with dots and numbers. Each is read by its action or
//! refused: what the box does not know shall not pass for understood.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use jiff::Timestamp;

use super::error::Error;
use super::filter::Filter;

/// Key and value.
pub(crate) type Tag = (String, String);

#[derive(Debug)]
pub(crate) struct Form {
    fields: BTreeMap<String, String>,
    read: RefCell<BTreeSet<String>>,
}

impl Form {
    pub(crate) fn parse(body: &[u8]) -> Self {
        let fields = url::form_urlencoded::parse(body).into_owned().collect();
        Self { fields, read: RefCell::default() }
    }

    /// A field; an empty one counts as none.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.read.borrow_mut().insert(name.to_owned());
        self.fields.get(name).filter(|value| !value.is_empty()).cloned()
    }

    pub(crate) fn need(&self, name: &str) -> Result<String, Error> {
        self.text(name).ok_or_else(|| Error::missing(name))
    }

    /// A field of a kind that text can be read as.
    pub(crate) fn read<T: FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Error::value(&text, name))
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, Error> {
        Ok(self.read(name)?.unwrap_or(false))
    }

    pub(crate) fn time(&self, name: &str) -> Result<Option<Timestamp>, Error> {
        self.read(name)
    }

    /// Numbers that follow a prefix, in their order: 1 and 3 of `X.1.Name` and `X.3`.
    pub(crate) fn numbers(&self, prefix: &str) -> Vec<u32> {
        let below =
            self.fields.keys().filter_map(|name| name.strip_prefix(prefix)?.strip_prefix('.'));
        let numbers: BTreeSet<u32> =
            below.filter_map(|rest| rest.split('.').next()?.parse().ok()).collect();
        numbers.into_iter().collect()
    }

    /// `X.1`, `X.2` and so on.
    pub(crate) fn list(&self, prefix: &str) -> Vec<String> {
        let numbers = self.numbers(prefix).into_iter();
        numbers.filter_map(|number| self.text(&format!("{prefix}.{number}"))).collect()
    }

    /// `X.1.Key`, `X.1.Value` and so on.
    pub(crate) fn tags(&self, prefix: &str) -> Vec<Tag> {
        let numbers = self.numbers(prefix).into_iter();
        let tag = |number| {
            let key = self.text(&format!("{prefix}.{number}.Key"))?;
            Some((key, self.text(&format!("{prefix}.{number}.Value")).unwrap_or_default()))
        };
        numbers.filter_map(tag).collect()
    }

    /// `Filter.1.Name`, `Filter.1.Value.1` and so on; a name outside `known` is refused.
    pub(crate) fn filters(&self, known: &[&str]) -> Result<Vec<Filter>, Error> {
        let numbers = self.numbers("Filter").into_iter();
        let filter = |number| {
            let name = self.need(&format!("Filter.{number}.Name"))?;
            let values = self.list(&format!("Filter.{number}.Value"));
            if values.is_empty() {
                return Err(Error::missing("Filter.Value"));
            }
            let served = known.contains(&name.as_str())
                || (known.contains(&"tag:*") && name.starts_with("tag:"));
            if served { Ok(Filter { name, values }) } else { Err(Error::filter(&name)) }
        };
        numbers.map(filter).collect()
    }

    /// # Errors
    /// When there is a field that nobody read.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        let read = self.read.borrow();
        match self.fields.keys().find(|name| !read.contains(*name)) {
            Some(name) => Err(Error::unknown_parameter(name)),
            None => Ok(()),
        }
    }

    /// All that was asked for, for comparison with another request.
    pub(crate) fn parameters(&self) -> BTreeMap<String, String> {
        self.fields.clone()
    }
}
