//! Certificates and keys from PEM files, with errors that name the file.

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::{Error as PemError, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

/// Why a file is not what TLS needs.
#[derive(Debug, Error)]
pub enum PemFileError {
    /// It can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It holds nothing of the kind.
    #[error("{} holds no {what} in PEM (-----BEGIN …-----); {remedy}", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// It is damaged.
    #[error("{} is no sound PEM file: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
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
