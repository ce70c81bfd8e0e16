//! Quantities in objects: how upstream writes them, and sums over lists of resources.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use stoker_model::quantity::Milli;

/// Why a text is no quantity, in upstream's words.
pub const FORMAT: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// Amounts by resource.
pub type Amounts = BTreeMap<String, Milli>;

const DECIMAL: [&str; 9] = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// The amount that a field holds.
pub fn parse(value: &Value) -> Option<Milli> {
    Milli::parse(value.as_str()?).ok()
}

/// The amounts of a resource list; what cannot be read is not among them.
pub fn amounts(list: &Value) -> Amounts {
    let list = list.as_object().into_iter().flatten();
    list.filter_map(|(name, value)| Some((name.clone(), parse(value)?))).collect()
}

/// A resource list, in the form that `like` suggests for each.
pub fn to_list(amounts: &Amounts, like: &[&Value]) -> Value {
    let binary = |name: &str| {
        let given = like.iter().find_map(|list| list[name].as_str());
        given.is_some_and(|text| text.ends_with('i')) || (given.is_none() && is_bytes(name))
    };
    let list: Map<String, Value> =
        amounts.iter().map(|(name, amount)| (name.clone(), Value::String(show(*amount, binary(name))))).collect();
    Value::Object(list)
}

fn is_bytes(name: &str) -> bool {
    name.ends_with("memory") || name.ends_with("storage") || name.contains("hugepages-")
}

/// As upstream writes an amount: with the greatest suffix that leaves a whole number.
pub fn show(amount: Milli, binary: bool) -> String {
    let milli = amount.milli();
    if milli % 1000 != 0 && !binary {
        return format!("{milli}m");
    }
    let mut whole = milli.div_euclid(1000) + i128::from(milli.rem_euclid(1000) != 0);
    let binary = binary && whole.abs() >= 1024;
    let (step, suffixes): (i128, &[&str]) = if binary { (1024, &BINARY) } else { (1000, &DECIMAL) };
    let mut suffix = 0;
    while whole != 0 && whole % step == 0 && suffix + 1 < suffixes.len() {
        whole /= step;
        suffix += 1;
    }
    format!("{whole}{}", suffixes[suffix])
}

/// A quantity as upstream would write it; `None` if it is none.
pub fn canonical(text: &str) -> Option<String> {
    let amount = Milli::parse(text).ok()?;
    let number = text.trim_start_matches(['+', '-']);
    let suffix = number.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    match suffix {
        // Finer than a thousandth, or with an exponent: as it was written.
        "n" | "u" => Some(text.to_owned()),
        _ if suffix.len() > 1 && suffix.starts_with(['e', 'E']) => Some(text.to_owned()),
        _ => Some(show(amount, suffix.ends_with('i'))),
    }
}

/// Writes the quantities of a `limits`/`requests` pair as upstream does. What is no quantity stays, and is found by
/// validation.
pub fn canonicalise(resources: &mut Value) {
    let Some(resources) = resources.as_object_mut() else { return };
    for list in ["limits", "requests"] {
        if let Some(list) = resources.get_mut(list) {
            canonicalise_list(list);
        }
    }
}

/// The same for one list.
pub fn canonicalise_list(list: &mut Value) {
    for (_, value) in list.as_object_mut().into_iter().flatten() {
        if let Some(text) = value.as_str().and_then(canonical) {
            *value = Value::String(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_as_upstream_does() {
        for (given, written) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1000", "1k"),
            ("512Ki", "512Ki"),
            ("1023", "1023"),
            ("0.5Ki", "512"),
            ("0", "0"),
            ("0Mi", "0"),
            ("5e3", "5e3"),
            ("100u", "100u"),
            ("-1000m", "-1"),
            ("1G", "1G"),
            ("128974848", "128974848"),
        ] {
            assert_eq!(canonical(given).as_deref(), Some(written), "{given}");
        }
        assert_eq!(canonical("lots"), None);
    }
}
