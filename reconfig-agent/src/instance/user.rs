//! The operating system's user that owns the data and runs PostgreSQL, which refuses to run as root.

use super::error::InstanceError;
use rustix::fs::{Gid, Uid};
use std::ffi::CStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Who PostgreSQL runs as when the daemon runs as root.
const SERVICE_USER: &str = "postgres";

/// Enough for any passwd entry; `getpwnam_r` says when it is not.
const PASSWD_BUFFER_BYTES: usize = 16 * 1024;

#[derive(Clone, Debug)]
pub struct OsUser {
    name: String,
    uid: u32,
    gid: u32,
    /// Whether a child has to change to this user, as the daemon is root.
    change: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("the daemon runs as root and there is no user {SERVICE_USER} to run PostgreSQL as")]
    NoServiceUser,
    #[error("the user {SERVICE_USER} is root by another name")]
    IsRoot,
}

impl OsUser {
    /// The user `postgres` when the daemon is root, else the daemon's own user.
    pub fn for_instances() -> Result<OsUser, UserError> {
        let uid = rustix::process::geteuid();
        if !uid.is_root() {
            let gid = rustix::process::getegid();
            let name = format!("uid {}", uid.as_raw());
            return Ok(OsUser { name, uid: uid.as_raw(), gid: gid.as_raw(), change: false });
        }
        let (uid, gid) = look_up(SERVICE_USER).ok_or(UserError::NoServiceUser)?;
        if uid == 0 {
            return Err(UserError::IsRoot);
        }
        Ok(OsUser { name: SERVICE_USER.to_owned(), uid, gid, change: true })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Uid and gid to change to, when a change is needed.
    pub fn switch(&self) -> Option<(u32, u32)> {
        self.change.then_some((self.uid, self.gid))
    }

    /// Gives a file or directory to this user.
    pub fn own(&self, path: &Path) -> Result<(), InstanceError> {
        if self.change {
            rustix::fs::chown(path, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
                .map_err(|e| InstanceError::file("changing the owner of", path)(e.into()))?;
        }
        Ok(())
    }

    pub(super) fn own_file(&self, file: &std::fs::File) -> std::io::Result<()> {
        if self.change {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// Checks that this user can walk down to `path`, and names the directory that stops it. Access lists are
    /// not read: PostgreSQL itself has the last word.
    pub fn check_reaches(&self, path: &Path) -> Result<(), InstanceError> {
        if !self.change {
            return Ok(());
        }
        let real = path.canonicalize().map_err(InstanceError::file("resolving", path))?;
        let mut ancestors: Vec<&Path> = real.ancestors().collect();
        ancestors.reverse();
        for directory in ancestors {
            let meta = directory.metadata().map_err(InstanceError::file("looking at", directory))?;
            if meta.is_dir() && !self.may_search(meta.uid(), meta.gid(), meta.mode()) {
                return Err(InstanceError::Blocked {
                    user: self.name.clone(),
                    directory: directory.to_owned(),
                    mode: meta.mode() & 0o7777,
                });
            }
        }
        Ok(())
    }

    fn may_search(&self, uid: u32, gid: u32, mode: u32) -> bool {
        let bit = if uid == self.uid {
            0o100
        } else if gid == self.gid {
            0o010
        } else {
            0o001
        };
        mode & bit != 0
    }
}

fn look_up(name: &str) -> Option<(u32, u32)> {
    let name = std::ffi::CString::new(name).ok()?;
    look_up_c(&name)
}

fn look_up_c(name: &CStr) -> Option<(u32, u32)> {
    // SAFETY: passwd is plain data for which all zeroes is a value; every pointer handed over outlives the call,
    // and the entry is read only when the call says that it filled it.
    unsafe {
        let mut entry: libc::passwd = std::mem::zeroed();
        let mut buffer = vec![0 as libc::c_char; PASSWD_BUFFER_BYTES];
        let mut found: *mut libc::passwd = std::ptr::null_mut();
        let failed =
            libc::getpwnam_r(name.as_ptr(), &mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found);
        (failed == 0 && !found.is_null()).then_some((entry.pw_uid, entry.pw_gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_that_applies_decides_alone() {
        let user = OsUser { name: "x".into(), uid: 7, gid: 8, change: true };
        assert!(user.may_search(7, 0, 0o700));
        assert!(!user.may_search(7, 0, 0o077), "the owner's bit counts for the owner");
        assert!(user.may_search(0, 8, 0o710));
        assert!(!user.may_search(0, 0, 0o770));
        assert!(user.may_search(0, 0, 0o711));
    }
}
