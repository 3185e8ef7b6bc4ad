//! A config's defaults as TOML, each key under its doc comment.
//!
//! The comments are schemars' descriptions, which are the fields' doc comments: what the code says of a field and
//! what `collimate config` says of it cannot drift apart. The printed text parses back to the defaults.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};

/// The defaults of `T` as TOML with comments. `table` is the header that the keys stand under (`ppo`), or empty for
/// the top level. A key that is unset by default stands commented out.
pub fn with_comments<T: Serialize + Default + JsonSchema>(table: &str) -> Result<String, toml::ser::Error> {
    let text = toml::to_string(&T::default())?;
    let schema = schemars::schema_for!(T).to_value();
    let printer = Printer { root: &schema };
    let defaults = DeTable::parse(&text).expect("toml reads what toml wrote");
    let mut out = String::new();
    for line in description(&schema) {
        out.push_str(&format!("# {line}\n"));
    }
    if !table.is_empty() {
        out.push_str(&format!("[{table}]\n"));
    }
    printer.table(table, defaults.get_ref(), &schema, &mut out);
    Ok(out)
}

struct Printer<'a> {
    /// The whole schema, for its `$defs`.
    root: &'a Json,
}

impl Printer<'_> {
    /// The keys of one table, then the tables under it.
    fn table(&self, path: &str, defaults: &DeTable<'_>, schema: &Json, out: &mut String) {
        // A table is sorted by name; the struct's order is that of the text.
        let mut entries: Vec<_> = defaults.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let (tables, values): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|(_, value)| matches!(value.get_ref(), DeValue::Table(_)));

        for (key, value) in values {
            let key = key.get_ref();
            self.comment(property(schema, key), out);
            out.push_str(&format!("{key} = {}\n", plain(value.get_ref())));
        }
        let unset = properties(schema).filter(|(key, _)| !defaults.iter().any(|(name, _)| name.get_ref() == *key));
        let (unset_tables, unset_values): (Vec<_>, Vec<_>) = unset
            .partition(|(_, schema)| self.variants(schema).iter().any(|variant| variant.get("properties").is_some()));
        for (key, schema) in unset_values {
            self.comment(schema, out);
            out.push_str(&format!("#{key} = {}\n", self.placeholder(schema)));
        }
        for (key, value) in tables {
            let DeValue::Table(inner) = value.get_ref() else { continue };
            let property = property(schema, key.get_ref());
            let path = joined(path, key.get_ref());
            out.push('\n');
            self.comment(property, out);
            out.push_str(&format!("[{path}]\n"));
            let variants = self.variants(property);
            let chosen = variants.iter().copied().find(|variant| is_variant(variant, inner)).unwrap_or(&Json::Null);
            self.table(&path, inner, chosen, out);
        }
        for (key, schema) in unset_tables {
            out.push('\n');
            self.comment(schema, out);
            self.unset_table(&joined(path, key), schema, out);
        }
    }

    /// A table that is absent by default, commented out, in each of its forms.
    fn unset_table(&self, path: &str, schema: &Json, out: &mut String) {
        let variants = self.variants(schema);
        for (idx, variant) in variants.iter().enumerate() {
            if idx > 0 {
                out.push_str("# or\n");
            }
            if variants.len() > 1 {
                for line in description(variant) {
                    out.push_str(&format!("# {line}\n"));
                }
            }
            out.push_str(&format!("#[{path}]\n"));
            for (key, schema) in properties(variant) {
                if schema.get("const").is_none() {
                    self.comment(schema, out);
                }
                out.push_str(&format!("#{key} = {}\n", self.placeholder(schema)));
            }
        }
    }

    /// The doc comment of a key, and the values it may have where they are named.
    fn comment(&self, schema: &Json, out: &mut String) {
        let mut lines = description(schema);
        for variant in self.variants(schema).into_iter().filter(|_| schema.get("const").is_none()) {
            if let Some(name) = variant.get("const").and_then(Json::as_str) {
                lines.push(format!("- \"{name}\": {}", description(variant).join(" ")));
            }
            let names: Vec<&str> =
                variant.get("enum").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
            if !names.is_empty() {
                lines.push(format!("- \"{}\"", names.join("\", \"")));
            }
        }
        for line in lines {
            out.push_str(&format!("# {line}\n"));
        }
    }

    /// The schemas that a value may follow: references followed, `null` left out.
    fn variants<'s>(&'s self, schema: &'s Json) -> Vec<&'s Json> {
        if let Some(reference) = schema.get("$ref").and_then(Json::as_str) {
            let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            return target.map(|target| self.variants(target)).unwrap_or_default();
        }
        for alternatives in ["oneOf", "anyOf", "allOf"] {
            if let Some(items) = schema.get(alternatives).and_then(Json::as_array) {
                return items.iter().flat_map(|item| self.variants(item)).collect();
            }
        }
        if schema.get("type").and_then(Json::as_str) == Some("null") { Vec::new() } else { vec![schema] }
    }

    /// A value of the right type for a key that has none by default.
    fn placeholder(&self, schema: &Json) -> String {
        let given = schema.get("const").or_else(|| schema.get("default")).filter(|value| !value.is_null());
        if let Some(value) = given.and_then(|value| toml::Value::try_from(value).ok()) {
            return value.to_string();
        }
        let variants = self.variants(schema);
        let Some(first) = variants.first() else { return "\"\"".into() };
        if let Some(name) = first.get("const").or_else(|| first.pointer("/enum/0")).and_then(Json::as_str) {
            return format!("\"{name}\"");
        }
        let kinds = first.get("type");
        let kind = kinds.and_then(Json::as_str).or_else(|| kinds.and_then(|kinds| kinds.get(0)).and_then(Json::as_str));
        match kind {
            Some("integer") => "0",
            Some("number") => "0.0",
            Some("boolean") => "false",
            Some("array") => "[]",
            Some("object") => "{}",
            _ => "\"\"",
        }
        .to_owned()
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The doc comment, line by line.
fn description(schema: &Json) -> Vec<String> {
    let text = schema.get("description").and_then(Json::as_str).unwrap_or_default();
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

fn properties(schema: &Json) -> impl Iterator<Item = (&str, &Json)> {
    schema.get("properties").and_then(Json::as_object).into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

fn property<'s>(schema: &'s Json, key: &str) -> &'s Json {
    schema.get("properties").and_then(|properties| properties.get(key)).unwrap_or(&Json::Null)
}

/// Whether a table is of this form: every constant of the form (its tag) is in it.
fn is_variant(variant: &Json, table: &DeTable<'_>) -> bool {
    let constants = properties(variant).filter_map(|(key, schema)| Some((key, schema.get("const")?.as_str()?)));
    variant.get("properties").is_some()
        && constants.into_iter().all(|(key, constant)| {
            table.iter().any(|(name, value)| name.get_ref() == key && value.get_ref().as_str() == Some(constant))
        })
}

fn plain(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => toml::Value::String(text.to_string()).to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        // Tables in a list stand one a line.
        DeValue::Array(items) if items.iter().any(|item| matches!(item.get_ref(), DeValue::Table(_))) => {
            let lines: String = items.iter().map(|item| format!("    {},\n", plain(item.get_ref()))).collect();
            format!("[\n{lines}]")
        }
        DeValue::Array(items) => {
            format!("[{}]", items.iter().map(|item| plain(item.get_ref())).collect::<Vec<_>>().join(", "))
        }
        DeValue::Table(table) => {
            let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
                format!(
                    "{} = {}",
                    AsRef::<str>::as_ref(key.get_ref() as &std::borrow::Cow<'_, str>),
                    plain(value.get_ref())
                )
            };
            format!("{{ {} }}", table.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// What a stage does.
    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Stage {
        /// Weight of the pretraining loss.
        /// 0 leaves it out.
        ptx_coef: f64,
        /// Rollouts an update.
        batch_size: usize,
        /// Where its files lie.
        paths: Vec<String>,
        /// How it runs.
        mode: Mode,
        /// A tokenizer to take.
        tokenizer: Option<String>,
        /// The optimiser.
        optim: Optim,
        /// The reward, where there is one.
        reward: Option<Reward>,
        /// The gold scorer.
        gold: Reward,
    }

    impl Default for Stage {
        fn default() -> Self {
            Self {
                ptx_coef: 27.8,
                batch_size: 512,
                paths: vec!["a\"b".into()],
                mode: Mode::Threaded,
                tokenizer: None,
                optim: Optim { lr: 1e-5 },
                reward: None,
                gold: Reward::Length { target: 3 },
            }
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        /// One thread each.
        Threaded,
        /// All on one thread.
        Deterministic,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Optim {
        /// Learning rate.
        lr: f64,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
    enum Reward {
        /// By length.
        Length {
            /// The best length.
            target: usize,
        },
        /// By pattern.
        Regex {
            /// What to look for.
            pattern: String,
        },
    }

    #[test]
    fn defaults_are_printed_in_order_under_their_comments() {
        let text = with_comments::<Stage>("ppo").unwrap();
        assert_eq!(
            text,
            r#"# What a stage does.
[ppo]
# Weight of the pretraining loss.
# 0 leaves it out.
ptx_coef = 27.8
# Rollouts an update.
batch_size = 512
# Where its files lie.
paths = ['a"b']
# How it runs.
# - "threaded": One thread each.
# - "deterministic": All on one thread.
mode = "threaded"
# A tokenizer to take.
#tokenizer = ""

# The optimiser.
[ppo.optim]
# Learning rate.
lr = 0.00001

# The gold scorer.
[ppo.gold]
kind = "length"
# The best length.
target = 3

# The reward, where there is one.
# By length.
#[ppo.reward]
#kind = "length"
# The best length.
#target = 0
# or
# By pattern.
#[ppo.reward]
#kind = "regex"
# What to look for.
#pattern = ""
"#
        );
    }

    #[test]
    fn what_is_printed_parses_back_to_the_defaults() {
        let bare: Stage = toml::from_str(&with_comments::<Stage>("").unwrap()).unwrap();
        assert_eq!(bare, Stage::default());
        let mut under: toml::Table = toml::from_str(&with_comments::<Stage>("ppo").unwrap()).unwrap();
        assert_eq!(under.remove("ppo").unwrap().try_into::<Stage>().unwrap(), Stage::default());
    }

    #[test]
    fn what_is_commented_out_is_valid_when_the_comment_sign_goes() {
        let text = with_comments::<Stage>("").unwrap().replace("#tokenizer", "tokenizer");
        let stage: Stage = toml::from_str(&text).unwrap();
        assert_eq!(stage.tokenizer, Some(String::new()));
    }
}
