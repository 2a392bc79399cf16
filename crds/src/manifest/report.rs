//! Errors of a manifest, and how they are shown: as rustc shows its own.

use std::fmt;

use serde::Serialize;

/// One error, with its place and its mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ManifestError {
    /// The file, as it was named; `-` for standard input.
    pub file: String,
    /// Line, from 1; 0 when the error concerns the whole file.
    pub line: usize,
    /// Column in characters, from 1; 0 when the error concerns the whole file.
    pub column: usize,
    /// Path of the field: `spec.recipe.datasets[0].path`; empty for a document as a whole.
    pub path: String,
    /// What was expected and what was found.
    pub message: String,
    /// How to mend it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The source line, and how many characters of it are meant.
    #[serde(skip)]
    pub(super) excerpt: Option<(String, usize)>,
}

/// Longest source line that is shown whole, in characters.
const WIDTH: usize = 140;

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => writeln!(f, "error: {}", self.message)?,
            path => writeln!(f, "error: {path}: {}", self.message)?,
        }
        let margin = " ".repeat(self.line.to_string().len());
        match self.line {
            0 => write!(f, "  --> {}", self.file)?,
            line => write!(f, "{margin}--> {}:{line}:{}", self.file, self.column)?,
        }
        if let Some((text, length)) = &self.excerpt {
            let before = self.column.saturating_sub(1);
            // A very long line is shown around the place.
            let start =
                if text.chars().count() > WIDTH { before.saturating_sub(WIDTH / 2) } else { 0 };
            let shown: String = text
                .chars()
                .skip(start)
                .take(WIDTH)
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            let carets = "^".repeat((*length).clamp(1, WIDTH - (before - start).min(WIDTH - 1)));
            write!(
                f,
                "\n{margin} |\n{} | {shown}\n{margin} | {}{carets}",
                self.line,
                " ".repeat(before - start)
            )?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n{margin} = help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestError {}

impl ManifestError {
    /// An error that concerns the whole file.
    pub(super) fn of_file(file: &str, message: String, help: Option<String>) -> Self {
        ManifestError {
            file: file.to_owned(),
            line: 0,
            column: 0,
            path: String::new(),
            message,
            help,
            excerpt: None,
        }
    }
}

/// Every error of a manifest; at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ManifestErrors(pub Vec<ManifestError>);

impl fmt::Display for ManifestErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestErrors {}

impl From<ManifestError> for ManifestErrors {
    fn from(error: ManifestError) -> Self {
        ManifestErrors(vec![error])
    }
}
