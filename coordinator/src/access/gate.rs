//! Who may make which request.
//!
//! There are three kinds: *open* ones, which only ask whether the coordinator is well; those that
//! *look*; and those that *train*, among which is all that is not known to be less. Everything
//! that is turned on is asked for: a certificate where there is a CA for them, and a token
//! where there is one.
//!
//! Browsers are a way in for pages from elsewhere. A request that changes or costs something must not come from
//! another site's page (the browser says so in `Sec-Fetch-Site`, or its `Origin` is compared with its `Host`), and where the loopback address is all that
//! protects the dashboard, only its own names are answered to, so that no page can give itself
//! one (DNS rebinding).

use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, Method, Request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::credentials::Loaded;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
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
    /// It is none of ours.
    WrongToken,
    /// It is of those who may look.
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
            Self::OnlyLooks => "this token is for looking, not for training; give the other one",
            Self::Host => "call this by localhost or its address, or turn a token on",
            Self::Origin => {
                "another site's page may not do that; if this is the coordinator's own page behind a proxy, have the \
                 proxy hand on the Host header (nginx: proxy_set_header Host $http_host)"
            }
        }
    }
}

/// What a gRPC method does.
#[must_use]
pub fn grpc_deed(path: &str) -> Deed {
    match path {
        "/tally.v1.Cluster/Status" => Deed::Look,
        _ if path.starts_with("/grpc.reflection.") => Deed::Look,
        _ if path.starts_with("/grpc.health.v1.Health/") => Deed::Open,
        _ => Deed::Train,
    }
}

/// What a request over HTTP does.
#[must_use]
pub fn web_deed(path: &str) -> Deed {
    if matches!(path, "/healthz" | "/readyz") { Deed::Open } else { Deed::Look }
}

/// Whether a request of this kind is allowed to one who shows this.
///
/// # Errors
/// Why it is not.
pub fn check(deed: Deed, loaded: &Loaded, certificate: bool, headers: &HeaderMap) -> Result<(), Denied> {
    if deed == Deed::Open {
        return Ok(());
    }
    if loaded.certificates && !certificate {
        return Err(Denied::Certificate);
    }
    let Some(train) = &loaded.train else { return Ok(()) };
    let shown = shown(headers).ok_or(Denied::NoToken)?;
    let may_train = train.is(&shown);
    let may_look = loaded.view.as_ref().is_some_and(|view| view.is(&shown));
    match deed {
        _ if may_train => Ok(()),
        Deed::Look if may_look => Ok(()),
        _ if may_look => Err(Denied::OnlyLooks),
        _ => Err(Denied::WrongToken),
    }
}

/// The token of a request: `Bearer TOKEN`, or as the password of `Basic`, whoever the user.
/// Two are as none: a proxy in front may have looked at the other one.
fn shown(headers: &HeaderMap) -> Option<Vec<u8>> {
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

/// Whether a request can have come from where it says.
///
/// # Errors
/// Why it cannot.
pub fn check_site<B>(request: &Request<B>, loaded: &Arc<Loaded>, loopback: bool) -> Result<(), Denied> {
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
    use tally_worker::access::token::Token;

    use super::*;

    const TRAIN: &str = "train-0123456789";
    const VIEW: &str = "view-0123456789ab";

    fn loaded(train: bool, view: bool, certificates: bool) -> Loaded {
        let token = |on: bool, text| on.then(|| Token::new(text, "test").unwrap());
        Loaded { train: token(train, TRAIN), view: token(view, VIEW), certificates, ..Loaded::default() }
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
            (Deed::Open, "", Ok(())),
            (Deed::Look, "", Err(Denied::NoToken)),
            (Deed::Train, "", Err(Denied::NoToken)),
            (Deed::Look, &view, Ok(())),
            (Deed::Look, &basic, Ok(())),
            (Deed::Look, &train, Ok(())),
            (Deed::Train, &train, Ok(())),
            (Deed::Train, &view, Err(Denied::OnlyLooks)),
            (Deed::Train, &basic, Err(Denied::OnlyLooks)),
            (Deed::Look, "Bearer train-0123456788", Err(Denied::WrongToken)),
            (Deed::Train, "Bearer ", Err(Denied::WrongToken)),
            (Deed::Train, "Digest nonsense", Err(Denied::NoToken)),
            (Deed::Train, "Basic !!!", Err(Denied::NoToken)),
        ] {
            assert_eq!(check(deed, &both, false, &headers(shown)), answer, "{deed:?} {shown}");
        }
        let mutual = loaded(true, false, true);
        assert_eq!(check(Deed::Open, &mutual, false, &headers("")), Ok(()));
        assert_eq!(check(Deed::Train, &mutual, false, &headers(&train)), Err(Denied::Certificate));
        assert_eq!(check(Deed::Train, &mutual, true, &headers("")), Err(Denied::NoToken));
        assert_eq!(check(Deed::Train, &mutual, true, &headers(&train)), Ok(()));
        assert_eq!(check(Deed::Train, &loaded(false, false, false), false, &headers("")), Ok(()));
    }

    #[test]
    fn trust_1_two_tokens_are_as_none() {
        let both = loaded(true, true, false);
        let mut twice = headers(&format!("Bearer {TRAIN}"));
        assert_eq!(check(Deed::Train, &both, false, &twice), Ok(()));
        twice.append(AUTHORIZATION, format!("Bearer {VIEW}").parse().unwrap());
        assert_eq!(check(Deed::Train, &both, false, &twice), Err(Denied::NoToken));
        assert_eq!(check(Deed::Look, &both, false, &twice), Err(Denied::NoToken));
    }

    #[test]
    fn trust_1_what_is_not_known_to_be_less_is_training() {
        for path in
            ["/tally.v1.Cluster/Control", "/tally.v1.Cluster/Gradients", "/", "/grpc.health.v2.Health/Check"]
        {
            assert_eq!(grpc_deed(path), Deed::Train, "{path}");
        }
        assert_eq!(grpc_deed("/grpc.health.v1.Health/Check"), Deed::Open);
        for path in ["/", "/metrics", "/api/state", "/healthz/", "/readyz/../metrics"] {
            assert_eq!(web_deed(path), Deed::Look, "{path}");
        }
    }

    #[test]
    fn trust_1_pages_from_elsewhere_cannot_use_a_browser() {
        let ask = |method: Method, host: &str, origin: &str, loaded: Loaded, loopback| {
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
