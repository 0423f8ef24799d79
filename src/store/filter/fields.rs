//! Fields: metadata laid flat, so that a filter tests an item in nanoseconds.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Scalar;

/// The name of a field, once for all items of a collection that have it; told from others by where it is in memory.
#[derive(Debug, Clone)]
pub struct FieldName(Arc<()>);

impl FieldName {
    fn place(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

/// The names of the fields that occur in a collection. Those of items that are gone go too, in time.
#[derive(Debug, Default)]
pub struct FieldNames {
    names: HashMap<Box<str>, FieldName>,
    /// Bytes of memory, about.
    bytes: usize,
    /// How many these are when names that nobody has any more are next looked for.
    sweep_at: usize,
}

impl FieldNames {
    /// Bytes of names that are kept whether or not anybody has them.
    const SPARE: usize = 64 << 10;

    /// The name of a field, which is there as long as anybody has it.
    pub fn named(&mut self, path: &str) -> FieldName {
        if let Some(name) = self.names.get(path) {
            return name.clone();
        }
        self.bytes += Self::bytes_of(path);
        if self.bytes > self.sweep_at.max(Self::SPARE) {
            self.names.retain(|_, name| Arc::strong_count(&name.0) > 1);
            self.bytes =
                Self::bytes_of(path) + self.names.keys().map(|name| Self::bytes_of(name)).sum::<usize>();
            // Twice as many: so that a name costs one look on average.
            self.names.shrink_to(2 * self.names.len());
            self.sweep_at = 2 * self.bytes;
        }
        let name = FieldName(Arc::new(()));
        self.names.insert(path.into(), name.clone());
        name
    }

    fn bytes_of(path: &str) -> usize {
        path.len() + 48
    }

    /// The name of a field, where anybody has it.
    pub fn find(&self, path: &str) -> Option<FieldName> {
        self.names.get(path).cloned()
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A field's name with one of its values, or with none.
pub type Entry = (FieldName, Option<Scalar>);

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
    pub fn of_field(&self, name: &FieldName) -> &[Entry] {
        let place = name.place();
        let from = self.0.partition_point(|(field, _)| field.place() < place);
        let found = &self.0[from..];
        &found[..found.partition_point(|(field, _)| field.place() == place)]
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::filter::{CompiledFilter, Filter};
    use serde_json::json;

    #[test]
    fn names_go_with_the_items_that_had_them() {
        let mut names = FieldNames::default();
        let item = |turn: usize| json!({format!("turn {turn}"): 1, "shared": {"colour": turn}});
        let mut kept = Fields::of(item(0).as_object().unwrap(), &mut names);
        let filter = Filter::from_value(&json!({"turn 1": 1})).unwrap();
        let searching = {
            let _gone = Fields::of(item(1).as_object().unwrap(), &mut names);
            CompiledFilter::new(&filter, |path| names.named(path))
        };
        let last = FieldNames::SPARE / 10;
        for turn in 2..=last {
            kept = Fields::of(item(turn).as_object().unwrap(), &mut names);
            let bytes: usize = names.names.keys().map(|name| FieldNames::bytes_of(name)).sum();
            assert!(bytes == names.bytes() && bytes <= FieldNames::SPARE + 200, "{turn}");
        }
        for turn in 0..20 {
            names.named(&format!("{turn}{}", "x".repeat(FieldNames::SPARE)));
        }
        assert!(names.bytes() < 4 * FieldNames::SPARE, "{}", names.bytes());
        // What an item or a search that is under way has is not forgotten, nor made anew.
        let again = Fields::of(item(1).as_object().unwrap(), &mut names);
        assert!(searching.holds(&again) && !searching.holds(&kept));
        let shared = json!({"shared.colour": last});
        assert!(
            CompiledFilter::new(&Filter::from_value(&shared).unwrap(), |path| names.named(path)).holds(&kept)
        );
        assert_eq!(size_of::<Entry>(), 32);
    }

    #[test]
    fn a_filter_knows_fields_that_come_after_it() {
        let mut names = FieldNames::default();
        let filter = Filter::from_value(&json!({"colour": {"$ne": "red"}})).unwrap();
        let filter = CompiledFilter::new(&filter, |path| names.named(path));
        let mut holds = |colour| {
            let item = json!({ "colour": colour });
            filter.holds(&Fields::of(item.as_object().unwrap(), &mut names))
        };
        assert!(!holds("red") && holds("blue"));
    }
}
