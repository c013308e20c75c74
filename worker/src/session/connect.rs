//! The connection to a coordinator.

use std::time::Duration;

use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The address is none.
    #[error("--connect {address}: {reason}; give HOST:PORT, such as 10.0.0.7:50051")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers there.
    #[error("{0}")]
    Unreachable(String),
}

/// How to reach `HOST:PORT`.
///
/// # Errors
/// [`ConnectError::Address`] if it is no address.
pub fn endpoint(address: &str) -> Result<Endpoint, ConnectError> {
    let wrong = |reason: String| ConnectError::Address { address: address.into(), reason };
    let port = address
        .rsplit_once(':')
        .and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
    if port.is_none() || address.contains('/') {
        return Err(wrong("it has no host, or no port from 0 to 65535".into()));
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| wrong(e.to_string()))?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        // A stream takes a few chunks at once; the queues behind it are bounded by credits.
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(32 << 20)
        .max_frame_size(1 << 20)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

/// Connects.
///
/// # Errors
/// [`ConnectError`] in words.
pub async fn connect(address: &str) -> Result<Channel, ConnectError> {
    endpoint(address)?.connect().await.map_err(|error| {
        // Tonic says "transport error"; what happened is the last cause.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        ConnectError::Unreachable(cause.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["localhost:50051", "10.0.0.7:1", "[::1]:50051"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost", "localhost:", ":50051", "a:99999", "http://a:1", "a b:1"] {
            assert!(matches!(endpoint(bad), Err(ConnectError::Address { .. })), "{bad}");
        }
    }
}
