//! Two hosts, joined by one link of a chosen rate: network namespaces with a veth pair between them, each end of
//! which lets bytes out no faster than that (`tc … tbf`).
//!
//! ```text
//! coordinator ══ veth, tbf ═════ tbf, veth ══ workers
//! ```

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, ensure};

/// The namespaces and the link; gone when dropped.
#[derive(Debug)]
pub struct Network {
    /// The coordinator's and the workers'.
    namespaces: [String; 2],
}

/// How long a packet may wait for its turn before the next one is dropped.
const QUEUE: &str = "50ms";

impl Network {
    /// Two namespaces whose link carries so many bits a second each way.
    ///
    /// # Errors
    /// If this machine does not allow it, with what it said. Nothing is left behind then.
    pub fn new(bits: f64) -> anyhow::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("tallyscale-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let network = Self { namespaces: [format!("{name}-c"), format!("{name}-w")] };
        network.build(bits)?;
        Ok(network)
    }

    /// The coordinator's address.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 63, 0, 1)
    }

    /// The coordinator's namespace.
    #[must_use]
    pub fn coordinators(&self) -> &str {
        &self.namespaces[0]
    }

    /// The workers' namespace.
    #[must_use]
    pub fn workers(&self) -> &str {
        &self.namespaces[1]
    }

    fn build(&self, bits: f64) -> anyhow::Result<()> {
        let [coordinator, workers] = &self.namespaces;
        ip(&format!("netns add {coordinator}"))?;
        ip(&format!("netns add {workers}"))?;
        ip(&format!("-n {coordinator} link add wire type veth peer name wire netns {workers}"))?;
        // A millisecond's worth of bytes may leave at once, and never less than a few packets.
        let burst = (bits / 8.0 * 1e-3).max(16_384.0);
        for (namespace, address) in [(coordinator, "10.63.0.1/24"), (workers, "10.63.0.2/24")] {
            ip(&format!("-n {namespace} addr add {address} dev wire"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
            ip(&format!("-n {namespace} link set wire up"))?;
            let shape = format!(
                "netns exec {namespace} tc qdisc add dev wire root tbf rate {bits:.0}bit burst {burst:.0} latency {QUEUE}"
            );
            ip(&shape)?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let _ = ip(&format!("netns del {namespace}"));
        }
    }
}

/// Runs `ip` with these words.
fn ip(words: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    let output = command.args(words.split_whitespace()).stdin(Stdio::null()).output();
    let output = output.context("cannot run ip (Debian's package iproute2)")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
