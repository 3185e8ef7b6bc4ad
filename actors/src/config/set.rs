//! `--set a.b=value`: one setting, written as a line of the file would be.

use toml::{Table, Value};

use super::file::{ConfigError, Place};

/// Sets one key in a table, making the tables above it where they are absent. The value is TOML; what is no TOML is
/// text, so that `--set ppo.mode=deterministic` needs no quotes.
pub fn apply(table: &mut Table, argument: &str) -> Result<(), ConfigError> {
    let bad = |problem: String| ConfigError::Bad { place: Place::Set(argument.to_owned()), problem };
    let (path, text) =
        argument.split_once('=').ok_or_else(|| bad("expected KEY=VALUE, as in --set ppo.ptx_coef=0".into()))?;
    let keys = keys_of(path.trim()).ok_or_else(|| bad(format!("`{}` is no key; expected a.b.c", path.trim())))?;
    let (last, above) = keys.split_last().expect("a key path has at least one key");
    let mut table = table;
    for (depth, key) in above.iter().enumerate() {
        let value = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
        let kind = value.type_str();
        table = value.as_table_mut().ok_or_else(|| {
            bad(format!("`{}` is a value ({kind}), and has no keys of its own", keys[..=depth].join(".")))
        })?;
    }
    table.insert(last.clone(), value_of(text.trim()));
    Ok(())
}

/// Splits a dotted path as TOML does, quoted keys included.
fn keys_of(path: &str) -> Option<Vec<String>> {
    if path.contains('\n') {
        return None;
    }
    let mut table: Table = toml::from_str(&format!("{path} = 0")).ok()?;
    let mut keys = Vec::new();
    loop {
        let (key, value) = std::mem::take(&mut table).into_iter().next()?;
        keys.push(key);
        match value {
            Value::Table(inner) => table = inner,
            _ => return Some(keys),
        }
    }
}

fn value_of(text: &str) -> Value {
    let table: Option<Table> = toml::from_str(&format!("value = {text}")).ok();
    let value = table.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(arguments: &[&str]) -> Result<String, String> {
        let mut table = Table::new();
        for argument in arguments {
            apply(&mut table, argument).map_err(|error| error.to_string())?;
        }
        Ok(toml::to_string(&table).unwrap())
    }

    #[test]
    fn values_are_toml_and_otherwise_text() {
        let text = applied(&["a=1", "b=1.5", "c=true", "d=[\"x\", \"y\"]", "e=plain words", "f=\"3\"", "g=a=b", "h="]);
        assert_eq!(
            text.unwrap(),
            "a = 1\nb = 1.5\nc = true\nd = [\"x\", \"y\"]\ne = \"plain words\"\nf = \"3\"\ng = \"a=b\"\nh = \"\"\n"
        );
    }

    #[test]
    fn a_value_cannot_smuggle_in_another_key() {
        assert_eq!(applied(&["a=1\nb=2"]).unwrap(), "a = \"\"\"\n1\nb=2\"\"\"\n");
    }

    #[test]
    fn later_settings_win_and_tables_are_made_on_the_way() {
        assert_eq!(applied(&["x.y.z=1", "x.y.z=2", "x.w=3"]).unwrap(), "[x]\nw = 3\n\n[x.y]\nz = 2\n");
    }

    #[test]
    fn what_is_no_assignment_is_refused() {
        assert_eq!(
            applied(&["ppo.ptx_coef"]).unwrap_err(),
            "--set ppo.ptx_coef: expected KEY=VALUE, as in --set ppo.ptx_coef=0"
        );
        assert_eq!(
            applied(&["a=1", "a.b=1"]).unwrap_err(),
            "--set a.b=1: `a` is a value (integer), and has no keys of its own"
        );
        assert_eq!(applied(&["a..b=1"]).unwrap_err(), "--set a..b=1: `a..b` is no key; expected a.b.c");
    }
}
