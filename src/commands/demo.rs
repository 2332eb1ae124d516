//! `demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {}
pub(super) async fn run(_: Options, _: crate::config::Settings) -> anyhow::Result<u8> { Ok(0) }
