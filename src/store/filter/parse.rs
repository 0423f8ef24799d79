//! Parsing: JSON becomes a filter, or an error that names the place.

use serde_json::{Map, Value};

use super::{Bound, Condition, Filter, FilterError, Node, Scalar, Test};

/// Most levels of `$and`, `$or` and `$not`.
const MAX_DEPTH: usize = 8;
/// Most conditions of one filter.
const MAX_CONDITIONS: usize = 256;
/// Most members of all its objects and filters in all its lists: what a search may try on every item.
const MAX_PARTS: usize = 1024;
/// Most values of one list.
const MAX_VALUES: usize = 1000;
/// Most values of all lists.
const MAX_ALL_VALUES: usize = 4096;
/// Longest text of a filter: so many ids fit.
const MAX_BYTES: usize = 256 * 1024;

impl Filter {
    /// Understands a filter.
    ///
    /// # Errors
    /// [`FilterError`], with the place.
    pub fn from_value(value: &Value) -> Result<Self, FilterError> {
        let mut parser = Parser::default();
        parser.filter(value, 0).map(Self)
    }

    /// Understands the text of a filter.
    ///
    /// # Errors
    /// [`FilterError`], also when the text is no JSON or longer than 256 KiB.
    pub fn from_json(text: &str) -> Result<Self, FilterError> {
        let refuse = |reason| FilterError { at: String::new(), reason };
        if text.len() > MAX_BYTES {
            return Err(refuse(format!("{} bytes are too long, at most {MAX_BYTES} are taken", text.len())));
        }
        let value = serde_json::from_str(text).map_err(|error| refuse(format!("it is no JSON: {error}")))?;
        Self::from_value(&value)
    }
}

#[derive(Default)]
struct Parser {
    at: Vec<String>,
    parts: usize,
    conditions: usize,
    values: usize,
}

type Parsed<T> = Result<T, FilterError>;

impl Parser {
    fn refuse<T>(&self, reason: impl Into<String>) -> Parsed<T> {
        let mut at = String::new();
        for step in &self.at {
            if !at.is_empty() && !step.starts_with('[') {
                at.push('.');
            }
            at.extend(step.chars().take(64));
        }
        Err(FilterError { at, reason: reason.into() })
    }

    fn inside<T>(
        &mut self,
        step: impl Into<String>,
        parse: impl FnOnce(&mut Self) -> Parsed<T>,
    ) -> Parsed<T> {
        self.at.push(step.into());
        let parsed = parse(self)?;
        self.at.pop();
        Ok(parsed)
    }

    /// Counts parts before any of them is read.
    fn count(&mut self, parts: usize) -> Parsed<()> {
        self.parts += parts;
        if self.parts > MAX_PARTS {
            return self.refuse(format!(
                "there are more than {MAX_PARTS} parts, which are the members of objects and the filters in lists"
            ));
        }
        Ok(())
    }

    fn filter(&mut self, value: &Value, depth: usize) -> Parsed<Node> {
        let Value::Object(object) = value else {
            return self.refuse(format!(
                "a filter is an object such as {{\"colour\": \"red\"}}, not {}",
                kind(value)
            ));
        };
        if depth > MAX_DEPTH {
            return self.refuse(format!("it is nested deeper than {MAX_DEPTH} levels"));
        }
        self.count(object.len())?;
        let mut nodes = Vec::with_capacity(object.len());
        for (key, value) in object {
            let node = self.inside(key, |parser| parser.member(key, value, depth))?;
            nodes.push(node);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::All(nodes) })
    }

    fn member(&mut self, key: &str, value: &Value, depth: usize) -> Parsed<Node> {
        match key {
            "$and" => Ok(Node::All(self.filters(value, depth)?)),
            "$or" => Ok(Node::Any(self.filters(value, depth)?)),
            "$not" => Ok(Node::Not(Box::new(self.filter(value, depth + 1)?))),
            _ if key.starts_with('$') => self.refuse(
                "there is no such operator here: at this place $and, $or and $not are known, or the name of a field",
            ),
            _ => {
                self.conditions += 1;
                if self.conditions > MAX_CONDITIONS {
                    return self.refuse(format!("there are more than {MAX_CONDITIONS} conditions"));
                }
                Ok(Node::Field { path: key.to_owned(), condition: self.condition(value)? })
            }
        }
    }

    fn filters(&mut self, value: &Value, depth: usize) -> Parsed<Vec<Node>> {
        let Value::Array(values) = value else {
            return self.refuse(format!("it takes a list of filters, not {}", kind(value)));
        };
        self.count(values.len())?;
        let parse = |parser: &mut Self, (index, value)| {
            parser.inside(format!("[{index}]"), |parser| parser.filter(value, depth + 1))
        };
        values.iter().enumerate().map(|item| parse(self, item)).collect()
    }

    fn condition(&mut self, value: &Value) -> Parsed<Condition> {
        match value {
            Value::Object(operators) => self.operators(operators),
            Value::Array(_) => {
                self.refuse("a list cannot be compared: {\"$in\": [...]} asks for one of several values")
            }
            scalar => {
                let tests = vec![Test::OneOf(vec![self.scalar(scalar)?])];
                Ok(Condition { tests, ..Condition::default() })
            }
        }
    }

    fn operators(&mut self, operators: &Map<String, Value>) -> Parsed<Condition> {
        if operators.is_empty() {
            return self.refuse(
                "it has no operator: $eq, $ne, $in, $nin, $gt, $gte, $lt, $lte and $exists are known",
            );
        }
        let mut condition = Condition::default();
        for (operator, value) in operators {
            self.inside(operator, |parser| parser.operator(operator, value, &mut condition))?;
        }
        Ok(condition)
    }

    fn operator(&mut self, operator: &str, value: &Value, condition: &mut Condition) -> Parsed<()> {
        match operator {
            "$eq" => condition.tests.push(Test::OneOf(vec![self.scalar(value)?])),
            "$in" => condition.tests.push(Test::OneOf(self.scalars(value)?)),
            "$ne" => condition.none_of.push(self.scalar(value)?),
            "$nin" => condition.none_of.extend(self.scalars(value)?),
            "$gt" => condition.tests.push(self.range(Bound::Above, value)?),
            "$gte" => condition.tests.push(self.range(Bound::AtLeast, value)?),
            "$lt" => condition.tests.push(self.range(Bound::Below, value)?),
            "$lte" => condition.tests.push(self.range(Bound::AtMost, value)?),
            "$exists" => match value {
                Value::Bool(exists) => condition.exists = Some(*exists),
                _ => return self.refuse(format!("it takes true or false, not {}", kind(value))),
            },
            _ if operator.starts_with('$') => {
                return self.refuse(
                    "there is no such operator: $eq, $ne, $in, $nin, $gt, $gte, $lt, $lte and $exists are known",
                );
            }
            _ => {
                return self.refuse(
                    "an operator begins with $; a field inside an object is written with a dot, as in \"maker.country\"",
                );
            }
        }
        Ok(())
    }

    fn range(&self, bound: Bound, value: &Value) -> Parsed<Test> {
        match Scalar::of(value) {
            None | Some(Scalar::Null | Scalar::Bool(_)) => {
                self.refuse(format!("it takes a number or a string, not {}", kind(value)))
            }
            Some(than) => Ok(Test::Range { bound, than }),
        }
    }

    fn scalar(&self, value: &Value) -> Parsed<Scalar> {
        match Scalar::of(value) {
            Some(scalar) => Ok(scalar),
            None => {
                self.refuse(format!("it takes a string, a number, true, false or null, not {}", kind(value)))
            }
        }
    }

    fn scalars(&mut self, value: &Value) -> Parsed<Vec<Scalar>> {
        let Value::Array(values) = value else {
            return self.refuse(format!("it takes a list of values, not {}", kind(value)));
        };
        if values.len() > MAX_VALUES {
            return self
                .refuse(format!("{} values are too many, at most {MAX_VALUES} are taken", values.len()));
        }
        self.values += values.len();
        if self.values > MAX_ALL_VALUES {
            return self.refuse(format!("all lists together have more than {MAX_ALL_VALUES} values"));
        }
        values.iter().map(|value| self.scalar(value)).collect()
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn refusal(text: &str) -> String {
        Filter::from_json(text).unwrap_err().to_string()
    }

    #[test]
    fn refusals_name_the_place() {
        for (text, expected) in [
            ("", "it is no JSON"),
            ("[]", "a filter is an object such as {\"colour\": \"red\"}, not a list"),
            (r#"{"$xor":[]}"#, "at $xor: there is no such operator here"),
            (r#"{"$and":{}}"#, "at $and: it takes a list of filters, not an object"),
            (
                r#"{"$and":[{"a":1},{"price":{"$gte":null}}]}"#,
                "at $and[1].price.$gte: it takes a number or a string, not null",
            ),
            (r#"{"a":[1]}"#, "at a: a list cannot be compared: {\"$in\""),
            (r#"{"a":{}}"#, "at a: it has no operator: $eq"),
            (
                r#"{"a":{"b":1}}"#,
                "at a.b: an operator begins with $; a field inside an object is written with a dot",
            ),
            (r#"{"a":{"$like":1}}"#, "at a.$like: there is no such operator"),
            (r#"{"a":{"$in":1}}"#, "at a.$in: it takes a list of values, not a number"),
            (
                r#"{"a":{"$in":[[1]]}}"#,
                "at a.$in: it takes a string, a number, true, false or null, not a list",
            ),
            (r#"{"a":{"$exists":1}}"#, "at a.$exists: it takes true or false"),
            (r#"{"$not":1}"#, "at $not: a filter is an object"),
        ] {
            assert!(refusal(text).contains(expected), "{text}: {}", refusal(text));
        }
    }

    #[test]
    fn bounds_are_kept() {
        let nested = |n: usize| format!("{}{{\"a\":1}}{}", "{\"$not\":".repeat(n), "}".repeat(n));
        assert!(Filter::from_json(&nested(8)).is_ok());
        assert!(refusal(&nested(9)).contains("nested deeper than 8"));
        let many = |n: usize| format!("{{\"$or\":[{}]}}", vec!["{\"a\":1}"; n].join(","));
        assert!(Filter::from_json(&many(256)).is_ok());
        assert!(refusal(&many(257)).contains("more than 256 conditions"));
        let values = |n: usize| format!("{{\"a\":{{\"$in\":[{}]}}}}", vec!["1"; n].join(","));
        assert!(Filter::from_json(&values(1000)).is_ok());
        assert!(refusal(&values(1001)).contains("1001 values are too many"));
        assert!(refusal(&" ".repeat(300_000)).contains("at most 262144 are taken"));
    }

    #[test]
    fn what_has_no_field_is_bounded_too() {
        let list = |one: &str, n: usize| format!("{{\"$or\":[{}]}}", vec![one; n].join(","));
        // One for the list, and for each filter in it one and what it has.
        assert!(Filter::from_json(&list("{}", 1023)).is_ok());
        assert!(Filter::from_json(&list("{\"$not\":{}}", 511)).is_ok());
        assert!(Filter::from_json(&list("{\"$not\":{\"a\":1}}", 256)).is_ok());
        for (one, n) in
            [("{}", 1024), ("{\"$not\":{}}", 512), ("{\"$and\":[]}", 512), ("{\"$or\":[{}]}", 400)]
        {
            let told = refusal(&list(one, n));
            assert!(told.contains("more than 1024 parts") && told.contains("at $or"), "{told}");
        }
        // As the body of a search has it, in which there is no text to measure.
        let many = vec![serde_json::json!({ "$not": {} }); 50_000];
        let told = Filter::from_value(&serde_json::json!({ "$or": many })).unwrap_err().to_string();
        assert!(told.contains("at $or: there are more than 1024 parts"), "{told}");
        let one = format!("{{\"a\":{{\"$in\":[{}]}}}}", vec!["1"; 1000].join(","));
        assert!(Filter::from_json(&list(&one, 4)).is_ok());
        assert!(refusal(&list(&one, 5)).contains("more than 4096 values"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "[\\[\\]{}$:,\"a-z0-9.]{0,64}", any: String) {
            let _ = (Filter::from_json(&text), Filter::from_json(&any));
        }
    }
}
