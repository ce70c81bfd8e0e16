//! Kubernetes quantities (`100m`, `1Gi`, `2e3`) as exact integers.

use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// An amount in thousandths of its unit: 1000 is one core, or one byte.
///
/// `i128` holds every `i64` amount times 1000, so sums over a node cannot overflow. Amounts finer than a thousandth
/// are rounded up, as upstream's `MilliValue` does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Milli(i128);

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity: write a number with an optional suffix, such as 100m, 1.5, 64Mi or 2G")]
pub struct QuantityError(pub String);

impl Milli {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// From thousandths.
    pub const fn from_milli(thousandths: i128) -> Self {
        Self(thousandths)
    }

    /// From whole units.
    pub const fn from_units(units: i64) -> Self {
        Self(units as i128 * 1000)
    }

    /// Parses what the API writes.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        parse_milli(text).map(Self).ok_or_else(|| QuantityError(text.to_owned()))
    }

    /// Parses a quantity of an API object; what the API server accepted and we cannot read counts as nothing.
    pub fn of(quantity: &Quantity) -> Self {
        Self::parse(&quantity.0).unwrap_or(Self::ZERO)
    }

    /// Thousandths.
    pub const fn milli(self) -> i128 {
        self.0
    }

    /// Whole units, rounded up and clamped to `i64`.
    pub fn units(self) -> i64 {
        let up = self.0.div_euclid(1000) + i128::from(self.0.rem_euclid(1000) != 0);
        i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
    }

    /// As Kubernetes writes it: `1500m`, `2`; `binary`: `64Mi` where it is that.
    pub fn quantity(self, binary: bool) -> Quantity {
        if self.0 % 1000 != 0 {
            return Quantity(format!("{}m", self.0));
        }
        let (mut number, mut suffix) = (self.0 / 1000, "");
        for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
            if !binary || number == 0 || number % 1024 != 0 {
                break;
            }
            (number, suffix) = (number / 1024, next);
        }
        Quantity(format!("{number}{suffix}"))
    }

    /// Whether there is none.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::Add for Milli {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::ops::AddAssign for Milli {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::ops::Sub for Milli {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl std::iter::Sum for Milli {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, |a, b| a + b)
    }
}

impl fmt::Display for Milli {
    /// Whole units where possible, else thousandths: `2`, `1500m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 % 1000 == 0 { write!(f, "{}", self.0 / 1000) } else { write!(f, "{}m", self.0) }
    }
}

impl From<Milli> for Quantity {
    fn from(amount: Milli) -> Self {
        Self(amount.to_string())
    }
}

/// `numerator / denominator` of one unit of a suffix, or `None` if there is no such suffix.
fn suffix_factor(suffix: &str) -> Option<(i128, i128)> {
    let whole = |n: i128| Some((n, 1));
    match suffix {
        "" => whole(1),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => whole(1000),
        "M" => whole(1_000_000),
        "G" => whole(1_000_000_000),
        "T" => whole(1_000_000_000_000),
        "P" => whole(1_000_000_000_000_000),
        "E" => whole(1_000_000_000_000_000_000),
        "Ki" => whole(1 << 10),
        "Mi" => whole(1 << 20),
        "Gi" => whole(1 << 30),
        "Ti" => whole(1 << 40),
        "Pi" => whole(1 << 50),
        "Ei" => whole(1 << 60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            if !(-18..=18).contains(&exponent) {
                return None;
            }
            let power = 10i128.pow(exponent.unsigned_abs());
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

fn parse_milli(text: &str) -> Option<i128> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() + fraction.len() > 18 {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (numerator, denominator) = suffix_factor(suffix)?;
    let scale = 10i128.pow(u32::try_from(fraction.len()).ok()?).checked_mul(denominator)?;
    let scaled = mantissa.checked_mul(numerator)?.checked_mul(1000)?;
    let rounded_up = scaled / scale + i128::from(scaled % scale != 0);
    Some(if negative { -rounded_up } else { rounded_up })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, milli: i128) {
        assert_eq!(Milli::parse(text), Ok(Milli(milli)), "{text}");
    }

    #[test]
    fn every_suffix_is_read() {
        check("0", 0);
        check("100m", 100);
        check("1.5", 1500);
        check(".5", 500);
        check("2e3", 2_000_000);
        check("1E-3", 1);
        check("64Mi", 64 * 1024 * 1024 * 1000);
        check("1G", 1_000_000_000_000);
        check("1E", 1_000_000_000_000_000_000_000);
        check("-5", -5000);
    }

    #[test]
    fn amounts_are_written_as_kubernetes_does() {
        for text in ["1500m", "2", "64Mi", "1Gi", "1536Mi", "1025"] {
            assert_eq!(Milli::parse(text).unwrap().quantity(true).0, text);
        }
        assert_eq!(Milli::from_units(1024).quantity(false).0, "1024");
    }

    #[test]
    fn finer_than_a_thousandth_is_rounded_up() {
        check("1n", 1);
        check("1u", 1);
        check("0.0001", 1);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "m", "1.2.3", "1mi", "abc", "1 Gi", "--1", "1e99", "9999999999999999999"] {
            assert!(Milli::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn whole_units_round_up() {
        assert_eq!(Milli::from_milli(1).units(), 1);
        assert_eq!(Milli::from_milli(1500).units(), 2);
        assert_eq!(Milli::from_milli(-1500).units(), -1);
        assert_eq!(Milli::from_units(7).to_string(), "7");
        assert_eq!(Milli::from_milli(1500).to_string(), "1500m");
    }
}
