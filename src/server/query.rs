//! The query of a request: names with one or more values.

use super::escape::unescape;

/// What stands after `?`. Names may come more than once; their order is kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query; `None` where an escape is broken.
    pub(super) fn parse(query: &str) -> Option<Self> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let decode = |text: &str| unescape(&text.replace('+', " "));
        let read = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        };
        Some(Self(pairs.map(read).collect::<Option<_>>()?))
    }

    /// The first value of a name.
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a name.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_keep_their_order_and_their_odd_signs() {
        let query = Query::parse("command=sh&command=-c&command=echo+a%26b%3D%2B&input=1&&tty").unwrap();
        assert_eq!(query.values("command").collect::<Vec<_>>(), ["sh", "-c", "echo a&b=+"]);
        assert_eq!((query.first("input"), query.first("tty"), query.first("output")), (Some("1"), Some(""), None));
        assert_eq!(Query::parse("command=%zz"), None);
        assert_eq!(Query::parse("command=%ff"), None);
    }

    fn escaped(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = Query::parse(&text);
        }

        #[test]
        fn what_is_escaped_comes_back(pairs in prop::collection::vec((".*", ".*"), 0..5)) {
            let text: Vec<String> = pairs.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
            prop_assert_eq!(Query::parse(&text.join("&")), Some(Query(pairs)));
        }
    }
}
