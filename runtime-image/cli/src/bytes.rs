//! Amounts of memory as people write them: `24GiB`, `1.5 GB`, `4096`.

/// Bytes in the text, for clap.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size like 24GiB, 1.5GB or 4096 (bytes)";
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| EXPECTED.to_owned())?;
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" | "ki" => 1 << 10,
        "mib" | "mi" => 1 << 20,
        "gib" | "gi" => 1 << 30,
        "tib" | "ti" => 1 << 40,
        _ => return Err(EXPECTED.to_owned()),
    };
    let bytes = number * unit as f64;
    if bytes.is_finite() && bytes < 2f64.powi(63) {
        Ok(bytes as u64)
    } else {
        Err(EXPECTED.to_owned())
    }
}

/// For people.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >= 1 << shift {
            return format!("{:.2} {unit}", bytes as f64 / (1u64 << shift) as f64);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("24GiB", 24 << 30),
            ("24 gi", 24 << 30),
            ("1.5GB", 1_500_000_000),
            ("4096", 4096),
            ("0", 0),
            ("7B", 7),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1 horse", "1e99TiB", "1.2.3", "99999999999TiB"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(
            (human(5), human(1536), human(3 << 30)),
            ("5 B".into(), "1.50 KiB".into(), "3.00 GiB".into())
        );
    }
}
