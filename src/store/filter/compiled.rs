//! The filter made ready: its names looked up in a collection, its tests in the order in which they cost least.

use super::fields::{FieldName, Fields};
use super::values::{OneOf, Values};
use super::{Bound, Condition, Filter, Node, Scalar, Test};

/// A filter whose names were looked up in one collection.
#[derive(Debug)]
pub struct CompiledFilter(Compiled);

#[derive(Debug)]
enum Compiled {
    All(Vec<Compiled>),
    Any(Vec<Compiled>),
    Not(Box<Compiled>),
    Field { name: FieldName, tests: Tests, none_of: OneOf, exists: Option<bool> },
}

/// What one value of a field has to pass.
#[derive(Debug)]
struct Tests {
    ranges: Vec<(Bound, Scalar)>,
    sets: Vec<OneOf>,
}

impl CompiledFilter {
    /// With its names looked up by `named`.
    pub fn new(filter: &Filter, mut named: impl FnMut(&str) -> FieldName) -> Self {
        Self(Compiled::new(&filter.0, &mut named))
    }

    /// Whether an item counts.
    pub fn holds(&self, fields: &Fields) -> bool {
        self.0.holds(fields)
    }
}

impl Compiled {
    fn new(node: &Node, named: &mut dyn FnMut(&str) -> FieldName) -> Self {
        let mut all = |nodes: &[Node]| nodes.iter().map(|node| Self::new(node, named)).collect();
        match node {
            Node::All(nodes) => Self::All(all(nodes)),
            Node::Any(nodes) => Self::Any(all(nodes)),
            Node::Not(node) => Self::Not(Box::new(Self::new(node, named))),
            Node::Field { path, condition: Condition { tests, none_of, exists } } => Self::Field {
                name: named(path),
                tests: Tests::new(tests),
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
            Self::Field { name, tests, none_of, exists } => {
                let field = fields.of_field(name);
                let values = Values::of(field);
                (tests.is_empty() || tests.hold(values))
                    && !values.any_in(none_of, |_| true)
                    && exists.is_none_or(|exists| exists != field.is_empty())
            }
        }
    }
}

impl Tests {
    fn new(tests: &[Test]) -> Self {
        let mut all = Self { ranges: Vec::new(), sets: Vec::new() };
        for test in tests {
            match test {
                Test::OneOf(values) => all.sets.push(OneOf::new(values)),
                Test::Range { bound, than } => all.ranges.push((*bound, than.clone())),
            }
        }
        all
    }

    fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.sets.is_empty()
    }

    /// Whether one of the values passes all.
    fn hold(&self, values: Values<'_>) -> bool {
        let within = self.ranges.iter().fold(values, |values, (bound, than)| values.within(*bound, than));
        match self.sets.split_first() {
            None => !within.is_empty(),
            Some((set, others)) => within.any_in(set, |value| others.iter().all(|set| set.contains(value))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::filter::FieldNames;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn holds(filter: Value, metadata: Value) -> bool {
        let mut names = FieldNames::default();
        let fields = Fields::of(metadata.as_object().unwrap(), &mut names);
        CompiledFilter::new(&Filter::from_value(&filter).unwrap(), |path| names.named(path)).holds(&fields)
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

    /// Values of all kinds, few enough that they meet.
    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|value| json!(value)),
            (-3..4i32).prop_map(|value| json!(value)),
            (-3..4i32).prop_map(|value| json!(f64::from(value) + 0.5)),
            "[ab]{0,2}".prop_map(|value| json!(value)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_found_in_order_is_what_is_found_one_by_one(
            values in proptest::collection::vec(any_value(), 0..12),
            (bound, than) in (0..4usize, any_value()),
            (other, beyond) in (0..4usize, any_value()),
            set in proptest::collection::vec(any_value(), 0..9),
            range in any::<bool>(),
        ) {
            let names = ["$gt", "$gte", "$lt", "$lte"];
            let bounds = [Bound::Above, Bound::AtLeast, Bound::Below, Bound::AtMost];
            let of = |value: &Value| Scalar::of(value).unwrap();
            let holds_one = |value: &Value, bound: Bound, than: &Value| {
                of(value).order(&of(than)).is_some_and(|order| match bound {
                    Bound::Above => order.is_gt(),
                    Bound::AtLeast => order.is_ge(),
                    Bound::Below => order.is_lt(),
                    Bound::AtMost => order.is_le(),
                })
            };
            let metadata = json!({"a": values, "b": [1, "a", null], "0": {"c": true}});
            let in_set = |value: &Value| set.iter().any(|one| of(one) == of(value));
            prop_assert_eq!(holds(json!({"a": {"$in": set}}), metadata.clone()), values.iter().any(in_set));
            prop_assert_eq!(holds(json!({"a": {"$nin": set}}), metadata.clone()), !values.iter().any(in_set));
            let orders = |value: &Value| value.is_number() || value.is_string();
            if range && orders(&than) && orders(&beyond) {
                let both = |value: &Value| {
                    holds_one(value, bounds[bound], &than) && holds_one(value, bounds[other], &beyond)
                };
                // Two of one name would be one.
                if bound != other {
                    let filter = json!({"a": {names[bound]: than, names[other]: beyond}});
                    prop_assert_eq!(holds(filter, metadata.clone()), values.iter().any(both));
                }
                let filter = json!({"a": {names[bound]: than, "$in": set}});
                let one = |value: &Value| holds_one(value, bounds[bound], &than) && in_set(value);
                prop_assert_eq!(holds(filter, metadata), values.iter().any(one));
            }
        }

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
