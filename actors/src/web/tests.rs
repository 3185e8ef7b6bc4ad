//! A small server behind the guard, asked over a real connection.

use axum::routing::get;
use serde::Deserialize;
use ureq::http::Response as Answer;
use ureq::{Agent, Body};

use super::*;

const MAX_BODY_BYTES: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    n: u32,
}

const FILES: Assets = Assets(&[
    Asset { path: "/", text: "<!doctype html><title>x</title>" },
    Asset { path: "/app.js", text: "export {};" },
    Asset { path: "/app.css", text: "body {}" },
]);

/// Serves until the test ends; its port.
fn serve() -> u16 {
    let router = Router::new().merge(FILES.routes()).route(
        "/api",
        get(|| async { "read" }).post(|ApiJson(Asked { n }): ApiJson<Asked>| async move { n.to_string() }),
    );
    let hosts = Hosts::local().and_url("https://Label.example.org").unwrap();
    let router = secured(router, Guard::new(hosts, MAX_BODY_BYTES));
    let listener = bind::listen("127.0.0.1:0".parse().unwrap(), BindRule::Anybody).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
    port
}

fn agent() -> Agent {
    Agent::new_with_config(Agent::config_builder().http_status_as_error(false).build())
}

fn read(path: &str, port: u16, headers: &[(&str, &str)]) -> Answer<Body> {
    let request = agent().get(format!("http://127.0.0.1:{port}{path}"));
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).call().unwrap()
}

fn change(port: u16, body: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let request = agent().post(format!("http://127.0.0.1:{port}/api"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let mut answer = request.send(body).unwrap();
    (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn every_answer_carries_the_security_headers() {
    let port = serve();
    for path in ["/", "/app.js", "/api", "/nowhere"] {
        let answer = read(path, port, &[]);
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default();
        assert_eq!(header("content-security-policy"), headers::CONTENT_SECURITY_POLICY);
        assert_eq!((header("x-content-type-options"), header("x-frame-options")), ("nosniff", "DENY"));
        assert_eq!(header("referrer-policy"), "no-referrer");
    }
    assert!(!headers::CONTENT_SECURITY_POLICY.contains("unsafe"));
    let refused = read("/", port, &[("host", "evil.example")]);
    assert!(refused.headers().contains_key("content-security-policy"), "a refusal too");
    assert_eq!(read("/api", port, &[]).headers()["cache-control"], "no-store");
}

#[test]
fn files_have_their_type_and_are_sent_again_only_when_they_changed() {
    let port = serve();
    for (path, kind) in [("/", "text/html"), ("/app.js", "text/javascript"), ("/app.css", "text/css")] {
        let answer = read(path, port, &[]);
        assert_eq!(answer.headers()["content-type"], format!("{kind}; charset=utf-8"));
        let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
        let again = read(path, port, &[("if-none-match", &tag)]);
        assert_eq!((again.status().as_u16(), again.headers()["etag"].to_str().unwrap()), (304, tag.as_str()));
        assert_eq!(read(path, port, &[("if-none-match", "\"other\"")]).status(), 200);
    }
}

#[test]
fn a_host_that_is_not_this_server_s_is_refused() {
    let port = serve();
    let status = |host: &str| read("/api", port, &[("host", host)]).status().as_u16();
    for host in
        ["127.0.0.1:1", "localhost:9470", "[::1]:9470", "192.168.0.7:9470", "label.example.org", "LABEL.example.org"]
    {
        assert_eq!(status(host), 200, "{host}");
    }
    for host in ["evil.example", "label.example.org.evil.example", "localhost.evil.example", "127.0.0.1.evil.example"] {
        assert_eq!(status(host), 421, "{host}");
    }
}

#[test]
fn what_another_site_s_page_asks_for_changes_nothing() {
    let port = serve();
    let own = format!("http://127.0.0.1:{port}");
    let status = |headers: &[(&str, &str)]| change(port, r#"{"n": 3}"#, &[&[JSON], headers].concat()).0;
    assert_eq!(status(&[]), 200, "a program");
    assert_eq!(status(&[("origin", &own), ("sec-fetch-site", "same-origin")]), 200);
    assert_eq!(status(&[("host", "label.example.org"), ("origin", "https://label.example.org")]), 200, "by a proxy");
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1", "file://", "garbage"] {
        assert_eq!(status(&[("origin", origin)]), 403, "{origin}");
    }
    for site in ["cross-site", "same-site", "none"] {
        assert_eq!(status(&[("sec-fetch-site", site)]), 403, "{site}");
    }
    assert_eq!(read("/api", port, &[("origin", "https://evil.example")]).status(), 200, "reading changes nothing");
}

#[test]
fn bodies_that_are_too_large_or_no_json_of_the_right_form_are_refused_in_json() {
    let port = serve();
    let refused = |body: &str, headers: &[(&str, &str)]| {
        let (status, text) = change(port, body, headers);
        let error: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
        (status, error["error"].as_str().unwrap().to_owned())
    };
    assert_eq!(change(port, r#"{"n": 3}"#, &[JSON]), (200, "3".to_owned()));
    let large = format!("{{\"n\": {}3}}", " ".repeat(MAX_BODY_BYTES));
    assert_eq!(refused(&large, &[JSON]), (413, "the request is too large".to_owned()));
    assert_eq!(refused("{\"n\": ", &[JSON]).0, 400);
    assert_eq!(refused(r#"{"n": -1}"#, &[JSON]).0, 422);
    let (status, problem) = refused(r#"{"n": 1, "m": 2}"#, &[JSON]);
    assert!(status == 422 && problem.contains("unknown field `m`"), "{problem}");
    assert_eq!(
        refused(r#"{"n": 3}"#, &[("content-type", "text/plain")]).0,
        415,
        "a form of another site can't send it"
    );
    assert_eq!(read("/nowhere", port, &[]).status(), 404);
    let put = agent().put(format!("http://127.0.0.1:{port}/api")).send("x").unwrap();
    assert_eq!(put.status(), 405);
}

/// A body whose length is not said beforehand.
#[test]
fn a_body_that_comes_in_chunks_is_cut_off_at_the_limit() {
    let port = serve();
    let chunks = std::io::Cursor::new(vec![b' '; 50 * MAX_BODY_BYTES]);
    let request = agent().post(format!("http://127.0.0.1:{port}/api")).header(JSON.0, JSON.1);
    match request.send(ureq::SendBody::from_owned_reader(chunks)) {
        Ok(answer) => assert_eq!(answer.status(), 413),
        // The connection may be closed before all is sent.
        Err(ureq::Error::Io(_)) => {}
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn urls_of_sites_are_names_and_nothing_more() {
    for url in ["label.example.org", "ftp://x", "https://", "https://x/path", "https://x/?q=1", "not a url"] {
        assert!(Hosts::local().and_url(url).is_err(), "{url}");
    }
    assert_eq!(local_url("0.0.0.0:9470".parse().unwrap()), "http://127.0.0.1:9470");
    assert_eq!(local_url("[::1]:9470".parse().unwrap()), "http://[::1]:9470");
}
