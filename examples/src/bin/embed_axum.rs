//! A PPO run inside a service of your own: an axum server that starts the run as a library call in its own tokio
//! runtime, and ends when the run does.
//!
//! ```text
//! cargo run --release -p collimate-examples --bin embed_axum
//! curl -N http://127.0.0.1:3000/events          # each update as it is done, to the end of the run
//! curl    http://127.0.0.1:3000/status          # what each role is doing now
//! curl -X POST http://127.0.0.1:3000/stop       # finish the update in progress, then end
//! ```

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use axum::routing::{get, post};
use axum::{Json, Router};
use collimate::control::{RunControl, RunHandle};
use collimate::flow::{Factory, FlowConfig, FlowOutcome};
use collimate_examples::TinyModels;
use collimate_models::arch::Weights;
use collimate_models::reward::BuiltinReward;
use collimate_models::roles::PpoLearner;
use collimate_protocol::messages::RunStatus;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};

#[tokio::main]
async fn main() -> Result<()> {
    // Loopback alone: whoever reaches the service can stop the run.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 3000)).await.context("port 3000 of this machine")?;
    let config = FlowConfig { n_updates: 200, batch_size: 32, ..FlowConfig::default() };
    let reward = Factory::new(|| Ok(BuiltinReward::Length { target_tokens: 8 }.build()?));
    let run = TinyModels::new(1)?.flow(&config, reward)?.start(&config).await?;
    println!("http://{}/events", listener.local_addr()?);

    let on_ctrl_c = run.control();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            on_ctrl_c.stop();
        }
    });
    let outcome = serve(listener, run).await?;
    let how = if outcome.stopped { "stopped" } else { "done" };
    println!("{how} after {} updates; {:?}", outcome.version.0, outcome.tickets);
    Ok(())
}

/// Serves the run until it has ended and every client has heard so.
async fn serve(listener: TcpListener, run: RunHandle<Weights, PpoLearner>) -> Result<FlowOutcome<Weights, PpoLearner>> {
    let router = router(run.control());
    let (tell_end, end) = oneshot::channel::<()>();
    let run = async {
        let outcome = run.wait().await;
        drop(tell_end);
        outcome
    };
    let serve = async {
        let ended = async { drop(end.await) };
        axum::serve(listener, router).with_graceful_shutdown(ended).await
    };
    let (outcome, served) = tokio::join!(run, serve);
    served?;
    Ok(outcome?)
}

fn router(run: RunControl) -> Router {
    Router::new().route("/events", get(events)).route("/status", get(status)).route("/stop", post(stop)).with_state(run)
}

/// The first client hears all since the start, later ones what comes from then on. The stream ends with the run.
async fn events(State(run): State<RunControl>) -> Sse<impl Stream<Item = Result<Event, axum::Error>>> {
    let events = BroadcastStream::new(run.events()).map(|event| match event {
        Ok(event) => Event::default().json_data(event),
        Err(BroadcastStreamRecvError::Lagged(n_missed)) => {
            Event::default().json_data(json!({"event": "missed", "n_missed": n_missed}))
        }
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn status(State(run): State<RunControl>) -> Json<RunStatus> {
    Json(run.status().borrow().clone())
}

/// Answers at once: the run ends when the update in progress is done, which its events tell.
async fn stop(State(run): State<RunControl>) -> StatusCode {
    run.stop();
    StatusCode::ACCEPTED
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::JoinHandle;
    use std::time::Duration;

    use collimate_protocol::RoleError;
    use collimate_protocol::roles::{RewardFunction, RewardRequest};
    use serde_json::Value;

    use super::*;

    /// Scores nothing before it is let: a run can't end before a client is there.
    struct OnceLet {
        permit: Receiver<()>,
        is_let: bool,
    }

    impl RewardFunction for OnceLet {
        fn scores(&mut self, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError> {
            if !self.is_let {
                self.permit.recv()?;
                self.is_let = true;
            }
            Ok(requests.iter().map(|request| request.response_tokens.len() as f32).collect())
        }
    }

    struct Service {
        address: SocketAddr,
        permit: Sender<()>,
        process: JoinHandle<Result<FlowOutcome<Weights, PpoLearner>>>,
    }

    /// The service as a process of its own would run it, but on a thread and a port that is free.
    fn start(n_updates: u64) -> Service {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (permit, permitted) = channel();
        let process = std::thread::spawn(move || {
            tokio::runtime::Runtime::new()?.block_on(async {
                let config = FlowConfig { n_updates, batch_size: 4, ..FlowConfig::default() };
                let flow = TinyModels::new(1)?
                    .flow(&config, Factory::once(Box::new(OnceLet { permit: permitted, is_let: false })))?;
                serve(TcpListener::from_std(listener)?, flow.start(&config).await?).await
            })
        });
        Service { address, permit, process }
    }

    impl Service {
        fn let_run(&self) {
            self.permit.send(()).unwrap();
        }

        /// The answer to a request, head and all, to be read to its end.
        fn ask(&self, request: &str) -> BufReader<TcpStream> {
            let mut stream = TcpStream::connect(self.address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
            BufReader::new(stream)
        }

        /// The events, once the service has begun to send them.
        fn listen(&self) -> impl Iterator<Item = Value> {
            let mut answer = self.ask("GET /events");
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                assert!(answer.read_line(&mut line).unwrap() > 0, "no answer");
            }
            let data = |line: String| line.strip_prefix("data: ").map(|data| serde_json::from_str(data).unwrap());
            answer.lines().map_while(Result::ok).filter_map(data)
        }

        fn answer(&self, request: &str) -> String {
            let mut answer = String::new();
            self.ask(request).read_to_string(&mut answer).unwrap();
            answer
        }
    }

    #[test]
    fn a_client_hears_every_update_and_the_end_and_then_the_service_ends() {
        let service = start(3);
        let status = service.answer("GET /status");
        assert!(status.starts_with("HTTP/1.1 200 OK"), "{status}");
        let (_, body) = status.split_once("\r\n\r\n").unwrap();
        let status: RunStatus = serde_json::from_str(body).unwrap();
        assert_eq!((status.version.0, status.n_updates), (0, 3));
        assert_eq!(status.roles.len(), 7);

        let events = service.listen();
        service.let_run();
        let events: Vec<Value> = events.collect();
        let versions: Vec<&Value> = events.iter().filter_map(|event| event.get("version")).collect();
        assert_eq!(versions, [1, 2, 3, 3], "{events:?}");
        assert_eq!(events[3], json!({"event": "ended", "version": 3, "stopped": false}));
        assert_eq!(service.process.join().unwrap().unwrap().version.0, 3);
    }

    #[test]
    fn a_stop_ends_run_and_service_in_good_order() {
        let service = start(1_000_000);
        let mut events = service.listen();
        service.let_run();
        assert_eq!(events.next().unwrap()["event"], "updated");
        let answer = service.answer("POST /stop");
        assert!(answer.starts_with("HTTP/1.1 202 Accepted"), "{answer}");
        let last = events.last().unwrap();
        assert_eq!((&last["event"], &last["stopped"]), (&json!("ended"), &json!(true)));
        let outcome = service.process.join().unwrap().unwrap();
        assert!(outcome.stopped);
        assert_eq!(outcome.tickets.in_flight, 0);
        assert_eq!(last["version"], outcome.version.0);
    }

    #[test]
    fn a_stop_is_not_for_whoever_just_looks() {
        let service = start(1);
        assert!(service.answer("GET /stop").starts_with("HTTP/1.1 405"));
        service.let_run();
        assert!(!service.process.join().unwrap().unwrap().stopped);
    }
}
