//! Whom a request was meant for, and whose page it comes from. A page of another site can make a browser ask us under a name of
//! that site's (DNS rebinding), and then read the answer: so names that are not ours are refused. What a browser asks for in the
//! name of another site's script is refused too.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// Names that are ours.
#[derive(Clone, Debug)]
pub struct Hosts {
    names: Vec<String>,
}

impl Hosts {
    /// The host's own name, the name that we were bound by, and others that were allowed by flag.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut list = vec!["localhost".to_owned()];
        for name in names {
            let name = normal(name);
            // `host` stands for `host.domain` too.
            if let Some((short, _)) = name.split_once('.')
                && name.parse::<IpAddr>().is_err()
            {
                list.push(short.to_owned());
            }
            list.push(name);
        }
        Hosts { names: list }
    }

    /// Whether a request for this host (with or without a port) is meant for us. An address always is: only names can
    /// be pointed somewhere else.
    fn allows(&self, host: &str) -> bool {
        let (name, port) = if let Some(rest) = host.strip_prefix('[') {
            let Some((address, port)) = rest.split_once(']') else { return false };
            (address, port)
        } else {
            host.find(':').map_or((host, ""), |colon| host.split_at(colon))
        };
        let port_is_plain = match port.strip_prefix(':') {
            Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()),
            None => port.is_empty(),
        };
        let name = normal(name);
        port_is_plain && (name.parse::<IpAddr>().is_ok() || self.names.contains(&name))
    }

    /// The first host of a request that is not ours. One without any is no browser's (HTTP/1.0).
    fn foreign(&self, uri: &Uri, headers: &HeaderMap) -> Option<String> {
        if let Some(authority) = uri.authority()
            && !self.allows(authority.as_str())
        {
            return Some(authority.to_string());
        }
        let hosts = headers.get_all(header::HOST).iter();
        hosts
            .map(|host| String::from_utf8_lossy(host.as_bytes()))
            .find(|host| !self.allows(host))
            .map(Into::into)
    }
}

/// The origin of a request that is another site's, as a browser says it (RFC 6454, section 7): not the host that it asks.
fn foreign_origin(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let host = uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = host.or_else(|| headers.get(header::HOST).map(HeaderValue::as_bytes)).unwrap_or_default();
    // A proxy in front of the page may speak TLS.
    let is_own = |origin: &[u8]| {
        [&b"http://"[..], b"https://"].iter().any(|scheme| origin.strip_prefix(*scheme) == Some(host))
    };
    let mut origins = headers.get_all(header::ORIGIN).iter().map(HeaderValue::as_bytes);
    origins.find(|origin| !is_own(origin)).map(|origin| String::from_utf8_lossy(origin).into_owned())
}

/// A header of a request, as it may be shown.
fn shown(value: &str) -> String {
    value.chars().filter(|c| !c.is_control()).take(255).collect()
}

/// Names do not differ by case, nor by the dot of the root at their end.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Refuses requests that were meant for somebody else.
pub(super) async fn check(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    if let Some(host) = hosts.foreign(request.uri(), request.headers()) {
        let host = shown(&host);
        let message = format!(
            "This is not {host}. If it should be, start bulkhead-uploader with --http-allowed-host={host}; else ask by \
             address, such as http://127.0.0.1:7071/.\n"
        );
        return (StatusCode::MISDIRECTED_REQUEST, message).into_response();
    }
    if let Some(origin) = foreign_origin(request.uri(), request.headers()) {
        let message = format!("Pages of {} may not read this.\n", shown(&origin));
        return (StatusCode::FORBIDDEN, message).into_response();
    }
    next.run(request).await
}

/// Adds the headers that keep other sites and clever browsers out, where the answer has none of its own.
pub(super) async fn protect(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_and_all_addresses_are_ours() {
        let hosts = Hosts::new(["node1.example.org", "profiler", "127.0.0.1"]);
        for host in [
            "localhost",
            "LOCALHOST:7071",
            "localhost.",
            "127.0.0.1:7071",
            "10.1.2.3",
            "[::1]:7071",
            "[fe80::1]",
            "node1.example.org:80",
            "node1",
            "Profiler",
        ] {
            assert!(hosts.allows(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:7071",
            "localhost.evil.example",
            "node1.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:80@evil.example",
            "127.0.0.1:7071, evil.example",
            "[::1",
            "[evil.example]",
            "::1",
            "127.0.0.1:x",
        ] {
            assert!(!hosts.allows(host), "{host}");
        }
    }

    #[test]
    fn every_host_of_a_request_counts() {
        let hosts = Hosts::new([]);
        let foreign = |uri: &'static str, names: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for name in names {
                headers.append(header::HOST, HeaderValue::from_static(name));
            }
            hosts.foreign(&Uri::from_static(uri), &headers)
        };
        assert_eq!(foreign("/", &["localhost"]), None);
        assert_eq!(foreign("/", &[]), None);
        assert_eq!(foreign("/", &["localhost", "evil.example"]), Some("evil.example".into()));
        assert_eq!(foreign("http://evil.example/", &["localhost"]), Some("evil.example".into()));
    }

    #[test]
    fn scripts_of_other_sites_are_strangers() {
        let stranger = |uri: &'static str, host: &'static str, origins: &[&'static str]| {
            let mut headers = HeaderMap::new();
            headers.append(header::HOST, HeaderValue::from_static(host));
            for origin in origins {
                headers.append(header::ORIGIN, HeaderValue::from_static(origin));
            }
            foreign_origin(&Uri::from_static(uri), &headers).is_some()
        };
        assert!(!stranger("/", "localhost:7071", &[]));
        assert!(!stranger("/", "localhost:7071", &["http://localhost:7071"]));
        assert!(!stranger("/", "profiles.example", &["https://profiles.example"]));
        assert!(!stranger("http://localhost:7071/", "other", &["http://localhost:7071"]));
        for origin in [
            "null",
            "",
            "http://localhost",
            "http://localhost:70710",
            "http://evil.example",
            "file://",
            "http://localhost:7071/",
            "http://localhost:7071.evil.example",
        ] {
            assert!(stranger("/", "localhost:7071", &[origin]), "{origin}");
        }
        assert!(stranger("/", "localhost:7071", &["http://localhost:7071", "http://evil.example"]));
    }
}
