//! What comes with an item: metadata, content hash, thumbnail, time.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use latentd_model::Embedding;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::names::InvalidValue;

/// A JSON object that a client keeps with an item: at most 64 KiB as compact text, 16 levels deep, of 1024 values.
#[derive(Clone, PartialEq, Eq)]
pub struct Metadata(Arc<str>);

impl Metadata {
    /// Longest metadata, in bytes of compact JSON.
    pub const MAX_BYTES: usize = 64 * 1024;
    /// Longest text that metadata is read from, in bytes: with spaces and line ends.
    pub const MAX_TEXT: usize = 16 * Self::MAX_BYTES;
    /// Most objects and lists inside each other.
    pub const MAX_DEPTH: usize = 16;
    /// Most values, objects and lists among them: each takes its place in the index, with its dotted name, and its time
    /// in searches with a filter.
    pub const MAX_VALUES: usize = 1024;
    /// Longest dotted name of a field, in bytes.
    pub const MAX_NAME: usize = 256;

    /// Checks and takes an object.
    ///
    /// # Errors
    /// [`InvalidValue::Metadata`] when it is too large or too deep.
    pub fn new(object: &Map<String, Value>) -> Result<Self, InvalidValue> {
        let refuse = |reason: String| InvalidValue::Metadata { reason };
        let mut left = Self::MAX_VALUES;
        object.iter().try_for_each(|(key, value)| check(value, 1, key.len(), &mut left)).map_err(refuse)?;
        let text = serde_json::to_string(object).map_err(|error| refuse(format!("is no JSON: {error}")))?;
        if text.len() > Self::MAX_BYTES {
            return Err(refuse(format!(
                "is {} bytes of JSON, but at most {} are kept",
                text.len(),
                Self::MAX_BYTES
            )));
        }
        Ok(Self(text.into()))
    }

    /// Checks and takes any JSON value; `null` is the empty object.
    ///
    /// # Errors
    /// [`InvalidValue::Metadata`], also when the value is no object.
    pub fn from_value(value: &Value) -> Result<Self, InvalidValue> {
        match value {
            Value::Null => Ok(Self::default()),
            Value::Object(object) => Self::new(object),
            _ => Err(InvalidValue::Metadata { reason: "must be a JSON object".to_owned() }),
        }
    }

    /// Parses text that a client sent.
    ///
    /// # Errors
    /// [`InvalidValue::Metadata`].
    pub fn from_json(text: &str) -> Result<Self, InvalidValue> {
        if text.len() > Self::MAX_TEXT {
            let reason = format!("is {} bytes of text, but at most {} are read", text.len(), Self::MAX_TEXT);
            return Err(InvalidValue::Metadata { reason });
        }
        let value: Value = serde_json::from_str(text)
            .map_err(|error| InvalidValue::Metadata { reason: format!("is no JSON: {error}") })?;
        Self::from_value(&value)
    }

    /// Takes compact JSON that was checked before it was written.
    pub(crate) fn from_stored(text: String) -> Self {
        Self(text.into())
    }

    /// Compact JSON.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The object.
    pub fn to_map(&self) -> Map<String, Value> {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

/// `path` is the length of the dotted name so far, `left` how many values there may be from here on.
fn check(value: &Value, depth: usize, path: usize, left: &mut usize) -> Result<(), String> {
    if path > Metadata::MAX_NAME {
        return Err(format!("has a field whose dotted name is longer than {} bytes", Metadata::MAX_NAME));
    }
    let container = matches!(value, Value::Array(_) | Value::Object(_));
    if container && depth >= Metadata::MAX_DEPTH {
        return Err(format!("has more than {} levels", Metadata::MAX_DEPTH));
    }
    let too_many = || format!("has more than {} values: keep long lists elsewhere", Metadata::MAX_VALUES);
    *left = left.checked_sub(1).ok_or_else(too_many)?;
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| check(value, depth + 1, path, left)),
        Value::Object(object) => {
            let mut members = object.iter();
            members.try_for_each(|(key, value)| check(value, depth + 1, path + 1 + key.len(), left))
        }
        _ => Ok(()),
    }
}

impl Default for Metadata {
    fn default() -> Self {
        Self("{}".into())
    }
}

/// The text itself: a tree of its values may take a hundred times the memory.
impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<&RawValue>(&self.0) {
            Ok(text) => text.serialize(serializer),
            Err(_) => serializer.serialize_map(Some(0))?.end(),
        }
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 of the bytes that an item was made from: those of the picture file, or of a vector's f32 LE numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of a vector that came without a picture.
    pub fn of_vector(vector: &Embedding) -> Self {
        let mut hasher = Sha256::new();
        vector.as_slice().iter().for_each(|value| hasher.update(value.to_le_bytes()));
        Self(hasher.finalize().into())
    }

    /// These 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&latentd_model::digest::hex(&self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContentHash {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text.len() != 64 || !text.is_ascii() {
            return Err(InvalidValue::ContentHash);
        }
        let mut bytes = [0u8; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16)
                .map_err(|_| InvalidValue::ContentHash)?;
        }
        Ok(Self(bytes))
    }
}

/// A JPEG of at most 256 pixels a side that stands for an item on a page.
#[derive(Clone, PartialEq, Eq)]
pub struct Thumbnail(pub bytes::Bytes);

impl fmt::Debug for Thumbnail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Thumbnail({} bytes)", self.0.len())
    }
}

/// Milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Now.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, e.g. `2026-01-31T12:00:00.000Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        // Howard Hinnant's civil_from_days: years begin in March, eras have 400 years.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_survive_any_number_of_round_trips() {
        for text in
            ["2222222222222262222222221", "0.1", "-0", "1e-320", "9007199254740993", "5.9604644775390627e-8"]
        {
            let first = Metadata::from_json(&format!(r#"{{"a":{text}}}"#)).unwrap();
            assert_eq!(Metadata::from_json(first.as_str()).unwrap(), first, "{text}");
        }
    }

    #[test]
    fn it_goes_out_as_its_text() {
        #[derive(serde::Serialize)]
        struct Reply {
            metadata: Metadata,
        }
        for text in [r#"{"b":[[],{}],"a":0.1,"é\n":"\"\\","n":9007199254740993}"#, "{}"] {
            let metadata = Metadata::from_json(text).unwrap();
            let as_tree = serde_json::to_string(&metadata.to_map()).unwrap();
            assert_eq!(serde_json::to_string(&metadata).unwrap(), as_tree);
            let reply = serde_json::to_vec(&Reply { metadata }).unwrap();
            assert_eq!(reply, format!(r#"{{"metadata":{as_tree}}}"#).into_bytes());
        }
        let damaged = Metadata::from_stored(r#"{"a":"#.to_owned());
        assert_eq!(serde_json::to_string(&damaged).unwrap(), "{}");
    }

    #[test]
    fn metadata_has_bounds() {
        assert_eq!(
            Metadata::from_json(" { \"b\" : 1, \"a\" : [ ] } ").unwrap().as_str(),
            r#"{"b":1,"a":[]}"#
        );
        assert_eq!(Metadata::from_json("null").unwrap(), Metadata::default());
        for bad in ["[]", "1", "{", "", r#"{"a":1}x"#] {
            assert!(Metadata::from_json(bad).is_err(), "{bad}");
        }
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(Metadata::MAX_BYTES));
        assert!(Metadata::from_json(&large).unwrap_err().to_string().contains("at most 65536"));
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(Metadata::from_json(&deep(15)).is_ok());
        assert!(Metadata::from_json(&deep(16)).is_err());
        let list = |n: usize| format!("{{\"a\":{:?}}}", vec![0; n]);
        assert!(Metadata::from_json(&list(Metadata::MAX_VALUES - 1)).is_ok());
        let many = Metadata::from_json(&list(Metadata::MAX_VALUES)).unwrap_err().to_string();
        assert!(many.contains("more than 1024 values"), "{many}");
        let named = |n: usize| format!("{{\"a\":{{\"{}\":1}}}}", "x".repeat(n));
        assert!(Metadata::from_json(&named(254)).is_ok());
        assert!(Metadata::from_json(&named(255)).is_err());
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_769_860_800_123, "2026-01-31T12:00:00.123Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp(ms).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn hashes_survive_text(bytes: [u8; 32], text: String) {
            let hash = ContentHash::from_bytes(bytes);
            prop_assert_eq!(hash.to_string().parse::<ContentHash>().unwrap(), hash);
            let _ = text.parse::<ContentHash>();
        }
    }
}
