//! Values: those of one field of an item, in order, and sets of them.

use std::cmp::Ordering;
use std::collections::HashSet;

use super::fields::Entry;
use super::{Bound, Scalar};

/// The values of a field, in order.
#[derive(Clone, Copy)]
pub struct Values<'a>(&'a [Entry]);

impl<'a> Values<'a> {
    /// Of the entries of a field.
    pub fn of(field: &'a [Entry]) -> Self {
        Self(&field[field.partition_point(|(_, value)| value.is_none())..])
    }

    fn iter(self) -> impl Iterator<Item = &'a Scalar> {
        self.0.iter().filter_map(|(_, value)| value.as_ref())
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// How many come before the first that is not `before`.
    fn count(self, before: impl Fn(&Scalar) -> bool) -> usize {
        self.0.partition_point(|(_, value)| value.as_ref().is_none_or(&before))
    }

    /// Those beyond a bound.
    pub fn within(self, bound: Bound, than: &Scalar) -> Self {
        if !than.has_order() {
            return Self(&[]);
        }
        let (less, at_most) = (self.count(|value| value < than), self.count(|value| value <= than));
        // Numbers only compare with numbers, strings with strings.
        let first = || self.count(|value| value.kind() < than.kind());
        let end = || self.count(|value| value.kind() <= than.kind());
        Self(match bound {
            Bound::Above => &self.0[at_most..end()],
            Bound::AtLeast => &self.0[less..end()],
            Bound::Below => &self.0[first()..less],
            Bound::AtMost => &self.0[first()..at_most],
        })
    }

    fn has(self, value: &Scalar) -> bool {
        self.0.binary_search_by(|(_, own)| own.as_ref().map_or(Ordering::Less, |own| own.cmp(value))).is_ok()
    }

    /// Whether one of them is in the set and passes.
    pub fn any_in(self, set: &OneOf, passes: impl Fn(&Scalar) -> bool) -> bool {
        if set.len() < self.0.len() {
            set.iter().any(|value| self.has(value) && passes(value))
        } else {
            self.iter().any(|value| set.contains(value) && passes(value))
        }
    }
}

/// Some values, any of which will do.
#[derive(Debug)]
pub enum OneOf {
    Few(Vec<Scalar>),
    Many(HashSet<Scalar>),
}

impl OneOf {
    /// Of these.
    pub fn new(values: &[Scalar]) -> Self {
        if values.len() <= 4 {
            Self::Few(values.to_vec())
        } else {
            Self::Many(values.iter().cloned().collect())
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Few(values) => values.len(),
            Self::Many(values) => values.len(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Scalar> {
        let (few, many) = match self {
            Self::Few(values) => (Some(values.iter()), None),
            Self::Many(values) => (None, Some(values.iter())),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }

    /// Whether it is one of them.
    pub fn contains(&self, value: &Scalar) -> bool {
        match self {
            Self::Few(values) => values.contains(value),
            Self::Many(values) => values.contains(value),
        }
    }
}
