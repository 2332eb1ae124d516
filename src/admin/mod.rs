//! Administration of entities and the journal, apart from runs: moving and rebinding watermarks, pruning old records,
//! reading the health, comparing names, and mapping them.

mod health;
mod maps;
mod names;
mod prune;
mod rebind;
mod watermark;

pub use health::{HealthReport, health};
pub use maps::{MapReport, add_map, remove_map};
pub use names::{NameReport, NameStatus, UsedName, names};
pub use prune::{PruneReport, PrunedEntity, prune};
pub use rebind::{Rebind, Rebinding};
pub use watermark::{MoveError, Rewind};
