//! Being written.
pub fn run(_: &crate::args::InfoArgs) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
