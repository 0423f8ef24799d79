//! Labels: how the collections of latentd are called and described in Milvus.
//!
//! A collection that serves in a generation has the alias of its name and of that generation. The first generation
//! is 0; a change of the encoder makes another, which collections that it does not concern belong to as well.

use latentd_model::Contract;
use serde::{Deserialize, Serialize};

use super::proto::FieldSchema;
use super::rows;
use crate::store::CollectionName;

/// What an alias begins with.
const ALIAS: &str = "latentd_";
/// What the name of a Milvus collection begins with; no alias begins so.
pub const PHYSICAL: &str = "latentdv_";
/// The schema that this build reads. It writes 1 in the first generation, which builds without generations read too.
pub const SCHEMA: u32 = 2;

/// The description of a Milvus collection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Label {
    pub latentd_schema: u32,
    pub collection: String,
    pub contract: Contract,
    pub created: i64,
    /// The folder of its pictures, where that is another collection's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures: Option<String>,
}

/// A collection's name in Milvus' letters, which have no `-` and `.`.
fn plain(name: &CollectionName) -> String {
    let mut plain = String::new();
    for c in name.as_str().chars() {
        match c {
            '_' => plain.push_str("__"),
            '-' => plain.push_str("_d"),
            '.' => plain.push_str("_p"),
            c => plain.push(c),
        }
    }
    plain
}

/// The alias of a collection in a generation.
pub fn alias(generation: u64, name: &CollectionName) -> String {
    match generation {
        0 => format!("{ALIAS}{}", plain(name)),
        // No name is written with `_g`.
        generation => format!("{ALIAS}_g{generation}_{}", plain(name)),
    }
}

/// The generation that an alias is of.
pub fn generation(alias: &str) -> Option<u64> {
    let rest = alias.strip_prefix(ALIAS)?;
    match rest.strip_prefix("_g") {
        None => Some(0),
        Some(numbered) => numbered.split_once('_')?.0.parse().ok(),
    }
}

/// The name of a new Milvus collection; `number` is one that no other has.
pub fn physical(name: &CollectionName, contract: Contract, number: u64) -> String {
    format!("{PHYSICAL}{}_{contract}_{number:x}", plain(name))
}

pub fn dim_of(fields: &[FieldSchema]) -> Option<usize> {
    let vector = fields.iter().find(|field| field.name == rows::VECTOR)?;
    vector.type_params.iter().find(|pair| pair.key == "dim")?.value.parse().ok()
}

/// How a schema differs from the expected one, if it does. What another version of Milvus adds is no difference.
pub fn difference(expected: &[FieldSchema], found: &[FieldSchema]) -> Option<String> {
    for field in expected {
        let Some(other) = found.iter().find(|other| other.name == field.name) else {
            return Some(format!("it has no field {}", field.name));
        };
        let params = field.type_params.iter().all(|pair| other.type_params.contains(pair));
        if other.data_type != field.data_type || other.is_primary_key != field.is_primary_key || !params {
            return Some(format!("its field {} is of another type", field.name));
        }
    }
    let unknown = found.iter().find(|other| !expected.iter().any(|field| field.name == other.name));
    unknown.map(|field| format!("it has a field {}, which latentd does not write", field.name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn schemas_are_compared() {
        let ours = rows::schema(8);
        assert_eq!(difference(&ours, &ours), None);
        assert!(difference(&rows::schema(9), &ours).unwrap().contains("vector is of another type"));
        assert!(difference(&ours, &ours[1..]).unwrap().contains("no field id"));
        assert!(difference(&ours[1..], &ours).unwrap().contains("a field id"));
        assert_eq!(dim_of(&ours), Some(8));
    }

    proptest! {
        #[test]
        fn aliases_are_names_of_milvus_and_no_two_alike(
            a in "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", b in "[a-b][a_.-]{0,4}", m in 0u64..3, n in 0u64..u64::MAX
        ) {
            let (a, b) = (CollectionName::new(&a).unwrap(), CollectionName::new(&b).unwrap());
            let of = alias(n, &a);
            prop_assert!(of.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
            prop_assert!(of.len() < 200);
            prop_assert_eq!(alias(m, &a) == alias(m, &b), a == b);
            prop_assert_eq!(of == alias(m, &b), a == b && m == n);
            prop_assert_eq!(generation(&of), Some(n));
        }
    }
}
