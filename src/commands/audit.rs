//! `audit`: prints or writes the evidence of a period.

use std::path::PathBuf;

use super::connect::connect;
use super::exit_code::{INCOMPLETE, SUCCEEDED, WRONG_USAGE};
use crate::audit::{AskedPeriod, AuditError, NoEvidence, PeriodAudit, audit_period};
use crate::config::Settings;
use crate::output;
use crate::output::audit::AuditFiles;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// First day or instant: 2024-03-01 (in each entity's time zone) or 2024-03-01T12:00:00Z
    #[arg(long, value_name = "TIME")]
    from: String,
    /// End of the period, not included: a day or an instant, written as for --from
    #[arg(long, value_name = "TIME")]
    to: String,
    /// Only these entities
    #[arg(long = "entity", value_name = "ID", num_args = 1..)]
    entities: Vec<String>,
    /// Print JSON; sums are strings
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Write each row, batch, exception and action to CSV files in this folder, with a manifest of SHA-256 values; the
    /// folder must be new or empty
    #[arg(long, value_name = "DIR")]
    csv: Option<PathBuf>,
}

pub(super) async fn run(options: Options, settings: &Settings) -> anyhow::Result<u8> {
    let asked = AskedPeriod { from: options.from, to: options.to, entities: options.entities };
    let audited = if let Some(folder) = options.csv {
        write(settings, &asked, &folder).await?
    } else {
        let database = connect(settings).await?;
        let audited = audit_period(settings, &database, &asked, &mut NoEvidence).await;
        audited.inspect(|audit| output::audit::report(audit, options.json))
    };
    match audited {
        Ok(audit) if audit.is_complete() => Ok(SUCCEEDED),
        Ok(_) => Ok(INCOMPLETE),
        Err(usage @ AuditError::Usage(_)) => {
            output::error(&usage.into());
            Ok(WRONG_USAGE)
        }
        Err(problem) => Err(problem.into()),
    }
}

/// Audits a period and writes the files. The manifest comes last.
async fn write(
    settings: &Settings,
    asked: &AskedPeriod,
    folder: &std::path::Path,
) -> anyhow::Result<Result<PeriodAudit, AuditError>> {
    let database = connect(settings).await?;
    let mut files = AuditFiles::create(folder)?;
    match audit_period(settings, &database, asked, &mut files).await {
        Ok(audit) => {
            files.finish(&audit)?;
            output::audit::written(&audit, &files);
            Ok(Ok(audit))
        }
        Err(problem) => {
            files.remove();
            Ok(Err(problem))
        }
    }
}
