//! Names: ids of items and names of collections, and what makes a value invalid.

use std::fmt;
use std::sync::Arc;

use super::types::Query;

/// A value outside its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    /// An item id.
    #[error("the id {shown:?} {reason}")]
    Id {
        /// Its beginning.
        shown: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A collection name.
    #[error(
        "the collection name {shown:?} is not usable: take 1 to {max} of the characters A-Z a-z 0-9 _ - . and begin \
         with a letter or digit",
        max = CollectionName::MAX_BYTES
    )]
    Collection {
        /// Its beginning.
        shown: String,
    },
    /// Metadata.
    #[error("the metadata {reason}")]
    Metadata {
        /// What is wrong.
        reason: String,
    },
    /// A hash.
    #[error("a content hash is 64 hexadecimal digits")]
    ContentHash,
    /// A number of neighbours.
    #[error("k is {0}, but must be 1 to {max}", max = Query::MAX_K)]
    K(usize),
    /// A page size.
    #[error("limit is {0}, but must be 1 to {max}", max = super::MAX_PAGE)]
    Limit(usize),
    /// A score threshold.
    #[error("min_score must be a number from -1 to 1")]
    MinScore,
    /// From which score on two items count as nearly the same.
    #[error("threshold must be a number from -1 to 1")]
    Threshold,
    /// Too many items at once.
    #[error("{0} items or more at once are too many: send at most {max}", max = super::MAX_BULK)]
    Bulk(usize),
    /// What a search by several examples is for.
    #[error("the search is for nothing: {0}")]
    Examples(&'static str),
    /// How much neighbours are to differ.
    #[error("diversity must be a number from 0 to 1")]
    Diversity,
}

impl InvalidValue {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Id { .. } => "invalid_id",
            Self::Collection { .. } => "invalid_collection",
            Self::Metadata { .. } => "invalid_metadata",
            Self::ContentHash => "invalid_content_hash",
            Self::K(_) => "invalid_k",
            Self::Limit(_) => "invalid_limit",
            Self::MinScore => "invalid_min_score",
            Self::Threshold => "invalid_threshold",
            Self::Bulk(_) => "too_many_items",
            Self::Examples(_) => "invalid_search",
            Self::Diversity => "invalid_diversity",
        }
    }
}

fn beginning(text: &str) -> String {
    text.chars().take(64).collect()
}

/// What a client calls an item: 1 to 512 bytes of UTF-8 without control characters.
///
/// `.` and `..` are refused, because URL libraries remove such path segments.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(Arc<str>);

impl ItemId {
    /// Longest id, in bytes.
    pub const MAX_BYTES: usize = 512;

    /// Checks and takes an id.
    ///
    /// # Errors
    /// [`InvalidValue::Id`].
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        let refuse = |reason| InvalidValue::Id { shown: beginning(text), reason };
        if text.is_empty() {
            return Err(refuse("is empty"));
        }
        if text.len() > Self::MAX_BYTES {
            return Err(refuse("is longer than 512 bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err(refuse("has a control character in it"));
        }
        if text == "." || text == ".." {
            return Err(refuse("cannot be part of a URL"));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a collection: 1 to 64 of `A-Z a-z 0-9 _ - .`, beginning with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectionName(Arc<str>);

impl CollectionName {
    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 64;
    /// The collection that is meant when none is named. It exists, empty, from the start.
    pub const DEFAULT: &'static str = "default";

    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`InvalidValue::Collection`].
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        let usable = text.len() <= Self::MAX_BYTES
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        if !usable {
            return Err(InvalidValue::Collection { shown: beginning(text) });
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is [`Self::DEFAULT`].
    pub fn is_default(&self) -> bool {
        &*self.0 == Self::DEFAULT
    }
}

impl Default for CollectionName {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl fmt::Debug for CollectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for CollectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::Metadata;
    use proptest::prelude::*;

    #[test]
    fn ids_have_bounds() {
        for good in ["a", "shirts/red 1.jpg", "ключ", "👕", "%2F", "a\"b'c;--", " ", "..."] {
            assert_eq!(ItemId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a\nb", "a\0b", "\u{7f}", &"x".repeat(513)] {
            assert_eq!(ItemId::new(bad).unwrap_err().code(), "invalid_id", "{bad:?}");
        }
    }

    #[test]
    fn collections_have_bounds() {
        assert!(CollectionName::default().is_default());
        for good in ["default", "a", "A-1_2.3", "9"] {
            assert!(CollectionName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "é", &"x".repeat(65)] {
            assert!(CollectionName::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parsers(text: String) {
            let _ = (ItemId::new(&text), CollectionName::new(&text), Metadata::from_json(&text));
        }
    }
}
