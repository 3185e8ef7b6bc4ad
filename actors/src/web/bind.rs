//! Where a server may listen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use axum::Router;

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is none.
    #[error("`{text}` is no address; expected a port ({example_port}), or ADDRESS:PORT (127.0.0.1:{example_port})")]
    BadAddress {
        /// What was given.
        text: String,
        /// A port that the server may have.
        example_port: &'static str,
    },
    /// It can be reached from other machines, and nobody has to say who they are.
    #[error("{0} can be reached from other machines, where anybody could ask: it needs tokens")]
    NeedsTokens(SocketAddr),
    /// The port is taken, or forbidden.
    #[error("can't listen on {address}: {problem}")]
    CannotListen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        problem: String,
    },
}

/// Who may ask a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindRule {
    /// Whoever reaches it: on the loopback interface alone.
    Anybody,
    /// Who has a token: anywhere.
    TokenHolders,
}

/// Reads an address. A bare port is on the loopback interface: what is served is for this machine unless told
/// otherwise. An error names `example_port` as what might have been meant.
pub fn parse_address(text: &str, example_port: &'static str) -> Result<SocketAddr, BindError> {
    if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    let text = text.replacen("localhost:", "127.0.0.1:", 1);
    text.parse().map_err(|_| BindError::BadAddress { text, example_port })
}

/// Listens, if the rule allows it there. Port 0 takes a free one.
pub fn listen(address: SocketAddr, rule: BindRule) -> Result<TcpListener, BindError> {
    if !address.ip().to_canonical().is_loopback() && rule == BindRule::Anybody {
        return Err(BindError::NeedsTokens(address));
    }
    let cannot = |error: std::io::Error| BindError::CannotListen { address, problem: error.to_string() };
    let listener = TcpListener::bind(address).map_err(cannot)?;
    listener.set_nonblocking(true).map_err(cannot)?;
    Ok(listener)
}

/// Serves until the process ends, on a thread of its own.
///
/// # Errors
/// There is no thread.
pub fn serve_on_a_thread(name: &str, listener: TcpListener, router: Router) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        axum::serve(listener, router).await
    };
    let run = move || {
        // It ends with the process alone; a connection's error is that connection's.
        let _ = runtime.block_on(serve);
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_is_on_loopback_and_anything_else_must_be_spelt_out() {
        for (text, address) in [
            ("9470", "127.0.0.1:9470"),
            (":9470", "127.0.0.1:9470"),
            ("localhost:9470", "127.0.0.1:9470"),
            ("0.0.0.0:9470", "0.0.0.0:9470"),
            ("[::1]:9470", "[::1]:9470"),
        ] {
            assert_eq!(parse_address(text, "9470").unwrap().to_string(), address);
        }
        assert!(parse_address("everywhere", "9470").unwrap_err().to_string().starts_with("`everywhere` is no address"));
    }

    #[test]
    fn without_tokens_nothing_is_served_beyond_loopback() {
        let everywhere = parse_address("0.0.0.0:0", "9470").unwrap();
        let error = listen(everywhere, BindRule::Anybody).unwrap_err().to_string();
        assert_eq!(error, "0.0.0.0:0 can be reached from other machines, where anybody could ask: it needs tokens");
        assert!(matches!(
            listen(parse_address("[::]:0", "9470").unwrap(), BindRule::Anybody),
            Err(BindError::NeedsTokens(_))
        ));
        assert!(listen(everywhere, BindRule::TokenHolders).is_ok());
        assert!(listen(parse_address("0", "9470").unwrap(), BindRule::Anybody).is_ok());
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();
        let error = listen(taken, BindRule::Anybody).unwrap_err().to_string();
        assert!(error.starts_with(&format!("can't listen on {taken}: ")), "{error}");
    }
}
