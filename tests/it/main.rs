//! The integration tests: a fresh migrated PostgreSQL database per test, real HTTP to the sandbox, and the real
//! binary wherever a process matters.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test fails by panicking, and reads best as one piece"
)]

mod actions;
mod addresses;
mod alerts;
mod answers;
mod api_version;
mod attach;
mod audit;
mod backfill;
mod check;
mod cluster;
mod commands;
mod commits;
mod crashes;
mod database;
mod delivery;
mod deployment;
mod digests;
mod documents;
mod envelopes;
mod errors;
mod failover;
mod fence;
mod filters;
mod foreseen;
mod generated;
mod groups;
mod handbook;
mod health;
mod hints;
mod hostile;
mod invalid_start;
mod keys;
mod lanes;
mod layers;
mod ledgers;
mod logs;
mod mapping;
mod maps;
mod messages;
mod migrate;
mod moves;
mod notify;
mod output;
mod page;
mod plans;
mod pooler;
mod promises;
mod proxy;
mod prune;
mod random;
mod rates;
mod record_key;
mod reference;
mod row;
mod sandbox;
mod sandbox_faults;
mod schema;
mod seal;
mod serve;
mod session_names;
mod session_settings;
mod shutdown;
mod simulation;
mod skipped;
mod soak;
mod standby;
mod statement_counts;
mod stub;
mod support;
mod unknown_names;
mod unreadable;
mod unwritten;
mod verify;
mod versions;
mod watermark;
mod workers;
mod zones;
