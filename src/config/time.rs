//! `[time]`: which zone rules are used.

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, error};
use crate::align::Zones;

/// `[time]`: which zone rules are used.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeSettings {
    /// A folder of zone files, or `bundled` for the rules in the program. By default, the newest rules of the program
    /// and of the system (`TZDIR`, `/usr/share/zoneinfo`).
    pub zoneinfo: Option<String>,
}

impl TimeSettings {
    /// Loads the zone rules that the setting names. An empty value counts as unset.
    pub(super) fn zones(&self, tzdir: Option<&str>) -> Result<Zones, ConfigError> {
        let zoneinfo = self.zoneinfo.as_deref().filter(|zoneinfo| !zoneinfo.is_empty());
        Zones::choose(zoneinfo, tzdir).map_err(|problem| {
            error(format!(
                "[time] zoneinfo: {problem}; hint: remove the setting for the newest rules of the program and the \
                 system, or set it to \"bundled\""
            ))
        })
    }
}
