//! Who a client is, by its certificate: CN is the user's name, each O a group (A18.16).

use rustls::ServerConnection;
use stoker_model::handle::UserInfo;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The group of everybody who has said who he is.
const AUTHENTICATED: &str = "system:authenticated";

/// The user of a connection; `None` where no certificate was shown. What was shown has been verified by the handshake.
pub(super) fn of(connection: &ServerConnection) -> Option<UserInfo> {
    user(connection.peer_certificates()?.first()?)
}

fn user(certificate: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let organizations = subject.iter_organization().filter_map(|group| group.as_str().ok());
    let groups = organizations.chain([AUTHENTICATED]).map(str::to_owned).collect();
    Some(UserInfo { name, groups })
}
