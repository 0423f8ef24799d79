//! The address of a Milvus engine, and how latentd uses it: `milvus://host:port/database?option=value`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The kind of index that Milvus builds over the vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexKind {
    /// A graph: quick, approximate.
    Hnsw,
    /// None: exact, as slow as the collection is large.
    Flat,
}

/// What a read is sure to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// What anybody had been told was written, through whichever latentd.
    Strong,
    /// What this latentd had told was written, and of others' writes all but those of the last few seconds.
    Session,
    /// All but the writes of the last few seconds, this latentd's own too.
    Bounded,
}

/// Where a Milvus is and how it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name or IP address.
    pub host: String,
    /// Port of its proxy.
    pub port: u16,
    /// The database; made when missing.
    pub database: String,
    /// What a read is sure to see.
    pub consistency: Consistency,
    /// The index of new collections.
    pub index: IndexKind,
    /// Shards of new collections.
    pub shards: u16,
    /// Copies in memory of new collections.
    pub replicas: u16,
    /// How long one call may take.
    pub timeout: Duration,
    /// How long a call is tried again while the engine does not answer.
    pub retry: Duration,
    /// How long the engine is waited for at start.
    pub wait: Duration,
    /// After how long without a sign of life of the process that changes the encoder another takes over.
    pub lead: Duration,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shown:?} is no address of a store: {reason}")]
pub struct AddressError {
    shown: String,
    reason: String,
}

const SCHEME: &str = "milvus://";

impl Address {
    /// The port when none is named.
    pub const PORT: u16 = 19_530;
    /// The database when none is named.
    pub const DATABASE: &'static str = "default";

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = |least: u64, most: u64| match value.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(format!("{key} is a whole number from {least} to {most}, not {value:?}")),
        };
        let ms = |least| number(least, 3_600_000).map(Duration::from_millis);
        match key {
            "consistency" => {
                self.consistency = match value {
                    "strong" => Consistency::Strong,
                    "session" => Consistency::Session,
                    "bounded" => Consistency::Bounded,
                    _ => return Err("consistency is strong, session or bounded".to_owned()),
                }
            }
            "index" => {
                self.index = match value {
                    "hnsw" => IndexKind::Hnsw,
                    "flat" => IndexKind::Flat,
                    _ => return Err("index is hnsw or flat".to_owned()),
                }
            }
            "shards" => self.shards = number(1, 16)? as u16,
            "replicas" => self.replicas = number(1, 64)? as u16,
            "timeout_ms" => self.timeout = ms(100)?,
            "retry_ms" => self.retry = ms(0)?,
            "wait_ms" => self.wait = ms(0)?,
            "lead_ms" => self.lead = ms(5000)?,
            _ => {
                return Err(format!(
                    "there is no option {key:?}: consistency, index, shards, replicas, timeout_ms, retry_ms, wait_ms and lead_ms are known"
                ));
            }
        }
        Ok(())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix(SCHEME).ok_or("it must be embedded, or begin with milvus://")?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        if authority.contains('@') {
            return Err("user and password go into the file of --store-token-file".to_owned());
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| format!("{port:?} is no port"))?)
            }
            _ => (authority, Self::PORT),
        };
        if host.is_empty() || host.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("it names no host".to_owned());
        }
        let database = if database.is_empty() { Self::DATABASE } else { database };
        let usable = database.len() <= 255
            && database.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && database.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !usable {
            return Err("a database's name has letters, digits and _, and begins with no digit".to_owned());
        }
        let mut address = Self {
            host: host.to_owned(),
            port,
            database: database.to_owned(),
            consistency: Consistency::Session,
            index: IndexKind::Hnsw,
            shards: 1,
            replicas: 1,
            timeout: Duration::from_secs(10),
            retry: Duration::from_secs(20),
            wait: Duration::from_secs(60),
            lead: Duration::from_secs(30),
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            address.set(key, value)?;
        }
        Ok(address)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text).map_err(|reason| AddressError { shown: text.chars().take(128).collect(), reason })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}:{}/{}", self.host, self.port, self.database)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read() {
        let plain: Address = "milvus://db.internal".parse().unwrap();
        assert_eq!(plain.to_string(), "milvus://db.internal:19530/default");
        assert_eq!((plain.consistency, plain.index), (Consistency::Session, IndexKind::Hnsw));
        let full: Address =
            "milvus://[::1]:9/shop?consistency=strong&index=flat&shards=4&replicas=2&timeout_ms=500&retry_ms=0&wait_ms=1"
                .parse()
                .unwrap();
        assert_eq!((full.host.as_str(), full.port, full.database.as_str()), ("[::1]", 9, "shop"));
        assert_eq!((full.consistency, full.index), (Consistency::Strong, IndexKind::Flat));
        assert_eq!((full.shards, full.replicas, full.timeout.as_millis()), (4, 2, 500));
        assert_eq!("milvus://[::1]/x".parse::<Address>().unwrap().port, Address::PORT);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("http://a", "begin with milvus://"),
            ("milvus://", "names no host"),
            ("milvus://a:b", "\"b\" is no port"),
            ("milvus://u:p@a:1", "--store-token-file"),
            ("milvus://a/b-c", "a database's name"),
            ("milvus://a?index=ivf", "index is hnsw or flat"),
            ("milvus://a?shards=0", "shards is a whole number from 1 to 16"),
            ("milvus://a?x=1", "there is no option \"x\""),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "(milvus://)?[a-z0-9:/?=&\\[\\]@_.-]{0,40}", any: String) {
            let _ = (text.parse::<Address>(), any.parse::<Address>());
        }
    }
}
