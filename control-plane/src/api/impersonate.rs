//! Who asks in whose name: the `Impersonate-*` headers (upstream's user impersonation). Each part of the other identity
//! must be allowed; a header that is not understood is refused, since to overlook it would be to act with the rights
//! that the client meant to lay down.

use http::HeaderMap;

use super::options::decode;
use super::serve::refused;
use crate::auth::identity::{Attributes, Authorizer, Decision, UserInfo};
use crate::resources::status::StatusError;

const AUTHENTICATION: &str = "authentication.k8s.io";

/// The user whose rights hold for the request: `user`, or whom it asks to be.
pub(super) async fn acting(
    authorizer: &dyn Authorizer,
    user: UserInfo,
    headers: &HeaderMap,
) -> Result<UserInfo, StatusError> {
    let Some((other, groups)) = asked_for(headers)? else { return Ok(user) };
    let part = |group: &str, resource: &str, name: &str| Attributes {
        user: user.clone(),
        verb: "impersonate".to_owned(),
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    };
    let mut parts = vec![match account_of(&other.name) {
        Some((namespace, name)) => Attributes { namespace: namespace.to_owned(), ..part("", "serviceaccounts", name) },
        None => part("", "users", &other.name),
    }];
    parts.extend(groups.iter().map(|group| part("", "groups", group)));
    if !other.uid.is_empty() {
        parts.push(part(AUTHENTICATION, "uids", &other.uid));
    }
    for (key, values) in &other.extra {
        let extra = |value| Attributes { subresource: key.clone(), ..part(AUTHENTICATION, "userextras", value) };
        parts.extend(values.iter().map(|value| extra(value)));
    }
    for asked in parts {
        match authorizer.authorize(&asked).await {
            Decision::Allow(_) => {}
            Decision::Deny(reason) | Decision::NoOpinion(reason) => return Err(refused(&asked, &reason)),
        }
    }
    tracing::info!(user = user.name, acts_as = other.name, "impersonation");
    Ok(other)
}

/// Namespace and name in a service account's user name.
fn account_of(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

/// The other identity with all its groups, and those that were asked for.
fn asked_for(headers: &HeaderMap) -> Result<Option<(UserInfo, Vec<String>)>, StatusError> {
    let mut other = UserInfo::default();
    let mut any = false;
    for (header, value) in headers {
        let Some(what) = header.as_str().strip_prefix("impersonate-") else { continue };
        any = true;
        let text = || value.to_str().map(str::to_owned).map_err(|_| wrong(what));
        match what {
            "user" => other.name = text()?,
            "uid" => other.uid = text()?,
            "group" => other.groups.push(text()?),
            _ => {
                let key = what.strip_prefix("extra-").ok_or_else(|| wrong(what))?;
                other.extra.entry(decode(key, false).to_lowercase()).or_default().push(text()?);
            }
        }
    }
    if !any {
        return Ok(None);
    }
    if other.name.is_empty() {
        return Err(StatusError::bad_request("impersonation needs the header Impersonate-User"));
    }
    let groups = other.groups.clone();
    if let (Some((namespace, _)), true) = (account_of(&other.name), groups.is_empty()) {
        other.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let everybody = if other.name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !other.groups.iter().any(|group| group == everybody) {
        other.groups.push(everybody.to_owned());
    }
    Ok(Some((other, groups)))
}

fn wrong(what: &str) -> StatusError {
    StatusError::bad_request(format!("the header Impersonate-{what} cannot be used"))
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures::FutureExt as _;
    use serde_json::Value;

    use super::*;

    /// Allows to be bob, in the group dev.
    struct OnlyBob;

    #[async_trait]
    impl Authorizer for OnlyBob {
        async fn authorize(&self, asked: &Attributes) -> Decision {
            let known = [("users", "bob"), ("groups", "dev"), ("serviceaccounts", "ci")];
            if asked.verb == "impersonate" && known.contains(&(asked.resource.as_str(), asked.name.as_str())) {
                return Decision::Allow(String::new());
            }
            Decision::NoOpinion(String::new())
        }

        async fn rules(&self, _: &UserInfo, _: &str) -> Value {
            Value::Null
        }
    }

    fn act(headers: &[(&'static str, &'static str)]) -> Result<UserInfo, u16> {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let user = UserInfo { name: "proxy".into(), ..UserInfo::default() };
        acting(&OnlyBob, user, &headers).now_or_never().unwrap().map_err(|error| error.code)
    }

    #[test]
    fn nobody_becomes_another_without_leave_and_no_header_is_overlooked() {
        assert_eq!(act(&[]).unwrap().name, "proxy");
        let bob = act(&[("impersonate-user", "bob"), ("impersonate-group", "dev")]).unwrap();
        assert_eq!((bob.name.as_str(), bob.groups), ("bob", vec!["dev".to_owned(), "system:authenticated".to_owned()]));
        let account = act(&[("impersonate-user", "system:serviceaccount:shop:ci")]).unwrap();
        assert!(account.groups.contains(&"system:serviceaccounts:shop".to_owned()));
        assert_eq!(act(&[("impersonate-user", "eve")]), Err(403));
        assert_eq!(act(&[("impersonate-user", "bob"), ("impersonate-group", "system:masters")]), Err(403));
        assert_eq!(act(&[("impersonate-user", "bob"), ("impersonate-uid", "1")]), Err(403));
        assert_eq!(act(&[("impersonate-user", "bob"), ("impersonate-extra-scopes", "x")]), Err(403));
        assert_eq!(act(&[("impersonate-group", "dev")]), Err(400));
        assert_eq!(act(&[("impersonate-user", "bob"), ("impersonate-other", "x")]), Err(400));
    }
}
