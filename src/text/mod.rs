//! Text for people: errors with their causes, numbers, and text from outside on its way to a terminal or a command.

mod error_chain;
mod escape;
mod number;

pub use error_chain::chain;
pub use escape::{escaped, quoted, quoted_argument, quoted_option, quoted_sql};
pub(crate) use escape::{escaped_json, escaped_lines};
pub use number::thousands;
