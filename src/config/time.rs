//! `[time]`: how wall-clock times are made.

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, error};
use crate::align::Zones;

/// `[time]`: how wall-clock times are made.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeSettings {
    /// Which zone rules are used: a folder of zone files, or `bundled` for those in the program. By default the newest
    /// of those in the program and those of the system (`TZDIR`, `/usr/share/zoneinfo`).
    pub zoneinfo: Option<String>,
}

impl TimeSettings {
    /// The zone rules that the setting names. An empty one counts as unset.
    pub(super) fn zones(&self, tzdir: Option<&str>) -> Result<Zones, ConfigError> {
        let zoneinfo = self.zoneinfo.as_deref().filter(|zoneinfo| !zoneinfo.is_empty());
        Zones::choose(zoneinfo, tzdir).map_err(|problem| {
            error(format!(
                "[time] zoneinfo: {problem}; hint: leave it out for the newest rules of the program and the system, or \
                 set it to \"bundled\""
            ))
        })
    }
}
