//! Sizes and places: sums, products and look-ups in lists over u32, written as C and WGSL
//! write them (`tokens[row] * n + i`), so that printers paste them and the rest of us
//! computes them.

/// The value of `text`; `name` gives a name's value, `list` an element of a list.
///
/// # Errors
/// What it could not read, or a name that nobody knows.
pub fn evaluate(
    text: &str,
    name: &dyn Fn(&str) -> Option<u64>,
    list: &dyn Fn(&str, u64) -> Option<u64>,
) -> Result<u64, String> {
    let mut reader = Reader { text, at: 0, name, list };
    let value = reader.sum()?;
    if reader.peek().is_some() { Err(reader.wrong("an end")) } else { Ok(value) }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    name: &'a dyn Fn(&str) -> Option<u64>,
    list: &'a dyn Fn(&str, u64) -> Option<u64>,
}

impl Reader<'_> {
    fn wrong(&self, expected: &str) -> String {
        format!("expected {expected} at {} of `{}`", self.at, self.text)
    }

    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|c| **c == b' ').count();
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, c: u8) -> Result<(), String> {
        if self.peek() != Some(c) {
            return Err(self.wrong(&format!("`{}`", c as char)));
        }
        self.at += 1;
        Ok(())
    }

    fn sum(&mut self) -> Result<u64, String> {
        let mut value = self.product()?;
        while let Some(op @ (b'+' | b'-')) = self.peek() {
            self.at += 1;
            let other = self.product()?;
            let result =
                if op == b'+' { value.checked_add(other) } else { value.checked_sub(other) };
            value = result.ok_or_else(|| format!("`{}` is negative or too large", self.text))?;
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<u64, String> {
        let mut value = self.atom()?;
        while let Some(op @ (b'*' | b'/' | b'%')) = self.peek() {
            self.at += 1;
            let other = self.atom()?;
            let result = match op {
                b'*' => value.checked_mul(other),
                b'/' => value.checked_div(other),
                _ => value.checked_rem(other),
            };
            value = result.ok_or_else(|| format!("`{}` overflows or divides by 0", self.text))?;
        }
        Ok(value)
    }

    fn atom(&mut self) -> Result<u64, String> {
        let start = match self.peek() {
            Some(b'(') => {
                self.at += 1;
                let value = self.sum()?;
                self.take(b')')?;
                return Ok(value);
            }
            _ => self.at,
        };
        let word = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_';
        self.at += self.text.as_bytes()[start..].iter().take_while(|c| word(c)).count();
        let text = &self.text[start..self.at];
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return text.trim_end_matches('u').parse().map_err(|_| self.wrong("a number"));
        }
        match self.peek() {
            Some(b'[') => {
                self.at += 1;
                let place = self.sum()?;
                self.take(b']')?;
                (self.list)(text, place).ok_or_else(|| format!("{text}[{place}] is not there"))
            }
            Some(b'(') if text == "min" => {
                self.at += 1;
                let first = self.sum()?;
                self.take(b',')?;
                let second = self.sum()?;
                self.take(b')')?;
                Ok(first.min(second))
            }
            _ => (self.name)(text).ok_or_else(|| self.wrong("a known name")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::evaluate;

    #[test]
    fn expressions_have_the_values_that_c_gives_them() {
        let name = |n: &str| [("n", 7), ("row", 3)].iter().find(|x| x.0 == n).map(|x| x.1);
        let list = |l: &str, i: u64| (l == "list" && i < 4).then_some(10 * i);
        let value = |text: &str| evaluate(text, &name, &list);
        assert_eq!(value("row * n + 2"), Ok(23));
        assert_eq!(value("(n + 1) / 2 % 3 - 1u"), Ok(0));
        assert_eq!(value("list[row] * min(n, 4u) + list[row - 1]"), Ok(140));
        for wrong in ["", "m", "row - n", "n / 0", "list[n]", "n n", "(n", "min(n)"] {
            assert!(value(wrong).is_err(), "{wrong}");
        }
    }
}
