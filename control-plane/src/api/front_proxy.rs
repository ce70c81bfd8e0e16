//! What a front proxy says of whom it asks for: the headers `X-Remote-…` (C5.17). Whether it is believed is decided in `auth`.

use http::{HeaderMap, HeaderName};

use super::options::decode;
use crate::auth::identity::UserInfo;

/// Also in the ConfigMap `extension-apiserver-authentication`, by which extension servers know them.
const USER: &str = "x-remote-user";
const UID: &str = "x-remote-uid";
const GROUP: &str = "x-remote-group";
const EXTRA: &str = "x-remote-extra-";

/// The user of the headers; `None` where none is named.
pub(super) fn claimed(headers: &HeaderMap) -> Option<UserInfo> {
    let texts = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.map(str::to_owned).filter(|text| !text.is_empty()).collect()
    };
    let first = |name: &str| texts(name).into_iter().next();
    let mut user = UserInfo {
        name: first(USER)?,
        uid: first(UID).unwrap_or_default(),
        groups: texts(GROUP),
        ..UserInfo::default()
    };
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            user.extra.insert(decode(key, false), texts(name.as_str()));
        }
    }
    Some(user)
}

/// Takes them away, so that nobody to whom the request goes on takes a client's own for ours.
pub(super) fn forget(headers: &mut HeaderMap) {
    let is_ours = |name: &&HeaderName| [USER, UID, GROUP].contains(&name.as_str()) || name.as_str().starts_with(EXTRA);
    for name in headers.keys().filter(is_ours).cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn users_groups_and_extras_are_read_and_go_no_further() {
        // C5.17
        let mut told = headers(&[
            ("x-remote-user", "ann"),
            ("x-remote-uid", "u-1"),
            ("x-remote-group", "staff"),
            ("x-remote-group", "admins"),
            ("x-remote-extra-example.org%2fscope", "a"),
            ("x-remote-extra-example.org%2fscope", "b"),
            ("accept", "application/json"),
        ]);
        let user = claimed(&told).expect("one is named");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("ann", "u-1"));
        assert_eq!(user.groups, ["staff", "admins"]);
        assert_eq!(user.extra["example.org/scope"], ["a", "b"]);
        forget(&mut told);
        assert_eq!(told.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
        assert_eq!(claimed(&headers(&[("x-remote-user", ""), ("x-remote-group", "system:masters")])), None);
    }
}
