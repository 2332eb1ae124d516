//! The reaction to a lane whose first rows are all invalid.

use serde::{Deserialize, Serialize};

/// `[sync] on_invalid_start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInvalidStart {
    /// Stop the lane, since the mapping is probably mistaken.
    Stop,
    /// Set the rows aside.
    SetAside,
}
