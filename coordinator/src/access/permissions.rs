//! The permission that each request needs.
//!
//! There are three kinds of requests: *open* ones, which only ask for the coordinator's health; those that *view* a
//! run; and those that *train*. A request that is not known counts as training. A certificate is required if a CA for
//! clients is configured, and a token is required if one is configured.
//!
//! Pages of other sites can send requests through a user's browser. A request that changes or costs something must
//! not come from such a page: the browser says so in `Sec-Fetch-Site`, or the request's `Origin` is compared with its
//! `Host`. If only the loopback address protects the dashboard, requests must use one of its own names, because
//! another site can let its name point to that address (DNS rebinding).

use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, Method, Request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::credentials::LoadedCredentials;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// It asks whether the coordinator is well.
    Open,
    /// It looks.
    Look,
    /// It takes part.
    Train,
}

/// Why a request is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// A certificate is needed.
    Certificate,
    /// A token is needed.
    NoToken,
    /// It is not a token of this coordinator.
    WrongToken,
    /// It is the token for viewing.
    OnlyLooks,
    /// It calls the coordinator by a name that is not its own.
    Host,
    /// A page from elsewhere has sent it.
    Origin,
}

impl Denied {
    /// In words, with what to do.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Certificate => "this coordinator asks for a certificate; give --tls-cert and --tls-key",
            Self::NoToken => "this coordinator asks for a token; give --token-file, or set TALLY_TOKEN",
            Self::WrongToken => "the token is not this coordinator's; look at --token-file and TALLY_TOKEN",
            Self::OnlyLooks => {
                "this is the view token, which is for looking, not for training; give the train token (the coordinator's --token-file)"
            }
            Self::Host => {
                "without a token this coordinator answers only to localhost and loopback addresses; use one in the URL, or start it with --token-file"
            }
            Self::Origin => {
                "another site's page may not do that; if this is the coordinator's own page behind a proxy, have the \
                 proxy hand on the Host header (nginx: proxy_set_header Host $http_host)"
            }
        }
    }
}

/// What a gRPC method does.
#[must_use]
pub fn grpc_permission(path: &str) -> Permission {
    match path {
        "/tally.v1.Cluster/Status" => Permission::Look,
        _ if path.starts_with("/grpc.reflection.") => Permission::Look,
        _ if path.starts_with("/grpc.health.v1.Health/") => Permission::Open,
        _ => Permission::Train,
    }
}

/// What a request over HTTP does.
#[must_use]
pub fn http_permission(path: &str) -> Permission {
    if matches!(path, "/healthz" | "/readyz") { Permission::Open } else { Permission::Look }
}

/// Checks that a request of this kind is allowed with these credentials.
///
/// # Errors
/// Why it is not.
pub fn check(
    deed: Permission,
    loaded: &LoadedCredentials,
    certificate: bool,
    headers: &HeaderMap,
) -> Result<(), Denied> {
    if deed == Permission::Open {
        return Ok(());
    }
    if loaded.certificates && !certificate {
        return Err(Denied::Certificate);
    }
    let Some(train) = &loaded.train else { return Ok(()) };
    let shown = bearer_token(headers).ok_or(Denied::NoToken)?;
    let may_train = train.is(&shown);
    let may_look = loaded.view.as_ref().is_some_and(|view| view.is(&shown));
    match deed {
        _ if may_train => Ok(()),
        Permission::Look if may_look => Ok(()),
        _ if may_look => Err(Denied::OnlyLooks),
        _ => Err(Denied::WrongToken),
    }
}

/// The token of a request: `Bearer TOKEN`, or as the password of `Basic`, whoever the user. Two tokens count as none,
/// because a proxy may have checked the other one.
fn bearer_token(headers: &HeaderMap) -> Option<Vec<u8>> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(one), None) = (all.next(), all.next()) else { return None };
    let (scheme, rest) = one.to_str().ok()?.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.into());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = STANDARD.decode(rest).ok()?;
    let at = pair.iter().position(|&byte| byte == b':')?;
    Some(pair[at + 1..].to_vec())
}

/// Checks the origin of a request.
///
/// # Errors
/// Why the request is not allowed.
pub fn check_site<B>(
    request: &Request<B>,
    loaded: &Arc<LoadedCredentials>,
    loopback: bool,
) -> Result<(), Denied> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let host = header(HOST).unwrap_or_default();
    if loopback && loaded.is_open() && !is_local(host) {
        return Err(Denied::Host);
    }
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    // No page can set what the browser itself says, and no proxy changes it. Over plain HTTP browsers say nothing,
    // and programs that are no browsers send neither.
    let elsewhere = match request.headers().get("sec-fetch-site") {
        Some(site) => site != "same-origin" && site != "none",
        None => {
            header(ORIGIN).is_some_and(|origin| origin.split_once("://").is_none_or(|(_, from)| from != host))
        }
    };
    if elsewhere { Err(Denied::Origin) } else { Ok(()) }
}

/// Whether a host's name, with or without a port, is the loopback's.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_transport::token::Token;

    use super::*;

    const TRAIN: &str = "train-0123456789";
    const VIEW: &str = "view-0123456789ab";

    fn loaded(train: bool, view: bool, certificates: bool) -> LoadedCredentials {
        let token = |on: bool, text| on.then(|| Token::new(text, "test").unwrap());
        LoadedCredentials {
            train: token(train, TRAIN),
            view: token(view, VIEW),
            certificates,
            ..LoadedCredentials::default()
        }
    }

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !authorization.is_empty() {
            headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        }
        headers
    }

    #[test]
    fn trust_1_each_deed_needs_what_is_turned_on() {
        let both = loaded(true, true, false);
        let (train, view) = (format!("Bearer {TRAIN}"), format!("bearer {VIEW}"));
        let basic = format!("Basic {}", STANDARD.encode(format!("anyone:{VIEW}")));
        for (deed, shown, answer) in [
            (Permission::Open, "", Ok(())),
            (Permission::Look, "", Err(Denied::NoToken)),
            (Permission::Train, "", Err(Denied::NoToken)),
            (Permission::Look, &view, Ok(())),
            (Permission::Look, &basic, Ok(())),
            (Permission::Look, &train, Ok(())),
            (Permission::Train, &train, Ok(())),
            (Permission::Train, &view, Err(Denied::OnlyLooks)),
            (Permission::Train, &basic, Err(Denied::OnlyLooks)),
            (Permission::Look, "Bearer train-0123456788", Err(Denied::WrongToken)),
            (Permission::Train, "Bearer ", Err(Denied::WrongToken)),
            (Permission::Train, "Digest nonsense", Err(Denied::NoToken)),
            (Permission::Train, "Basic !!!", Err(Denied::NoToken)),
        ] {
            assert_eq!(check(deed, &both, false, &headers(shown)), answer, "{deed:?} {shown}");
        }
        let mutual = loaded(true, false, true);
        assert_eq!(check(Permission::Open, &mutual, false, &headers("")), Ok(()));
        assert_eq!(check(Permission::Train, &mutual, false, &headers(&train)), Err(Denied::Certificate));
        assert_eq!(check(Permission::Train, &mutual, true, &headers("")), Err(Denied::NoToken));
        assert_eq!(check(Permission::Train, &mutual, true, &headers(&train)), Ok(()));
        assert_eq!(check(Permission::Train, &loaded(false, false, false), false, &headers("")), Ok(()));
    }

    #[test]
    fn trust_1_two_tokens_are_as_none() {
        let both = loaded(true, true, false);
        let mut twice = headers(&format!("Bearer {TRAIN}"));
        assert_eq!(check(Permission::Train, &both, false, &twice), Ok(()));
        twice.append(AUTHORIZATION, format!("Bearer {VIEW}").parse().unwrap());
        assert_eq!(check(Permission::Train, &both, false, &twice), Err(Denied::NoToken));
        assert_eq!(check(Permission::Look, &both, false, &twice), Err(Denied::NoToken));
    }

    #[test]
    fn trust_1_what_is_not_known_to_be_less_is_training() {
        for path in
            ["/tally.v1.Cluster/Control", "/tally.v1.Cluster/Gradients", "/", "/grpc.health.v2.Health/Check"]
        {
            assert_eq!(grpc_permission(path), Permission::Train, "{path}");
        }
        assert_eq!(grpc_permission("/grpc.health.v1.Health/Check"), Permission::Open);
        for path in ["/", "/metrics", "/api/state", "/healthz/", "/readyz/../metrics"] {
            assert_eq!(http_permission(path), Permission::Look, "{path}");
        }
    }

    #[test]
    fn trust_1_pages_from_elsewhere_cannot_use_a_browser() {
        let ask = |method: Method, host: &str, origin: &str, loaded: LoadedCredentials, loopback| {
            let mut request = Request::builder().method(method).header(HOST, host);
            if !origin.is_empty() {
                request = request.header(ORIGIN, origin);
            }
            check_site(&request.body(()).unwrap(), &Arc::new(loaded), loopback)
        };
        let open = || loaded(false, false, false);
        for host in ["localhost", "localhost:9000", "127.0.0.1:9000", "[::1]:9000", "127.0.0.2"] {
            assert_eq!(ask(Method::GET, host, "", open(), true), Ok(()), "{host}");
        }
        for host in
            ["evil.example", "evil.example:9000", "", "localhost.evil.example", "127.0.0.1.evil.example:80"]
        {
            assert_eq!(ask(Method::GET, host, "", open(), true), Err(Denied::Host), "{host}");
            assert_eq!(ask(Method::GET, host, "", loaded(true, false, false), true), Ok(()), "{host}");
            assert_eq!(ask(Method::GET, host, "", open(), false), Ok(()), "{host}");
        }
        let post = |origin| ask(Method::POST, "localhost:9000", origin, open(), true);
        // Behind a proxy that says its own Host, as nginx does unless told otherwise.
        let told = |site: &str| {
            let request = Request::builder().method(Method::POST).header(HOST, "127.0.0.1:9000");
            let request = request.header(ORIGIN, "https://tally.example").header("sec-fetch-site", site);
            check_site(&request.body(()).unwrap(), &Arc::new(open()), true)
        };
        assert_eq!((told("same-origin"), told("none")), (Ok(()), Ok(())));
        for site in ["same-site", "cross-site", "", "anything"] {
            assert_eq!(told(site), Err(Denied::Origin), "{site:?}");
        }
        assert_eq!(post("http://localhost:9000"), Ok(()));
        assert_eq!(post(""), Ok(()));
        for origin in ["http://evil.example", "null", "http://localhost:9001", "http://evil.example:9000"] {
            assert_eq!(post(origin), Err(Denied::Origin), "{origin}");
        }
    }
}
