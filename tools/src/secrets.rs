//! Files with tokens and certificates, for clusters that ask for them.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

/// The token of those who may train, in the file `train`.
pub const TRAIN: &str = "a-secret-of-those-who-train";
/// The token of those who may look, in the file `look`.
pub const LOOK: &str = "a-secret-of-those-who-look";

/// A directory of secrets, removed when dropped.
#[derive(Debug)]
pub struct Secrets(TempDir);

impl Secrets {
    /// The two tokens, and one that is nobody's in the file `wrong`.
    ///
    /// # Panics
    /// If they can't be written.
    #[must_use]
    pub fn new() -> Self {
        let secrets = Self(tempfile::tempdir().expect("a temporary directory can be made"));
        secrets.write("train", &format!("{TRAIN}\n"));
        secrets.write("look", LOOK);
        secrets.write("wrong", "a-secret-of-somebody-else");
        secrets
    }

    /// Where a file is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same as an argument.
    ///
    /// # Panics
    /// If it is not Unicode.
    #[must_use]
    pub fn arg(&self, name: &str) -> String {
        self.path(name).to_str().expect("a temporary path is Unicode").into()
    }

    /// Writes a file.
    ///
    /// # Panics
    /// If that fails.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A CA called `name`, and certificates that it signs for the coordinator and a worker:
    /// `NAME-ca`, `NAME-server`, `NAME-server-key`, `NAME-client`, `NAME-client-key`.
    ///
    /// # Panics
    /// If they can't be made.
    pub fn certificates(&self, name: &str) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        self.write(&format!("{name}-ca"), &ca.pem());
        for holder in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            self.write(&format!("{name}-{holder}"), &certificate.pem());
            self.write(&format!("{name}-{holder}-key"), &key.serialize_pem());
        }
    }
}

impl Default for Secrets {
    fn default() -> Self {
        Self::new()
    }
}
