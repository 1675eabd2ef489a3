//! Objects of files, checked as the API server checks them: against the schemas of the CustomResourceDefinitions, so that a misspelt
//! field is an error with its place and not a setting that silently does not count.
//!
//! CEL rules are the API server's alone; those that a folder needs are in `directory`, by hand.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use regex::Regex;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use crate::api::crds;
use crate::package::yaml;

/// A value of YAML or JSON that knows where it stands.
#[derive(Clone, Debug)]
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

/// One document of a file, not yet looked at.
pub(super) struct Document {
    file: String,
    root: Spanned<Node>,
}

/// What is wrong in a file, with its place: `agents.yaml:7:3: spec.trustLevel: must be at most 4`.
pub(super) type Mistakes = Vec<String>;

/// The documents of a text. A mistake in the text itself is the only one that is said.
pub(super) fn documents(file: &str, text: &str) -> Result<Vec<Document>, Mistakes> {
    let mut out = Vec::new();
    for root in yaml::read_all::<Spanned<Node>>(file, text) {
        let root = root.map_err(|e| vec![e.to_string()])?;
        match &root.value {
            Node::Scalar(Value::Null) => {}
            _ => out.push(Document { file: file.to_owned(), root }),
        }
    }
    Ok(out)
}

impl Document {
    /// Where it begins: `FILE:LINE`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.root.defined.line())
    }

    /// A text at the top, such as `kind`.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.member(name)? {
            Node::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    fn member(&self, name: &str) -> Option<&Node> {
        let Node::Map(members) = &self.root.value else { return None };
        members.iter().find(|(key, _)| key.value == name).map(|(_, value)| &value.value)
    }

    /// The items of a `kind: List`, as documents of their own.
    pub fn items(self) -> Vec<Document> {
        let Node::Map(members) = self.root.value else { return Vec::new() };
        let items = members.into_iter().find(|(key, _)| key.value == "items").map(|(_, value)| value.value);
        let Some(Node::List(items)) = items else { return Vec::new() };
        items.into_iter().map(|root| Document { file: self.file.clone(), root }).collect()
    }

    /// The object, if its spec is what the kind's schema says. Status is left out: only Remit writes it.
    pub fn object<K: DeserializeOwned>(&self, kind: &str) -> Result<K, Mistakes> {
        let mut found = Found { file: &self.file, mistakes: Vec::new() };
        let schema = schemas().get(kind);
        if let (Node::Map(members), Some(schema)) = (&self.root.value, schema) {
            for (key, value) in members {
                match (key.value.as_str(), schema.properties.as_ref().and_then(|p| p.get(&key.value))) {
                    ("apiVersion" | "kind" | "metadata" | "status", _) => {}
                    (name, Some(schema)) => found.check(schema, value, name),
                    (name, None) => found.say(key, &format!("{name}: is no field of a {kind}")),
                }
            }
            if !members.iter().any(|(key, _)| key.value == "spec") {
                found.say(&self.root, "spec: is missing");
            }
        }
        if !found.mistakes.is_empty() {
            return Err(found.mistakes);
        }
        let mut value = self.root.value.json();
        if let Some(map) = value.as_object_mut() {
            map.remove("status");
        }
        serde_path_to_error::deserialize(value)
            .map_err(|e| vec![format!("{}: {}: {}", self.place(), e.path(), e.inner())])
    }
}

/// Schemas by kind, made once.
fn schemas() -> &'static HashMap<String, JSONSchemaProps> {
    static SCHEMAS: OnceLock<HashMap<String, JSONSchemaProps>> = OnceLock::new();
    SCHEMAS.get_or_init(|| {
        let of = |crd: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
            let version = crd.spec.versions.into_iter().next()?;
            Some((crd.spec.names.kind, version.schema?.open_api_v3_schema?))
        };
        crds().into_iter().filter_map(of).collect()
    })
}

struct Found<'a> {
    file: &'a str,
    mistakes: Mistakes,
}

impl Found<'_> {
    fn say<T>(&mut self, at: &Spanned<T>, what: &str) {
        self.mistakes.push(format!("{}:{}:{}: {what}", self.file, at.referenced.line(), at.referenced.column()));
    }

    fn check(&mut self, schema: &JSONSchemaProps, at: &Spanned<Node>, path: &str) {
        if schema.x_kubernetes_preserve_unknown_fields == Some(true) {
            return;
        }
        let wanted = schema.type_.as_deref().unwrap_or_default();
        match &at.value {
            Node::Map(members) if wanted == "object" => self.members(schema, at, members, path),
            Node::List(items) if wanted == "array" => self.items(schema, at, items, path),
            Node::Scalar(value) if fits(wanted, value) => {
                if let Some(why) = scalar(schema, value) {
                    self.say(at, &format!("{path}: {why}"));
                }
            }
            other => self.say(at, &format!("{path}: must be {}, not {}", word(wanted), other.kind())),
        }
    }

    fn members(
        &mut self,
        schema: &JSONSchemaProps,
        at: &Spanned<Node>,
        members: &[(Spanned<String>, Spanned<Node>)],
        path: &str,
    ) {
        for (key, value) in members {
            let below = format!("{path}.{}", key.value);
            let known = schema.properties.as_ref().and_then(|p| p.get(&key.value));
            match (known, &schema.additional_properties) {
                (Some(schema), _) => self.check(schema, value, &below),
                (None, Some(JSONSchemaPropsOrBool::Schema(schema))) => self.check(schema, value, &below),
                (None, Some(JSONSchemaPropsOrBool::Bool(true))) => {}
                (None, _) => {
                    let names: Vec<&str> =
                        schema.properties.iter().flat_map(|p| p.keys()).map(String::as_str).collect();
                    self.say(key, &format!("{below}: is no field here: there are {}", names.join(", ")));
                }
            }
        }
        for name in schema.required.iter().flatten() {
            if !members.iter().any(|(key, _)| key.value == *name) {
                self.say(at, &format!("{path}.{name}: is missing"));
            }
        }
        if let Some(why) = bounds("fields", members.len(), schema.min_properties, schema.max_properties) {
            self.say(at, &format!("{path}: {why}"));
        }
    }

    fn items(&mut self, schema: &JSONSchemaProps, at: &Spanned<Node>, items: &[Spanned<Node>], path: &str) {
        if let Some(why) = bounds("items", items.len(), schema.min_items, schema.max_items) {
            return self.say(at, &format!("{path}: {why}"));
        }
        if let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items {
            for (n, item) in items.iter().enumerate() {
                self.check(schema, item, &format!("{path}[{n}]"));
            }
        }
        if schema.x_kubernetes_list_type.as_deref() == Some("set") {
            let values: Vec<Value> = items.iter().map(|item| item.value.json()).collect();
            if let Some(n) = (1..values.len()).find(|n| values[..*n].contains(&values[*n])) {
                self.say(&items[n], &format!("{path}[{n}]: is there already"));
            }
        }
    }
}

fn fits(wanted: &str, value: &Value) -> bool {
    match wanted {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => false,
    }
}

fn scalar(schema: &JSONSchemaProps, value: &Value) -> Option<String> {
    if let Some(known) = &schema.enum_
        && !known.iter().any(|k| k.0 == *value)
    {
        let known: Vec<String> =
            known.iter().map(|k| k.0.as_str().map_or_else(|| k.0.to_string(), Into::into)).collect();
        return Some(format!("must be one of {}", known.join(", ")));
    }
    if let Some(number) = value.as_f64() {
        if schema.minimum.is_some_and(|min| number < min) {
            return schema.minimum.map(|min| format!("must be at least {min}"));
        }
        return schema.maximum.filter(|max| number > *max).map(|max| format!("must be at most {max}"));
    }
    let text = value.as_str()?;
    if let Some(why) = bounds("characters", text.chars().count(), schema.min_length, schema.max_length) {
        return Some(why);
    }
    let pattern = schema.pattern.as_deref()?;
    match Regex::new(pattern) {
        Ok(regex) if regex.is_match(text) => None,
        _ => Some(format!("must match {pattern}")),
    }
}

fn bounds(what: &str, count: usize, min: Option<i64>, max: Option<i64>) -> Option<String> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    match (min, max) {
        (Some(min), _) if count < min => Some(format!("has {count} {what}, at least {min} are needed")),
        (_, Some(max)) if count > max => Some(format!("has {count} {what}, at most {max} are taken")),
        _ => None,
    }
}

fn word(wanted: &str) -> &str {
    match wanted {
        "object" => "a map",
        "array" => "a list",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        _ => "a text",
    }
}

impl Node {
    fn json(&self) -> Value {
        match self {
            Node::Scalar(value) => value.clone(),
            Node::List(items) => Value::Array(items.iter().map(|item| item.value.json()).collect()),
            Node::Map(members) => {
                let members = members.iter().map(|(key, value)| (key.value.clone(), value.value.json()));
                Value::Object(members.collect::<Map<_, _>>())
            }
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Node::Scalar(Value::Null) => "empty",
            Node::Scalar(Value::Bool(_)) => "true or false",
            Node::Scalar(Value::Number(_)) => "a number",
            Node::Scalar(_) => "a text",
            Node::List(_) => "a list",
            Node::Map(_) => "a map",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

fn plain<E: de::Error>(value: impl Serialize) -> Result<Node, E> {
    serde_json::to_value(value).map(Node::Scalar).map_err(E::custom)
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, true, false, a list or a map")
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Node, E> {
        plain(v)
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Node, E> {
        plain(v)
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Node, E> {
        plain(v)
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Node, E> {
        plain(v)
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Node, E> {
        plain(v)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Node::Map(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Agent;

    fn agent(spec: &str) -> Result<Agent, Mistakes> {
        let text = format!("apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata: {{name: coder}}\nspec:\n{spec}");
        documents("agents.yaml", &text)?[0].object("Agent")
    }

    #[test]
    fn a_good_object_is_read_from_yaml_and_json() {
        let read =
            agent("  trustLevel: 2\n  teams: [a, b]\n  attributes: {region: eu}\nstatus: {any: thing}\n").unwrap();
        assert_eq!((read.spec.trust_level, read.spec.teams.len()), (2, 2));
        let json = r#"{"kind":"Agent","metadata":{"name":"x"},"spec":{"trustLevel":1}}"#;
        let read: Agent = documents("a.json", json).unwrap()[0].object("Agent").unwrap();
        assert_eq!(read.metadata.name.as_deref(), Some("x"));
    }

    #[test]
    fn every_pattern_of_a_schema_is_one_that_is_understood_here() {
        fn patterns(schema: &JSONSchemaProps, out: &mut Vec<String>) {
            out.extend(schema.pattern.clone());
            schema.properties.iter().flat_map(|p| p.values()).for_each(|s| patterns(s, out));
            if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
                patterns(item, out);
            }
        }
        let mut all = Vec::new();
        schemas().values().for_each(|schema| patterns(schema, &mut all));
        assert!(all.len() > 5);
        all.iter().for_each(|pattern| drop(Regex::new(pattern).unwrap()));
    }

    #[test]
    fn every_mistake_is_named_with_its_place_and_field() {
        for (spec, place, words) in [
            ("  trustLevl: 2\n", ":5:3: ", "spec.trustLevl: is no field here"),
            ("  trustLevel: 5\n", ":5:15: ", "spec.trustLevel: must be at most 4"),
            ("  trustLevel: '2'\n", ":5:15: ", "spec.trustLevel: must be a whole number, not a text"),
            ("  session: Maybe\n", ":5:12: ", "spec.session: must be one of"),
            ("  type: 'Not good'\n", ":5:9: ", "spec.type: must match"),
            ("  teams: [a, a]\n", ":5:14: ", "spec.teams[1]: is there already"),
            ("  delegation: {fixed: {kind: User}}\n", ":5:23: ", "spec.delegation.fixed.name: is missing"),
            ("  {}\nspce: {}\n", ":6:1: ", "spce: is no field of a Agent"),
        ] {
            let mistakes = agent(spec).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            assert!(
                mistakes[0].starts_with(&format!("agents.yaml{place}")) && mistakes[0].contains(words),
                "{mistakes:?}"
            );
        }
        let both = agent("  trustLevel: 5\n  session: Maybe\n").unwrap_err();
        assert_eq!(both.len(), 2, "{both:?}");
        let twice = agent("  trustLevel: 1\n  trustLevel: 2\n").unwrap_err();
        assert!(twice[0].contains("agents.yaml:6:"), "{twice:?}");
    }
}
