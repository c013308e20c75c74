//! The certificates and tokens in force, read anew when their files change.
//!
//! A new state is used completely or not at all: while a certificate does not match its key, or a token's file is
//! empty, the old state stays in force and a warning says why. Existing connections keep the state with which they
//! were made.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::ensure;
use rustls::ServerConfig;
use tally_cli::logging::in_one_line;
use tally_transport::client::TOKEN;
use tally_transport::token::Token;
use tally_transport::{option_file, tls};

use super::options::AccessOptions;

/// The variable that the token of those who may look may be in.
const VIEW_TOKEN: &str = "TALLY_VIEW_TOKEN";
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The credentials in force at one time.
#[derive(Debug, Default)]
pub struct LoadedCredentials {
    /// TLS for gRPC; a client's certificate is asked for if there is a CA for them.
    pub grpc: Option<Arc<ServerConfig>>,
    /// TLS for HTTP. There a certificate may be missing: /healthz needs none.
    pub web: Option<Arc<ServerConfig>>,
    /// Clients need a certificate.
    pub certificates: bool,
    /// The token for training and viewing.
    pub train: Option<Token>,
    /// The token for viewing.
    pub view: Option<Token>,
}

impl LoadedCredentials {
    /// Whether everyone has access.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.train.is_none() && !self.certificates
    }
}

/// The files, what they held when they were last read, and what is in force.
#[derive(Debug)]
pub struct Credentials {
    options: AccessOptions,
    current: RwLock<Arc<LoadedCredentials>>,
    looks: Mutex<Looks>,
}

/// What the files held.
#[derive(Debug)]
struct Looks {
    /// When what is in force was read, or refused.
    settled: Contents,
    /// At the last look.
    last: Contents,
}

type Contents = Vec<Option<Vec<u8>>>;

impl Credentials {
    /// Reads what the options name.
    ///
    /// # Errors
    /// If a file can't be read or is not what it should be, in words.
    pub fn load(options: &AccessOptions) -> anyhow::Result<Arc<Self>> {
        // Before they are read: what changes from here on is seen at the next look.
        let now = contents(options);
        let loaded = load(options)?;
        let looks = Mutex::new(Looks { settled: now.clone(), last: now });
        Ok(Arc::new(Self { options: options.clone(), current: RwLock::new(Arc::new(loaded)), looks }))
    }

    /// What is in force.
    #[must_use]
    pub fn current(&self) -> Arc<LoadedCredentials> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files anew whenever their bytes have changed.
    pub async fn reload_loop(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            ticks.tick().await;
            self.look();
        }
    }

    fn look(&self) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let now = contents(&self.options);
        // Two looks must agree: a certificate and its key are seldom written in one go.
        let still = now == looks.last;
        looks.last = now;
        if looks.last == looks.settled || !still {
            return;
        }
        looks.settled = looks.last.clone();
        match load(&self.options) {
            Ok(loaded) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                tracing::info!("certificates and tokens were read anew");
            }
            Err(error) => {
                tracing::warn!("the old certificates and tokens stay in force: {}", in_one_line(&error));
            }
        }
    }
}

/// What the files hold. Their bytes say more than their times: a mounted secret changes by a
/// link. There are a few kilobytes of them.
fn contents(o: &AccessOptions) -> Contents {
    let files: [&Option<PathBuf>; 5] =
        [&o.tls_cert, &o.tls_key, &o.tls_client_ca, &o.token_file, &o.view_token_file];
    files.into_iter().flatten().map(|path| option_file::read(path).ok()).collect()
}

fn load(options: &AccessOptions) -> anyhow::Result<LoadedCredentials> {
    let train = Token::find(options.token_file.as_deref(), TOKEN)?;
    let view = Token::find(options.view_token_file.as_deref(), VIEW_TOKEN)?;
    ensure!(
        view.is_none() || train.is_some(),
        "there is a token for those who may look, and none for those who may train: everyone could train; give \
         --token-file as well"
    );
    ensure!(
        view.is_none() || view != train,
        "the train token and the view token are the same, so that everyone who may look could train; give another --view-token-file"
    );
    let (grpc, web) = match (&options.tls_cert, &options.tls_key) {
        (Some(_), Some(_)) => (
            Some(Arc::new(server(options, true, b"h2")?)),
            Some(Arc::new(server(options, false, b"http/1.1")?)),
        ),
        _ => (None, None),
    };
    Ok(LoadedCredentials { grpc, web, certificates: options.tls_client_ca.is_some(), train, view })
}

/// TLS 1.3 and 1.2 with forward secrecy, as rustls has them.
fn server(options: &AccessOptions, required: bool, protocol: &[u8]) -> anyhow::Result<ServerConfig> {
    let (Some(certificate), Some(key)) = (&options.tls_cert, &options.tls_key) else {
        anyhow::bail!("TLS needs --tls-cert and --tls-key");
    };
    let (certificates, own) = tls::identity(certificate, key)?;
    let builder =
        ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions()?;
    let builder = match &options.tls_client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(tls::client_verifier(path, required)?),
    };
    let mut config =
        builder.with_single_cert(certificates, own).map_err(tls::unusable_identity(certificate, key))?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_changes_is_taken_once_two_looks_agree_and_a_broken_one_never() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("token");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("the-first-0123456");
        let options = AccessOptions { token_file: Some(file.clone()), ..AccessOptions::default() };
        let credentials = Credentials::load(&options).unwrap();
        let is = |text: &str| credentials.current().train.as_ref().unwrap().is(text.as_bytes());
        // Changed before anybody looked: that must not be missed.
        write("the-second-012345");
        credentials.look();
        assert!(is("the-first-0123456"), "it may be half written");
        credentials.look();
        assert!(is("the-second-012345"));
        for broken in ["", "short"] {
            write(broken);
            (0..3).for_each(|_| credentials.look());
            assert!(is("the-second-012345"), "{broken:?}");
        }
        std::fs::remove_file(&file).unwrap();
        (0..3).for_each(|_| credentials.look());
        assert!(is("the-second-012345"), "a token that is gone must not open the door");
        write("the-third-0123456");
        (0..2).for_each(|_| credentials.look());
        assert!(is("the-third-0123456"));
    }
}
