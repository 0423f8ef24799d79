//! The choice of an engine, as the configuration writes it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::milvus::{Address, AddressError};

/// Where items are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum StoreChoice {
    /// In the data folder, by this process alone.
    Embedded,
    /// In Milvus, with other processes.
    Milvus(Box<Address>),
}

impl FromStr for StoreChoice {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text == "embedded" { Ok(Self::Embedded) } else { Ok(Self::Milvus(Box::new(text.parse()?))) }
    }
}

impl TryFrom<String> for StoreChoice {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<StoreChoice> for String {
    fn from(choice: StoreChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for StoreChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Milvus(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn choices_are_read() {
        assert_eq!("embedded".parse::<StoreChoice>().unwrap(), StoreChoice::Embedded);
        let milvus: StoreChoice = "milvus://db:1/shop?index=flat".parse().unwrap();
        assert_eq!(milvus.to_string(), "milvus://db:1/shop");
        let error = "sqlite".parse::<StoreChoice>().unwrap_err().to_string();
        assert!(error.contains("embedded") && error.contains("milvus://"), "{error}");
    }
}
