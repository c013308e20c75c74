//! Network namespaces with cables that can be pulled, where this machine allows them.
//!
//! ```text
//! coordinator ── host ══ trunk ══ switch ══ cable 1 ══ namespace of worker 1
//!                                   ╚═════ cable 3 ══ namespace of worker 3
//! ```
//!
//! The switch is a namespace as well. A cable is pulled at the switch's end, so the worker
//! sees its carrier go, the coordinator's machine sees nothing at all, and packets vanish
//! without a word, as they do when a real one is pulled. All of it has the number of this
//! process in its name and goes when it is dropped; what a killed process left behind is
//! removed by the next.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// Every name begins with it.
const PREFIX: &str = "tally";

/// The namespaces and their cables.
#[derive(Debug)]
pub struct Network {
    names: Names,
    slots: Vec<usize>,
}

/// The names and addresses that the process of this number uses.
#[derive(Clone, Copy, Debug)]
struct Names(u32);

impl Names {
    /// The first two numbers of all addresses: `10.64` to `10.191`, so that two of these
    /// networks on one machine rarely meet.
    fn net(self) -> String {
        format!("10.{}", 64 + self.0 % 128)
    }

    fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(10, (64 + self.0 % 128) as u8, 255, 1)
    }

    fn switch(self) -> String {
        format!("{PREFIX}-{}-switch", self.0)
    }

    fn namespace(self, slot: usize) -> String {
        format!("{PREFIX}-{}-{slot}", self.0)
    }

    fn trunk(self) -> String {
        format!("{PREFIX}{}", self.0)
    }

    /// Removes what goes by these names; what is not there is no matter.
    fn remove(self, namespaces: &[String]) {
        let _ = ip(&format!("link del {}", self.trunk()));
        let _ = ip(&format!("addr del {}/32 dev lo", self.host()));
        for namespace in namespaces {
            let _ = ip(&format!("netns del {namespace}"));
        }
    }
}

/// Runs `ip` with these words.
fn ip(words: &str) -> anyhow::Result<()> {
    run(Command::new("ip").args(words.split_whitespace())).with_context(|| format!("ip {words}"))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim().to_owned());
    Ok(())
}

impl Network {
    /// Makes a namespace and a cable for each of these slots.
    ///
    /// # Errors
    /// If this machine does not allow it, with what it said. Nothing is left behind then.
    pub fn new(slots: Vec<usize>) -> anyhow::Result<Self> {
        remove_leftovers();
        let network = Self { names: Names(std::process::id()), slots };
        network.build()?;
        Ok(network)
    }

    /// An address of this machine that the namespaces reach, and nobody else does.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        self.names.host()
    }

    /// The namespace of a slot.
    #[must_use]
    pub fn namespace(&self, slot: usize) -> String {
        self.names.namespace(slot)
    }

    fn build(&self) -> anyhow::Result<()> {
        let names = self.names;
        let (net, host, switch, trunk) = (names.net(), names.host(), names.switch(), names.trunk());
        ip(&format!("netns add {switch}"))?;
        ip(&format!("addr add {host}/32 dev lo"))?;
        ip(&format!("link add {trunk} type veth peer name trunk netns {switch}"))?;
        ip(&format!("addr add {net}.254.1/30 dev {trunk}"))?;
        ip(&format!("link set {trunk} up"))?;
        ip(&format!("-n {switch} addr add {net}.254.2/30 dev trunk"))?;
        ip(&format!("-n {switch} link set trunk up"))?;
        ip(&format!("-n {switch} route add {host}/32 via {net}.254.1"))?;
        // What is meant for a pulled cable vanishes, instead of being answered.
        ip(&format!("-n {switch} route add blackhole {net}.0.0/16"))?;
        ip(&format!("route add {net}.0.0/16 via {net}.254.2"))?;
        let forward = ["netns", "exec", &switch, "sysctl", "-qw", "net.ipv4.ip_forward=1"];
        run(Command::new("ip").args(forward)).context("cannot switch forwarding on")?;
        for slot in &self.slots {
            let namespace = self.namespace(*slot);
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("-n {switch} link add w{slot} type veth peer name cable netns {namespace}"))?;
            ip(&format!("-n {switch} addr add {net}.{slot}.1/30 dev w{slot}"))?;
            ip(&format!("-n {switch} link set w{slot} up"))?;
            ip(&format!("-n {namespace} addr add {net}.{slot}.2/30 dev cable"))?;
            ip(&format!("-n {namespace} link set cable up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
            ip(&format!("-n {namespace} route add default via {net}.{slot}.1"))?;
        }
        Ok(())
    }

    /// Pulls a slot's cable out, or puts it in again.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn cable(&self, slot: usize, plugged: bool) -> anyhow::Result<()> {
        let state = if plugged { "up" } else { "down" };
        ip(&format!("-n {} link set w{slot} {state}", self.names.switch()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let mut namespaces: Vec<String> = self.slots.iter().map(|slot| self.namespace(*slot)).collect();
        namespaces.push(self.names.switch());
        self.names.remove(&namespaces);
    }
}

/// Removes what processes made that are no longer there.
fn remove_leftovers() {
    let Ok(output) = Command::new("ip").args(["netns", "list"]).output() else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    for name in names {
        let number = name.strip_prefix("tally-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if let Some(number) = number
            && !Path::new(&format!("/proc/{number}")).exists()
        {
            Names(number).remove(&[name.to_owned()]);
        }
    }
}
