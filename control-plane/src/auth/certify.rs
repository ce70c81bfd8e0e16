//! Signs certificate requests with the cluster's CA, as upstream's permissive policy does: subject, key and alternative
//! names as requested, usages and life as told, nothing else from the request.
//!
//! The certificate is put together from the request's own DER, since `rcgen` keeps one value of each kind in a name and
//! a request may have several organizations.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{Issuer, KeyPair, SigningKey as _};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate, X509CertificationRequest};

use super::pki::certificate_der;

/// Certificates are good from a little earlier on: clocks differ.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
/// Shorter lives are not shortened by what they are backdated.
const SHORT: SignedDuration = SignedDuration::from_hours(8);
/// A year, upstream's default for what it signs.
const LONGEST: SignedDuration = SignedDuration::from_hours(365 * 24);
/// Twice the backdating.
const SHORTEST: SignedDuration = SignedDuration::from_mins(10);

/// ecdsa-with-SHA256, the algorithm of P-256 keys.
const ECDSA_SHA256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// Why a request is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertifyError {
    /// The request cannot be read.
    #[error("the certificate request cannot be read: {0}")]
    Request(String),
    /// A usage that X.509 has no word for.
    #[error("unrecognized usage values: {0:?}")]
    Usage(String),
    /// The CA ends first.
    #[error("the cluster's CA has expired: remove the pki directory to start a new cluster identity")]
    Expired,
    /// The CA cannot sign.
    #[error("the cluster's CA cannot sign: {0}")]
    Signer(String),
}

/// What shall be in the certificate besides what the request says.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// As in `spec.usages` of a CertificateSigningRequest.
    pub usages: &'a [&'a str],
    /// `spec.expirationSeconds`: a year at most and by default, ten minutes at least.
    pub expiration_seconds: Option<i64>,
    /// The wall clock.
    pub now: Timestamp,
}

/// The certificate as PEM; `request` is DER whose signature was checked.
pub(super) fn sign(
    ca_pem: &str,
    ca: &Issuer<'static, KeyPair>,
    request: &[u8],
    terms: Terms<'_>,
) -> Result<String, CertifyError> {
    let signer = |what: &str| CertifyError::Signer(what.to_owned());
    let ca_der = certificate_der(ca_pem).ok_or_else(|| signer("its certificate is no PEM"))?;
    let (_, issuer) = X509Certificate::from_der(&ca_der).map_err(|error| signer(&error.to_string()))?;
    let (_, request) =
        X509CertificationRequest::from_der(request).map_err(|error| CertifyError::Request(error.to_string()))?;
    let (from, until) = validity(terms, issuer.validity().not_after.timestamp())?;
    let info = &request.certification_request_info;
    let names = alternative_names(&request);
    let is_nameless = info.subject.iter().next().is_none();
    let mut extensions = usage_extensions(terms.usages)?;
    extensions.extend(extension(&[0x55, 0x1d, 0x13], true, &tlv(0x30, &[])));
    if let Some(id) = key_id(&issuer) {
        extensions.extend(extension(&[0x55, 0x1d, 0x23], false, &tlv(0x30, &tlv(0x80, id))));
    }
    if !names.is_empty() {
        extensions.extend(extension(&[0x55, 0x1d, 0x11], is_nameless, &tlv(0x30, &names)));
    }
    let algorithm = tlv(0x30, ECDSA_SHA256);
    let body = [
        tlv(0xa0, &tlv(0x02, &[2])),
        tlv(0x02, &serial()),
        algorithm.clone(),
        issuer.subject().as_raw().to_vec(),
        tlv(0x30, &[time(from), time(until)].concat()),
        info.subject.as_raw().to_vec(),
        info.subject_pki.raw.to_vec(),
        tlv(0xa3, &tlv(0x30, &extensions)),
    ]
    .concat();
    let body = tlv(0x30, &body);
    if !ca.key().is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
        return Err(signer("its key is no P-256 key"));
    }
    let signature = ca.key().sign(&body).map_err(|error| signer(&error.to_string()))?;
    let whole = tlv(0x30, &[body, algorithm, tlv(0x03, &[&[0], signature.as_slice()].concat())].concat());
    Ok(pem("CERTIFICATE", &whole))
}

fn validity(terms: Terms<'_>, signer_ends: i64) -> Result<(i64, i64), CertifyError> {
    let life = terms.expiration_seconds.map_or(LONGEST, SignedDuration::from_secs).clamp(SHORTEST, LONGEST);
    let now = terms.now.as_second();
    let from = now - BACKDATE.as_secs();
    let until = now + life.as_secs() - if life < SHORT { 0 } else { BACKDATE.as_secs() };
    if now >= signer_ends {
        return Err(CertifyError::Expired);
    }
    Ok((from, until.min(signer_ends)))
}

/// The names that the API knows of: mail, DNS, URI and address; others are dropped.
fn alternative_names(request: &X509CertificationRequest<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::RFC822Name(text) => out.extend(tlv(0x81, text.as_bytes())),
                GeneralName::DNSName(text) => out.extend(tlv(0x82, text.as_bytes())),
                GeneralName::URI(text) => out.extend(tlv(0x86, text.as_bytes())),
                GeneralName::IPAddress(bytes) => out.extend(tlv(0x87, bytes)),
                _ => {}
            }
        }
    }
    out
}

/// keyUsage and extKeyUsage.
fn usage_extensions(usages: &[&str]) -> Result<Vec<u8>, CertifyError> {
    let mut bits = 0u16;
    let mut purposes: Vec<Vec<u8>> = Vec::new();
    for usage in usages {
        if let Some(bit) = key_usage(usage) {
            bits |= 0x8000 >> bit;
        } else {
            let purpose = tlv(0x06, purpose(usage).ok_or_else(|| CertifyError::Usage((*usage).to_owned()))?);
            if !purposes.contains(&purpose) {
                purposes.push(purpose);
            }
        }
    }
    let mut out = Vec::new();
    if bits != 0 {
        let [high, low] = bits.to_be_bytes();
        let unused = u8::try_from(bits.trailing_zeros() % 8).unwrap_or(0);
        let content = if low == 0 { vec![unused, high] } else { vec![unused, high, low] };
        out.extend(extension(&[0x55, 0x1d, 0x0f], true, &tlv(0x03, &content)));
    }
    if !purposes.is_empty() {
        purposes.sort();
        out.extend(extension(&[0x55, 0x1d, 0x25], false, &tlv(0x30, &purposes.concat())));
    }
    Ok(out)
}

/// The bit of RFC 5280, 4.2.1.3.
fn key_usage(name: &str) -> Option<u16> {
    Some(match name {
        "signing" | "digital signature" => 0,
        "content commitment" => 1,
        "key encipherment" => 2,
        "data encipherment" => 3,
        "key agreement" => 4,
        "cert sign" => 5,
        "crl sign" => 6,
        "encipher only" => 7,
        "decipher only" => 8,
        _ => return None,
    })
}

/// The object identifier of RFC 5280, 4.2.1.12, and of Microsoft's and Netscape's own.
fn purpose(name: &str) -> Option<&'static [u8]> {
    Some(match name {
        "any" => &[0x55, 0x1d, 0x25, 0x00],
        "server auth" => &[0x2b, 6, 1, 5, 5, 7, 3, 1],
        "client auth" => &[0x2b, 6, 1, 5, 5, 7, 3, 2],
        "code signing" => &[0x2b, 6, 1, 5, 5, 7, 3, 3],
        "email protection" | "s/mime" => &[0x2b, 6, 1, 5, 5, 7, 3, 4],
        "ipsec end system" => &[0x2b, 6, 1, 5, 5, 7, 3, 5],
        "ipsec tunnel" => &[0x2b, 6, 1, 5, 5, 7, 3, 6],
        "ipsec user" => &[0x2b, 6, 1, 5, 5, 7, 3, 7],
        "timestamping" => &[0x2b, 6, 1, 5, 5, 7, 3, 8],
        "ocsp signing" => &[0x2b, 6, 1, 5, 5, 7, 3, 9],
        "microsoft sgc" => &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 10, 3, 3],
        "netscape sgc" => &[0x60, 0x86, 0x48, 1, 0x86, 0xf8, 0x42, 4, 1],
        _ => return None,
    })
}

fn key_id<'a>(ca: &'a X509Certificate<'a>) -> Option<&'a [u8]> {
    ca.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

/// Sixteen random bytes, positive and not zero.
fn serial() -> Vec<u8> {
    let mut bytes = uuid::Uuid::new_v4().as_bytes().to_vec();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    bytes
}

/// Two-digit years up to 2049, as RFC 5280 wants them.
fn time(second: i64) -> Vec<u8> {
    let at = Timestamp::from_second(second).unwrap_or(Timestamp::MAX).to_zoned(TimeZone::UTC);
    if at.year() < 2050 {
        tlv(0x17, at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        tlv(0x18, at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    }
}

fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let flag = if critical { tlv(0x01, &[0xff]) } else { Vec::new() };
    tlv(0x30, &[tlv(0x06, id), flag, tlv(0x04, value)].concat())
}

/// One DER element.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().position(|byte| *byte != 0).unwrap_or(length.len() - 1)..];
    match length {
        [short] if *short < 0x80 => out.push(*short),
        long => {
            out.push(0x80 | u8::try_from(long.len()).unwrap_or(8));
            out.extend_from_slice(long);
        }
    }
    out.extend_from_slice(content);
    out
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType};

    use super::super::pki::tests::{at, config};
    use super::super::pki::{Pki, signed_by};
    use super::*;

    fn request(names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_says_what_was_asked_and_what_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let now = at("2026-01-01T10:00:00Z");
        let pki = Pki::ensure(&config(dir.path()), now).unwrap();
        let ca = certificate_der(pki.ca_certificate()).unwrap();
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        for (usages, asked, life_seconds) in [
            (&["digital signature", "client auth"][..], None, 365 * 86_400),
            (&["server auth", "key encipherment", "digital signature"], Some(7200), 7200 + 300),
            (&["client auth"], Some(1), 600 + 300),
            (&["decipher only", "any"], Some(i64::MAX / 2), 365 * 86_400),
        ] {
            let terms = Terms { usages, expiration_seconds: asked, now };
            let der = certificate_der(&pki.sign_request(&request(&["n1", "192.0.2.9"]), terms).unwrap()).unwrap();
            let (rest, made) = X509Certificate::from_der(&der).unwrap();
            assert!(rest.is_empty() && signed_by(&made, &ca), "{usages:?}");
            assert_eq!(made.subject().to_string(), "O=system:nodes, CN=system:node:n1");
            assert_eq!(made.validity().not_before.timestamp(), now.as_second() - 300);
            let life = made.validity().not_after.timestamp() - made.validity().not_before.timestamp();
            assert_eq!(life, life_seconds, "{asked:?}");
            let names = &made.subject_alternative_name().unwrap().unwrap().value.general_names;
            assert_eq!(names.len(), 2);
            let key = made.key_usage().unwrap();
            assert_eq!(
                key.as_ref().is_some_and(|k| k.value.digital_signature()),
                usages.contains(&"digital signature")
            );
            assert_eq!(key.is_some_and(|k| k.value.decipher_only()), usages.contains(&"decipher only"));
            let extended = made.extended_key_usage().unwrap().unwrap().value;
            assert_eq!(extended.client_auth, usages.contains(&"client auth"));
            assert_eq!(extended.server_auth, usages.contains(&"server auth"));
            assert!(!made.is_ca());
        }
        let terms = Terms { usages: &["juggling"], expiration_seconds: None, now };
        assert_eq!(pki.sign_request(&request(&[]), terms), Err(CertifyError::Usage("juggling".to_owned())));
        let late = Terms { usages: &["client auth"], expiration_seconds: None, now: at("2036-06-01T10:00:00Z") };
        assert_eq!(pki.sign_request(&request(&[]), late), Err(CertifyError::Expired));
    }
}
