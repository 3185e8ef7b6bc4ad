//! Models of the hub by name, from a server that answers as the hub does.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use collimate_tests::fixture;
use tokio_stream::StreamExt;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The files of `owner/tiny`, what was asked for, and how a download breaks off.
#[derive(Default)]
struct Hub {
    files: HashMap<String, Vec<u8>>,
    /// Paths, with the range of each.
    asked: Mutex<Vec<(String, String)>>,
    tokens: Mutex<Vec<String>>,
    /// Once, a whole file ends after this many bytes.
    breaks_off: Mutex<Option<usize>>,
}

async fn info(
    State(hub): State<Arc<Hub>>,
    UrlPath((owner, name, revision)): UrlPath<(String, String, String)>,
) -> Response<Body> {
    if (owner.as_str(), name.as_str(), revision.as_str()) != ("owner", "tiny", "main") {
        return status(StatusCode::NOT_FOUND);
    }
    let siblings: Vec<_> = hub.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
    Response::new(Body::from(serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string()))
}

fn status(code: StatusCode) -> Response<Body> {
    Response::builder().status(code).body(Body::empty()).unwrap()
}

async fn file(
    State(hub): State<Arc<Hub>>,
    UrlPath((_, _, _, name)): UrlPath<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let range = header("range");
    hub.asked.lock().unwrap().push((name.clone(), range.clone()));
    hub.tokens.lock().unwrap().push(header("authorization"));
    let Some(bytes) = hub.files.get(&name) else { return status(StatusCode::NOT_FOUND) };
    let (start, end) = range.strip_prefix("bytes=").unwrap_or("0-").split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse::<usize>().map_or(bytes.len(), |end| end + 1);
    let part = bytes[start..end].to_vec();
    let response = Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header("etag", format!("\"{name}-etag\""))
        .header("x-repo-commit", COMMIT)
        .header("content-range", format!("bytes {start}-{}/{}", end - 1, bytes.len()));
    let breaks_off = if end == bytes.len() && part.len() > 1000 { hub.breaks_off.lock().unwrap().take() } else { None };
    match breaks_off {
        None => response.body(Body::from(part)).unwrap(),
        Some(n) => {
            // Fewer bytes than the length that is announced: the connection ends in the middle.
            let pieces = [Ok(part[..n].to_vec()), Err(std::io::Error::other("broken off"))];
            // What comes before is sent as soon as the body has to be waited for.
            let stream = tokio_stream::iter(pieces).then(|piece| async {
                tokio::task::yield_now().await;
                piece
            });
            response.header("content-length", part.len()).body(Body::from_stream(stream)).unwrap()
        }
    }
}

/// Starts the server. It ends with the runtime that is returned.
fn serve(hub: Arc<Hub>) -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new()
        .route("/api/models/{owner}/{name}/revision/{revision}", get(info))
        .route("/{owner}/{name}/resolve/{revision}/{file}", get(file))
        .with_state(hub);
    runtime.spawn(async move { axum::serve(listener, app).await });
    (runtime, address)
}

fn tiny_model() -> HashMap<String, Vec<u8>> {
    let dir = fixture::path("collimate/gpt2");
    let names =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    names.into_iter().map(|name| (name.to_owned(), fs::read(dir.join(name)).unwrap())).collect()
}

fn generate(model: &str, home: &Path, address: SocketAddr, more: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_collimate-under-test"))
        .args(["generate", model, "--prompt", "The", "--greedy", "--max-new-tokens", "3"])
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_CACHE")
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", format!("http://{address}"))
        .envs(more.iter().copied())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_model_is_fetched_once_and_needs_no_network_after_that() {
    let hub = Arc::new(Hub { files: tiny_model(), ..Hub::default() });
    let (runtime, address) = serve(hub.clone());
    let home = tempfile::tempdir().unwrap();
    let first = generate("hf:owner/tiny", home.path(), address, &[("HF_TOKEN", "hf_secret")]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert!(hub.tokens.lock().unwrap().iter().all(|token| token == "Bearer hf_secret"));
    // Where huggingface_hub and its friends look for it.
    let snapshot = home.path().join("hub/models--owner--tiny/snapshots").join(COMMIT);
    assert!(snapshot.join("model.safetensors").exists());

    drop(runtime);
    let second = generate("hf:owner/tiny@main", home.path(), address, &[]);
    assert!(second.status.success(), "{}", text(&second.stderr));
    assert_eq!(text(&first.stdout), text(&second.stdout));
    let plain = generate(&format!("file:{}", snapshot.display()), home.path(), address, &[]);
    assert_eq!(text(&first.stdout), text(&plain.stdout), "{}", text(&plain.stderr));
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let hub = Arc::new(Hub { files: tiny_model(), breaks_off: Mutex::new(Some(700)), ..Hub::default() });
    let (_runtime, address) = serve(hub.clone());
    let home = tempfile::tempdir().unwrap();
    let output = generate("hf:owner/tiny", home.path(), address, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let asked = hub.asked.lock().unwrap();
    assert!(asked.iter().any(|(_, range)| range == "bytes=700-"), "{asked:?}");
    let whole = home.path().join("hub/models--owner--tiny/snapshots").join(COMMIT);
    for (name, bytes) in &hub.files {
        assert_eq!(&fs::read(whole.join(name)).unwrap(), bytes, "{name}");
    }
}

#[test]
fn what_the_hub_does_not_have_is_said_by_name() {
    let mut files = tiny_model();
    files.remove("model.safetensors");
    files.insert("pytorch_model.bin".into(), vec![0]);
    let (_runtime, address) = serve(Arc::new(Hub { files, ..Hub::default() }));
    let home = tempfile::tempdir().unwrap();
    for (model, more, expected) in [
        ("hf:owner/other", &[][..], "hf:owner/other: the hub has no such model, or no such revision of it (404)"),
        ("hf:owner/tiny@v9", &[], "hf:owner/tiny@v9: the hub has no such model"),
        ("hf:owner/tiny", &[], "hf:owner/tiny: the hub has no `model.safetensors` of it; weights in other formats"),
        ("hf:owner/tiny", &[("HF_HUB_OFFLINE", "1")], "HF_HUB_OFFLINE forbids"),
        ("hf:tiny", &[], "`hf:tiny` names no model of the hub: expected hf:OWNER/NAME"),
    ] {
        let output = generate(model, home.path(), address, more);
        let message = text(&output.stderr);
        assert!(output.status.code() == Some(1) && message.contains(expected), "{message}\nexpected {expected}");
    }
}
