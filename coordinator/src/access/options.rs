//! The options that decide who may do what.

use std::path::PathBuf;

use clap::Args;

/// Options of the coordinator's ports. Without any of them everyone who reaches a port may use it.
#[derive(Clone, Debug, Default, Args)]
pub struct AccessOptions {
    /// Use TLS on both ports, with this certificate, followed in the file by the intermediate ones that signed it
    /// (PEM). Files of certificates, keys and tokens are read again every few seconds, so that they can be renewed
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Security")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Security")]
    pub tls_key: Option<PathBuf>,

    /// Let in only clients whose certificate is in this file or is signed by one in it (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Security")]
    pub tls_client_ca: Option<PathBuf>,

    /// A file with the train token, with which a client may train and look [default: the token in the variable
    /// TALLY_TOKEN, if it is set]
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    pub token_file: Option<PathBuf>,

    /// A file with the view token, with which a client may only look [default: the token in the variable
    /// TALLY_VIEW_TOKEN, if it is set]
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    pub view_token_file: Option<PathBuf>,

    /// Connections at one time, on each port; fewer if the system allows fewer open files
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(16..=1_000_000), help_heading = "Security")]
    pub max_connections: u32,
}
