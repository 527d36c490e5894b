//! Small acts on files whose order matters. All of them block and are meant for `blocking`.

use super::error::InstanceError;
use super::user::OsUser;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Runs blocking work off the reactor. A panic in it is a lost answer, not a crash of the daemon.
pub async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, InstanceError> + Send + 'static,
) -> Result<T, InstanceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(InstanceError::Lost { what }),
    }
}

pub fn make_directory(path: &Path, mode: u32) -> Result<(), InstanceError> {
    fs::create_dir_all(path).map_err(InstanceError::file("creating", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(InstanceError::file("changing the mode of", path))
}

/// Whether a file has to survive a crash of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is written anew before anybody could need it after a crash.
    Volatile,
    Durable,
}

/// Replaces a file in one step: readers see the old or the new text, never a part. The temporary file is made
/// anew, so that a link which the instance's user put there leads nowhere.
pub fn replace(
    path: &Path,
    text: &str,
    durability: Durability,
    owner: Option<&OsUser>,
) -> Result<(), InstanceError> {
    let temporary = path.with_extension("tmp");
    remove(&temporary)?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        if let Some(owner) = owner {
            owner.own_file(&file)?;
        }
        if durability == Durability::Durable { file.sync_all() } else { Ok(()) }
    };
    write().map_err(InstanceError::file("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(InstanceError::file("replacing", path))?;
    if durability == Durability::Durable {
        sync_parent(path)?;
    }
    Ok(())
}

pub fn sync_parent(path: &Path) -> Result<(), InstanceError> {
    path.parent().map_or(Ok(()), sync_directory)
}

pub fn sync_directory(path: &Path) -> Result<(), InstanceError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(InstanceError::file("flushing", path))
}

/// Removes a file or a symbolic link; its absence is what was wanted.
pub fn remove(path: &Path) -> Result<(), InstanceError> {
    absent_is_fine(fs::remove_file(path)).map_err(InstanceError::file("removing", path))
}

pub fn remove_durably(path: &Path) -> Result<(), InstanceError> {
    remove(path)?;
    sync_parent(path)
}

pub fn remove_tree(path: &Path) -> Result<(), InstanceError> {
    if path.is_symlink() {
        return remove(path);
    }
    absent_is_fine(fs::remove_dir_all(path)).map_err(InstanceError::file("removing", path))
}

fn absent_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Everything of the file system that holds `path` is on its disk when this returns.
pub fn sync_file_system(path: &Path) -> Result<(), InstanceError> {
    File::open(path)
        .and_then(|directory| rustix::fs::syncfs(&directory).map_err(Into::into))
        .map_err(InstanceError::file("flushing the file system of", path))
}
