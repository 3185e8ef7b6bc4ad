use serde_json::json;

use super::*;

fn row(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn turns(contents: &[&str]) -> Vec<Message> {
    let role = |i| if i % 2 == 0 { Role::User } else { Role::Assistant };
    contents.iter().enumerate().map(|(i, text)| Message { role: role(i), content: (*text).to_owned() }).collect()
}

fn demonstration(value: Value) -> Problem<Demonstration> {
    let row = row(value);
    Schema::of(&row)?.demonstration(&row)
}

fn comparison(value: Value) -> Problem<Comparison> {
    let row = row(value);
    Schema::of(&row)?.comparison(&row)
}

fn prompt(value: Value) -> Problem<PromptText> {
    let row = row(value);
    Ok(Schema::of(&row)?.prompt(&row)?.prompt)
}

fn preference(prompt: PromptText, chosen: &str, rejected: &str) -> Comparison {
    Comparison { prompt, responses: vec![chosen.into(), rejected.into()], ranks: vec![1, 2], tokens: None }
}

#[test]
fn prompts_with_responses_in_each_spelling() {
    let expected = Demonstration::Response { prompt: "a".into(), response: "b".into() };
    assert_eq!(demonstration(json!({"prompt": "a", "response": "b", "source": "x"})).unwrap(), expected);
    assert_eq!(demonstration(json!({"prompt": "a", "completion": "b"})).unwrap(), expected);
    let dialogue = json!({"prompt": [{"role": "user", "content": "a"}], "response": "b"});
    let prompt = PromptText::Messages(turns(&["a"]));
    assert_eq!(demonstration(dialogue).unwrap(), Demonstration::Response { prompt, response: "b".into() });
}

#[test]
fn instructions_are_a_users_turn() {
    let with_input = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
    let prompt = PromptText::Messages(turns(&["Add.\n1 2"]));
    assert_eq!(demonstration(with_input).unwrap(), Demonstration::Response { prompt, response: "3".into() });
    let with_history = json!({
        "instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]],
    });
    let Demonstration::Response { prompt: PromptText::Messages(asked), .. } = demonstration(with_history).unwrap()
    else {
        panic!("not a response")
    };
    assert_eq!(asked[0], Message { role: Role::System, content: "s".into() });
    assert_eq!(asked[1..], turns(&["a", "b", "c"]));
}

#[test]
fn dialogues_of_both_kinds_are_learnt_whole_and_sampled_up_to_the_users_last_turn() {
    let openai = json!({"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]}, {"role": "assistant", "content": "d"},
    ]});
    let share_gpt = json!({"id": "7", "conversations": [
        {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"},
        {"from": "gpt", "value": "d"},
    ]});
    for dialogue in [openai, share_gpt] {
        let messages = turns(&["a", "b", "c", "d"]);
        assert_eq!(demonstration(dialogue.clone()).unwrap(), Demonstration::Dialogue { messages });
        assert_eq!(prompt(dialogue).unwrap(), PromptText::Messages(turns(&["a", "b", "c"])));
    }
}

#[test]
fn preferences_in_each_form_are_comparisons_of_two() {
    let asked = PromptText::Messages(turns(&["a", "b", "c"]));
    let transcript = |answer| format!("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: {answer}");
    let user = |text| json!({"role": "user", "content": text});
    let assistant = |text| json!({"role": "assistant", "content": text});
    for same in [
        json!({"chosen": transcript("yes"), "rejected": transcript("no")}),
        json!({"prompt": [user("a"), assistant("b"), user("c")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}),
        json!({
            "prompt": "c", "chosen": [user("a"), assistant("b"), user("c"), assistant("yes")],
            "rejected": [user("a"), assistant("b"), user("c"), assistant("no")], "score_chosen": 4.5,
        }),
        json!({
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}],
            "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"},
        }),
        json!({"prompt": [user("a"), assistant("b"), user("c")], "chosen": "yes", "rejected": "no"}),
    ] {
        assert_eq!(comparison(same.clone()).unwrap(), preference(asked.clone(), "yes", "no"), "{same}");
        assert_eq!(prompt(same).unwrap(), asked);
    }
    let plain = json!({"prompt": "a", "chosen": "yes", "rejected": "no"});
    assert_eq!(comparison(plain).unwrap(), preference("a".into(), "yes", "no"));
    let short = json!({"prompt": "a", "chosen": [assistant("yes")], "rejected": [assistant("no")]});
    assert_eq!(comparison(short).unwrap(), preference(PromptText::Messages(turns(&["a"])), "yes", "no"));
}

#[test]
fn scored_lists_become_rankings_with_their_ties() {
    let scored = json!({"prompt": "a", "responses": ["b", "c", "d", "e"], "scores": [3, 5.5, 3, -1]});
    let ranked = comparison(scored).unwrap();
    assert_eq!((ranked.prompt, ranked.ranks), ("a".into(), vec![2, 1, 2, 4]));
    let ultra = json!({"source": "x", "instruction": "a", "models": ["m", "n"], "completions": [
        {"model": "m", "response": "b", "overall_score": 6.5}, {"model": "n", "response": "c", "overall_score": 8},
    ]});
    let ranked = comparison(ultra).unwrap();
    assert_eq!(ranked.prompt, PromptText::Messages(turns(&["a"])));
    assert_eq!((ranked.responses, ranked.ranks), (vec!["b".into(), "c".into()], vec![2, 1]));
}

#[test]
fn what_is_wrong_with_a_row_is_said_with_its_key() {
    let message = |problem: Problem<Comparison>| problem.unwrap_err();
    for (problem, expected) in [
        (demonstration(json!({"prompt": 1, "response": "b"})).unwrap_err(), "key `prompt` is 1, expected a text or"),
        (
            demonstration(json!({"prompt": "a", "response": ["b"]})).unwrap_err(),
            "key `response` is [\"b\"], expected a text",
        ),
        (
            demonstration(json!({"prompt": "a", "reponse": "b"})).unwrap_err(),
            "is of prompts, expected demonstrations; did you mean `response` by `reponse`?",
        ),
        (
            demonstration(json!({"instruction": "a", "inputs": "b", "output": "c"})).unwrap_err(),
            "unknown key `inputs`: did you mean `input`?",
        ),
        (
            demonstration(json!({"messages": [{"role": "tool", "content": "x"}]})).unwrap_err(),
            "key `messages[0].role` is \"tool\", expected system, user (human) or assistant (gpt)",
        ),
        (
            demonstration(json!({"messages": [{"role": "user", "content": "x"}]})).unwrap_err(),
            "key `messages` does not end with an answer",
        ),
        (
            demonstration(json!({"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]})).unwrap_err(),
            "key `messages[0].tool_calls` is not supported",
        ),
        (
            demonstration(json!({"conversations": [{"from": "human"}]})).unwrap_err(),
            "key `conversations[0].value` is missing",
        ),
        (
            demonstration(json!({"messages": [], "label": true})).unwrap_err(),
            "key `label` is not supported: it says which responses are good",
        ),
        (
            message(comparison(
                json!({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}),
            )),
            "`chosen` and `rejected` answer different prompts",
        ),
        (
            message(comparison(json!({"chosen": "Hi!", "rejected": "Ho!"}))),
            "key `chosen` begins with \"Hi!\", expected a transcript",
        ),
        (message(comparison(json!({"prompt": "a", "responses": ["b"], "scores": ["x"]}))), "key `scores` is [\"x\"]"),
        (
            message(comparison(json!({"prompt": "a", "responses": ["b", "c"], "scores": [1]}))),
            "has 2 responses and 1 numbers under `scores`",
        ),
        (
            message(comparison(json!({"instruction": "a", "completions": [{"response": "b", "overall_score": null}]}))),
            "key `completions[0].overall_score` is null, expected a number",
        ),
        (message(comparison(json!({"text": "a"}))), "is of text, expected comparisons"),
        (message(comparison(json!({"promt": "a", "choosen": "b"}))), "did you mean `chosen` by `choosen`?"),
    ] {
        assert!(problem.contains(expected), "{problem}\nexpected {expected}");
    }
}
