//! Certificates and keys from PEM files. Errors name the file, its content, and the command that converts it.

use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
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
        source: io::Error,
    },
    /// The file holds no certificate or no key.
    #[error("{} holds no {what} in PEM (-----BEGIN …-----): {found}", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What was expected: a certificate or a key.
        what: &'static str,
        /// Its content, and the remedy.
        found: String,
    },
    /// The file is damaged.
    #[error("{} is not a sound PEM file: {reason}; copy it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The error for a file that cannot be read.
#[must_use]
pub fn cannot_read(path: &Path, source: io::Error) -> PemFileError {
    PemFileError::Read { path: path.into(), source }
}

/// All certificates of a file, at least one.
///
/// # Errors
/// [`PemFileError`] if there is none or one is damaged.
pub fn certificates(bytes: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, PemFileError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let all = all.map_err(|e| damaged(path, &e))?;
    if all.is_empty() {
        return Err(nothing("certificate", bytes, path));
    }
    Ok(all)
}

/// The private key of a file.
///
/// # Errors
/// [`PemFileError`] if there is none or it is damaged.
pub fn key(bytes: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, PemFileError> {
    // OpenSSL before version 1.0 wrote encrypted keys with headers, which are not base64.
    if contains(bytes, "Proc-Type: 4,ENCRYPTED") {
        return Err(nothing(KEY, bytes, path));
    }
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| match error {
        PemError::NoItemsFound => nothing(KEY, bytes, path),
        error => damaged(path, &error),
    })
}

const KEY: &str = "private key that can be used";

fn damaged(path: &Path, error: &PemError) -> PemFileError {
    PemFileError::Damaged { path: path.into(), reason: error.to_string() }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The error for a file that holds something else, with its content and the remedy.
fn nothing(what: &'static str, bytes: &[u8], path: &Path) -> PemFileError {
    let file = path.display();
    let certificate = what != KEY;
    let has = |label: &str| contains(bytes, label);
    let found = if bytes.is_empty() {
        "it is empty".into()
    } else if has("ENCRYPTED") {
        format!(
            "its key is encrypted, and nobody is there to enter the passphrase; decrypt it with: umask 077; openssl pkey -in \
             {file} -out plain.key"
        )
    } else if has("BEGIN CERTIFICATE REQUEST") || has("BEGIN NEW CERTIFICATE REQUEST") {
        "it is a request, which a CA still has to sign: openssl x509 -req (docs/security.md)".into()
    } else if has("BEGIN TRUSTED CERTIFICATE") {
        format!("it is in OpenSSL's own form; convert it with: openssl x509 -in {file} -out plain.pem")
    } else if has("BEGIN PKCS7") {
        format!(
            "it is a PKCS#7 bundle; convert it with: openssl pkcs7 -print_certs -in {file} -out plain.pem"
        )
    } else if has("BEGIN OPENSSH PRIVATE KEY") {
        "it is a key of SSH, which TLS cannot use; make a certificate and its key as docs/security.md says"
            .into()
    } else if certificate && has("PRIVATE KEY-----") {
        "it holds a private key; are the files of certificate and key swapped?".into()
    } else if !certificate && has("BEGIN CERTIFICATE") {
        "it holds a certificate; are the files of certificate and key swapped?".into()
    } else if has("PUBLIC KEY-----") {
        "it holds a public key alone".into()
    } else if bytes.starts_with(&[0x30]) {
        // The tag of a sequence, with which every file in DER begins.
        let convert = if certificate { "x509" } else { "pkey" };
        format!(
            "it looks like DER; convert it with: openssl {convert} -inform der -in {file} -out plain.pem (or, of PKCS#12: \
             openssl pkcs12 -nodes -in {file} -out plain.pem)"
        )
    } else if certificate {
        "name a file with one or more certificates".into()
    } else {
        "name a file with an unencrypted PKCS#8, PKCS#1 or SEC1 key".into()
    };
    PemFileError::Nothing { path: path.into(), what, found }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn block(label: &str) -> String {
        format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n")
    }

    #[test]
    fn a_file_that_holds_something_else_is_described_with_the_remedy() {
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n\
                   -----END RSA PRIVATE KEY-----\n";
        let path = Path::new("the-file");
        for (bytes, words) in [
            (old.as_bytes(), "openssl pkey -in the-file"),
            (block("ENCRYPTED PRIVATE KEY").as_bytes(), "is encrypted"),
            (block("CERTIFICATE").as_bytes(), "swapped"),
            (block("OPENSSH PRIVATE KEY").as_bytes(), "SSH"),
            (block("PUBLIC KEY").as_bytes(), "a public key alone"),
            (b"\x30\x82\x04\xa4\x02\x01\x00", "openssl pkey -inform der"),
            (b"", "it is empty"),
            (b"secret", "PKCS#8, PKCS#1 or SEC1"),
        ] {
            let error = key(bytes, path).unwrap_err().to_string();
            assert!(error.starts_with("the-file holds no private key") && error.contains(words), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for (bytes, words) in [
            (block("CERTIFICATE REQUEST").as_bytes(), "a CA still has to sign"),
            (block("TRUSTED CERTIFICATE").as_bytes(), "openssl x509 -in the-file"),
            (block("PKCS7").as_bytes(), "openssl pkcs7"),
            (block("PRIVATE KEY").as_bytes(), "swapped"),
            (b"\x30\x82\x04\xa4", "openssl x509 -inform der"),
            (b"", "it is empty"),
        ] {
            let error = certificates(bytes, path).unwrap_err().to_string();
            assert!(error.starts_with("the-file holds no certificate") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn text_around_blocks_and_windows_line_breaks_are_ignored() {
        let text =
            format!("Bag Attributes\n    friendlyName: a\n{}", block("CERTIFICATE")).replace('\n', "\r\n");
        assert_eq!(certificates(text.as_bytes(), Path::new("a")).unwrap().len(), 1);
    }
}
