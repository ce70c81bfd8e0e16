//! How names, labels, keys and addresses look, with upstream's words about those that do not: one text for each fault.

use std::net::IpAddr;

/// Upstream's words about a port.
pub const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LONGEST_LABEL: usize = 63;
const LONGEST_SUBDOMAIN: usize = 253;

fn too_long(most: usize) -> String {
    format!("must be no more than {most} characters")
}

/// Upstream's words about a text that does not match, with examples.
fn unlike(what: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{what} (e.g. {}regex used for validation is '{regex}')", examples.join(" or "))
}

/// `must be between low and high, inclusive`.
pub fn range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn looks_like_label(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(edge) && text.ends_with(edge) && text.chars().all(|c| edge(c) || c == '-')
}

fn looks_like_subdomain(text: &str) -> bool {
    text.split('.').all(looks_like_label)
}

/// RFC 1123 label.
pub fn label(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LONGEST_LABEL {
        faults.push(too_long(LONGEST_LABEL));
    }
    if !looks_like_label(text) {
        faults.push(if looks_like_subdomain(text) {
            "must not contain dots".to_owned()
        } else {
            let what = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
            unlike(what, LABEL, &["my-name", "123-abc"])
        });
    }
    faults
}

/// RFC 1035 label.
pub fn label_1035(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LONGEST_LABEL {
        faults.push(too_long(LONGEST_LABEL));
    }
    if !looks_like_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        let what = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        faults.push(unlike(what, LABEL_1035, &["my-name", "abc-123"]));
    }
    faults
}

/// RFC 1123 subdomain: what most names are.
pub fn subdomain(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LONGEST_SUBDOMAIN {
        faults.push(too_long(LONGEST_SUBDOMAIN));
    }
    if !looks_like_subdomain(text) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        faults.push(unlike(what, &format!("{LABEL}(\\.{LABEL})*"), &["example.com"]));
    }
    faults
}

/// A search path of DNS, where labels may have underscores.
pub fn search_path(text: &str) -> Vec<String> {
    const PART: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part = |part: &str| {
        let part = part.strip_prefix('_').unwrap_or(part);
        part.starts_with(edge) && part.ends_with(edge) && part.chars().all(|c| edge(c) || matches!(c, '-' | '_'))
    };
    let mut faults = Vec::new();
    if text.len() > LONGEST_SUBDOMAIN {
        faults.push(too_long(LONGEST_SUBDOMAIN));
    }
    if !text.split('.').all(part) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
        faults.push(unlike(what, &format!("{PART}(\\.{PART})*"), &["example.com"]));
    }
    faults
}

/// The name of a part of something that is named after it (`generateName`): it may end in `-`.
pub fn subdomain_prefix(text: &str) -> Vec<String> {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => subdomain(&format!("{rest}a")),
        _ => subdomain(text),
    }
}

fn looks_qualified(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(edge) && text.ends_with(edge) && text.chars().all(|c| edge(c) || matches!(c, '-' | '_' | '.'))
}

/// The key of a label or an annotation, or a resource's name.
pub fn qualified_name(text: &str) -> Vec<String> {
    const WHAT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let examples = ["MyName", "my.name", "123-abc"];
    let mut faults = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_owned());
            } else {
                faults.extend(subdomain(prefix).into_iter().map(|fault| format!("prefix part {fault}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                unlike(WHAT, QUALIFIED, &examples)
            )];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > LONGEST_LABEL {
        faults.push(format!("name part {}", too_long(LONGEST_LABEL)));
    }
    if !looks_qualified(name) {
        faults.push(format!("name part {}", unlike(WHAT, QUALIFIED, &examples)));
    }
    faults
}

/// The value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LONGEST_LABEL {
        faults.push(too_long(LONGEST_LABEL));
    }
    if !text.is_empty() && !looks_qualified(text) {
        let what = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        faults.push(unlike(what, &format!("({QUALIFIED})?"), &["MyValue", "my_value", "12345"]));
    }
    faults
}

/// The name of a port.
pub fn port_name(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |wrong: bool, words: &str| {
        if wrong {
            faults.push(words.to_owned());
        }
    };
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    fault(text.len() > 15, &too_long(15));
    fault(
        text.is_empty() || !text.chars().all(legal),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    fault(!text.contains(|c: char| c.is_ascii_lowercase()), "must contain at least one letter (a-z)");
    fault(text.contains("--"), "must not contain consecutive hyphens");
    fault(text.starts_with('-') || text.ends_with('-'), "must not begin or end with a hyphen");
    faults
}

/// The number of a port.
pub fn port_number(number: i64) -> Vec<String> {
    if (1..=65535).contains(&number) { Vec::new() } else { vec![PORT_RANGE.to_owned()] }
}

/// A user or a group.
pub fn id(number: i64) -> Vec<String> {
    let most = i64::from(i32::MAX);
    if (0..=most).contains(&number) { Vec::new() } else { vec![range(0, most)] }
}

/// The name of an environment variable.
pub fn variable(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.is_empty() {
        faults.push("environment variable name must be non-empty".to_owned());
    }
    if !text.chars().all(|c| (' '..='~').contains(&c) && c != '=') {
        let what = "a valid environment variable name must consist only of printable ASCII characters other than '='";
        faults.push(what.to_owned());
    }
    faults
}

/// The key of a ConfigMap or a Secret.
pub fn data_key(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LONGEST_SUBDOMAIN {
        faults.push(too_long(LONGEST_SUBDOMAIN));
    }
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        let what = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        faults.push(unlike(what, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match text {
        "." => faults.push("must not be '.'".to_owned()),
        ".." => faults.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => faults.push("must not start with '..'".to_owned()),
        _ => {}
    }
    faults
}

/// The name of an HTTP header.
pub fn header_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Vec::new();
    }
    let what = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![unlike(what, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// An address.
pub fn address(text: &str) -> Vec<String> {
    if text.parse::<IpAddr>().is_ok() {
        return Vec::new();
    }
    vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
}

/// The name of a CSI driver is a subdomain in any case, of 63 characters at most (which its caller says).
pub fn driver_name(text: &str) -> Vec<String> {
    subdomain(&text.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_its_words() {
        let long = "a".repeat(254);
        for (faults, words) in [
            (label("a.b"), vec!["must not contain dots"]),
            (label(&long), vec!["must be no more than 63 characters"]),
            (
                label("A"),
                vec![
                    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (subdomain(&long), vec!["must be no more than 253 characters"]),
            (label("a-b1"), vec![]),
            (subdomain("a-b1.c"), vec![]),
            (search_path("_ldap._tcp.example.com"), vec![]),
            (subdomain_prefix("web-"), vec![]),
            (qualified_name("example.com/Name_1"), vec![]),
            (qualified_name("/x"), vec!["prefix part must be non-empty"]),
            (label_value(""), vec![]),
            (port_name("-8"), vec!["must contain at least one letter (a-z)", "must not begin or end with a hyphen"]),
            (port_name("a--b"), vec!["must not contain consecutive hyphens"]),
            (port_number(0), vec!["must be between 1 and 65535, inclusive"]),
            (id(-1), vec!["must be between 0 and 2147483647, inclusive"]),
            (variable("a b.c-d"), vec![]),
            (
                variable("a=b"),
                vec![
                    "a valid environment variable name must consist only of printable ASCII characters other than '='",
                ],
            ),
            (data_key("..a"), vec!["must not start with '..'"]),
            (address("010.1.1.1"), vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]),
            (driver_name("CSI.example.com"), vec![]),
        ] {
            assert_eq!(faults, words);
        }
        assert!(
            qualified_name("a/b/c")[0]
                .ends_with("with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")
        );
        assert!(data_key("a/b")[0].contains("'key.name',  or 'KEY_NAME',  or 'key-name', regex used"));
    }
}
