//! Versions of the CNI specification that the plugin speaks, and what each of them has.
//!
//! Source: CNI specification, "Version considerations" of each verb: CHECK exists since 0.4.0, STATUS and GC since 1.1.0.

use serde::{Deserialize, Serialize};

/// A version of the CNI specification that this plugin answers in, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CniVersion {
    /// 0.4.0: results name the family of each address.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// 1.0.0: results no longer name the family.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// 1.1.0: STATUS and GC; interfaces and routes say more.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl CniVersion {
    /// Every version this plugin claims in answer to VERSION, oldest first.
    pub const SUPPORTED: [CniVersion; 3] = [CniVersion::V0_4_0, CniVersion::V1_0_0, CniVersion::V1_1_0];

    /// The version as the specification writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            CniVersion::V0_4_0 => "0.4.0",
            CniVersion::V1_0_0 => "1.0.0",
            CniVersion::V1_1_0 => "1.1.0",
        }
    }

    /// The version written as `text`, or none where this plugin does not speak it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::SUPPORTED.into_iter().find(|version| version.as_str() == text)
    }
}

impl std::fmt::Display for CniVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_version_reads_back() {
        for version in CniVersion::SUPPORTED {
            assert_eq!(CniVersion::parse(version.as_str()), Some(version));
            assert_eq!(serde_json::to_value(version).unwrap(), version.as_str());
        }
        assert_eq!(CniVersion::parse("0.3.1"), None);
        assert!(CniVersion::V1_1_0 > CniVersion::V0_4_0);
    }
}
