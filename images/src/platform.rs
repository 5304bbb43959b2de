//! Platforms: `os/architecture[/variant]` in Go's names, and the choice among those an index offers.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Descriptor;

use crate::error::Error;

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, …
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// The best entry of an index for this platform: an equal variant is better than none.
    pub(crate) fn choose<'a>(&self, entries: &'a [Descriptor]) -> Option<&'a Descriptor> {
        entries
            .iter()
            .filter_map(|entry| {
                let offered = entry.platform().as_ref()?;
                let fits =
                    offered.os().to_string() == self.os && offered.architecture().to_string() == self.architecture;
                let score = match (offered.variant(), &self.variant) {
                    (Some(offered), Some(wanted)) if offered == wanted => 2,
                    (None, _) | (_, None) => 1,
                    _ => return None,
                };
                fits.then_some((score, entry))
            })
            // The first of equals wins, as in the image specification.
            .reduce(|best, next| if next.0 > best.0 { next } else { best })
            .map(|(_, entry)| entry)
    }

    /// The platforms an index names, for an error message.
    pub(crate) fn offered(entries: &[Descriptor]) -> Vec<String> {
        let mut offered: Vec<_> = entries
            .iter()
            .filter_map(|entry| entry.platform().as_ref())
            .filter(|platform| platform.os().to_string() != "unknown")
            .map(|platform| {
                let variant = platform.variant().as_ref().map(|v| format!("/{v}")).unwrap_or_default();
                format!("{}/{}{variant}", platform.os(), platform.architecture())
            })
            .collect();
        offered.dedup();
        if offered.is_empty() {
            offered.push("nothing with a platform".to_owned());
        }
        offered
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// `os[/architecture[/variant]]`; without an architecture, this machine's.
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let is_part = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if parts.len() > 3 || !parts.iter().all(is_part) {
            let advice = "it is written os[/architecture[/variant]], such as linux/amd64";
            return Err(Error::invalid(format!("platform '{text}'"), advice));
        }
        let host = Self::host();
        let Some(&architecture) = parts.get(1) else {
            return Ok(Self { os: text.to_owned(), ..host });
        };
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self {
            os: parts[0].to_owned(),
            architecture: architecture.to_owned(),
            variant: parts.get(2).map(|&variant| variant.to_owned()),
        })
    }
}
