//! What settings were read from, to compare them with settings that are read later.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::Settings;
use super::error::{ConfigError, error};

/// What settings were read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The configuration file, if it has settings.
    file: Option<PathBuf>,
    /// A digest of the file and the addresses.
    digest: [u8; 32],
}

impl Sources {
    /// `file`: the configuration file, if it has settings. `texts`: all that was read.
    pub(super) fn new<'t>(file: Option<PathBuf>, texts: impl IntoIterator<Item = Option<&'t str>>) -> Self {
        let mut digest = Sha256::new();
        for text in texts {
            let length = text.map_or(u64::MAX, |text| u64::try_from(text.len()).unwrap_or_default());
            digest.update(length.to_be_bytes());
            digest.update(text.unwrap_or_default());
        }
        Self { file, digest: digest.finalize().into() }
    }
}

impl Settings {
    /// Returns whether files and addresses were the same when other settings were read.
    pub fn are_read_like(&self, other: &Self) -> bool {
        self.sources == other.sources
    }

    /// Refuses settings without a configuration file that was in use `before`. It was removed or emptied, perhaps for a
    /// moment while it is written; the defaults may mean another ledger.
    pub fn refuse_lost_file(&self, before: &Self) -> Result<(), ConfigError> {
        match &before.sources.file {
            Some(file) if self.sources.file.is_none() => Err(error(format!(
                "the configuration file {} was in use, and has no settings any more; hint: write a new file beside it \
                 and rename that, or start the service again to use the defaults",
                file.display()
            ))),
            _ => Ok(()),
        }
    }
}
