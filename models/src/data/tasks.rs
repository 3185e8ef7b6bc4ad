//! What labelers are asked, from files.

use collimate_protocol::records::{LabelTask, TaskKind};
use serde_json::{Map, Value};

use super::dialogue::{Problem, shown};
use super::records::Record;
use super::schema::Schema;

impl Record for LabelTask {
    const NAME: &'static str = "task";

    /// Responses are to be ranked, two of them compared; to a prompt alone, a response is to be written. A column `kind`
    /// says otherwise (`rank` for two), and `origin` where they came from.
    fn read(schema: Schema, row: &Map<String, Value>) -> Problem<Self> {
        use Schema::{Preference, PreferredDialogue, Ranking, Responses, Scored, UltraFeedback};
        let origin = match row.get("origin").filter(|origin| !origin.is_null()) {
            None => Default::default(),
            Some(origin) => serde_json::from_value(origin.clone())
                .map_err(|error| format!("key `origin` is {}: {error}", shown(origin)))?,
        };
        if !matches!(schema, Ranking | Scored | UltraFeedback | Preference | PreferredDialogue | Responses) {
            let prompt = schema.prompt(row)?.prompt;
            return Ok(Self { kind: TaskKind::Write, prompt, responses: Vec::new(), tokens: None, origin });
        }
        let (prompt, responses, tokens) = schema.responses(row)?;
        let kind = match row.get("kind").and_then(Value::as_str) {
            Some("rank") => TaskKind::Rank,
            Some("compare") => TaskKind::Compare,
            _ if responses.len() == 2 => TaskKind::Compare,
            _ => TaskKind::Rank,
        };
        Ok(Self { kind, prompt, responses, tokens, origin })
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::Records;
    use super::super::records::tests::file;
    use super::*;

    fn tasks(content: &str) -> Vec<LabelTask> {
        let file = file(content);
        Records::<LabelTask>::read(file.path()).unwrap().into_records()
    }

    #[test]
    fn what_is_asked_follows_from_how_many_responses_there_are() {
        let many = tasks(
            r#"{"prompt": "a", "responses": ["b", "c", "d"], "origin": {"policy_version": 7}}
               {"prompt": "a", "responses": ["b", "c"], "tokens": {"prompt": [1], "responses": [[2], [3]]}}
               {"prompt": "a", "responses": ["b", "c"], "kind": "rank"}"#,
        );
        assert_eq!(
            many.iter().map(|task| task.kind).collect::<Vec<_>>(),
            [TaskKind::Rank, TaskKind::Compare, TaskKind::Rank]
        );
        assert_eq!(many[0].origin.policy_version, Some(7));
        assert_eq!(many[1].tokens.as_ref().unwrap().responses, [[2], [3]]);
        let preferred = tasks(r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#);
        assert_eq!((preferred[0].kind, preferred[0].responses.len()), (TaskKind::Compare, 2));
        assert_eq!(tasks(r#"{"instruction": "Sing."}"#)[0].kind, TaskKind::Write);
    }

    #[test]
    fn an_origin_with_unknown_keys_is_named() {
        let file = file(r#"{"prompt": "a", "responses": ["b", "c"], "origin": {"version": 7}}"#);
        let error = Records::<LabelTask>::read(file.path()).unwrap_err().to_string();
        assert!(error.contains(":1: key `origin` is") && error.contains("unknown field `version`"), "{error}");
    }
}
