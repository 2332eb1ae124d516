//! elven-sync keeps Elven's treasury balances equal to a PostgreSQL ledger.
//!
//! A row passes these modules in this order:
//!
//! 1. [`watermark`] holds the transactions whose rows have been processed: a snapshot, not a number.
//! 2. [`ledger`] reads the rows of the other transactions, in pages.
//! 3. [`align`] turns each row into a record with a wall-clock time and an exact amount.
//! 4. [`batch`] puts at most 1000 records of one entity into a body.
//! 5. [`elven`] signs and sends the body, and classifies the answer.
//! 6. [`journal`] records watermark, batch and errors in one transaction.
//!
//! Only [`sync`] controls the flow: it calls the stages in this order. Stages share plain data types downward.
//! `ledger` and `journal` query PostgreSQL through [`database`], whose transactions survive a lost connection.
//! SQL about the ledger is in `ledger` and SQL about the sync tables in `journal`; the demo, which acts as the owner of
//! its ledger, is the exception. Only `config` reads environment variables, and only `output` prints.

pub mod text;

pub mod wall_clock;

pub mod config;

pub mod database;

pub mod watermark;

pub mod ledger;

pub mod align;

pub mod batch;

pub mod elven;

pub mod journal;

pub mod sync;

pub mod notify;

pub mod audit;

pub mod admin;

pub mod check;

pub mod fault_point;

pub mod sandbox;

pub mod serve;

pub mod commands;

pub mod output;

pub mod page;
