//! Text for people: errors with their causes, numbers, lists, messages without amounts, and escaping and quoting of text
//! from outside.

mod amounts;
mod error_chain;
mod escape;
mod html;
mod list;
mod near;
mod number;
mod similar;

pub use amounts::without_amounts;
pub use error_chain::chain;
pub use escape::{escaped, quoted, quoted_argument, quoted_option, quoted_sql};
pub(crate) use escape::{escaped_json, escaped_lines};
pub use html::HtmlText;
pub use list::and_more;
pub use near::{KnownNames, is_same_word};
pub use number::{counted_noun, duration_text, thousands};
pub use similar::{known_names, most_similar};
