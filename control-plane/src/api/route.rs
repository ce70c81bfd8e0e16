//! What a path is about.

use super::options::decode;

/// A path below `/api/v1` or `/apis/<group>/<version>`, taken apart as upstream does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Route {
    pub(super) group: String,
    pub(super) version: String,
    /// Empty: cluster scope, or all namespaces.
    pub(super) namespace: String,
    pub(super) resource: String,
    pub(super) name: String,
    pub(super) subresource: String,
    /// What follows the sub-resource (`proxy/…`).
    pub(super) rest: String,
}

impl Route {
    /// `None`: the path is no resource.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.split('/').skip(1);
        let mut route = match parts.next()? {
            "api" => Self { version: parts.next()?.to_owned(), ..Self::default() },
            "apis" => Self { group: parts.next()?.to_owned(), version: parts.next()?.to_owned(), ..Self::default() },
            _ => return None,
        };
        let mut rest: Vec<String> = parts.map(|part| decode(part, false)).collect();
        if rest.last().is_some_and(String::is_empty) {
            rest.pop();
        }
        let mut rest = rest.into_iter().peekable();
        let first = rest.next().filter(|first| !first.is_empty())?;
        if first == "namespaces" {
            // `namespaces/x`, `namespaces/x/status` and `…/finalize` are about the namespace, all else is in it.
            let Some(namespace) = rest.next() else {
                route.resource = first;
                return Some(route);
            };
            match rest.next() {
                None => {
                    route.resource = first;
                    route.name.clone_from(&namespace);
                    // Rules about a namespace's own objects hold for the namespace, too.
                    route.namespace = namespace;
                    return Some(route);
                }
                Some(sub) if sub == "status" || sub == "finalize" => {
                    route.resource = first;
                    route.name.clone_from(&namespace);
                    route.namespace = namespace;
                    route.subresource = sub;
                    return Some(route);
                }
                Some(resource) => {
                    route.namespace = namespace;
                    route.resource = resource;
                }
            }
        } else {
            route.resource = first;
        }
        route.name = rest.next().unwrap_or_default();
        route.subresource = rest.next().unwrap_or_default();
        route.rest = rest.collect::<Vec<_>>().join("/");
        Some(route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: [&str; 6]) {
        let route = Route::parse(path).expect("a resource");
        let found =
            [route.group.as_str(), &route.version, &route.namespace, &route.resource, &route.name, &route.subresource];
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn paths_come_apart() {
        check("/api/v1/pods", ["", "v1", "", "pods", "", ""]);
        check("/api/v1/namespaces", ["", "v1", "", "namespaces", "", ""]);
        check("/api/v1/namespaces/a", ["", "v1", "a", "namespaces", "a", ""]);
        check("/api/v1/namespaces/a/finalize", ["", "v1", "a", "namespaces", "a", "finalize"]);
        check("/api/v1/namespaces/a/pods/b/log", ["", "v1", "a", "pods", "b", "log"]);
        check("/apis/apps/v1/namespaces/a/deployments/", ["apps", "v1", "a", "deployments", "", ""]);
        check("/api/v1/nodes/n%2F1", ["", "v1", "", "nodes", "n/1", ""]);
        assert_eq!(Route::parse("/apis/apps/v1"), None);
        assert_eq!(Route::parse("/api/v1/"), None);
        assert_eq!(Route::parse("/version"), None);
    }
}
