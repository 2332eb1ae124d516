//! Exit codes of the commands.

/// All done.
pub const SUCCEEDED: u8 = 0;

/// Could not work.
pub const FAILED: u8 = 1;

/// Wrong usage.
pub const WRONG_USAGE: u8 = 2;

/// Done, but a person should look.
pub const INCOMPLETE: u8 = 3;
