//! `generate`: manual pages and completions for shells.

use std::path::{Path, PathBuf};

use anyhow::Context;

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

/// `program`: the command line of the program.
pub(super) fn run(command: &Command, mut program: clap::Command) -> anyhow::Result<u8> {
    match command {
        Command::Man { out: None } => {
            let mut page = Vec::new();
            // As the page among those of all commands.
            let mut program = program.disable_help_subcommand(true);
            program.build();
            clap_mangen::Man::new(program).render(&mut page)?;
            output::document(&String::from_utf8(page)?);
        }
        Command::Man { out: Some(folder) } => pages(folder, program)?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            let name = program.get_name().to_owned();
            clap_complete::generate(*shell, &mut program, name.clone(), &mut script);
            let script = String::from_utf8(script)?;
            // `clap_complete` 4.6 names a program with a hyphen in two ways, so that bash completes nothing below it.
            let [one, other] = ["__subcmd__", "__"].map(|hyphen| name.replace('-', hyphen));
            output::document(&script.replace(&one, &other));
        }
    }
    Ok(SUCCEEDED)
}

fn pages(folder: &Path, program: clap::Command) -> anyhow::Result<()> {
    let failed = || format!("the manual pages cannot be written into {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(program, folder).with_context(failed)?;
    Ok(())
}
