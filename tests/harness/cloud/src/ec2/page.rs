//! Lists in pages.

use std::ops::RangeInclusive;

use super::error::Error;
use super::world::Ask;
use crate::faults::Fault;

/// Which page is asked for.
#[derive(Debug)]
pub(crate) struct Page {
    most: Option<usize>,
    from: Option<usize>,
}

/// `MaxResults` and `NextToken`.
pub(crate) fn read(ask: &Ask<'_>, allowed: RangeInclusive<usize>) -> Result<Page, Error> {
    let most: Option<usize> = ask.form.read("MaxResults")?;
    if let Some(most) = most.filter(|most| !allowed.contains(most)) {
        let message = format!(
            "Value ( {most} ) for parameter maxResults is invalid. Expecting a value between {} and \
             {}.",
            allowed.start(),
            allowed.end()
        );
        return Err(Error::client("InvalidParameterValue", message));
    }
    let from = match ask.form.text("NextToken") {
        None => None,
        Some(token) => {
            let number = token.strip_prefix("next-").and_then(|number| number.parse().ok());
            let unknown =
                || Error::client("InvalidNextToken", "The specified NextToken is not valid");
            Some(number.ok_or_else(unknown)?)
        }
    };
    Ok(Page { most, from })
}

impl Page {
    /// Paging was asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.most.is_some() || self.from.is_some()
    }

    /// The page, and the token of the next one. There may be fewer rows on a page than were asked
    /// for.
    pub(crate) fn cut<T>(
        &self,
        ask: &Ask<'_>,
        size: Option<usize>,
        mut all: Vec<T>,
    ) -> Result<(Vec<T>, Option<String>), Error> {
        if ask.faults.contains(&Fault::PartialPage) {
            all.truncate(all.len() / 2);
        }
        let most = self.most.unwrap_or(1000).min(size.unwrap_or(usize::MAX)).max(1);
        let from = self.from.unwrap_or_default();
        let next = Some(from.saturating_add(most)).filter(|next| *next < all.len());
        let next = if ask.faults.contains(&Fault::RepeatedCursor) { Some(from) } else { next };
        let page = all.into_iter().skip(from).take(most).collect();
        Ok((page, next.map(|next| format!("next-{next}"))))
    }
}
