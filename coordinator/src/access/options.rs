//! The options that decide who may do what.

use std::path::PathBuf;

use clap::Args;

/// Options of the coordinator's ports. Without any of them everyone who reaches a port may use it.
#[derive(Clone, Debug, Default, Args)]
pub struct AccessOptions {
    /// Speak TLS on both ports, with this certificate and those that vouch for it (PEM). Files are
    /// looked at again every few seconds, so that they can be renewed
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Security")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Security")]
    pub tls_key: Option<PathBuf>,

    /// Let in only those whose own certificate these sign (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Security")]
    pub tls_client_ca: Option<PathBuf>,

    /// A file with the token of those who may train, and look [default: the variable TALLY_TOKEN,
    /// if it is set]
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    pub token_file: Option<PathBuf>,

    /// A file with the token of those who may only look [default: the variable TALLY_VIEW_TOKEN, if
    /// it is set]
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    pub view_token_file: Option<PathBuf>,

    /// Connections at one time, on each port; fewer if the system allows fewer open files
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(16..=1_000_000), help_heading = "Security")]
    pub max_connections: u32,
}
