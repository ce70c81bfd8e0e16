//! Short ways to reach into an object, and to write lists without collecting them.

use std::fmt;

use jiff::Timestamp;
use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// The value at a path; null if it is not there.
pub(super) fn get<'v>(object: &'v Value, path: &[&str]) -> &'v Value {
    path.iter().try_fold(object, |value, name| value.get(name)).unwrap_or(&NULL)
}

/// The string at a path; empty if there is none.
pub(super) fn text<'v>(object: &'v Value, path: &[&str]) -> &'v str {
    get(object, path).as_str().unwrap_or("")
}

/// The number at a path; 0 if there is none.
pub(super) fn number(object: &Value, path: &[&str]) -> i64 {
    get(object, path).as_i64().unwrap_or(0)
}

/// The boolean at a path; false if there is none.
pub(super) fn flag(object: &Value, path: &[&str]) -> bool {
    get(object, path).as_bool().unwrap_or(false)
}

/// The items of the list at a path.
pub(super) fn items<'v>(object: &'v Value, path: &[&str]) -> &'v [Value] {
    get(object, path).as_array().map_or(&[], Vec::as_slice)
}

/// The map at a path.
pub(super) fn map<'v>(object: &'v Value, path: &[&str]) -> Option<&'v Map<String, Value>> {
    get(object, path).as_object()
}

/// The time at a path.
pub(super) fn time(object: &Value, path: &[&str]) -> Option<Timestamp> {
    text(object, path).parse().ok()
}

/// The status of the condition of that type; empty if there is none.
pub(super) fn condition<'v>(object: &'v Value, kind: &str) -> &'v str {
    items(object, &["status", "conditions"])
        .iter()
        .find(|condition| text(condition, &["type"]) == kind)
        .map_or("", |condition| text(condition, &["status"]))
}

/// A string as it is, everything else as JSON: for quantities and int-or-string.
pub(super) struct Plain<'v>(pub &'v Value);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::String(text) => f.write_str(text),
            Value::Null => Ok(()),
            other => write!(f, "{other}"),
        }
    }
}

/// Items written one after the other.
pub(super) struct Joined<'v, F>(pub &'v [Value], pub F, pub &'static str);

impl<F: Fn(&Value, &mut fmt::Formatter<'_>) -> fmt::Result> fmt::Display for Joined<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, item) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(self.2)?;
            }
            (self.1)(item, f)?;
        }
        Ok(())
    }
}

/// A list of strings joined by commas; `<none>` if there are none.
pub(super) struct Strings<'v>(pub &'v [Value]);

impl fmt::Display for Strings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("<none>");
        }
        Joined(self.0, |item: &Value, f: &mut fmt::Formatter<'_>| Plain(item).fmt(f), ",").fmt(f)
    }
}

/// `a=b,c=d`; `<none>` if there is nothing.
pub(super) struct Labels<'v>(pub Option<&'v Map<String, Value>>);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(map) = self.0.filter(|map| !map.is_empty()) else { return f.write_str("<none>") };
        for (at, (key, value)) in map.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{key}={}", Plain(value))?;
        }
        Ok(())
    }
}

/// A label selector, or a plain map of labels, in the syntax of `-l`.
pub(super) struct Selector<'v>(pub &'v Value);

impl fmt::Display for Selector<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expressions = items(self.0, &["matchExpressions"]);
        let labels = map(self.0, &["matchLabels"]);
        if labels.is_none() && expressions.is_empty() {
            let plain = self.0.as_object().filter(|map| map.values().all(Value::is_string));
            return Labels(plain).fmt(f);
        }
        let mut any = false;
        if let Some(labels) = labels.filter(|labels| !labels.is_empty()) {
            Labels(Some(labels)).fmt(f)?;
            any = true;
        }
        for expression in expressions {
            if std::mem::replace(&mut any, true) {
                f.write_str(",")?;
            }
            let key = text(expression, &["key"]);
            let values = Joined(
                items(expression, &["values"]),
                |item: &Value, f: &mut fmt::Formatter<'_>| Plain(item).fmt(f),
                ",",
            );
            match text(expression, &["operator"]) {
                "In" => write!(f, "{key} in ({values})")?,
                "NotIn" => write!(f, "{key} notin ({values})")?,
                "DoesNotExist" => write!(f, "!{key}")?,
                _ => f.write_str(key)?,
            }
        }
        if any { Ok(()) } else { f.write_str("<none>") }
    }
}

/// One string field of each item, joined by commas.
pub(super) struct Fields<'v>(pub &'v [Value], pub &'static str);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Joined(self.0, |item: &Value, f: &mut fmt::Formatter<'_>| f.write_str(text(item, &[self.1])), ",").fmt(f)
    }
}
