//! `collimate label` as a process, and people who use it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};
use ureq::Agent;

use crate::command_line::Home;

/// A server that runs until this is dropped.
pub struct Served {
    child: Child,
    url: String,
    /// Each one's token, from the link that was printed.
    pub tokens: BTreeMap<String, String>,
}

impl Served {
    /// Serves `label.db` of the home on a free port, with these arguments, and waits until it answers.
    pub fn start(home: &Home, arguments: &[&str]) -> Self {
        Self::start_at(home, "0", arguments)
    }

    /// The same at a port of one's own.
    pub fn start_at(home: &Home, address: &str, arguments: &[&str]) -> Self {
        let mut command = home.command(&["label", "label.db", "--addr", address]);
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
        let (mut url, mut tokens) = (None, BTreeMap::new());
        for line in lines.by_ref() {
            if let Some(rest) = line.strip_prefix("labelling at ") {
                url = rest.split(' ').next().map(str::to_owned);
            }
            if let Some((name, link)) = line.trim().split_once(": ")
                && let Some((_, token)) = link.split_once("/login#")
            {
                tokens.insert(name.to_owned(), token.to_owned());
            }
            if line.starts_with("  admin: ") {
                break;
            }
        }
        let url = url.unwrap_or_else(|| panic!("the server said no address: {:?}", child.wait()));
        // It may print more: a full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url, tokens }
    }

    /// Where it answers: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").expect("an address")
    }

    /// Ends it at once, as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// A labeler's new link, or the admin's, where an earlier start has told of one.
    pub fn renew(&mut self, home: &Home, name: &str) {
        let told = home.succeed(&["label", "link", "label.db", name, "--url", &self.url]);
        let (_, token) = told.trim().split_once("/login#").expect("a link");
        self.tokens.insert(name.to_owned(), token.to_owned());
    }

    /// A labeler's program.
    pub fn client(&self, name: &str) -> Client {
        Client::new(&self.url, Some(&self.tokens[name]))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that asks as somebody.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    url: String,
    token: Option<String>,
}

impl Client {
    /// For this server, with this token.
    pub fn new(url: &str, token: Option<&str>) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).build();
        Self { agent: Agent::new_with_config(config), url: url.to_owned(), token: token.map(str::to_owned) }
    }

    /// Sends something; its status and its JSON, or what went wrong on the way.
    pub fn try_post(&self, path: &str, body: &Value) -> Result<(u16, Value), ureq::Error> {
        let mut request = self.agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut answer = request.send(body.to_string())?;
        let text = answer.body_mut().read_to_string()?;
        Ok((answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Sends something, and expects an answer of any status.
    pub fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.try_post(path, &body).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Sends something that is done.
    pub fn done(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// Asks for something; its status and its text.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut answer = request.call().unwrap_or_else(|error| panic!("{path}: {error}"));
        (answer.status().as_u16(), answer.body_mut().read_to_string().expect("text"))
    }

    /// The next task, if there is one.
    pub fn next(&self) -> Option<Value> {
        let next = self.done("/api/next", json!({}));
        (next["state"] == "task").then(|| next["task"].clone())
    }

    /// Ranks a task's responses in the order of their texts; gives the handle back.
    pub fn answer(&self, task: &Value, key: &str) -> (u16, Value) {
        self.post("/api/answer", json!({ "handle": task["handle"], "key": key, "draft": by_text(task) }))
    }
}

/// Imports a file whose first line is good, and whose second one is it with a change that is refused by its number; what is
/// said.
pub fn refused_line(home: &Home, change: &Value) -> String {
    let good = json!({ "prompt": "a", "responses": ["x", "y"], "ranks": [1, 2], "labeler": "anna" });
    let mut bad = good.clone();
    bad.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
    home.write("in.jsonl", format!("{good}\n{bad}\n"));
    let error = home.fail(&["label", "import", "label.db", "in.jsonl"]);
    assert!(error.contains("in.jsonl:2: "), "{error}");
    error
}

/// A draft that ranks a task's responses in the order of their texts.
pub fn by_text(task: &Value) -> Value {
    let texts: Vec<&str> =
        task["responses"].as_array().expect("responses").iter().map(|one| one["raw"].as_str().expect("text")).collect();
    let places: Vec<usize> = texts.iter().map(|text| 1 + texts.iter().filter(|other| *other < text).count()).collect();
    json!({ "places": places })
}

/// A file of so many tasks of k responses each, as JSON lines.
pub fn tasks(n: usize, k: usize) -> String {
    let line = |n: usize| {
        let responses: Vec<String> = (0..k).map(|i| format!("response {i} to {n}")).collect();
        let origin = json!({ "model": "secret-model", "policy_version": 7, "seed": n });
        json!({ "prompt": format!("prompt {n}"), "responses": responses, "origin": origin }).to_string() + "\n"
    };
    (0..n).map(line).collect()
}
