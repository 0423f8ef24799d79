//! A scalar: a string, number, boolean or null of metadata or of a filter.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

use serde_json::{Number, Value};

/// A scalar in its one canonical form, so that `1`, `1.0` and `1e0` are equal and large integers stay exact.
#[derive(Debug, Clone)]
pub enum Scalar {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number that fits.
    Int(i64),
    /// A whole number above those of `Int`.
    Big(u64),
    /// Any other number.
    Float(f64),
    /// A string.
    Text(Box<str>),
}

impl Scalar {
    /// The scalar of a JSON value; none of an object or a list.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(Self::Null),
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Number(number) => Some(Self::of_number(number)),
            Value::String(text) => Some(Self::Text(text.as_str().into())),
            Value::Array(_) | Value::Object(_) => None,
        }
    }

    fn of_number(number: &Number) -> Self {
        if let Some(int) = number.as_i64() {
            return Self::Int(int);
        }
        if let Some(big) = number.as_u64() {
            return Self::Big(big);
        }
        let float = number.as_f64().unwrap_or(f64::NAN);
        // 2^63 and 2^64 are exact in f64, and every f64 below them that is whole fits.
        const TWO_63: f64 = 9_223_372_036_854_775_808.0;
        if float.fract() == 0.0 {
            if (-TWO_63..TWO_63).contains(&float) {
                return Self::Int(float as i64);
            }
            if (TWO_63..2.0 * TWO_63).contains(&float) {
                return Self::Big(float as u64);
            }
        }
        Self::Float(float)
    }

    fn whole(&self) -> Option<i128> {
        match self {
            Self::Int(int) => Some(i128::from(*int)),
            Self::Big(big) => Some(i128::from(*big)),
            _ => None,
        }
    }

    /// Which kind of value it is: values of one kind lie together in order.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Bool(_) => 1,
            Self::Int(_) | Self::Big(_) | Self::Float(_) => 2,
            Self::Text(_) => 3,
        }
    }

    /// Whether values of its kind are ordered.
    pub fn has_order(&self) -> bool {
        self.kind() >= 2
    }

    /// How two numbers, or two strings (by code point), are ordered; none for anything else.
    pub fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(b),
            (Self::Float(a), b) => Some(order_mixed(*a, b.whole()?)),
            (a, Self::Float(b)) => Some(order_mixed(*b, a.whole()?).reverse()),
            (a, b) => Some(a.whole()?.cmp(&b.whole()?)),
        }
    }
}

/// Orders a float that is not whole, or too large for 64 bits, against a whole number, exactly.
fn order_mixed(float: f64, whole: i128) -> Ordering {
    // Beyond 2^100 every float is outside the range of the whole numbers here.
    if float.abs() > 1e30 {
        return if float > 0.0 { Ordering::Greater } else { Ordering::Less };
    }
    let floor = float.floor();
    (floor as i128).cmp(&whole).then(if float > floor { Ordering::Greater } else { Ordering::Equal })
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Big(a), Self::Big(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Text(a), Self::Text(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Scalar {}

/// By kind, then as [`Scalar::order`] has it.
impl Ord for Scalar {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            (a, b) => a.kind().cmp(&b.kind()).then_with(|| a.order(b).unwrap_or(Ordering::Equal)),
        }
    }
}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Scalar {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Self::Null => {}
            Self::Bool(value) => value.hash(state),
            Self::Int(value) => value.hash(state),
            Self::Big(value) => value.hash(state),
            Self::Float(value) => value.to_bits().hash(state),
            Self::Text(value) => value.hash(state),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn of(value: Value) -> Scalar {
        Scalar::of(&value).unwrap()
    }

    #[test]
    fn one_form_for_each_number() {
        assert_eq!(of(json!(1)), of(json!(1.0)));
        assert_eq!(of(json!(-0.0)), of(json!(0)));
        assert_eq!(of(json!(18446744073709551615u64)).order(&of(json!(1))), Some(Ordering::Greater));
        assert_ne!(of(json!(9007199254740993i64)), of(json!(9007199254740992i64)));
        assert_ne!(of(json!("1")), of(json!(1)));
        assert_ne!(of(json!(true)), of(json!(1)));
        assert!(Scalar::of(&json!([])).is_none());
    }

    #[test]
    fn order_is_exact() {
        let less = |a: Value, b: Value| {
            assert_eq!(of(a.clone()).order(&of(b.clone())), Some(Ordering::Less), "{a} {b}");
            assert_eq!(of(b).order(&of(a)), Some(Ordering::Greater));
        };
        less(json!(1), json!(1.5));
        less(json!(-1.5), json!(-1));
        less(json!(9007199254740992i64), json!(9007199254740993i64));
        less(json!(18446744073709551615u64), json!(1e300));
        less(json!(-1e300), json!(i64::MIN));
        less(json!("a"), json!("b"));
        assert_eq!(of(json!("1")).order(&of(json!(1))), None);
        assert_eq!(of(json!(null)).order(&of(json!(1))), None);
        assert_eq!(of(json!(true)).order(&of(json!(false))), None);
        let all =
            [json!(null), json!(false), json!(true), json!(-2.5), json!(1), json!(u64::MAX), json!("1")];
        assert!(all.map(of).is_sorted_by(|a, b| a < b));
    }

    proptest! {
        #[test]
        fn order_agrees_with_f64(a in -1e6f64..1e6, b in -1000i32..1000, c in -1000i32..1000) {
            prop_assert_eq!(of(json!(a)).order(&of(json!(b))), a.partial_cmp(&f64::from(b)));
            prop_assert_eq!(of(json!(c)).order(&of(json!(b))), Some(c.cmp(&b)));
            prop_assert_eq!(of(json!(c)) == of(json!(f64::from(b))), c == b);
            prop_assert_eq!(of(json!(a)).cmp(&of(json!(b))), a.total_cmp(&f64::from(b)));
        }
    }
}
