//! Being written.
pub fn run(_: &crate::args::ConvertArgs) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
