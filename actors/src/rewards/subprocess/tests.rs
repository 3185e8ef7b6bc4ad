//! The processes here are shell scripts, and what they do wrong they do at once: no test waits longer than its own time
//! limit.

use serde_json::json;

use super::*;

/// Far longer than any script takes, so that a busy machine fails no test.
const AMPLE_S: f64 = 60.0;

fn shell(script: &str, timeout_s: f64) -> SubprocessReward {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    SubprocessReward::start(&SubprocessConfig { command, timeout_s }).unwrap()
}

fn request(response: &str) -> RewardRequest {
    RewardRequest {
        prompt_tokens: vec![1, 2],
        response_tokens: vec![3, 0],
        prompt: "It \"was\"\n".into(),
        response: response.into(),
        finish: FinishReason::End,
    }
}

fn error(script: &str, n_requests: usize) -> String {
    shell(script, AMPLE_S).scores(&vec![request("a"); n_requests]).unwrap_err().to_string()
}

#[test]
fn each_request_is_a_line_and_so_is_each_answer() {
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let script = r#"while read -r line; do printf '%s\n' "$line" >> "$0"; echo '{"score": -1.5, "why": "no"}'; done"#;
    let command = ["sh", "-c", script, seen.to_str().unwrap()].map(str::to_owned).to_vec();
    let mut reward = SubprocessReward::start(&SubprocessConfig { command, timeout_s: AMPLE_S }).unwrap();
    let cut_off = RewardRequest { finish: FinishReason::Length, ..request("ünd so") };
    assert_eq!(reward.scores(&[request("a"), cut_off]).unwrap(), [-1.5, -1.5]);
    let lines = std::fs::read_to_string(seen).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = |response: &str, finish: &str| {
        json!({"prompt": "It \"was\"\n", "response": response, "prompt_tokens": [1, 2], "response_tokens": [3, 0],
               "finish": finish})
    };
    assert_eq!(lines, [expected("a", "end"), expected("ünd so", "length")]);
}

#[test]
fn answers_keep_the_order_of_the_requests_over_several_batches() {
    let mut reward = shell("n=0; while read -r line; do n=$((n+1)); echo $n; done", AMPLE_S);
    assert_eq!(reward.scores(&[request("a"), request("b"), request("c")]).unwrap(), [1.0, 2.0, 3.0]);
    assert!(reward.scores(&[]).unwrap().is_empty());
    assert_eq!(reward.scores(&[request("d")]).unwrap(), [4.0]);
}

#[test]
fn more_text_than_a_pipe_holds_blocks_neither_side() {
    let mut reward = shell("while read -r line; do echo 0.25; done", AMPLE_S);
    let requests = vec![request(&"word ".repeat(1000)); 64];
    assert_eq!(reward.scores(&requests).unwrap(), [0.25; 64]);
}

#[test]
fn a_process_that_can_not_be_started_is_named() {
    let start = |command: &[&str], timeout_s| {
        let command = command.iter().map(|&part| part.to_owned()).collect();
        SubprocessReward::start(&SubprocessConfig { command, timeout_s }).err().unwrap().to_string()
    };
    let message = start(&["/nonexistent/reward", "--fast"], 1.0);
    assert!(message.starts_with("the reward process `/nonexistent/reward --fast` can't be run: "), "{message}");
    assert_eq!(start(&[], 1.0), "the reward process has no `command`");
    for timeout_s in [0.0, -1.0, f64::NAN] {
        assert!(start(&["true"], timeout_s).contains("expected a positive number"));
    }
}

#[test]
fn a_process_that_dies_is_reported_with_its_status_and_last_words() {
    let message = error("read -r line; echo 1; echo loading >&2; echo 'out of memory' >&2; exit 3", 2);
    let expected = "ended (exit status: 3) before it answered request 2 of 2; the end of its standard error:\n    \
                    loading\n    out of memory";
    assert!(message.ends_with(expected), "{message}");
    let message = error("kill -9 $$", 1);
    assert!(message.contains("before it answered request 1 of 1"), "{message}");
    let message = error("exec >&- 2>&-; cat > /dev/null; tail -f /dev/null", 1);
    assert!(message.contains("closed its output before it answered request 1 of 1"), "{message}");
}

#[test]
fn an_answer_that_is_no_score_is_quoted_with_its_request() {
    let bad = |answer: &str| error(&format!("read -r line; echo 1; read -r line; echo '{answer}'; cat > /dev/null"), 2);
    for answer in ["good", "NaN", "1e40", "{\"score\": null}", "{\"reward\": 1}", "[1]", "", "{\"score\": NaN}"] {
        let message = bad(answer);
        assert!(
            message.contains(&format!("answered request 2 of 2 with {answer:?}, expected one finite")),
            "{message}"
        );
    }
    let message = bad(&"x".repeat(1000));
    assert!(message.contains("x…") && message.len() < 800, "{message}");
}

#[test]
fn a_process_that_does_not_answer_in_time_is_given_up() {
    let silent = "echo thinking >&2; cat > /dev/null";
    let mut reward = shell(silent, 0.05);
    let message = reward.scores(&[request("a")]).unwrap_err().to_string();
    assert!(message.contains("has not answered request 1 of 1 within 0.05 s"), "{message}");
    let message = reward.scores(&[request("a")]).unwrap_err().to_string();
    assert!(message.ends_with("has been given up after an error"), "{message}");

    // One that does not even read: more than its pipe holds must not block us.
    let requests = vec![request(&"word ".repeat(1000)); 64];
    let message = shell("tail -f /dev/null", 0.05).scores(&requests).unwrap_err().to_string();
    assert!(message.contains("has not answered request 1 of 64"), "{message}");
}

#[test]
fn a_line_that_answers_no_request_is_an_error() {
    let mut reward = shell("while read -r line; do printf '1\\n2\\n'; done", AMPLE_S);
    // The second line may come a little after the first.
    let message = (0..1000).find_map(|_| reward.scores(&[request("a")]).err()).unwrap().to_string();
    assert!(message.contains("which answers no request"), "{message}");
}

#[test]
fn the_process_is_killed_when_its_reward_is_dropped() {
    let mut reward = shell("read -r line; echo $$; while :; do read -r line; done", AMPLE_S);
    let id = reward.scores(&[request("a")]).unwrap()[0] as i32;
    // SAFETY: signal 0 only asks whether the process is there.
    let is_there = || unsafe { libc::kill(id, 0) } == 0;
    assert!(is_there());
    drop(reward);
    assert!(!is_there());
}
