//! An error that belongs to one field of a spec.

use std::fmt;

/// What is wrong with one field, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FieldError {
    /// Path of the field from the document's root: `spec.recipe.datasets[0].path`.
    pub path: String,
    /// What was expected, what was found, what to do.
    pub message: String,
}

impl FieldError {
    /// An error of the field at `path`.
    pub fn new(path: impl Into<String>, message: impl fmt::Display) -> Self {
        FieldError { path: path.into(), message: message.to_string() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}
