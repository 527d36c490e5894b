//! A replica's durable promise to an epoch (DESIGN §1 *fence*).
//!
//! The promise is on disk before it is answered, so that a node that crashes and restarts does not obey an older
//! epoch. File format: one line, `data_loss.primary.config`.

use quorate_model::Epoch;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Promise {
    path: PathBuf,
    epoch: Epoch,
}

impl Promise {
    /// Reads the promise; none yet is the zero epoch. An unreadable file is an error, never a fresh start.
    pub fn load(path: &Path) -> io::Result<Promise> {
        let epoch = match fs::read_to_string(path) {
            Ok(text) => text.trim().parse().map_err(|e| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display()))
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Epoch::default(),
            Err(e) => return Err(e),
        };
        Ok(Promise { path: path.to_owned(), epoch })
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Promises `epoch`, durably. An older one than what was promised is refused with what was promised; I5:
    /// promises never go back.
    pub fn make(&mut self, epoch: Epoch) -> io::Result<Result<(), Epoch>> {
        let epoch = epoch.reign();
        if epoch < self.epoch {
            return Ok(Err(self.epoch));
        }
        if epoch == self.epoch {
            return Ok(Ok(()));
        }
        let temporary = self.path.with_extension("new");
        let mut file = File::create(&temporary)?;
        writeln!(file, "{epoch}")?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        self.epoch = epoch;
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_promise_survives_and_never_goes_back() {
        let directory = std::env::temp_dir().join(format!("promise-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("promise");
        let mut promise = Promise::load(&path).unwrap();
        assert_eq!(promise.make(Epoch::new(0, 3, 2)).unwrap(), Ok(()));
        assert_eq!(promise.make(Epoch::new(0, 2, 9)).unwrap(), Err(Epoch::new(0, 3, 0)));
        assert_eq!(Promise::load(&path).unwrap().epoch(), Epoch::new(0, 3, 0));
        fs::write(&path, "rubbish").unwrap();
        assert!(Promise::load(&path).is_err());
        fs::remove_dir_all(&directory).unwrap();
    }
}
