//! The environment of the process. No other code reads it.

use std::collections::{BTreeMap, BTreeSet};

/// The environment of the process, read once.
#[derive(Clone, Default)]
pub struct Environment {
    pub(super) variables: BTreeMap<String, String>,
    /// The names of the variables whose value is not UTF-8.
    not_utf8: BTreeSet<String>,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        Self { variables: variables.into_iter().collect(), not_utf8: BTreeSet::new() }
    }
}

impl Environment {
    /// Reads the process environment. Variables that are not UTF-8 have no value.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn capture() -> Self {
        let mut environment = Self::default();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => drop(environment.variables.insert(name, value)),
                Err(_) => drop(environment.not_utf8.insert(name)),
            }
        }
        environment
    }

    /// The value of a variable; an empty one counts as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Says in which way a variable is not set: it may be empty, or not UTF-8.
    pub(super) fn why_missing(&self, name: &str) -> &'static str {
        if self.not_utf8.contains(name) {
            "is not set (its value is not UTF-8)"
        } else if self.variables.contains_key(name) {
            "is not set (it is empty)"
        } else {
            "is not set"
        }
    }
}

pub(super) const SETTING_PREFIX: &str = "ELVEN_SYNC_";
