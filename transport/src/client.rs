//! The options of a client: the token and certificate that it presents, and the certificates that it trusts.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::tls;
use crate::token::Token;

/// The environment variable that may hold the token.
pub const TOKEN: &str = "TALLY_TOKEN";

/// Options of every client of a coordinator.
#[derive(Clone, Debug, Default, Args)]
pub struct ClientAccess {
    /// Use TLS, and trust a coordinator whose certificate is in this file or is signed by one in it (PEM)
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    pub tls_ca: Option<PathBuf>,

    /// This client's certificate, where the coordinator asks for one (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_key"], help_heading = "Security")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Security")]
    pub tls_key: Option<PathBuf>,

    /// The name in the coordinator's certificate [default: the host of --connect]
    #[arg(long, value_name = "NAME", requires = "tls_ca", help_heading = "Security")]
    pub tls_server_name: Option<String>,

    /// A file with the coordinator's token [default: the token in the variable TALLY_TOKEN, if it is set]
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    pub token_file: Option<PathBuf>,
}

impl ClientAccess {
    /// The TLS configuration for `host` and the name that its certificate must have, if TLS is used.
    ///
    /// # Errors
    /// If a file cannot be read, or holds no certificate or key.
    pub fn tls(&self, host: &str) -> anyhow::Result<Option<(ClientConfig, ServerName<'static>)>> {
        let Some(ca) = &self.tls_ca else { return Ok(None) };
        // An IPv6 address has brackets in an address and none in a certificate.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.tls_server_name.as_deref().unwrap_or(host);
        let Ok(name) = ServerName::try_from(name.to_owned()) else {
            bail!("{name} is not a name that a certificate can have; give one with --tls-server-name");
        };
        let identity = self.tls_cert.as_deref().zip(self.tls_key.as_deref());
        Ok(Some((tls::client(ca, identity)?, name)))
    }

    /// The credentials of every call. They are read for every connection, so that a changed token is used.
    ///
    /// # Errors
    /// If the token cannot be read or used.
    pub fn bearer(&self) -> anyhow::Result<Bearer> {
        let Some(token) = Token::find(self.token_file.as_deref(), TOKEN)? else { return Ok(Bearer(None)) };
        let mut value: MetadataValue<Ascii> = token.bearer().parse().context("the token cannot be sent")?;
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }

    /// Whether the token would cross a network unencrypted.
    #[must_use]
    pub fn exposes_token(&self, host: &str, bearer: &Bearer) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let loopback =
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        bearer.0.is_some() && self.tls_ca.is_none() && !loopback
    }
}

/// Adds the token to every call.
#[derive(Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

/// The token itself is never printed.
impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer(…)" } else { "Bearer(none)" })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_unencrypted_token_is_noticed_where_it_leaves_the_machine() {
        let plain = ClientAccess::default();
        let shown = Bearer(Some("Bearer 0123456789abcdef".parse().unwrap()));
        for (host, exposed) in
            [("127.0.0.1", false), ("[::1]", false), ("localhost", false), ("10.0.0.7", true), ("host", true)]
        {
            assert_eq!(plain.exposes_token(host, &shown), exposed, "{host}");
            assert!(!plain.exposes_token(host, &Bearer(None)));
        }
        let tls = ClientAccess { tls_ca: Some("ca.pem".into()), ..plain };
        assert!(!tls.exposes_token("10.0.0.7", &shown));
        assert!(!format!("{shown:?}").contains("0123"));
    }

    #[test]
    fn a_file_without_a_sound_certificate_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("ca.pem");
        let access = ClientAccess { tls_ca: Some(file.clone()), ..ClientAccess::default() };
        let error = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::write(&file, text).unwrap();
            }
            access.tls("localhost").unwrap_err().to_string()
        };
        assert!(error(None).contains("cannot read"));
        assert!(error(Some("nothing")).contains("holds no certificate"));
        let broken = error(Some("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"));
        assert!(broken.contains("not a sound PEM file") && broken.contains("ca.pem"), "{broken}");
    }
}
