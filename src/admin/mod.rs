//! Administration of entities and the journal, apart from runs: moving and rebinding watermarks, pruning old records,
//! and reading the health.

mod health;
mod prune;
mod rebind;
mod watermark;

pub use health::{HealthReport, health};
pub use prune::{PruneReport, PrunedEntity, prune};
pub use rebind::{Rebind, Rebinding};
pub use watermark::{MoveError, Rewind};
