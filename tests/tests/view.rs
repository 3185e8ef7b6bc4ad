//! A run is looked at over HTTP: who may look, what is shown, and what is told by itself.

use collimate::label::store::{Store, places, tasks};
use collimate::rundir::event_log::LoggedEvent;
use collimate::web::Token;
use collimate_protocol::messages::RunEvent;
use collimate_protocol::records::{Arm, EvaluatedPolicy};
use collimate_protocol::{PolicyVersion, Role, RoleId};
use collimate_tests::shown::{ShownRun, answer, labelled_update, rollout, update};
use serde_json::{Value, json};
use ureq::http::Method;

const GUARDED: [(Method, &str); 15] = [
    (Method::GET, "/api/run"),
    (Method::GET, "/api/curves?columns=batch/score&n_buckets=10"),
    (Method::GET, "/api/rollouts"),
    (Method::GET, "/api/rollouts/1"),
    (Method::GET, "/api/evaluation"),
    (Method::GET, "/api/evaluation/1"),
    (Method::GET, "/api/rounds/1/run"),
    (Method::GET, "/api/rounds/all/run"),
    (Method::GET, "/api/rounds/all/curves?columns=batch/score&n_buckets=10"),
    (Method::GET, "/api/events"),
    (Method::POST, "/api/rounds/1/rollouts/1/label"),
    (Method::POST, "/api/rollouts/1/label"),
    (Method::POST, "/api/control/pause"),
    (Method::POST, "/api/settings"),
    (Method::POST, "/api/reward-model"),
];

#[test]
fn nothing_is_told_or_done_without_the_runs_own_token() {
    let page = ShownRun::new(&[update(1, 0.5)], &[]);
    let viewer = &page.viewer;
    // What another server, of labels for one, has given out.
    let foreign = Token::random().reveal();
    let cookies =
        [String::new(), format!("Bearer {foreign}"), "Bearer nonsense".to_owned(), format!("Basic {}", viewer.token)];
    for (method, path) in GUARDED {
        for authorization in &cookies {
            let answer = viewer.ask(method.clone(), path, &[("authorization", authorization)], "");
            assert_eq!(answer.status, 401, "{method} {path} with `{authorization}`");
            assert!(answer.body["error"].as_str().unwrap().contains("the run's token"), "{}", answer.body);
        }
        let labelers = format!("collimate-label-9470={}; collimate-view-1={}", viewer.token, viewer.token);
        assert_eq!(viewer.ask(method.clone(), path, &[("cookie", &labelers)], "").status, 401, "{method} {path}");
    }
    let answer = viewer.post("/api/login", &json!({ "token": foreign }));
    assert_eq!((answer.status, answer.header("set-cookie")), (401, ""));
}

#[test]
fn a_login_gives_a_strict_cookie_that_opens_the_page() {
    let page = ShownRun::new(&[update(1, 0.5)], &[]);
    let viewer = &page.viewer;
    let headers = [("content-type", "application/json"), ("origin", viewer.base.as_str())];
    let body = json!({ "token": viewer.token }).to_string();
    let answer = viewer.ask(Method::POST, "/api/login", &headers, &body);
    assert_eq!(answer.status, 200);
    let cookie = answer.header("set-cookie").to_owned();
    assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(viewer.ask(Method::GET, "/api/run", &[("cookie", cookie)], "").status, 200);
    let start = viewer.ask(Method::GET, "/", &[], "");
    assert_eq!((start.status, start.header("content-type")), (200, "text/html; charset=utf-8"));
    for (name, value) in [("x-frame-options", "DENY"), ("x-content-type-options", "nosniff")] {
        assert_eq!(start.header(name), value);
    }
    let policy = start.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
}

#[test]
fn what_a_foreign_page_sends_and_what_is_too_large_or_malformed_is_refused() {
    let page = ShownRun::new(&[update(1, 0.5)], &[]);
    let viewer = &page.viewer;
    let bearer = format!("Bearer {}", viewer.token);
    let json_type = ("content-type", "application/json");
    let own = [("authorization", bearer.as_str()), json_type];
    let with = |header| [own[0], own[1], header];
    for foreign in [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
        for path in ["/api/control/pause", "/api/settings", "/api/reward-model", "/api/login", "/api/rollouts/1/label"]
        {
            let answer = viewer.ask(Method::POST, path, &with(foreign), "{\"lr\": 0.1}");
            assert_eq!(answer.status, 403, "{path} with {foreign:?}");
        }
    }
    // A name of another site that leads to this machine.
    assert_eq!(viewer.ask(Method::GET, "/api/run", &with(("host", "evil.example")), "").status, 421);
    let large = format!("{{\"lr\": {}}}", "1".repeat(100_000));
    assert_eq!(viewer.ask(Method::POST, "/api/settings", &own, &large).status, 413);
    for (body, status) in [
        ("{", 400),
        ("{\"lr\": \"fast\"}", 422),
        ("{\"learning_rate\": 1}", 422),
        ("{}", 422),
        ("{\"lr\": -1}", 422),
        ("{\"kl_coef\": 1e999}", 400),
    ] {
        let answer = viewer.ask(Method::POST, "/api/settings", &own, body);
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert!(answer.body["error"].is_string(), "{body}");
    }
    assert_eq!(viewer.ask(Method::POST, "/api/settings", &[own[0]], "{\"lr\": 1}").status, 415);
    for query in
        ["columns=a&n_buckets=0", "columns=a&n_buckets=9999999", "columns=a&n_buckets=9&smoothing=1", "n_buckets=x"]
    {
        let answer = viewer.ask(Method::GET, &format!("/api/curves?{query}"), &own, "");
        assert!([400, 422].contains(&answer.status), "{query}: {}", answer.status);
    }
    assert_eq!(viewer.ask(Method::GET, "/api/rollouts?sort=secret", &own, "").status, 400);
    assert_eq!(viewer.ask(Method::GET, "/api/rollouts/7", &own, "").status, 404);
    // There is no run in this process to be commanded.
    let answer = viewer.post("/api/settings", &json!({ "lr": 0.5 }));
    assert_eq!(answer.status, 409, "{}", answer.body);
    assert_eq!(viewer.post("/api/control/pause", &json!(null)).status, 409);
    for (body, status) in [(json!({}), 422), (json!({ "dir": "" }), 422), (json!({ "path": "x" }), 422)] {
        assert_eq!(viewer.post("/api/reward-model", &body).status, status, "{body}");
    }
    assert_eq!(viewer.post("/api/reward-model", &json!({ "dir": "/models/b" })).status, 409);
}

#[test]
fn a_browser_that_was_away_hears_what_it_missed_and_one_of_another_server_reads_anew() {
    let page = ShownRun::new(&[update(1, 0.5)], &[]);
    let run = page.viewer.get("/api/run");
    assert_eq!(run["last"], json!([1.0, 0.0, 0.0, null]));
    let mut first = page.viewer.listen(run["id"].as_str().unwrap());
    page.live.updated(&update(2, 0.75));
    let heard = first.until(|message| message["kind"] == "updated");
    assert_eq!((&heard["at"][0], &heard["numbers"]["batch/score"]), (&json!(2.0), &json!(0.75)));
    let last = first.last_id().to_owned();
    drop(first);
    page.live.updated(&update(3, f64::NAN));
    let event = RunEvent::Warning { role: RoleId::only(Role::Recorder), message: "full".into() };
    page.live.happened(LoggedEvent::now(PolicyVersion(3), event));
    let mut again = page.viewer.listen(&last);
    let missed: Vec<Value> = (0..2).map(|_| again.until(|message| message["kind"] != "status")).collect();
    assert_eq!((&missed[0]["at"][0], &missed[0]["numbers"]["batch/score"]), (&json!(3.0), &Value::Null));
    assert_eq!((&missed[1]["event"], &missed[1]["message"]), (&json!("warning"), &json!("full")));
    for other in ["", "00000000-1", "nonsense"] {
        let first = page.viewer.listen(other).until(|message| message["kind"] != "status");
        assert_eq!(first["kind"], "reset", "{other}");
    }
    let curves = page.viewer.get("/api/curves?columns=batch/score,none&n_buckets=100&smoothing=0.5");
    assert_eq!(curves["batch/score"]["raw"], json!({"x": [1.0, 2.0, 3.0], "y": [0.5, 0.75, null]}));
    assert!(curves.get("none").is_none());
}

#[test]
fn rollouts_come_in_pages_with_their_tokens_and_what_is_hostile_stays_text() {
    let hostile = "<script>alert(1)</script><img src=x onerror=alert(2)> \u{202e}\u{200b} javascript:alert(3)";
    let rollouts = [rollout(0, 1, hostile), rollout(1, 2, "plain"), rollout(2, 1, "plain too")];
    let page = ShownRun::new(&[update(1, 0.5)], &rollouts);
    let best = page.viewer.get("/api/rollouts?sort=score&limit=2");
    assert_eq!(
        (&best["total"], &best["rows"][0]["id"], best["rows"].as_array().unwrap().len()),
        (&json!(3), &json!(3), 2)
    );
    let new = page.viewer.get("/api/rollouts?after_id=2&sort=id&ascending=true");
    assert_eq!((&new["total"], &new["rows"][0]["id"]), (&json!(1), &json!(3)));
    let of_prompt = page.viewer.get("/api/rollouts?prompt_id=1&sort=id&ascending=true");
    assert_eq!((&of_prompt["total"], &of_prompt["rows"][1]["version"]), (&json!(2), &json!(2)));
    assert_eq!(page.viewer.get("/api/rollouts?search=PLAIN%20t")["total"], 1);
    let bearer = format!("Bearer {}", page.viewer.token);
    let answer = page.viewer.ask(Method::GET, "/api/rollouts/1", &[("authorization", &bearer)], "");
    assert_eq!(
        (answer.header("content-type"), answer.header("x-content-type-options")),
        ("application/json", "nosniff")
    );
    assert_eq!(answer.body["response"], hostile);
    let pieces: String =
        answer.body["tokens"]["response"].as_array().unwrap().iter().map(|piece| piece.as_str().unwrap()).collect();
    assert_eq!(pieces, hostile);
}

#[test]
fn each_round_is_there_by_its_number_and_the_newest_is_followed() {
    let round = |n: u64, text: &str| {
        let updates = (1..=n).map(|version| update(version, n as f64)).collect();
        (updates, vec![rollout(0, n, text), rollout(1, n, "another")])
    };
    let page = ShownRun::of_rounds(&[round(3, "of the first"), round(2, "of the second")]);
    let viewer = &page.viewer;
    let (run, first) = (viewer.get("/api/run"), viewer.get("/api/rounds/1/run"));
    assert_eq!((&run["name"], &run["round"], &run["last"][0]), (&json!("instructgpt"), &json!(2), &json!(2.0)));
    assert_eq!(run["rounds"], json!([{ "round": 1, "has_ppo": true }, { "round": 2, "has_ppo": true }]));
    assert_eq!((&first["round"], &first["followed"], &first["last"][0]), (&json!(1), &json!(2), &json!(3.0)));
    assert_eq!((&first["is_commandable"], &first["id"]), (&json!(false), &run["id"]), "messages are of the other");
    let curve = |prefix: &str| {
        let curves = viewer.get(&format!("{prefix}/curves?columns=batch/score&n_buckets=10"));
        curves["batch/score"]["raw"]["y"].clone()
    };
    assert_eq!((curve("/api/rounds/1"), curve("/api")), (json!([3.0, 3.0, 3.0]), json!([2.0, 2.0])));
    let text = |path: &str| viewer.get(path)["response"].clone();
    assert_eq!(text("/api/rounds/1/rollouts/1"), "of the first");
    assert_eq!(text("/api/rollouts/1"), "of the second");
    assert_eq!(viewer.get("/api/rounds/1/rollouts?search=second")["total"], 0);
    let asked = viewer.post("/api/rounds/1/rollouts/1/label", &json!({}));
    assert_eq!((asked.status, &asked.body["n_responses"]), (200, &json!(2)), "{}", asked.body);

    page.begin_round(3);
    let run = viewer.get("/api/run");
    assert_eq!((&run["round"], &run["last"], &run["followed"]), (&json!(3), &Value::Null, &json!(3)));
    assert_eq!(run["rounds"][2], json!({ "round": 3, "has_ppo": false }));
    assert_eq!((curve("/api/rounds/2"), curve("/api/rounds/1")), (json!([2.0, 2.0]), json!([3.0, 3.0, 3.0])));
    let bearer = format!("Bearer {}", viewer.token);
    for round in ["0", "4", "x", "..", "%2e%2e", "..%2Fround-1", "round-1", "1%2F..%2F1", "%ff", "-1"] {
        for rest in ["run", "rollouts", "rollouts/1", "evaluation"] {
            let path = format!("/api/rounds/{round}/{rest}");
            let answer = viewer.ask(Method::GET, &path, &[("authorization", &bearer)], "");
            assert_eq!(answer.status, 404, "{path}: {}", answer.body);
        }
    }
}

#[test]
fn all_rounds_are_one_line_that_the_newest_goes_on_and_over_labels_the_updates_of_a_round_share_a_place() {
    let round = |n: u64, n_labels: u64| {
        let updates = (1..=n).map(|version| labelled_update(version, n as f64, n_labels)).collect();
        (updates, Vec::new())
    };
    let page = ShownRun::of_rounds(&[round(3, 80), round(2, 120)]);
    let viewer = &page.viewer;
    let raw = |prefix: &str, axis: &str| {
        let path = format!("{prefix}/curves?columns=batch/score,none&n_buckets=10&axis={axis}");
        let curves = viewer.get(&path);
        assert!(curves.get("none").is_none());
        curves["batch/score"]["raw"].clone()
    };
    let own = json!({ "x": [120.0, 120.0], "y": [2.0, 2.0], "updates": [1.0, 2.0] });
    assert_eq!(raw("/api", "labels"), own);
    let by_update = json!({ "x": [1.0, 2.0, 3.0, 4.0, 5.0], "y": [3.0, 3.0, 3.0, 2.0, 2.0] });
    assert_eq!(raw("/api/rounds/all", "update"), by_update);
    let all = raw("/api/rounds/all", "labels");
    assert_eq!((&all["x"], &all["updates"]), (&json!([80.0, 80.0, 80.0, 120.0, 120.0]), &by_update["x"]));
    let run = viewer.get("/api/rounds/all/run");
    assert_eq!((&run["before"], &run["last"]), (&json!([3.0, 0.0, 0.0]), &json!([5.0, 0.0, 0.0, 120.0])));
    assert!(run["columns"].as_array().unwrap().contains(&json!("n_labels")), "{run}");

    page.begin_round(3);
    let mut messages = viewer.listen(viewer.get("/api/run")["id"].as_str().unwrap());
    assert_eq!(viewer.get("/api/rounds/all/run")["before"], json!([5.0, 0.0, 0.0]));
    page.live.updated(&labelled_update(1, 4.0, 160));
    let heard = messages.until(|message| message["kind"] == "updated");
    assert_eq!(heard["at"], json!([1.0, 0.0, 0.0, 160.0]), "of its round");
    let all = raw("/api/rounds/all", "labels");
    assert_eq!((&all["x"][5], &all["y"][5], &all["updates"][5]), (&json!(160.0), &json!(4.0), &json!(6.0)));

    let bearer = format!("Bearer {}", viewer.token);
    let refused = |path: &str| viewer.ask(Method::GET, path, &[("authorization", &bearer)], "").status;
    assert_eq!(refused("/api/rounds/all/curves?columns=a&n_buckets=0"), 422);
    for rest in ["rollouts", "rollouts/1", "evaluation"] {
        assert_eq!(refused(&format!("/api/rounds/all/{rest}")), 404, "{rest}");
    }
}

#[test]
fn a_run_that_says_nothing_of_labels_has_no_curves_over_them_and_one_without_rounds_has_none_of_all() {
    let page = ShownRun::new(&[update(1, 0.5)], &[]);
    assert_eq!(page.viewer.get("/api/curves?columns=batch/score&n_buckets=10&axis=labels"), json!({}));
    let bearer = format!("Bearer {}", page.viewer.token);
    let status = |path: &str| page.viewer.ask(Method::GET, path, &[("authorization", &bearer)], "").status;
    assert_eq!(status("/api/rounds/all/run"), 404);
    assert_eq!(status("/api/rounds/all/curves?columns=batch/score&n_buckets=10"), 404);
    assert_eq!(status("/api/curves?columns=batch/score&n_buckets=10&axis=people"), 400);
}

#[test]
fn what_was_answered_before_and_after_comes_prompt_by_prompt() {
    let page = ShownRun::new(&[update(1, 0.5)], &[]);
    assert_eq!(page.viewer.get("/api/evaluation"), json!({ "total": 0, "has_after": false, "rows": [] }));
    page.evaluate(&[
        answer(EvaluatedPolicy::Before, "It was", "grey", 1.0),
        answer(EvaluatedPolicy::Before, "He said", "<b>no</b>", 2.0),
    ]);
    let first = page.viewer.get("/api/evaluation?ascending=true");
    assert_eq!((&first["has_after"], &first["rows"][0]["after"]), (&json!(false), &Value::Null));
    page.evaluate(&[
        answer(EvaluatedPolicy::After, "It was", "a joy", 4.0),
        answer(EvaluatedPolicy::After, "He said", "yes", 2.5),
    ]);
    let best = page.viewer.get("/api/evaluation?sort=gain&limit=1");
    assert_eq!((&best["total"], &best["rows"][0]["id"]), (&json!(2), &json!(1)));
    assert_eq!(best["rows"][0]["after"], json!({ "score": 4.0, "gold": 2.0 }));
    assert_eq!(page.viewer.get("/api/evaluation?search=%3CB%3E")["rows"][0]["id"], 2);
    let pair = page.viewer.get("/api/evaluation/2");
    assert_eq!((&pair["before"]["response"], &pair["after"]["response"]), (&json!("<b>no</b>"), &json!("yes")));
    let bearer = format!("Bearer {}", page.viewer.token);
    for (path, status) in [("/api/evaluation/3", 404), ("/api/evaluation/0", 404), ("/api/evaluation?sort=x", 400)] {
        assert_eq!(page.viewer.ask(Method::GET, path, &[("authorization", &bearer)], "").status, status, "{path}");
    }
}

#[test]
fn a_group_of_rollouts_becomes_a_ranking_task_that_remembers_where_it_came_from() {
    let rollouts = [
        rollout(4, 1, "of another version"),
        rollout(5, 1, "first"),
        rollout(5, 2, "of another prompt"),
        rollout(5, 1, "second"),
        rollout(5, 1, "third"),
        rollout(5, 1, "second"),
    ];
    let page = ShownRun::new(&[update(1, 0.5)], &rollouts);
    let asked = page.viewer.post("/api/rollouts/4/label", &json!({}));
    assert_eq!((asked.status, &asked.body["n_responses"], &asked.body["is_new"]), (200, &json!(3), &json!(true)));
    let again = page.viewer.post("/api/rollouts/4/label", &json!({}));
    assert_eq!((again.status, &again.body["is_new"]), (200, &json!(false)), "it is asked once");
    let alone = page.viewer.post("/api/rollouts/3/label", &json!({}));
    assert_eq!(alone.status, 409, "{}", alone.body);
    assert!(alone.body["error"].as_str().unwrap().contains("a ranking needs two"), "{}", alone.body);
    assert_eq!(page.viewer.post("/api/rollouts/99/label", &json!({})).status, 404);
    assert_eq!(page.viewer.post("/api/rollouts/4/label", &json!({ "k": 4 })).status, 422);

    let store = Store::existing(&page.labels()).unwrap();
    let content = asked.body["task"].as_str().unwrap().to_owned();
    let (task, arm) = store
        .read(move |connection| {
            let id = tasks::find(connection, &content)?.unwrap();
            let arm = places::open_tasks(connection)?.into_iter().find(|open| open.id == id).unwrap().arm;
            Ok((tasks::get(connection, id)?, arm))
        })
        .unwrap();
    assert_eq!(
        (task.responses.as_slice(), arm),
        (&["second", "third", "first"].map(str::to_owned)[..], Some(Arm::Picked))
    );
    assert_eq!(task.tokens.unwrap().prompt, [1, 2]);
    let origin = task.origin;
    assert_eq!((origin.policy_version, origin.scores), (Some(5), Some(vec![5.0; 3])));
    assert!(origin.run.unwrap().ends_with("instructgpt"));
}
