//! Runs, backfills and retries: the control flow, and the only code that knows both the database and the API.

mod api_session;
mod attempt;
mod backfill;
mod batcher;
mod concurrency;
mod decisions;
mod delivery;
mod dry_run;
mod error;
mod invalid_start;
mod lane;
pub(crate) mod lane_worker;
mod log;
mod messages;
pub(crate) mod pending;
mod progress;
mod proving;
mod remedies;
mod report;
mod retry;
mod run;
mod shared_keys;
mod shared_limit;
mod signing;
pub(crate) mod watermark_check;
pub(crate) mod worker;
mod zone_rules;

pub use backfill::{BackfillError, BackfillReport};
pub use dry_run::DryRunReport;
pub use error::RunError;
pub use lane_worker::{LaneWorker, Stop, Target};
pub use progress::{EntityProgress, Progress as RowsDone};
pub use report::{Ended, EntityReport, RunReport};
pub use retry::Retried;
pub use worker::Worker;
