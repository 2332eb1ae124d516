//! `generate`: manual pages and completions for shells.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::CommandFactory;

use super::Cli;
use super::exit_code::SUCCEEDED;
use crate::output;

/// What is generated.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Write manual pages: the main page to stdout, or the pages of all commands into a directory
    Man {
        /// Write one file for each command into this directory, which is created
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Write the completions for a shell to stdout
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

pub(super) fn run(command: &Command) -> anyhow::Result<u8> {
    match command {
        Command::Man { out: None } => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            output::document(&String::from_utf8(page)?);
        }
        Command::Man { out: Some(folder) } => pages(folder)?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            let mut command = Cli::command();
            let name = command.get_name().to_owned();
            clap_complete::generate(*shell, &mut command, name, &mut script);
            output::document(&String::from_utf8(script)?);
        }
    }
    Ok(SUCCEEDED)
}

fn pages(folder: &Path) -> anyhow::Result<()> {
    let failed = || format!("the manual pages cannot be written into {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(failed)?;
    Ok(())
}
