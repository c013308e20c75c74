//! The connection to a coordinator.

use std::time::Duration;

use tally_proto::v1::cluster_client::ClusterClient;
use thiserror::Error;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::client::{Bearer, ClientAccess};

/// A connection to a coordinator. Every call on it carries the token.
pub type Connection = InterceptedService<Channel, Bearer>;
/// A client of a coordinator.
pub type Client = ClusterClient<Connection>;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The address is not `HOST:PORT`.
    #[error("--connect {address}: {reason}; give HOST:PORT, such as 10.0.0.7:50051")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate, a key or the token cannot be used.
    #[error("{0:#}")]
    Access(anyhow::Error),
    /// Nothing answers there, or its certificate is not trusted.
    #[error("{0}")]
    Unreachable(String),
}

/// The host of `HOST:PORT`.
///
/// # Errors
/// [`ConnectError::Address`] if it is not an address.
pub fn host(address: &str) -> Result<&str, ConnectError> {
    let parts =
        address.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    match parts {
        Some((host, _)) if !address.contains('/') => Ok(host),
        _ => Err(ConnectError::Address {
            address: address.into(),
            reason: "it has no host, or no port from 0 to 65535".into(),
        }),
    }
}

/// The endpoint of `HOST:PORT`, with TLS as `access` says.
///
/// # Errors
/// [`ConnectError`] if it is not an address, or if a certificate cannot be read.
pub fn endpoint(address: &str, access: &ClientAccess) -> Result<Endpoint, ConnectError> {
    let host = host(address)?;
    let wrong =
        |e: tonic::transport::Error| ConnectError::Address { address: address.into(), reason: e.to_string() };
    let tls = access.tls(host).map_err(ConnectError::Access)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(wrong)?;
    let endpoint = match tls {
        Some(tls) => endpoint.tls_config(tls).map_err(|e| ConnectError::Access(e.into()))?,
        None => endpoint,
    };
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

/// Connects. Certificates and token are read each time, so that renewed ones are used.
///
/// # Errors
/// [`ConnectError`] says why there is no connection.
pub async fn connect(address: &str, access: &ClientAccess) -> Result<Connection, ConnectError> {
    let endpoint = endpoint(address, access)?;
    let bearer = access.bearer().map_err(ConnectError::Access)?;
    let channel = endpoint.connect().await.map_err(|error| unreachable(&error, access))?;
    Ok(InterceptedService::new(channel, bearer))
}

/// A connection error in words. Tonic's own text is "transport error"; the last cause says what happened. A hint
/// follows where the options of the two sides do not fit together.
pub(crate) fn unreachable(error: &tonic::transport::Error, access: &ClientAccess) -> ConnectError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let what = cause.to_string();
    let hint = match () {
        () if access.tls_ca.is_none() => "",
        () if what.contains("InvalidContentType") || what.contains("corrupt message") => {
            "; it does not speak TLS: was it started with --tls-cert?"
        }
        () if what.contains("NotValidForName") || what.contains("not valid for name") => {
            "; name the one that is in its certificate with --tls-server-name"
        }
        () if what.contains("UnknownIssuer") => "; --tls-ca does not name who signed its certificate",
        () if what.contains("Expired") => "; its certificate has to be renewed",
        () if what.contains("CertificateRequired") => {
            "; it asks for a certificate: give --tls-cert and --tls-key"
        }
        () => "",
    };
    ConnectError::Unreachable(format!("{what}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        let endpoint = |address| endpoint(address, &ClientAccess::default());
        for good in ["localhost:50051", "10.0.0.7:1", "[::1]:50051"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost", "localhost:", ":50051", "a:99999", "http://a:1", "a b:1"] {
            assert!(matches!(endpoint(bad), Err(ConnectError::Address { .. })), "{bad}");
        }
    }
}
