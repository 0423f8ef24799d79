//! Fields: metadata laid flat, so that a filter tests an item in nanoseconds.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{Bound, Condition, Filter, Node, Scalar, Test};

/// The names of the fields that occur in a collection, each with a number.
#[derive(Debug, Default)]
pub struct FieldNames(HashMap<Box<str>, u32>);

impl FieldNames {
    fn number(&mut self, path: &str) -> u32 {
        if let Some(&number) = self.0.get(path) {
            return number;
        }
        let number = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.insert(path.into(), number);
        number
    }

    fn find(&self, path: &str) -> Option<u32> {
        self.0.get(path).copied()
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        self.0.keys().map(|name| name.len() + 32).sum()
    }
}

/// The metadata of one item: every field's number with each of its values. A list stands for its elements;
/// an object or a list also says, without a value, that the field is there.
#[derive(Debug, Clone, Default)]
pub struct Fields(Box<[(u32, Option<Scalar>)]>);

impl Fields {
    /// Lays metadata flat.
    pub fn of(metadata: &Map<String, Value>, names: &mut FieldNames) -> Self {
        let mut flat = Vec::with_capacity(metadata.len());
        flatten_object(metadata, &mut String::new(), names, &mut flat);
        Self(flat.into())
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        let text =
            |scalar: &Option<Scalar>| if let Some(Scalar::Text(text)) = scalar { text.len() } else { 0 };
        self.0.iter().map(|(_, scalar)| size_of::<(u32, Option<Scalar>)>() + text(scalar)).sum()
    }

    fn present(&self, number: u32) -> bool {
        self.0.iter().any(|(field, _)| *field == number)
    }

    fn values(&self, number: u32) -> impl Iterator<Item = &Scalar> {
        self.0.iter().filter(move |(field, _)| *field == number).filter_map(|(_, scalar)| scalar.as_ref())
    }
}

fn flatten_object(
    object: &Map<String, Value>,
    path: &mut String,
    names: &mut FieldNames,
    flat: &mut Vec<(u32, Option<Scalar>)>,
) {
    let length = path.len();
    for (key, value) in object {
        if length > 0 {
            path.push('.');
        }
        path.push_str(key);
        flatten(value, path, names, flat);
        path.truncate(length);
    }
}

fn flatten(value: &Value, path: &mut String, names: &mut FieldNames, flat: &mut Vec<(u32, Option<Scalar>)>) {
    match value {
        Value::Object(object) => {
            flat.push((names.number(path), None));
            flatten_object(object, path, names, flat);
        }
        Value::Array(values) => {
            flat.push((names.number(path), None));
            values.iter().for_each(|value| flatten(value, path, names, flat));
        }
        scalar => flat.push((names.number(path), Scalar::of(scalar))),
    }
}

/// A filter whose names were looked up in one collection.
#[derive(Debug)]
pub struct CompiledFilter(Compiled);

#[derive(Debug)]
enum Compiled {
    All(Vec<Compiled>),
    Any(Vec<Compiled>),
    Not(Box<Compiled>),
    Field { number: Option<u32>, tests: Vec<CompiledTest>, none_of: OneOf, exists: Option<bool> },
}

#[derive(Debug)]
enum CompiledTest {
    OneOf(OneOf),
    Range { bound: Bound, than: Scalar },
}

#[derive(Debug)]
enum OneOf {
    Few(Vec<Scalar>),
    Many(HashSet<Scalar>),
}

impl OneOf {
    fn new(values: &[Scalar]) -> Self {
        if values.len() <= 4 {
            Self::Few(values.to_vec())
        } else {
            Self::Many(values.iter().cloned().collect())
        }
    }

    fn contains(&self, value: &Scalar) -> bool {
        match self {
            Self::Few(values) => values.contains(value),
            Self::Many(values) => values.contains(value),
        }
    }
}

impl CompiledFilter {
    /// Looks up the names.
    pub fn new(filter: &Filter, names: &FieldNames) -> Self {
        Self(Compiled::new(&filter.0, names))
    }

    /// Whether an item counts.
    pub fn holds(&self, fields: &Fields) -> bool {
        self.0.holds(fields)
    }
}

impl Compiled {
    fn new(node: &Node, names: &FieldNames) -> Self {
        let all = |nodes: &[Node]| nodes.iter().map(|node| Self::new(node, names)).collect();
        match node {
            Node::All(nodes) => Self::All(all(nodes)),
            Node::Any(nodes) => Self::Any(all(nodes)),
            Node::Not(node) => Self::Not(Box::new(Self::new(node, names))),
            Node::Field { path, condition: Condition { tests, none_of, exists } } => Self::Field {
                number: names.find(path),
                tests: tests.iter().map(CompiledTest::new).collect(),
                none_of: OneOf::new(none_of),
                exists: *exists,
            },
        }
    }

    fn holds(&self, fields: &Fields) -> bool {
        match self {
            Self::All(nodes) => nodes.iter().all(|node| node.holds(fields)),
            Self::Any(nodes) => nodes.iter().any(|node| node.holds(fields)),
            Self::Not(node) => !node.holds(fields),
            // No item of the collection has the field.
            Self::Field { number: None, tests, exists, .. } => tests.is_empty() && *exists != Some(true),
            Self::Field { number: Some(number), tests, none_of, exists } => {
                let passes = |value: &Scalar| tests.iter().all(|test| test.holds(value));
                (tests.is_empty() || fields.values(*number).any(passes))
                    && !fields.values(*number).any(|value| none_of.contains(value))
                    && exists.is_none_or(|exists| exists == fields.present(*number))
            }
        }
    }
}

impl CompiledTest {
    fn new(test: &Test) -> Self {
        match test {
            Test::OneOf(values) => Self::OneOf(OneOf::new(values)),
            Test::Range { bound, than } => Self::Range { bound: *bound, than: than.clone() },
        }
    }

    fn holds(&self, value: &Scalar) -> bool {
        match self {
            Self::OneOf(values) => values.contains(value),
            Self::Range { bound, than } => value.order(than).is_some_and(|order| bound.holds(order)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn holds(filter: Value, metadata: Value) -> bool {
        let mut names = FieldNames::default();
        let fields = Fields::of(metadata.as_object().unwrap(), &mut names);
        CompiledFilter::new(&Filter::from_value(&filter).unwrap(), &names).holds(&fields)
    }

    #[test]
    fn the_language() {
        let shirt = json!({"colour": "red", "price": 12.5, "tags": ["new", "sale"], "size": null,
            "maker": {"country": "pt", "year": 1999}, "parts": [{"kind": "button"}, {"kind": "zip"}], "none": [],
            "id": 9007199254740993i64});
        for yes in [
            json!({}),
            json!({"colour": "red"}),
            json!({"colour": {"$eq": "red"}, "price": 12.5}),
            json!({"colour": {"$ne": "blue"}}),
            json!({"absent": {"$ne": "blue"}}),
            json!({"absent": {"$nin": ["blue"]}}),
            json!({"colour": {"$in": ["blue", "red", "a", "b", "c", "d"]}}),
            json!({"price": {"$gte": 12.5, "$lt": 13}}),
            json!({"price": {"$gt": 12, "$lte": 12.5}}),
            json!({"colour": {"$gt": "blue"}}),
            json!({"tags": "sale"}),
            json!({"tags": {"$nin": ["old"]}}),
            json!({"size": null}),
            json!({"size": {"$exists": true}}),
            json!({"none": {"$exists": true}}),
            json!({"maker": {"$exists": true}}),
            json!({"absent": {"$exists": false}}),
            json!({"maker.country": "pt"}),
            json!({"maker.year": 1999.0}),
            json!({"parts.kind": "zip"}),
            json!({"$and": []}),
            json!({"$or": [{"colour": "blue"}, {"price": {"$lt": 20}}]}),
            json!({"$not": {"colour": "blue"}}),
            json!({"$not": {"absent": 1}}),
            json!({"id": 9007199254740993i64}),
        ] {
            assert!(holds(yes.clone(), shirt.clone()), "{yes}");
        }
        for no in [
            json!({"colour": "blue"}),
            json!({"colour": "red", "price": 12}),
            json!({"colour": {"$ne": "red"}}),
            json!({"tags": {"$ne": "new"}}),
            json!({"tags": {"$nin": ["old", "sale"]}}),
            json!({"absent": null}),
            json!({"absent": {"$in": [1, 2]}}),
            json!({"colour": {"$in": []}}),
            json!({"price": {"$gt": 12.5}}),
            json!({"price": {"$gte": "12"}}),
            json!({"size": {"$lt": 1}}),
            json!({"none": null}),
            json!({"absent": {"$exists": true}}),
            json!({"maker.country": {"$exists": false}}),
            json!({"$or": []}),
            json!({"$not": {}}),
            json!({"id": 9007199254740992i64}),
            json!({"price": {"$in": [12.5], "$gt": 13}}),
        ] {
            assert!(!holds(no.clone(), shirt.clone()), "{no}");
        }
        // A range holds for one value, not for two together.
        assert!(!holds(json!({"a": {"$gte": 3, "$lt": 5}}), json!({"a": [1, 9]})));
        assert!(holds(json!({"a": {"$gte": 3, "$lt": 5}}), json!({"a": [1, 4, 9]})));
    }

    proptest! {
        #[test]
        fn logic_is_logic(a in 0..3i32, b in 0..3i32, x in 0..3i32, y in 0..3i32) {
            let metadata = json!({"a": a, "b": b});
            let (p, q) = (json!({"a": x}), json!({"b": {"$gte": y}}));
            let (hp, hq) = (holds(p.clone(), metadata.clone()), holds(q.clone(), metadata.clone()));
            prop_assert_eq!((hp, hq), (a == x, b >= y));
            prop_assert_eq!(holds(json!({"$and": [p, q]}), metadata.clone()), hp && hq);
            prop_assert_eq!(holds(json!({"$or": [p, q]}), metadata.clone()), hp || hq);
            prop_assert_eq!(holds(json!({"$not": {"$and": [p, q]}}), metadata.clone()), !(hp && hq));
            prop_assert_eq!(holds(json!({"a": x, "b": {"$gte": y}}), metadata), hp && hq);
        }
    }
}
