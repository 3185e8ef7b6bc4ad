//! A program that looks at a run's page, as a browser would.

use std::io::{BufRead, BufReader, Lines, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::{Method, Request, Response};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer: its status, its headers, its body.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: ureq::http::HeaderMap,
    /// The body; `null` where it is no JSON.
    pub body: Value,
}

impl Answer {
    /// A header's text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Looks at one run.
#[derive(Debug)]
pub struct Viewer {
    agent: Agent,
    /// `http://ADDRESS:PORT`.
    pub base: String,
    /// The run's token.
    pub token: String,
}

impl Viewer {
    /// By the link that a run has printed.
    pub fn of(link: &str) -> Self {
        let (base, token) = link.trim().split_once("/#token=").expect("a link has a token");
        let config = Agent::config_builder().http_status_as_error(false).timeout_connect(Some(PATIENCE));
        // A server that refuses a request without reading it closes the connection, which is then not to be used again.
        let config = config.max_idle_connections(0).max_idle_connections_per_host(0).build();
        Self { agent: Agent::new_with_config(config), base: base.to_owned(), token: token.to_owned() }
    }

    /// Sends a request with these headers and nothing else.
    pub fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.agent.run(request.body(body.to_owned()).expect("a request")).expect("an answer");
        let (parts, mut body) = answer.into_parts();
        let text = body.read_to_string().unwrap_or_default();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_str(&text).unwrap_or_default(),
        }
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// Gets JSON.
    pub fn get(&self, path: &str) -> Value {
        let answer = self.ask(Method::GET, path, &[("authorization", &self.bearer())], "");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    }

    /// Posts JSON.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let headers = [("authorization", self.bearer()), ("content-type", "application/json".to_owned())];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        self.ask(Method::POST, path, &headers, &body.to_string())
    }

    /// Listens to what the server tells, from after the message of this number on.
    pub fn listen(&self, last_event_id: &str) -> Messages {
        let request = Request::get(format!("{}/api/events", self.base))
            .header("authorization", self.bearer())
            .header("last-event-id", last_event_id);
        let answer: Response<ureq::Body> = self.agent.run(request.body(()).expect("a request")).expect("an answer");
        assert_eq!(answer.status(), 200);
        let reader: Box<dyn Read + Send + Sync> = Box::new(answer.into_body().into_reader());
        Messages { lines: BufReader::new(reader).lines(), id: String::new() }
    }
}

/// What a server tells by itself.
pub struct Messages {
    lines: Lines<BufReader<Box<dyn Read + Send + Sync>>>,
    id: String,
}

impl Messages {
    /// The number of the last message that had one.
    pub fn last_id(&self) -> &str {
        &self.id
    }

    /// Waits for a message of which this is true.
    ///
    /// # Panics
    /// None comes before the end.
    pub fn until(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        self.find(is_it).expect("it comes before the end")
    }
}

impl Iterator for Messages {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        loop {
            let line = self.lines.next()?.ok()?;
            if let Some(id) = line.strip_prefix("id: ") {
                id.clone_into(&mut self.id);
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).expect("a message is JSON"));
            }
        }
    }
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that serves a page. It is killed when this is dropped.
#[derive(Debug)]
pub struct Served {
    process: Process,
    /// Its page.
    pub viewer: Viewer,
    /// The rest of what it tells, so that it can go on telling.
    stderr: BufReader<ChildStderr>,
}

impl Served {
    /// Starts a run with `--serve`, and waits for its link.
    pub fn run(command: &mut Command) -> Self {
        let spawned = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut process = Process(spawned.expect("the binary starts"));
        let mut stderr = BufReader::new(process.0.stderr.take().expect("it is piped"));
        let mut told = String::new();
        loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).expect("text") > 0, "no link: {told}");
            if let Some((_, link)) = line.split_once("watch and steer the run at ") {
                return Self { process, viewer: Viewer::of(link), stderr };
            }
            told.push_str(&line);
        }
    }

    /// Asks it to stop, as Ctrl-C does, and waits for its end; its exit code.
    pub fn interrupt(mut self) -> Option<i32> {
        // SAFETY: the process has not been waited for, so that its number is its own.
        let sent = unsafe { libc::kill(self.process.0.id() as libc::pid_t, libc::SIGINT) };
        assert_eq!(sent, 0);
        self.process.0.wait().expect("it ends").code()
    }

    /// Waits for its end; its exit code.
    pub fn ended(mut self) -> Option<i32> {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).expect("text");
        self.process.0.wait().expect("it ends").code()
    }
}
