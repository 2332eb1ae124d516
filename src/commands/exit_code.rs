//! Exit codes of the commands.

/// All work is done.
pub const SUCCEEDED: u8 = 0;

/// The command could not work.
pub const FAILED: u8 = 1;

/// Wrong usage.
pub const WRONG_USAGE: u8 = 2;

/// The work is done, but a person should look.
pub const INCOMPLETE: u8 = 3;
