//! Lists in the configuration: their form, and what origins look like in them.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A list: in `latentd.toml` an array, elsewhere its parts with commas between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Every origin.
pub const ANY_ORIGIN: &str = "*";

/// Whether this is how a browser writes an origin: scheme, host, and a port that is not the scheme's own.
#[must_use]
pub fn is_origin(text: &str) -> bool {
    let Ok(url) = url::Url::parse(text) else { return false };
    ["http", "https"].contains(&url.scheme()) && url.origin().ascii_serialization() == text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_arrays_in_toml_and_have_commas_elsewhere() {
        let list: List<u16> = " 80, 443,".parse().unwrap();
        assert_eq!(list, List(vec![80, 443]));
        let file: std::collections::BTreeMap<String, List<u16>> = toml::from_str("a = [80, 443]").unwrap();
        assert_eq!(file["a"], list);
        assert!("80,x".parse::<List<u16>>().is_err());
    }

    #[test]
    fn origins_are_exact() {
        for origin in ["http://localhost:3000", "https://shop.example", "http://[::1]:8080"] {
            assert!(is_origin(origin), "{origin}");
        }
        for other in [
            "",
            "*",
            "shop.example",
            "https://shop.example/",
            "https://shop.example:443",
            "https://SHOP.example",
            "null",
            "file://x",
            "https://a@b",
        ] {
            assert!(!is_origin(other), "{other}");
        }
    }
}
