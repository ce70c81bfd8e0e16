//! Label selectors, as text (`app=web,tier in (a,b),!old`) and as API objects (C3.8).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A conjunction of requirements; without any it matches everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector(Vec<Requirement>);

/// One condition on one label.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
    GreaterThan(String, i64),
    LessThan(String, i64),
}

/// Why a text or an object is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text cannot be read.
    #[error(
        "unable to parse requirement: {0:?}: write key=value, key!=value, key in (a,b), key notin (a,b), key or !key"
    )]
    Syntax(String),
    /// `matchExpressions` with an operator that does not exist.
    #[error("{0:?} is not a valid label selector operator: use In, NotIn, Exists or DoesNotExist")]
    Operator(String),
}

impl Selector {
    /// Matches everything.
    pub const fn everything() -> Self {
        Self(Vec::new())
    }

    /// Whether it matches everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the query form of `labelSelector=`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        split_outside_parentheses(text).into_iter().map(parse_requirement).collect::<Result<_, _>>().map(Self)
    }

    /// Equality with every label of a map, as `spec.selector` of a Service has it.
    pub fn of_map(labels: &Labels) -> Self {
        Self(labels.iter().map(|(k, v)| Requirement::In(k.clone(), vec![v.clone()])).collect())
    }

    /// Reads an object's `matchLabels` and `matchExpressions`.
    pub fn of(selector: &LabelSelector) -> Result<Self, SelectorError> {
        let mut all = Self::of_map(selector.match_labels.as_ref().unwrap_or(&Labels::new()));
        for expression in selector.match_expressions.iter().flatten() {
            let key = expression.key.clone();
            let values = expression.values.clone().unwrap_or_default();
            all.0.push(match expression.operator.as_str() {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::DoesNotExist(key),
                other => return Err(SelectorError::Operator(other.to_owned())),
            });
        }
        Ok(all)
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let number = |key: &String| labels.get(key).and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
            Self::GreaterThan(key, bound) => number(key).is_some_and(|value| value > *bound),
            Self::LessThan(key, bound) => number(key).is_some_and(|value| value < *bound),
        }
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = text.split(|c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn parse_requirement(text: &str) -> Result<Requirement, SelectorError> {
    let error = || SelectorError::Syntax(text.to_owned());
    let key = |key: &str| {
        let key = key.trim();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if key.is_empty() || !key.chars().all(legal) { Err(error()) } else { Ok(key.to_owned()) }
    };
    let value = |value: &str| {
        let value = value.trim();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if value.chars().all(legal) { Ok(value.to_owned()) } else { Err(error()) }
    };
    if let Some(absent) = text.strip_prefix('!') {
        return Ok(Requirement::DoesNotExist(key(absent)?));
    }
    if let Some((head, list)) = text.split_once('(') {
        let list = list.trim_end().strip_suffix(')').ok_or_else(error)?;
        let values = list.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        let (name, operator) = head.trim_end().rsplit_once(char::is_whitespace).ok_or_else(error)?;
        return match operator {
            "in" => Ok(Requirement::In(key(name)?, values)),
            "notin" => Ok(Requirement::NotIn(key(name)?, values)),
            _ => Err(error()),
        };
    }
    if let Some((name, unwanted)) = text.split_once("!=") {
        return Ok(Requirement::NotIn(key(name)?, vec![value(unwanted)?]));
    }
    if let Some((name, wanted)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Requirement::In(key(name)?, vec![value(wanted)?]));
    }
    for (sign, make) in [
        ('>', Requirement::GreaterThan as fn(String, i64) -> Requirement),
        ('<', Requirement::LessThan as fn(String, i64) -> Requirement),
    ] {
        if let Some((name, bound)) = text.split_once(sign) {
            return Ok(make(key(name)?, bound.trim().parse().map_err(|_| error())?));
        }
    }
    Ok(Requirement::Exists(key(text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[track_caller]
    fn check(text: &str, pairs: &[(&str, &str)], expected: bool) {
        let selector = Selector::parse(text).expect("a selector");
        assert_eq!(selector.matches(&labels(pairs)), expected, "{text} on {pairs:?}");
    }

    #[test]
    fn every_operator_matches() {
        // C3.8
        let web: &[_] = &[("app", "web"), ("tier", "a"), ("n", "7")];
        for text in [
            "",
            "app=web",
            "app==web",
            "app!=db",
            "other!=x",
            "tier in (a, b)",
            "tier notin (c)",
            "app",
            "!db",
            "n>6",
            "n<8",
        ] {
            check(text, web, true);
        }
        for text in
            ["app=db", "app!=web", "tier in (b)", "tier notin (a,b)", "db", "!app", "app=web,tier=b", "n>7", "app>1"]
        {
            check(text, web, false);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["a b", "=x", "a in b", "a in (b", "a=b=c", "!", "a in ((b))", "k>x"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
