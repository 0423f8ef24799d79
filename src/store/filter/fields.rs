//! Fields: metadata laid flat, so that a filter tests an item in nanoseconds.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Bound, Condition, Filter, Node, Scalar, Test};

/// The name of a field, once for all items of a collection that have it; told from others by where it is in memory.
#[derive(Debug, Clone)]
struct FieldName(Arc<()>);

impl FieldName {
    fn place(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

/// The names of the fields that occur in a collection. Those of items that are gone go too, in time.
#[derive(Debug, Default)]
pub struct FieldNames {
    names: HashMap<Box<str>, FieldName>,
    /// How many there are when those that nobody has any more are next looked for.
    sweep_at: usize,
}

impl FieldNames {
    /// Names that are kept whether or not an item has them.
    const SPARE: usize = 1024;

    fn named(&mut self, path: &str) -> FieldName {
        if let Some(name) = self.names.get(path) {
            return name.clone();
        }
        if self.names.len() >= self.sweep_at.max(Self::SPARE) {
            self.names.retain(|_, name| Arc::strong_count(&name.0) > 1);
            // Twice as many: so that a name costs one look on average.
            self.names.shrink_to(2 * self.names.len());
            self.sweep_at = 2 * self.names.len();
        }
        let name = FieldName(Arc::new(()));
        self.names.insert(path.into(), name.clone());
        name
    }

    fn find(&self, path: &str) -> Option<FieldName> {
        self.names.get(path).cloned()
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        self.names.keys().map(|name| name.len() + 48).sum()
    }
}

/// A field's name with one of its values, or with none.
type Entry = (FieldName, Option<Scalar>);

/// The metadata of one item: every field's name with each of its values, in order, so that a field and those of its
/// values that a test asks for are found without a look at the others. A list stands for its elements; an object or a
/// list also says, without a value, that the field is there.
#[derive(Debug, Clone, Default)]
pub struct Fields(Box<[Entry]>);

impl Fields {
    /// Lays metadata flat.
    pub fn of(metadata: &Map<String, Value>, names: &mut FieldNames) -> Self {
        let mut flat = Vec::with_capacity(metadata.len());
        flatten_object(metadata, &mut String::new(), names, &mut flat);
        flat.sort_unstable_by(|(a, x), (b, y)| a.place().cmp(&b.place()).then_with(|| x.cmp(y)));
        Self(flat.into())
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        let text =
            |scalar: &Option<Scalar>| if let Some(Scalar::Text(text)) = scalar { text.len() } else { 0 };
        self.0.iter().map(|(_, scalar)| size_of::<Entry>() + text(scalar)).sum()
    }

    /// The entries of a field.
    fn of_field(&self, name: &FieldName) -> &[Entry] {
        let place = name.place();
        let from = self.0.partition_point(|(field, _)| field.place() < place);
        let found = &self.0[from..];
        &found[..found.partition_point(|(field, _)| field.place() == place)]
    }
}

/// The values of a field, in order.
#[derive(Clone, Copy)]
struct Values<'a>(&'a [Entry]);

impl<'a> Values<'a> {
    fn of(field: &'a [Entry]) -> Self {
        Self(&field[field.partition_point(|(_, value)| value.is_none())..])
    }

    fn iter(self) -> impl Iterator<Item = &'a Scalar> {
        self.0.iter().filter_map(|(_, value)| value.as_ref())
    }

    /// How many come before the first that is not `before`.
    fn count(self, before: impl Fn(&Scalar) -> bool) -> usize {
        self.0.partition_point(|(_, value)| value.as_ref().is_none_or(&before))
    }

    /// Those beyond a bound.
    fn within(self, bound: Bound, than: &Scalar) -> Self {
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
    fn any_in(self, set: &OneOf, passes: impl Fn(&Scalar) -> bool) -> bool {
        if set.len() < self.0.len() {
            set.iter().any(|value| self.has(value) && passes(value))
        } else {
            self.iter().any(|value| set.contains(value) && passes(value))
        }
    }
}

fn flatten_object(
    object: &Map<String, Value>,
    path: &mut String,
    names: &mut FieldNames,
    flat: &mut Vec<Entry>,
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

fn flatten(value: &Value, path: &mut String, names: &mut FieldNames, flat: &mut Vec<Entry>) {
    match value {
        Value::Object(object) => {
            flat.push((names.named(path), None));
            flatten_object(object, path, names, flat);
        }
        Value::Array(values) => {
            flat.push((names.named(path), None));
            values.iter().for_each(|value| flatten(value, path, names, flat));
        }
        scalar => flat.push((names.named(path), Scalar::of(scalar))),
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
    Field { name: Option<FieldName>, tests: Tests, none_of: OneOf, exists: Option<bool> },
}

/// What one value of a field has to pass.
#[derive(Debug)]
struct Tests {
    ranges: Vec<(Bound, Scalar)>,
    sets: Vec<OneOf>,
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
                name: names.find(path),
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
            // No item of the collection has the field.
            Self::Field { name: None, tests, exists, .. } => tests.is_empty() && *exists != Some(true),
            Self::Field { name: Some(name), tests, none_of, exists } => {
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
            None => !within.0.is_empty(),
            Some((set, others)) => within.any_in(set, |value| others.iter().all(|set| set.contains(value))),
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

    #[test]
    fn names_go_with_the_items_that_had_them() {
        let mut names = FieldNames::default();
        let item = |turn: usize| json!({format!("turn {turn}"): 1, "shared": {"colour": turn}});
        let mut kept = Fields::of(item(0).as_object().unwrap(), &mut names);
        let filter = Filter::from_value(&json!({"turn 1": 1})).unwrap();
        let searching = {
            let _gone = Fields::of(item(1).as_object().unwrap(), &mut names);
            CompiledFilter::new(&filter, &names)
        };
        for turn in 2..5 * FieldNames::SPARE {
            kept = Fields::of(item(turn).as_object().unwrap(), &mut names);
            assert!(names.names.len() <= FieldNames::SPARE + 2, "{turn}");
        }
        // What an item or a search that is under way has is not forgotten, nor made anew.
        let again = Fields::of(item(1).as_object().unwrap(), &mut names);
        assert!(searching.holds(&again) && !searching.holds(&kept));
        let shared = json!({"shared.colour": 5 * FieldNames::SPARE - 1});
        assert!(CompiledFilter::new(&Filter::from_value(&shared).unwrap(), &names).holds(&kept));
        assert_eq!(size_of::<Entry>(), 32);
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
