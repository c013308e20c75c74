//! The message about access at the start of a run.

use std::net::SocketAddr;

use super::credentials::LoadedCredentials;

/// Says who can train and who can view, and how to restrict that: each line, and whether it is a warning.
#[must_use]
pub fn banner(loaded: &LoadedCredentials, workers: SocketAddr, web: SocketAddr) -> Vec<(bool, String)> {
    let exposed: Vec<SocketAddr> = [workers, web].into_iter().filter(|a| !a.ip().is_loopback()).collect();
    let ports = |addresses: &[SocketAddr]| match addresses {
        [one] => format!("port {}", one.port()),
        _ => format!("ports {} and {}", workers.port(), web.port()),
    };
    let mut lines = Vec::new();
    let train = workers.ip().is_loopback();
    if loaded.is_open() {
        let close = "close that with --token-file FILE here and at the workers (openssl rand -hex 32 > FILE)";
        lines.push(match (exposed.as_slice(), train) {
            ([], _) => (false, format!("anyone on this machine can join the run and look at it; {close}")),
            (exposed, true) => (
                true,
                format!("anyone who can reach {} can look at the run, and anyone on this machine can join it; {close}", ports(exposed)),
            ),
            (exposed, false) => (
                true,
                format!(
                    "anyone who can reach {} can join the run, spoil it and read its data: neither a token nor \
                     certificates are asked for; {close}",
                    ports(exposed)
                ),
            ),
        });
    } else {
        let who = match (loaded.train.is_some(), loaded.certificates) {
            (true, true) => "a certificate and the token",
            (true, false) => "the token",
            _ => "a certificate",
        };
        let view = if loaded.view.is_some() { "; the view token is for looking only" } else { "" };
        lines.push((false, format!("whoever has {who} can join the run and look at it{view}")));
    }
    if loaded.grpc.is_none() && !exposed.is_empty() {
        let what = if loaded.train.is_some() { "the token and the data cross" } else { "the data crosses" };
        lines.push((
            true,
            format!(
                "{what} the network in the clear, and nobody can tell whom they talk to; close that with \
                     --tls-cert and --tls-key here, --tls-ca at the workers (docs/security.md)"
            ),
        ));
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_transport::token::Token;

    use super::*;

    fn told(loaded: &LoadedCredentials, workers: &str, web: &str) -> Vec<(bool, String)> {
        banner(loaded, workers.parse().unwrap(), web.parse().unwrap())
    }

    #[test]
    fn what_is_open_is_said_and_how_to_close_it() {
        let (open, loopback) = (LoadedCredentials::default(), "127.0.0.1:9000");
        let lines = told(&open, "127.0.0.1:1", loopback);
        assert!(matches!(&lines[..], [(false, text)] if text.contains("on this machine")), "{lines:?}");
        let lines = told(&open, "0.0.0.0:50051", loopback);
        assert!(
            matches!(&lines[..], [(true, who), (true, clear)]
            if who.contains("reach port 50051 can join") && clear.contains("--tls-cert")),
            "{lines:?}"
        );
        let lines = told(&open, "127.0.0.1:1", "0.0.0.0:9000");
        assert!(lines[0].1.contains("reach port 9000 can look"), "{lines:?}");
        let lines = told(&open, "0.0.0.0:50051", "0.0.0.0:9000");
        assert!(lines[0].1.contains("ports 50051 and 9000 can join"), "{lines:?}");

        let token = Token::new("0123456789abcdef", "test").ok();
        let closed = LoadedCredentials { train: token.clone(), view: token, ..LoadedCredentials::default() };
        let lines = told(&closed, "0.0.0.0:50051", loopback);
        assert!(!lines[0].0 && lines[0].1.contains("the token can join"), "{lines:?}");
        assert!(lines[1].0 && lines[1].1.contains("in the clear"), "{lines:?}");
        let told: String = lines.into_iter().map(|(_, text)| text).collect();
        assert!(!told.contains("0123456789"), "{told}");
    }
}
