//! The numbers in a record, by name: what becomes a TensorBoard scalar or a curve of the report.

use serde_json::Value;

/// The finite numbers of a JSON object, named by their keys from the top (`batch/score`), in order of name.
pub fn of(record: &Value) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    collect(record, "", &mut found);
    found
}

fn collect(value: &Value, name: &str, found: &mut Vec<(String, f64)>) {
    match value {
        Value::Number(number) => found.extend(number.as_f64().map(|number| (name.to_owned(), number))),
        Value::Object(fields) => {
            for (key, value) in fields {
                let name = if name.is_empty() { key.clone() } else { format!("{name}/{key}") };
                collect(value, &name, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_named_by_the_way_to_them() {
        let record = serde_json::json!({"a": 1, "b": {"c": 2.5, "text": "x", "none": null, "d": {"e": -3}}, "l": [1]});
        let found = of(&record);
        assert_eq!(found, [("a".into(), 1.0), ("b/c".into(), 2.5), ("b/d/e".into(), -3.0)]);
    }
}
