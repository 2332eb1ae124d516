//! `check`, and the guard check of each run.

mod guard;
