//! Reads YAML or JSON into a JSON value without forgiveness.
//!
//! Owner: the control thread. A duplicate key is an error at its place, because one of the two would be dropped
//! silently; so are tags and numbers that JSON has not. YAML 1.1 merge keys are understood.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A JSON value read without forgiveness: duplicate keys, tags and numbers beyond JSON are errors.
pub(super) struct Strict(pub(super) Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value without tags")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key_seed(NewKey(&map))? {
            let Strict(value) = access.next_value()?;
            map.insert(key, value);
        }
        merge(&mut map).map_err(A::Error::custom)?;
        Ok(Value::Object(map))
    }
}

/// YAML 1.1 merge keys: `<<` brings in the fields of one mapping or of several, behind the mapping's own.
fn merge(map: &mut Map<String, Value>) -> Result<(), &'static str> {
    let sources = match map.remove("<<") {
        None => return Ok(()),
        Some(Value::Object(source)) => vec![Value::Object(source)],
        Some(Value::Array(sources)) => sources,
        Some(_) => return Err("<< needs a mapping or a list of mappings"),
    };
    for source in sources {
        let Value::Object(source) = source else { return Err("<< needs a mapping or a list of mappings") };
        for (key, value) in source {
            map.entry(key).or_insert(value);
        }
    }
    Ok(())
}

/// A key that is not in the mapping yet. Checked while the key is read, so that the error stands at the key's place.
struct NewKey<'a>(&'a Map<String, Value>);

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl NewKey<'_> {
    fn check<E: Error>(&self, key: String) -> Result<String, E> {
        if self.0.contains_key(&key) {
            return Err(E::custom(format_args!("{key:?} stands twice in one mapping")));
        }
        Ok(key)
    }
}

impl<'de> Visitor<'de> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<String, E> {
        self.check(v.to_owned())
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<String, E> {
        self.check(v.to_string())
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<String, E> {
        self.check(v.to_string())
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<String, E> {
        self.check(v.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn yaml(text: &str) -> Result<Value, String> {
        serde_yaml_ng::from_str::<Strict>(text).map(|s| s.0).map_err(|e| e.to_string())
    }

    #[test]
    fn merge_keys_bring_in_fields_behind_the_own_ones() {
        let value = yaml("x: &x {a: 1, b: 2}\ny: &y {c: 3}\nz: {<<: [*x, *y], b: '3'}").unwrap();
        assert_eq!(value["z"], json!({"a": 1, "b": "3", "c": 3}));
        assert!(yaml("<<: 7").is_err() && yaml("<<: [7]").is_err());
    }

    #[test]
    fn tags_and_endless_numbers_are_errors() {
        for text in ["a: !custom x", "a: .nan", "a: .inf"] {
            assert!(yaml(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_duplicate_key_is_an_error_at_the_second_one() {
        let error = yaml("a: 1\nb: 2\n'a': 3").unwrap_err();
        assert!(error.contains("\"a\" stands twice") && error.contains("line 3"), "{error}");
        assert!(serde_json::from_str::<Strict>(r#"{"a": {"b": 1, "b": 2}}"#).is_err());
    }
}
