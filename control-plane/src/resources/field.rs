//! A wrong field, in upstream's words (C3.20).

use std::fmt;

use serde_json::Value;

/// A wrong field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// `spec.containers[0].name`.
    pub path: String,
    /// What is wrong.
    pub kind: FieldErrorKind,
    /// More about it.
    pub detail: String,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldErrorKind {
    /// It must be there.
    Required,
    /// It must not be this.
    Invalid(Value),
    /// It must be one of a few values.
    NotSupported(Value),
    /// It may not be there, or not change.
    Forbidden,
    /// It is there twice.
    Duplicate(Value),
    /// It is longer than it may be.
    TooLong,
    /// It has more elements than it may: so many.
    TooMany(usize),
    /// It refers to something that is not there.
    NotFound(Value),
}

impl FieldError {
    /// `path: Required value: detail`.
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { path: path.into(), kind: FieldErrorKind::Required, detail: detail.into() }
    }

    /// `path: Invalid value: value: detail`.
    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { path: path.into(), kind: FieldErrorKind::Invalid(value.into()), detail: detail.into() }
    }

    /// `path: Unsupported value: value: supported values: "a", "b"`.
    pub fn not_supported(path: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|text| format!("{text:?}")).collect();
        Self {
            path: path.into(),
            kind: FieldErrorKind::NotSupported(value.into()),
            detail: format!("supported values: {}", list.join(", ")),
        }
    }

    /// `path: Forbidden: detail`.
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { path: path.into(), kind: FieldErrorKind::Forbidden, detail: detail.into() }
    }

    /// `path: Duplicate value: value`.
    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { path: path.into(), kind: FieldErrorKind::Duplicate(value.into()), detail: String::new() }
    }

    /// `path: Not found: value`.
    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { path: path.into(), kind: FieldErrorKind::NotFound(value.into()), detail: String::new() }
    }

    /// `path: Too long: may not be more than N bytes`.
    pub fn too_long(path: impl Into<String>, bytes: usize) -> Self {
        Self { path: path.into(), kind: FieldErrorKind::TooLong, detail: format!("may not be more than {bytes} bytes") }
    }

    /// `path: Too many: N: must have at most M items`.
    pub fn too_many(path: impl Into<String>, found: usize, most: usize) -> Self {
        let things = if most == 1 { "item" } else { "items" };
        Self {
            path: path.into(),
            kind: FieldErrorKind::TooMany(found),
            detail: format!("must have at most {most} {things}"),
        }
    }

    /// The reason of its cause.
    pub fn reason(&self) -> &'static str {
        match self.kind {
            FieldErrorKind::Required => "FieldValueRequired",
            FieldErrorKind::Invalid(_) => "FieldValueInvalid",
            FieldErrorKind::NotSupported(_) => "FieldValueNotSupported",
            FieldErrorKind::Forbidden => "FieldValueForbidden",
            FieldErrorKind::Duplicate(_) => "FieldValueDuplicate",
            FieldErrorKind::TooLong => "FieldValueTooLong",
            FieldErrorKind::TooMany(_) => "FieldValueTooMany",
            FieldErrorKind::NotFound(_) => "FieldValueNotFound",
        }
    }

    /// Everything but the path.
    pub fn body(&self) -> String {
        let (what, value) = match &self.kind {
            FieldErrorKind::Required => ("Required value", None),
            FieldErrorKind::Invalid(value) => ("Invalid value", Some(value)),
            FieldErrorKind::NotSupported(value) => ("Unsupported value", Some(value)),
            FieldErrorKind::Forbidden => ("Forbidden", None),
            FieldErrorKind::Duplicate(value) => ("Duplicate value", Some(value)),
            FieldErrorKind::TooLong => ("Too long", None),
            FieldErrorKind::TooMany(found) => return format!("Too many: {found}: {}", self.detail),
            FieldErrorKind::NotFound(value) => ("Not found", Some(value)),
        };
        let mut text = what.to_owned();
        if let Some(value) = value {
            text.push_str(": ");
            text.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

/// Where a field stands: `spec.containers[0].name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The first step.
    pub fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    /// A field below.
    pub fn field(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    /// An element of this list.
    pub fn index(&self, at: usize) -> Self {
        Self(format!("{}[{at}]", self.0))
    }

    /// An entry of this map.
    pub fn entry(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl From<Path> for String {
    fn from(path: Path) -> Self {
        path.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The wrong fields found so far.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    /// A field must be there.
    pub fn required(&mut self, path: Path, detail: &str) {
        self.0.push(FieldError::required(path, detail));
    }

    /// A field must not be this.
    pub fn invalid(&mut self, path: Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.0.push(FieldError::invalid(path, value, detail));
    }

    /// A text has each of these faults.
    pub fn faults(&mut self, path: &Path, value: &str, faults: Vec<String>) {
        self.0.extend(faults.into_iter().map(|fault| FieldError::invalid(path.clone(), value, fault)));
    }

    /// A field must be one of a few values.
    pub fn not_supported(&mut self, path: Path, value: impl Into<Value>, supported: &[&str]) {
        self.0.push(FieldError::not_supported(path, value, supported));
    }

    /// A field may not be there.
    pub fn forbidden(&mut self, path: Path, detail: impl Into<String>) {
        self.0.push(FieldError::forbidden(path, detail));
    }

    /// It is there twice.
    pub fn duplicate(&mut self, path: Path, value: impl Into<Value>) {
        self.0.push(FieldError::duplicate(path, value));
    }

    /// It refers to something that is not there.
    pub fn not_found(&mut self, path: Path, value: impl Into<Value>) {
        self.0.push(FieldError::not_found(path, value));
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.body()) } else { write!(f, "{}: {}", self.path, self.body()) }
    }
}
