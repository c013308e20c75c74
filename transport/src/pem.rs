//! Certificates and keys from PEM files, with errors that name the file.

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::{Error as PemError, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

/// Why TLS cannot use a file.
#[derive(Debug, Error)]
pub enum PemFileError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file holds no certificate or no key.
    #[error("{} holds no {what} in PEM (-----BEGIN …-----); {remedy}", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What was expected: a certificate or a key.
        what: &'static str,
        /// What the user can do.
        remedy: &'static str,
    },
    /// The file is damaged.
    #[error("{} is not a sound PEM file: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A file's bytes.
///
/// # Errors
/// [`PemFileError::Read`].
pub fn read(path: &Path) -> Result<Vec<u8>, PemFileError> {
    std::fs::read(path).map_err(|source| PemFileError::Read { path: path.into(), source })
}

/// All certificates of a file, at least one.
///
/// # Errors
/// [`PemFileError`] if there is none or one is damaged.
pub fn certificates(bytes: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, PemFileError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let all = all.map_err(|e| PemFileError::Damaged { path: path.into(), reason: e.to_string() })?;
    if all.is_empty() {
        let (what, remedy) = ("certificate", "name a file with one or more certificates");
        return Err(PemFileError::Nothing { path: path.into(), what, remedy });
    }
    Ok(all)
}

/// The private key of a file.
///
/// # Errors
/// [`PemFileError`] if there is none or it is damaged.
pub fn key(bytes: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, PemFileError> {
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| match error {
        PemError::NoItemsFound => {
            let (what, remedy) =
                ("private key", "name a file with an unencrypted PKCS#8, PKCS#1 or SEC1 key");
            PemFileError::Nothing { path: path.into(), what, remedy }
        }
        error => PemFileError::Damaged { path: path.into(), reason: error.to_string() },
    })
}
