//! The embedding contract: which encoder a vector came from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The first 8 bytes of SHA-256 over (model hash, preprocess, output), written as 16
/// lower-case hexadecimal digits.
///
/// Every vector carries the contract of the encoder that made it. Vectors of different
/// contracts are never compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Contract([u8; 8]);

/// Why a text is not a contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a contract is 16 lower-case hexadecimal digits, but {text:?} was given")]
pub struct ContractParseError {
    text: String,
}

impl Contract {
    /// The contract of these 8 bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// The 8 bytes, most significant first.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Contract({self})")
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

impl FromStr for Contract {
    type Err = ContractParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ContractParseError { text: text.chars().take(64).collect() };
        let digits = text.as_bytes();
        if digits.len() != 16 {
            return Err(refuse());
        }
        let mut bytes = [0u8; 8];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => return Err(refuse()),
            }
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Contract {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Contract {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_back(bytes: [u8; 8]) {
            let contract = Contract::from_bytes(bytes);
            let text = contract.to_string();
            prop_assert_eq!(text.len(), 16);
            prop_assert_eq!(text.parse::<Contract>().unwrap(), contract);
            let json = serde_json::to_string(&contract).unwrap();
            prop_assert_eq!(serde_json::from_str::<Contract>(&json).unwrap(), contract);
        }

        #[test]
        fn any_text_is_refused_or_the_same(text: String) {
            if let Ok(contract) = text.parse::<Contract>() {
                prop_assert_eq!(contract.to_string(), text);
            }
        }
    }

    #[test]
    fn refuses_what_is_no_contract() {
        for text in [
            "",
            "0123456789abcde",
            "0123456789ABCDEF",
            "0123456789abcdeg",
            "0123456789abcdef0",
            "0x23456789abcdef",
            "é123456789abcde",
        ] {
            assert!(text.parse::<Contract>().is_err(), "{text}");
        }
    }
}
