//! Small steps on JSON trees that defaulting is made of.

use serde_json::{Map, Value};

/// Sets a field that is absent or null.
pub fn fill(object: &mut Value, key: &str, value: impl Into<Value>) {
    if object.get(key).is_none_or(Value::is_null) {
        object[key] = value.into();
    }
}

/// Sets a text that is absent, null or empty.
pub fn fill_text(object: &mut Value, key: &str, value: &str) {
    if object.get(key).and_then(Value::as_str).unwrap_or_default().is_empty() {
        object[key] = value.into();
    }
}

/// The object at `key`, made if it is not there.
pub fn child<'a>(object: &'a mut Value, key: &str) -> &'a mut Value {
    fill(object, key, Value::Object(Map::new()));
    &mut object[key]
}

/// The elements of the list at `key`; none if there is no list.
pub fn items_mut<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Takes away fields that are `null`, at every depth: to the API they are not there.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The elements of the list at `key`; none if there is no list.
pub fn items<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    object.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// The text at `key`, or an empty one.
pub fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The value at a dotted path.
pub fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, key| value.get(key)).filter(|value| !value.is_null())
}

/// Whether there is something at `key`, be it empty.
pub fn is_set(object: &Value, key: &str) -> bool {
    object.get(key).is_some_and(|value| !value.is_null())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_null_is_not_there() {
        // B1.1: readers of stored objects need not know `null`.
        let mut object = json!({"a": null, "b": {"c": null, "d": [{"e": null, "f": 0}, [], ""]}, "g": {}});
        drop_nulls(&mut object);
        assert_eq!(object, json!({"b": {"d": [{"f": 0}, [], ""]}, "g": {}}));
        assert_eq!(items_mut(&mut object, "none").count(), 0);
        assert_eq!(object.get("none"), None, "asking for a list makes none");
    }
}
