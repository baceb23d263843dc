//! Being written.
pub fn run(_: &crate::args::DumpArgs) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
