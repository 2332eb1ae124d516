//! What people do to entities and the journal, apart from runs: watermarks are moved or bound again, old records are pruned,
//! and the health is read.

mod health;
mod prune;
mod rebind;
mod watermark;

pub use health::health;
pub use prune::{PruneReport, PrunedEntity, prune};
pub use rebind::{Rebind, Rebinding};
pub use watermark::{MoveError, Rewind};
