//! What shares a quota: AWS counts virtual processors by class of types, spot and on demand apart.
//! Pure.

use petaflop_arbiter::offer::Capacity;

/// The class of a type: a quota that is used up is used up for all of it.
pub(super) fn of(instance_type: &str, capacity: Capacity) -> &'static str {
    let family = instance_type.split_once('.').map_or(instance_type, |(family, _)| family);
    let letters: String = family.chars().take_while(char::is_ascii_alphabetic).collect();
    match letters.as_str() {
        "p" => match (capacity, family.as_bytes().get(1)) {
            // On demand there is one for all of P.
            (Capacity::Spot, Some(b'5')) => "P5",
            (Capacity::Spot, Some(b'6')) => "P6",
            (Capacity::Spot, _) => "P4, P3, P2",
            _ => "P",
        },
        "g" | "gr" | "vt" => "G and VT",
        "dl" => "DL",
        "inf" => "Inf",
        "trn" => "Trn",
        "f" => "F",
        "x" => "X",
        "u" => "High Memory",
        _ => "Standard",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_one_quota_are_one_class() {
        for (name, spot, on_demand) in [
            ("g6e.xlarge", "G and VT", "G and VT"),
            ("gr6.4xlarge", "G and VT", "G and VT"),
            ("p5.48xlarge", "P5", "P"),
            ("p5en.48xlarge", "P5", "P"),
            ("p6-b200.48xlarge", "P6", "P"),
            ("p4d.24xlarge", "P4, P3, P2", "P"),
            ("trn1.2xlarge", "Trn", "Trn"),
            ("c7a.xlarge", "Standard", "Standard"),
            ("odd", "Standard", "Standard"),
        ] {
            assert_eq!(of(name, Capacity::Spot), spot, "{name}");
            assert_eq!(of(name, Capacity::OnDemand), on_demand, "{name}");
        }
    }
}
