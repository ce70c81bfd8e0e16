//! Makes both layers of a settings type from one table: as written, and as resolved.

use std::collections::BTreeMap;

use super::duration::GoDuration;

/// A field's name and, for an object, the names of its fields.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) inside: &'static [Key],
}

/// The resolved layer of a settings type.
pub(super) trait Resolved: Sized {
    /// The layer as written.
    type Written: Default;
    /// Every field there is.
    const KEYS: &'static [Key];
    /// Fills in the defaults.
    fn resolve(written: Self::Written) -> Self;
}

/// Go cannot tell an absent value from a zero, so for plain fields zero means default (A22.2a).
pub(super) trait Zero {
    fn is_zero(&self) -> bool;
}

macro_rules! zero {
    ($($type:ty: $test:expr;)*) => { $(impl Zero for $type {
        fn is_zero(&self) -> bool {
            let test: fn(&Self) -> bool = $test;
            test(self)
        }
    })* };
}

zero! {
    bool: |b| !b;
    i32: |n| *n == 0;
    i64: |n| *n == 0;
    f64: |n| *n == 0.0;
    String: String::is_empty;
    GoDuration: |d| d.0.is_zero();
}

impl Zero for serde_json::Value {
    /// A duration may be a number, or a text.
    fn is_zero(&self) -> bool {
        self.is_null() || self.as_i64() == Some(0) || self.as_str().is_some_and(|text| matches!(text, "" | "0" | "0s"))
    }
}

impl<T> Zero for Vec<T> {
    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

impl<K, V> Zero for BTreeMap<K, V> {
    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

/// `settings! { Written => Resolved { "jsonName" field: Type = kind(default); … } }` where the kind is
/// `zero` (absent or zero: default), `nil` (absent: default; upstream has a pointer) or `nested` (another settings type).
macro_rules! settings {
    (
        $(#[$meta:meta])*
        $written:ident => $resolved:ident {
            $( $(#[$field_meta:meta])* $json:literal $field:ident: $type:ty = $kind:ident $( ($default:expr) )?; )*
        }
    ) => {
        #[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $written {
            $( #[serde(rename = $json)] pub(super) $field: $crate::config::settings::settings!(@written $kind $type), )*
        }

        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        pub struct $resolved {
            $( $(#[$field_meta])* #[serde(rename = $json)] pub $field: $type, )*
        }

        impl $crate::config::settings::Resolved for $resolved {
            type Written = $written;
            const KEYS: &'static [$crate::config::settings::Key] = &[
                $( $crate::config::settings::Key {
                    name: $json,
                    inside: $crate::config::settings::settings!(@keys $kind $type),
                }, )*
            ];
            fn resolve(written: $written) -> Self {
                Self {
                    $( $field: $crate::config::settings::settings!(@resolve $kind written.$field; $($default)?), )*
                }
            }
        }

        impl Default for $resolved {
            fn default() -> Self {
                <Self as $crate::config::settings::Resolved>::resolve($written::default())
            }
        }
    };
    (@written nested $type:ty) => { Option<<$type as $crate::config::settings::Resolved>::Written> };
    (@written $kind:ident $type:ty) => { Option<$type> };
    (@keys nested $type:ty) => { <$type as $crate::config::settings::Resolved>::KEYS };
    (@keys $kind:ident $type:ty) => { &[] };
    (@resolve nested $value:expr;) => {
        $crate::config::settings::Resolved::resolve($value.unwrap_or_default())
    };
    (@resolve nil $value:expr; $default:expr) => { $value.unwrap_or_else(|| $default.into()) };
    (@resolve nil $value:expr;) => { $value.unwrap_or_default() };
    (@resolve zero $value:expr; $default:expr) => {
        $value.filter(|value| !$crate::config::settings::Zero::is_zero(value)).unwrap_or_else(|| $default.into())
    };
    (@resolve zero $value:expr;) => { $value.unwrap_or_default() };
}
pub(super) use settings;
