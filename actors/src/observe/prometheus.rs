//! `--metrics-addr`: the gauges over HTTP, in Prometheus' text form.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use metrics_exporter_prometheus::PrometheusBuilder;

use super::gauges;

/// Why the gauges can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is none.
    #[error("`{0}` is no address; expected a port (9464), or ADDRESS:PORT (127.0.0.1:9464)")]
    BadAddress(String),
    /// The port is taken, or forbidden.
    #[error("metrics can't be served on {address}: {problem}")]
    CannotListen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        problem: String,
    },
}

/// Reads an address. A bare port is on the loopback interface: what a run shows is for this machine unless told
/// otherwise.
pub fn parse_address(text: &str) -> Result<SocketAddr, ServeError> {
    if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    let text = text.replacen("localhost:", "127.0.0.1:", 1);
    text.parse().map_err(|_| ServeError::BadAddress(text))
}

/// Serves the gauges until the process ends, on a thread of its own. Once a process.
pub fn serve(address: SocketAddr) -> Result<(), ServeError> {
    let installed = PrometheusBuilder::new().with_http_listener(address).install();
    installed.map_err(|error| ServeError::CannotListen { address, problem: error.to_string() })?;
    gauges::describe();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_is_on_loopback_and_anything_else_must_be_spelt_out() {
        assert_eq!(parse_address("9464").unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(parse_address(":9464").unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(parse_address("localhost:9464").unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(parse_address("0.0.0.0:9464").unwrap().to_string(), "0.0.0.0:9464");
        assert_eq!(parse_address("[::1]:9464").unwrap().to_string(), "[::1]:9464");
        let error = parse_address("everywhere").unwrap_err().to_string();
        assert_eq!(error, "`everywhere` is no address; expected a port (9464), or ADDRESS:PORT (127.0.0.1:9464)");
    }

    #[test]
    fn a_port_that_is_taken_is_an_error() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = serve(taken.local_addr().unwrap()).unwrap_err().to_string();
        assert!(error.contains(&taken.local_addr().unwrap().to_string()), "{error}");
    }
}
