//! The configuration, which is read again for each run. A configuration with a mistake is not used.

use std::sync::Arc;

use super::shared::Shared;
use crate::config::{ConfigError, Flags, Settings};
use crate::sync::{primary, standby_address};

/// The configuration in use, and where it is read from.
#[derive(Debug)]
pub(super) struct Configuration {
    flags: Flags,
    current: Arc<Settings>,
    /// The mistake in the configuration that was read last.
    mistake: Option<String>,
    recorded: Recorded,
}

/// What the database knows of a mistake in the configuration.
#[derive(Debug)]
enum Recorded {
    /// What an earlier process has left there.
    ByEarlierProcess,
    /// This mistake, or that there is none.
    Known(Option<String>),
}

/// What the database should know of a configuration.
#[derive(Clone, Debug)]
pub(super) struct ConfigurationFact {
    /// The mistake in it.
    pub mistake: Option<String>,
    /// The database knows that.
    pub is_recorded: bool,
    /// An earlier process may have recorded another mistake.
    pub is_first: bool,
}

impl Configuration {
    pub(super) fn new(flags: Flags, current: Arc<Settings>) -> Self {
        Self { flags, current, mistake: None, recorded: Recorded::ByEarlierProcess }
    }

    /// The configuration in use.
    pub(super) fn current(&self) -> &Arc<Settings> {
        &self.current
    }

    /// Reads the configuration again, and uses it unless it has a mistake. A mistake is logged once, or each time that
    /// somebody `asked` for the configuration to be read.
    pub(super) fn read(&mut self, shared: &Shared, asked: bool) {
        let loaded = self.load();
        shared.process.note_configuration(loaded.is_ok());
        match loaded {
            Ok(settings) => {
                if asked || self.mistake.is_some() {
                    tracing::info!(target: "elven_sync::serve", "the configuration was read again");
                }
                self.mistake = None;
                self.current = Arc::new(settings);
                shared.use_settings(self.current.clone());
            }
            Err(problem) => {
                let problem = problem.to_string();
                if asked || self.mistake.as_ref() != Some(&problem) {
                    tracing::error!(
                        "the configuration has a mistake, so the one before stays in use: {problem}"
                    );
                }
                self.mistake = Some(problem);
            }
        }
    }

    /// Returns the mistake in the configuration that was read last, if it had one.
    pub(super) fn mistake(&self) -> Option<&str> {
        self.mistake.as_deref()
    }

    /// Returns what the database should know.
    pub(super) fn fact(&self) -> ConfigurationFact {
        let (is_recorded, is_first) = match &self.recorded {
            Recorded::ByEarlierProcess => (false, true),
            Recorded::Known(mistake) => (*mistake == self.mistake, false),
        };
        ConfigurationFact { mistake: self.mistake.clone(), is_recorded, is_first }
    }

    /// Notes that the database knows of the mistake, or that there is none.
    pub(super) fn note_recorded(&mut self, mistake: Option<String>) {
        self.recorded = Recorded::Known(mistake);
    }

    fn load(&self) -> Result<Settings, ConfigError> {
        let settings = Settings::load(&self.flags, self.current.environment.clone())?;
        settings.refuse_lost_file(&self.current)?;
        check(&settings)?;
        Ok(settings)
    }
}

/// Refuses a configuration with which no run can begin, whatever the database does: one without an address, or with one
/// that cannot be parsed.
pub(super) fn check(settings: &Settings) -> Result<(), ConfigError> {
    let primary = ("DATABASE_URL", primary(settings)?);
    let standby = standby_address(settings).map(|address| ("ELVEN_SYNC_LEDGER_URL", address));
    for (variable, address) in std::iter::once(primary).chain(standby) {
        address.check().map_err(|problem| {
            ConfigError(format!(
                "{variable}: {}; hint: postgres://user:password@host/database",
                crate::text::chain(&problem)
            ))
        })?;
    }
    Ok(())
}
