//! The version of the import.

use serde::{Deserialize, Serialize};

/// `[api] version`: the version of "Import Account Balances".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "i32", try_from = "VersionNumber")]
pub enum ApiVersion {
    /// A record names its `currency`.
    #[default]
    V3,
    /// A record names its source, and its asset by `symbol` or `assetID`.
    V4,
}

impl ApiVersion {
    /// Returns the number of the version.
    pub fn number(self) -> i32 {
        match self {
            Self::V3 => 3,
            Self::V4 => 4,
        }
    }
}

impl From<ApiVersion> for i32 {
    fn from(version: ApiVersion) -> Self {
        version.number()
    }
}

/// A version as the file, or an environment variable, spells it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "no version, expected 3 or 4")]
enum VersionNumber {
    Number(i64),
    Text(String),
}

impl TryFrom<VersionNumber> for ApiVersion {
    /// The message does not show the value, which may be a secret entered here by mistake.
    type Error = &'static str;

    fn try_from(value: VersionNumber) -> Result<Self, Self::Error> {
        let number = match value {
            VersionNumber::Number(number) => Some(number),
            VersionNumber::Text(text) => text.trim().parse().ok(),
        };
        match number {
            Some(3) => Ok(Self::V3),
            Some(4) => Ok(Self::V4),
            _ => Err("no version, expected 3 or 4"),
        }
    }
}
