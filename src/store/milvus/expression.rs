//! The expression: a filter in Milvus' language, as near as that can come to it.
//!
//! An order among the values of a field with several cannot be expressed. So a filter becomes two expressions: one
//! that holds wherever the filter does, and one that holds only where it does; under `$not` they change places. The
//! search asks for the first and tests what it finds.

use super::fields::{OPAQUE, spell, token};
use crate::store::ItemId;
use crate::store::filter::{Bound, Condition, Filter, Node, Scalar, Test};

/// An expression.
#[derive(Debug, Clone, PartialEq)]
enum Expression {
    Always,
    Never,
    Text(String),
}

use Expression::{Always, Never, Text};

impl Expression {
    fn all(parts: impl IntoIterator<Item = Self>) -> Self {
        Self::join(parts, " && ", Always, &Never)
    }

    fn any(parts: impl IntoIterator<Item = Self>) -> Self {
        Self::join(parts, " || ", Never, &Always)
    }

    /// Drops `neutral` parts; `absorbing` decides the whole.
    fn join(parts: impl IntoIterator<Item = Self>, word: &str, neutral: Self, absorbing: &Self) -> Self {
        let mut texts = Vec::new();
        for part in parts {
            match part {
                part if part == *absorbing => return part,
                Text(text) => texts.push(text),
                _ => {}
            }
        }
        match texts.len() {
            0 => neutral,
            1 => Text(texts.remove(0)),
            _ => Text(format!("({})", texts.join(word))),
        }
    }

    fn not(self) -> Self {
        match self {
            Always => Never,
            Never => Always,
            Text(text) => Text(format!("(not ({text}))")),
        }
    }
}

/// An expression that holds wherever the filter does, and one that holds only where it does.
struct Bounds {
    over: Expression,
    under: Expression,
}

impl Bounds {
    fn exact(expression: Expression) -> Self {
        Self { over: expression.clone(), under: expression }
    }

    fn join(bounds: Vec<Self>, join: fn(Vec<Expression>) -> Expression) -> Self {
        let (over, under) = bounds.into_iter().map(|bounds| (bounds.over, bounds.under)).unzip();
        Self { over: join(over), under: join(under) }
    }
}

/// Text as Milvus' parser reads it.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn list(texts: impl Iterator<Item = String>) -> String {
    let quoted: Vec<String> = texts.map(|text| quote(&text)).collect();
    format!("[{}]", quoted.join(","))
}

/// The items of these ids.
pub fn ids<'a>(ids: impl IntoIterator<Item = &'a ItemId>) -> String {
    format!("id in {}", list(ids.into_iter().map(|id| id.as_str().to_owned())))
}

/// What a search asks for: wherever the filter holds, and none of `exclude`. None when no item can count.
pub fn of_search(filter: Option<&Filter>, exclude: &[ItemId]) -> Option<String> {
    let wanted = filter.map_or(Always, |filter| of(&filter.0).over);
    let wanted = match wanted {
        // What cannot be told from its fields is tested like the rest.
        Text(text) => Text(format!("({text} || {})", is_there(&format!("fields[\"{OPAQUE}\"]")))),
        // Also then an opaque item cannot count: no filter that never holds depends on fields.
        decided => decided,
    };
    let others = if exclude.is_empty() {
        Always
    } else {
        Text(format!("id not in {}", list(exclude.iter().map(|id| id.as_str().to_owned()))))
    };
    match Expression::all([wanted, others]) {
        Always => Some(String::new()),
        Never => None,
        Text(text) => Some(text),
    }
}

fn of(node: &Node) -> Bounds {
    match node {
        Node::All(nodes) => Bounds::join(nodes.iter().map(of).collect(), Expression::all),
        Node::Any(nodes) => Bounds::join(nodes.iter().map(of).collect(), Expression::any),
        Node::Not(node) => {
            let Bounds { over, under } = of(node);
            Bounds { over: under.not(), under: over.not() }
        }
        Node::Field { path, condition } => of_field(&format!("fields[\"{}\"]", spell(path)), condition),
    }
}

fn of_field(field: &str, condition: &Condition) -> Bounds {
    let Condition { tests, none_of, exists } = condition;
    let others = match none_of.as_slice() {
        [] => Always,
        values => contains(field, values).not(),
    };
    let there = match exists {
        None => Always,
        Some(true) => Text(is_there(field)),
        Some(false) => Text(is_there(field)).not(),
    };
    Bounds::join(vec![of_tests(field, tests), Bounds::exact(others), Bounds::exact(there)], Expression::all)
}

/// Only within brackets may it stand beside && and ||.
fn is_there(field: &str) -> String {
    format!("(exists {field})")
}

fn contains(field: &str, values: &[Scalar]) -> Expression {
    match values {
        [] => Never,
        [value] => Text(format!("json_contains({field}, {})", quote(&token(value)))),
        values => Text(format!("json_contains_any({field}, {})", list(values.iter().map(token)))),
    }
}

/// One and the same value passes all tests.
fn of_tests(field: &str, tests: &[Test]) -> Bounds {
    match tests {
        [] => Bounds::exact(Always),
        [Test::OneOf(values)] => Bounds::exact(contains(field, values)),
        tests => {
            let first = Expression::all(tests.iter().map(|test| of_first(field, test)));
            // Of a field with several values only the first is tested; the others may pass or not.
            let rest = tests.iter().map(|test| match test {
                Test::OneOf(values) => contains(field, values),
                Test::Range { .. } => Always,
            });
            let several = Text(is_there(&format!("{field}[1]")));
            let rest = Expression::all(std::iter::once(several).chain(rest));
            Bounds { over: Expression::any([first.clone(), rest]), under: first }
        }
    }
}

fn of_first(field: &str, test: &Test) -> Expression {
    match test {
        Test::OneOf(values) if values.is_empty() => Never,
        Test::OneOf(values) => Text(format!("{field}[0] in {}", list(values.iter().map(token)))),
        Test::Range { bound, than } => {
            let value = quote(&token(than));
            // Tokens of one type begin with its letter, and end before the next letter.
            let (first, end) = if matches!(than, Scalar::Text(_)) { ("s", "t") } else { ("n", "o") };
            let (low, high) = match bound {
                Bound::Above => (format!("> {value}"), format!("< \"{end}\"")),
                Bound::AtLeast => (format!(">= {value}"), format!("< \"{end}\"")),
                Bound::Below => (format!(">= \"{first}\""), format!("< {value}")),
                Bound::AtMost => (format!(">= \"{first}\""), format!("<= {value}")),
            };
            Text(format!("({field}[0] {low} && {field}[0] {high})"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(filter: &str) -> Option<String> {
        of_search(Some(&Filter::from_json(filter).unwrap()), &[])
    }

    #[test]
    fn filters_are_expressed() {
        assert_eq!(of("{}").unwrap(), "");
        assert_eq!(of(r#"{"$or":[]}"#), None);
        assert_eq!(of(r#"{"a":{"$in":[]}}"#), None);
        assert_eq!(of(r#"{"$not":{"$or":[]}}"#).unwrap(), "");
        for (filter, expected) in [
            (r#"{"a":"b\"c"}"#, r#"json_contains(fields["fa"], "sb\"c")"#),
            (r#"{"a.b":{"$in":[true,null]}}"#, r#"json_contains_any(fields["fa_2eb"], ["b1","z"])"#),
            (r#"{"a":{"$ne":true}}"#, r#"(not (json_contains(fields["fa"], "b1")))"#),
            (r#"{"a":{"$exists":false}}"#, r#"(not ((exists fields["fa"])))"#),
            (
                r#"{"a":{"$gt":"x"}}"#,
                r#"((fields["fa"][0] > "sx" && fields["fa"][0] < "t") || (exists fields["fa"][1]))"#,
            ),
            (
                r#"{"$not":{"a":{"$lte":"x"}}}"#,
                r#"(not ((fields["fa"][0] >= "s" && fields["fa"][0] <= "sx")))"#,
            ),
        ] {
            assert_eq!(of(filter).unwrap(), format!("({expected} || (exists fields[\"~\"]))"));
        }
        let exclude = [ItemId::new("a'\\").unwrap()];
        assert_eq!(of_search(None, &exclude).unwrap(), r#"id not in ["a'\\"]"#);
    }
}
