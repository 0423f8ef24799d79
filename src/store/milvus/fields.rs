//! Fields: metadata as Milvus keeps it to be filtered by.
//!
//! Milvus' own comparisons of JSON know no field with several values, mix whole numbers and floats, and cannot name
//! every key. So beside the metadata an item has a second object, made from it: each field's dotted name, spelt so
//! that an expression can hold it, with the list of its values, each a string that sorts as the value does. So
//! equality is membership, and an order is the order of strings, both exact.

use serde_json::{Map, Value};

use crate::store::Metadata;
use crate::store::filter::Scalar;

/// Milvus' longest JSON value, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// The member of an item whose fields take more than [`MAX_BYTES`]: no expression can tell whether it counts. No
/// field is spelt so.
pub const OPAQUE: &str = "~";

/// How a field's name is spelt: behind an `f`, letters and digits as they are, every other byte as `_` and two digits.
pub fn spell(path: &str) -> String {
    let mut spelt = String::with_capacity(path.len() + 8);
    spelt.push('f');
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() {
            spelt.push(byte as char);
        } else {
            spelt.push_str(&format!("_{byte:02x}"));
        }
    }
    spelt
}

/// A value as a string that sorts as the value does, behind a letter for its type.
pub fn token(scalar: &Scalar) -> String {
    match scalar {
        Scalar::Null => "z".to_owned(),
        Scalar::Bool(false) => "b0".to_owned(),
        Scalar::Bool(true) => "b1".to_owned(),
        Scalar::Text(text) => format!("s{text}"),
        Scalar::Int(int) => whole(i128::from(*int)),
        Scalar::Big(big) => whole(i128::from(*big)),
        Scalar::Float(float) => number(*float, 0),
    }
}

/// The greatest f64 that is not above it, and what is left, which 64 bits leave below 2^11.
fn whole(value: i128) -> String {
    let mut float = value as f64;
    if float as i128 > value {
        float = float.next_down();
    }
    number(float, (value - float as i128) as u16)
}

fn number(float: f64, rest: u16) -> String {
    // -0 is 0; the bits of floats sort as the floats do once the sign is turned, and negative ones all of them.
    let bits = (float + 0.0).to_bits();
    let key = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
    format!("n{key:016x}{rest:04x}")
}

/// The object of an item.
pub fn of(metadata: &Metadata) -> Vec<u8> {
    let mut flat = Map::new();
    flatten_object(&metadata.to_map(), "", &mut flat);
    let text = serde_json::to_vec(&flat).unwrap_or_default();
    if text.is_empty() || text.len() > MAX_BYTES {
        return format!("{{\"{OPAQUE}\":[]}}").into_bytes();
    }
    text
}

fn flatten_object(object: &Map<String, Value>, path: &str, flat: &mut Map<String, Value>) {
    for (key, value) in object {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        flatten(value, &path, flat);
    }
}

fn flatten(value: &Value, path: &str, flat: &mut Map<String, Value>) {
    let list = flat.entry(spell(path)).or_insert_with(|| Value::Array(Vec::new()));
    match value {
        Value::Object(object) => flatten_object(object, path, flat),
        Value::Array(values) => values.iter().for_each(|value| flatten(value, path, flat)),
        scalar => {
            if let (Some(scalar), Value::Array(list)) = (Scalar::of(scalar), list) {
                let token = Value::String(token(&scalar));
                if !list.contains(&token) {
                    list.push(token);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn metadata_is_laid_flat() {
        let metadata = Metadata::from_value(&json!({
            "a": 1, "tags": ["new", "new", "old"], "maker": {"country": "pt"}, "parts": [{"k": 1.0}, {"k": null}],
            "a_b": true, "none": [], "é\"[": 0
        }));
        let fields: Value = serde_json::from_slice(&of(&metadata.unwrap())).unwrap();
        let one = "nbff00000000000000000";
        assert_eq!(
            fields,
            json!({
                "fa": [one], "ftags": ["snew", "sold"], "fmaker": [], "fmaker_2ecountry": ["spt"], "fparts": [],
                "fparts_2ek": [one, "z"], "fa_5fb": ["b1"], "fnone": [], "f_c3_a9_22_5b": ["n80000000000000000000"]
            })
        );
        // Names that take three times as long to spell.
        let large: Map<String, Value> =
            (0..200).map(|n| (format!("{}{n}", "-".repeat(240)), json!(n))).collect();
        assert_eq!(of(&Metadata::new(&large).unwrap()), b"{\"~\":[]}");
    }

    fn scalar() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no others", |float| float.is_finite()).prop_map(Value::from),
            (-3i64..3).prop_map(Value::from),
            (-3i64..3).prop_map(|n| Value::from(n as f64 / 2.0)),
            (0u64..4).prop_map(|n| Value::from((1u64 << 53) + n)),
            (0u64..4).prop_map(|n| Value::from(u64::MAX - n)),
            ".{0,4}".prop_map(Value::from),
        ]
    }

    proptest! {
        #[test]
        fn tokens_sort_as_their_values(a in scalar(), b in scalar()) {
            let (a, b) = (Scalar::of(&a).unwrap(), Scalar::of(&b).unwrap());
            if let Some(order) = a.order(&b) {
                prop_assert_eq!(token(&a).cmp(&token(&b)), order, "{:?} {:?}", a, b);
            }
            prop_assert_eq!(token(&a) == token(&b), a == b);
        }

        #[test]
        fn no_two_names_are_spelt_alike(a: String, b: String) {
            prop_assert_eq!(spell(&a) == spell(&b), a == b);
            prop_assert!(spell(&a) != OPAQUE);
        }
    }
}
