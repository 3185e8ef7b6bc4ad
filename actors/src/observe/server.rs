//! `--metrics-addr`: a run over HTTP. `/metrics` has the gauges in Prometheus' text form, `/status` the status as JSON.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use collimate_protocol::messages::RunStatus;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::gauges;
use crate::web::bind::serve_on_a_thread;

/// A port for it, as an example.
pub const EXAMPLE_PORT: &str = "9464";
/// How long a run may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a run can't be served, or can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port is taken, or forbidden.
    #[error("metrics can't be served on {address}: {problem}")]
    CannotListen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        problem: String,
    },
    /// No run answers there, or not with a status.
    #[error("no status from {address}: {problem}")]
    NoStatus {
        /// Where.
        address: SocketAddr,
        /// What came instead.
        problem: String,
    },
}

/// Serves the process' run until the process ends, on a thread of its own. Once a process.
pub fn serve(address: SocketAddr) -> Result<(), ServeError> {
    let cannot = |problem: String| ServeError::CannotListen { address, problem };
    let listener = TcpListener::bind(address).map_err(|error| cannot(error.to_string()))?;
    let handle = PrometheusBuilder::new().install_recorder().map_err(|error| cannot(error.to_string()))?;
    gauges::describe();
    serve_on_a_thread("serve", listener, routes(handle)).map_err(|error| cannot(error.to_string()))
}

fn routes(handle: PrometheusHandle) -> Router {
    let metrics = move || async move {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], handle.render()).into_response()
    };
    Router::new().route("/metrics", get(metrics)).route("/status", get(status))
}

async fn status() -> Response {
    match gauges::latest_status() {
        Some(status) => Json(status).into_response(),
        None => (StatusCode::NOT_FOUND, "PPO has not begun\n").into_response(),
    }
}

/// Asks a run for its status.
pub fn fetch_status(address: SocketAddr) -> Result<RunStatus, ServeError> {
    let no = |problem: String| ServeError::NoStatus { address, problem };
    let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
    let answer = ureq::Agent::new_with_config(config).get(format!("http://{address}/status")).call();
    let mut answer = answer.map_err(|error| no(error.to_string()))?;
    let text = answer.body_mut().read_to_string().map_err(|error| no(error.to_string()))?;
    if !answer.status().is_success() {
        return Err(no(format!("{}: {}", answer.status(), text.trim())));
    }
    serde_json::from_str(&text).map_err(|error| no(format!("it answers, but not as a run of Collimate: {error}")))
}

#[cfg(test)]
mod tests {
    use collimate_protocol::{PolicyVersion, TicketCounts};

    use super::*;
    use crate::web::bind::parse_address;

    #[test]
    fn a_bare_port_is_on_loopback_and_anything_else_must_be_spelt_out() {
        assert_eq!(parse_address("9464", EXAMPLE_PORT).unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(parse_address(":9464", EXAMPLE_PORT).unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(parse_address("localhost:9464", EXAMPLE_PORT).unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(parse_address("0.0.0.0:9464", EXAMPLE_PORT).unwrap().to_string(), "0.0.0.0:9464");
        assert_eq!(parse_address("[::1]:9464", EXAMPLE_PORT).unwrap().to_string(), "[::1]:9464");
        let error = parse_address("everywhere", EXAMPLE_PORT).unwrap_err().to_string();
        assert_eq!(error, "`everywhere` is no address; expected a port (9464), or ADDRESS:PORT (127.0.0.1:9464)");
    }

    #[test]
    fn a_port_that_is_taken_is_an_error() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = serve(taken.local_addr().unwrap()).unwrap_err().to_string();
        assert!(error.contains(&taken.local_addr().unwrap().to_string()), "{error}");
    }

    fn served() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        serve_on_a_thread("serve", listener, routes(PrometheusBuilder::new().build_recorder().handle())).unwrap();
        address
    }

    /// In one test: the status is the process'.
    #[test]
    fn a_run_tells_its_status_once_ppo_has_begun() {
        let address = served();
        let error = fetch_status(address).unwrap_err().to_string();
        assert!(error.ends_with("404 Not Found: PPO has not begun"), "{error}");
        let status = RunStatus {
            version: PolicyVersion(7),
            n_updates: 40,
            elapsed_s: 1.5,
            tickets: TicketCounts::default(),
            n_issued_again: 0,
            checkpoint: None,
            has_ended: false,
            roles: Vec::new(),
        };
        gauges::show_status(&status);
        assert_eq!(fetch_status(address).unwrap(), status);
    }

    #[test]
    fn an_address_where_nobody_listens_is_an_error() {
        let address = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let error = fetch_status(address).unwrap_err().to_string();
        assert!(error.starts_with(&format!("no status from {address}")), "{error}");
    }
}
