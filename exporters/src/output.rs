//! Where output goes: a file that looks whole only when it is, or standard output.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// An output that is being written. A file has the name `NAME.partial` until [`Output::commit`]; one that is dropped
/// before is removed.
#[derive(Debug)]
pub enum Output {
    /// Standard output.
    Stdout(io::Stdout),
    /// A file.
    File {
        /// Open for writing; `None` once committed.
        file: Option<File>,
        /// Its name for now.
        partial: PathBuf,
        /// Its name in the end.
        path: PathBuf,
    },
}

impl Output {
    /// Opens `path` for writing; `-` is standard output.
    pub fn create(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout(io::stdout()));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        // A pipe or a device is written as it is: it can have no other name.
        let special = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
        let partial = if special { path.to_owned() } else { partial };
        let file = File::options().write(true).create(true).truncate(!special).open(&partial)?;
        Ok(Self::File { file: Some(file), partial, path: path.to_owned() })
    }

    /// All is written: the file gets its name.
    pub fn commit(mut self) -> io::Result<()> {
        match &mut self {
            Self::Stdout(out) => out.flush(),
            Self::File { file, partial, path } => {
                if let Some(mut file) = file.take() {
                    file.flush()?;
                }
                if partial != path {
                    std::fs::rename(&*partial, &*path)?;
                }
                Ok(())
            }
        }
    }
}

/// All are written: they get their names. Of several, those that files of before have are made free first: where it cannot
/// be done to the end, there is some of the new set, and never a mixture of two.
pub fn commit_all(outputs: Vec<Output>) -> io::Result<()> {
    for output in outputs.iter().filter(|_| outputs.len() > 1) {
        if let Output::File { partial, path, .. } = output
            && partial != path
        {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    outputs.into_iter().try_for_each(Output::commit)
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File { file: Some(file), .. } => file.write(bytes),
            Self::File { file: None, .. } => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File { file, .. } => file.as_mut().map_or(Ok(()), Write::flush),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Self::File { file: Some(_), partial, path } = self
            && partial != path
        {
            // Half a file must not look whole. Nothing can be done if it cannot be removed.
            let _ = std::fs::remove_file(partial);
        }
    }
}
