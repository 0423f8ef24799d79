//! JSON of strangers: what a body makes of memory is bounded while it is read, since a value of one byte may take a
//! hundred in memory.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

/// Most values of a tree: more than metadata of the largest size can have.
const MAX_VALUES: usize = 65_536;

/// A list of which at most `N` elements and one more are kept, by which to tell that there are too many; the rest is
/// not even looked at.
#[derive(Debug)]
pub struct AtMost<T, const N: usize>(pub Vec<T>);

impl<T, const N: usize> Default for AtMost<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for AtMost<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const N: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Elements<T, N> {
            type Value = AtMost<T, N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                elements(list, N).map(AtMost)
            }
        }

        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

/// A list as [`AtMost`] reads it, or none. For `#[serde(deserialize_with)]`.
///
/// # Errors
/// Those of the list.
pub fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const N: usize>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Ok(Option::<AtMost<T, N>>::deserialize(deserializer)?.map(|AtMost(list)| list))
}

/// The first elements of a list: at most so many, and one more.
///
/// # Errors
/// Those of the list.
pub fn elements<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
    mut list: A,
    most: usize,
) -> Result<Vec<T>, A::Error> {
    let mut kept = Vec::new();
    while kept.len() <= most {
        match list.next_element()? {
            Some(element) => kept.push(element),
            None => return Ok(kept),
        }
    }
    while list.next_element::<IgnoredAny>()?.is_some() {}
    Ok(kept)
}

/// The members of an object as they are written, at most so many.
#[derive(Debug)]
pub struct Members<const N: usize>(pub HashMap<String, Box<RawValue>>);

impl<'de, const N: usize> Deserialize<'de> for Members<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<const N: usize>;

        impl<'de, const N: usize> Visitor<'de> for Object<N> {
            type Value = Members<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
                let mut members = HashMap::new();
                while let Some((name, value)) = object.next_entry()? {
                    if members.len() == N {
                        return Err(A::Error::custom(format_args!("more than {N} members")));
                    }
                    members.insert(name, value);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object::<N>)
    }
}

/// Any value, of a bounded number of values in all; `None` for `null`. For `#[serde(deserialize_with)]`.
///
/// # Errors
/// When there are too many, or no JSON.
pub fn tree<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    let left = Cell::new(MAX_VALUES);
    let value = Node(&left).deserialize(deserializer)?;
    Ok(Some(value).filter(|value| !value.is_null()))
}

/// A value of a tree that may have so many more.
#[derive(Clone, Copy)]
struct Node<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.ok_or_else(|| D::Error::custom(format_args!("more than {MAX_VALUES} values")))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = object.next_key()? {
            members.insert(name, object.next_value_seed(self)?);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Holder {
        #[serde(default, deserialize_with = "tree")]
        tree: Option<Value>,
    }

    #[test]
    fn a_tree_is_the_value_up_to_its_bound() {
        let text = r#"{"a":[1,-2,2.5,true,null,"x",{"b":{}}],"c":18446744073709551615,"d":1e300}"#;
        let read = |text: &str| serde_json::from_str::<Holder>(&format!("{{\"tree\":{text}}}"));
        assert_eq!(read(text).unwrap().tree, serde_json::from_str(text).unwrap());
        assert_eq!(read("null").unwrap().tree, None);
        assert_eq!(serde_json::from_str::<Holder>("{}").unwrap().tree, None);
        let list = |count: usize| format!("[{}]", vec!["[]"; count].join(","));
        assert!(read(&list(MAX_VALUES - 1)).is_ok());
        let refused = read(&list(MAX_VALUES)).unwrap_err().to_string();
        assert!(refused.starts_with("more than 65536 values"), "{refused}");
        assert!(read("[1,}").is_err());
    }

    #[test]
    fn of_a_list_no_more_is_kept_than_tells_that_it_is_too_long() {
        let read = |text: &str| serde_json::from_str::<AtMost<u8, 2>>(text).map(|list| list.0);
        assert!(read("[]").unwrap().is_empty());
        assert_eq!(read("[1,2]").unwrap(), [1, 2]);
        assert_eq!(read(r#"[1,2,3,"x",{"y":[]}]"#).unwrap(), [1, 2, 3]);
        assert!(read("[1,2,3,]").is_err() && read("{}").is_err() && read("[-1]").is_err());
    }

    #[test]
    fn members_are_kept_as_they_are_written() {
        let read = |text: &str| serde_json::from_str::<Members<2>>(text).map(|members| members.0);
        let members = read(r#"{"a": {"n": 1}, "b": [ ]}"#).unwrap();
        assert_eq!((members["a"].get(), members["b"].get()), (r#"{"n": 1}"#, "[ ]"));
        assert!(read(r#"{"a":1,"b":2,"c":3}"#).unwrap_err().to_string().starts_with("more than 2 members"));
        assert!(read("[]").is_err());
    }
}
