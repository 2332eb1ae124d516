//! elven-sync keeps Elven's treasury balances equal to a PostgreSQL ledger.
//!
//! The way of a row, which is also the order of the modules:
//!
//! 1. [`watermark`] says which transactions have been dealt with: a snapshot, not a number.
//! 2. [`ledger`] reads the rows of the others, in pages.
//! 3. [`align`] makes wall-clock time and an exact number of each.
//! 4. [`batch`] puts at most 1000 records of one entity into a body.
//! 5. [`elven`] signs it, sends it and judges the answer.
//! 6. [`journal`] records watermark, batch and errors in one transaction.
//!
//! [`sync`] tells the story: it alone calls the stages, in this order, and they never call each other.
//! `ledger` and `journal` ask PostgreSQL through [`database`], whose transactions outlive a lost connection.
//! No SQL about a table stands outside of those two (the demo, which plays the ledger's owner, apart), no
//! environment variable is read outside `config`, and nothing is printed outside `output`.

pub mod text;

pub mod config;

pub mod database;

pub mod watermark;

pub mod ledger;

pub mod align;

pub mod batch;

pub mod elven;

pub mod journal;

pub mod sync;

pub mod audit;

pub mod admin;

pub mod fault_point;

pub mod sandbox;

pub mod commands;

pub mod output;
