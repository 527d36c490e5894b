//! A replica's durable promise to an epoch (DESIGN §1 *fence*).
//!
//! The promise is on disk before it is answered, so that a node that crashes and restarts does not obey an older
//! epoch. File format: one line, `data_loss.primary.config`.

use quorate_model::Epoch;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file of one replica's promise. What may be written to it is decided by [`super::standing::Standing`].
#[derive(Debug)]
pub struct PromiseFile {
    path: PathBuf,
}

impl PromiseFile {
    /// Reads the promise; none yet is the zero epoch. An unreadable file is an error, never a fresh start.
    pub fn load(path: &Path) -> io::Result<(PromiseFile, Epoch)> {
        let epoch = match fs::read_to_string(path) {
            Ok(text) => text.trim().parse().map_err(|e| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display()))
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Epoch::default(),
            Err(e) => return Err(e),
        };
        Ok((PromiseFile { path: path.to_owned() }, epoch))
    }

    /// On disk when it returns.
    pub fn write(&self, epoch: Epoch) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let mut file = File::create(&temporary)?;
        writeln!(file, "{epoch}")?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_promise_survives_and_rubbish_is_no_fresh_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("promise");
        let (file, none) = PromiseFile::load(&path).unwrap();
        assert_eq!(none, Epoch::default());
        file.write(Epoch::new(0, 3, 0)).unwrap();
        assert_eq!(PromiseFile::load(&path).unwrap().1, Epoch::new(0, 3, 0));
        fs::write(&path, "rubbish").unwrap();
        assert!(PromiseFile::load(&path).is_err());
    }
}
