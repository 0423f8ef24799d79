//! Targets: which addresses a client may name, told by their text alone.

use std::net::IpAddr;

use url::{Host, Url};

use super::FetchError;
use super::address::{is_public, is_public_or_private};

/// Longest address, in bytes.
pub const MAX_URL: usize = 2048;

/// What may be fetched.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Hosts; all when there are none. `example.org` is that host, `*.example.org` every one below it.
    pub hosts: Vec<String>,
    /// Ports beside 80 and 443.
    pub ports: Vec<u16>,
    /// Whether addresses of this machine and of private networks may be connected to.
    pub private: bool,
}

/// An address that may be fetched as far as its text tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The address, without a fragment.
    pub url: Url,
    /// The port.
    pub port: u16,
    /// What to resolve; `Err` with the address where it is one already, which was checked.
    pub host: Result<String, IpAddr>,
}

impl Rules {
    /// Whether an address may be connected to.
    #[must_use]
    pub fn allows(&self, ip: IpAddr) -> bool {
        if self.private { is_public_or_private(ip) } else { is_public(ip) }
    }

    /// Reads an address.
    ///
    /// # Errors
    /// `invalid_url`, `url_not_allowed`, or `url_address_refused`.
    pub fn target(&self, text: &str) -> Result<Target, FetchError> {
        if text.len() > MAX_URL {
            return Err(FetchError::Invalid("it is longer than 2048 bytes"));
        }
        let url = Url::parse(text).map_err(|_| FetchError::Invalid("it does not parse"))?;
        // As it was written, for a host may be spelled so that not everybody reads it as the same.
        if let Some(Host::Ipv4(ip)) = url.host()
            && !text.contains(&ip.to_string())
        {
            return Err(FetchError::Invalid("an IPv4 address is written as four decimal numbers"));
        }
        self.check(url)
    }

    /// Where a reply sends one on to.
    ///
    /// # Errors
    /// As [`Rules::target`].
    pub fn redirected(&self, from: &Url, location: &str) -> Result<Target, FetchError> {
        if location.len() > MAX_URL {
            return Err(FetchError::Invalid("it is longer than 2048 bytes"));
        }
        self.check(from.join(location).map_err(|_| FetchError::Invalid("the redirection does not parse"))?)
    }

    fn check(&self, mut url: Url) -> Result<Target, FetchError> {
        if !["http", "https"].contains(&url.scheme()) {
            return Err(FetchError::NotAllowed("only http and https are fetched"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(FetchError::NotAllowed("it holds a user name or a password"));
        }
        let port = url.port_or_known_default().unwrap_or_default();
        if ![80, 443].contains(&port) && !self.ports.contains(&port) {
            return Err(FetchError::NotAllowed("its port is none of those allowed"));
        }
        url.set_fragment(None);
        let host = match url.host() {
            Some(Host::Domain(name)) => {
                let name = name.strip_suffix('.').unwrap_or(name);
                if name.is_empty() {
                    return Err(FetchError::Invalid("it has no host"));
                }
                Ok(name.to_owned())
            }
            Some(Host::Ipv4(ip)) => Err(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => Err(IpAddr::V6(ip)),
            None => return Err(FetchError::Invalid("it has no host")),
        };
        let named = host.clone().unwrap_or_else(|ip| ip.to_string());
        if !self.hosts.is_empty() && !self.hosts.iter().any(|pattern| matches(pattern, &named)) {
            return Err(FetchError::NotAllowed("its host is none of those allowed"));
        }
        if host.as_ref().is_err_and(|&ip| !self.allows(ip)) {
            return Err(FetchError::AddressRefused);
        }
        Ok(Target { url, port, host })
    }
}

fn matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        None => pattern.eq_ignore_ascii_case(host),
        Some(parent) => {
            let (dot, parent) = (host.len().checked_sub(parent.len() + 1), parent.to_ascii_lowercase());
            dot.is_some_and(|dot| {
                host.as_bytes()[dot] == b'.'
                    && host.as_bytes()[dot + 1..].eq_ignore_ascii_case(parent.as_bytes())
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_by_their_text() {
        let rules = Rules::default();
        for (text, code) in [
            ("https://example.org/a.jpg", "ok"),
            ("http://example.org:443/a", "ok"),
            ("HTTPS://EXAMPLE.ORG/#x", "ok"),
            ("http://93.184.216.34/", "ok"),
            ("http://[2606:4700:4700::1111]/", "ok"),
            ("http://localhost/", "ok"), // refused once it is resolved
            ("", "invalid_url"),
            ("a.jpg", "invalid_url"),
            ("//example.org/", "invalid_url"),
            ("http://", "invalid_url"),
            ("http://./", "invalid_url"),
            ("http://exa mple.org/", "invalid_url"),
            ("http://[::1/", "invalid_url"),
            ("http://2130706433/", "invalid_url"),
            ("http://0x7f000001/", "invalid_url"),
            ("http://0177.0.0.1/", "invalid_url"),
            ("http://127.1/", "invalid_url"),
            ("http://127.0.1/", "invalid_url"),
            ("http://1.2.3.4.5/", "invalid_url"),
            ("http://999.1.1.1/", "invalid_url"),
            ("http://１２７.0.0.1/", "invalid_url"),
            ("http://127.0.0.1./", "url_address_refused"),
            ("http://127.0.0.1/", "url_address_refused"),
            ("http://169.254.169.254/latest/meta-data/", "url_address_refused"),
            ("http://0.0.0.0/", "url_address_refused"),
            ("http://[::1]/", "url_address_refused"),
            ("http://[::ffff:127.0.0.1]/", "url_address_refused"),
            ("http://[::ffff:7f00:1]/", "url_address_refused"),
            ("http://[64:ff9b::a9fe:a9fe]/", "url_address_refused"),
            ("http://[fe80::1]/", "url_address_refused"),
            ("ftp://example.org/", "url_not_allowed"),
            ("file:///etc/passwd", "url_not_allowed"),
            ("data:image/png;base64,aGk=", "url_not_allowed"),
            ("gopher://example.org/", "url_not_allowed"),
            ("http://user@example.org/", "url_not_allowed"),
            ("http://user:pw@example.org/", "url_not_allowed"),
            ("http://example.org:22/", "url_not_allowed"),
            ("http://example.org:8080/", "url_not_allowed"),
        ] {
            let found = rules.target(text).map_or_else(|error| error.code(), |_| "ok");
            assert_eq!(found, code, "{text}");
        }
        assert_eq!(
            rules.target(&format!("http://x/{}", "a".repeat(MAX_URL))).unwrap_err().code(),
            "invalid_url"
        );
        let target = rules.target("https://Example.org.:443/a#b").unwrap();
        assert_eq!((target.host.unwrap().as_str(), target.port), ("example.org", 443));
        assert_eq!(target.url.fragment(), None);
    }

    #[test]
    fn hosts_and_ports_may_be_listed() {
        let rules = Rules {
            hosts: vec!["img.example.org".into(), "*.cdn.example".into()],
            ports: vec![8080],
            private: false,
        };
        let ok = |text: &str| rules.target(text).is_ok();
        assert!(ok("http://img.example.org/") && ok("http://IMG.example.org.:8080/"));
        assert!(ok("http://a.cdn.example/") && ok("http://a.b.CDN.example/"));
        assert!(!ok("http://cdn.example/") && !ok("http://xcdn.example/") && !ok("http://example.org/"));
        assert!(!ok("http://img.example.org.evil.example/") && !ok("http://93.184.216.34/"));
        assert!(!ok("http://img.example.org:8081/"));
        let private = Rules { private: true, ..Rules::default() };
        assert!(private.target("http://127.0.0.1/").is_ok() && private.target("http://10.1.2.3/").is_ok());
        assert!(private.target("http://169.254.169.254/").is_err());
    }

    #[test]
    fn redirections_are_checked_alike() {
        let rules = Rules::default();
        let from = Url::parse("https://example.org/a/b").unwrap();
        let to = |location: &str| rules.redirected(&from, location).map(|to| to.url.to_string());
        assert_eq!(to("c").unwrap(), "https://example.org/a/c");
        assert_eq!(to("//other.example/").unwrap(), "https://other.example/");
        assert_eq!(to("http://127.0.0.1/").unwrap_err().code(), "url_address_refused");
        assert_eq!(to("http://2130706433/").unwrap_err().code(), "url_address_refused");
        assert_eq!(to("file:///etc/passwd").unwrap_err().code(), "url_not_allowed");
    }
}
