//! The filter: which items count in a search, told by their metadata.
//!
//! # The language
//! A filter is a JSON object. All its members must hold.
//!
//! | member | holds when |
//! |---|---|
//! | `"colour": "red"` | the field equals the string, number, boolean or null |
//! | `"colour": {"$eq": "red"}` | the same |
//! | `"colour": {"$ne": "red"}` | no value of the field equals it; also when the field is missing |
//! | `"colour": {"$in": ["red", "blue"]}` | the field equals one of them |
//! | `"colour": {"$nin": ["red", "blue"]}` | it equals none of them; also when the field is missing |
//! | `"price": {"$gte": 10, "$lt": 20}` | `$gt`, `$gte`, `$lt`, `$lte`: numbers with numbers, strings with strings by code point |
//! | `"size": {"$exists": true}` | the field is there, be it null; `false`: it is not |
//! | `"$and": [filter, …]` | all hold; the empty list holds |
//! | `"$or": [filter, …]` | one holds; the empty list does not hold |
//! | `"$not": filter` | it does not hold |
//!
//! A dotted name such as `maker.country` goes into objects. A list counts as each of its elements: the field
//! has several values, and `"tags": "new"` holds when one of them is `"new"`. The comparisons inside one
//! object must hold for one and the same value. Numbers compare exactly: 1 equals 1.0. The empty filter holds
//! for every item.
//!
//! Bounds: 256 KiB of text, 8 levels of `$and`, `$or` and `$not`, 256 conditions, 1024 parts (members of objects
//! and filters in lists), 1000 values of a list and 4096 of all lists.

mod compiled;
mod fields;
mod parse;
mod scalar;
mod values;

pub use compiled::CompiledFilter;
pub use fields::{FieldName, FieldNames, Fields};
pub use scalar::Scalar;

/// Why JSON is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the filter is not understood{place}: {reason}", place = Place(.at))]
pub struct FilterError {
    /// Where in the filter, e.g. `$and[0].price`; empty for the whole.
    pub at: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

struct Place<'a>(&'a str);

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " at {}", self.0) }
    }
}

/// A filter that was understood. See the module for the language.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter(pub(crate) Node);

/// One part of a filter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    Field { path: String, condition: Condition },
}

/// What must hold for one field.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Condition {
    /// One value of the field passes all of these.
    pub tests: Vec<Test>,
    /// No value of the field is one of these.
    pub none_of: Vec<Scalar>,
    /// Whether the field is there.
    pub exists: Option<bool>,
}

/// What one value must pass.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Test {
    OneOf(Vec<Scalar>),
    Range { bound: Bound, than: Scalar },
}

/// On which side of a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Above,
    AtLeast,
    Below,
    AtMost,
}
