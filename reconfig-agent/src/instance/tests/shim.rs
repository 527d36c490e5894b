//! Disks that do as they are told: a library that is loaded into PostgreSQL before the C library and fails or delays
//! its flushes and writes while a file of a certain name stands in the replica's directory.

use crate::instance::{Instance, Postgres};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every process of PostgreSQL works in its data directory, so that `..` is its replica's.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int told(const char *name) { return access(name, F_OK) == 0; }
static int flush_is_told(void) {
    while (told("../disk-hangs")) usleep(10000);
    if (told("../disk-fails")) { errno = EIO; return 1; }
    return 0;
}
static int write_is_told(int fd) {
    struct stat s;
    if (told("../disk-full") && fd > 2 && fstat(fd, &s) == 0 && S_ISREG(s.st_mode)) { errno = ENOSPC; return 1; }
    return 0;
}
#define NEXT(name) static __typeof__(&name) next; if (!next) next = dlsym(RTLD_NEXT, #name)
int fsync(int fd) { NEXT(fsync); return flush_is_told() ? -1 : next(fd); }
int fdatasync(int fd) { NEXT(fdatasync); return flush_is_told() ? -1 : next(fd); }
ssize_t write(int fd, const void *b, size_t n) { NEXT(write); return write_is_told(fd) ? -1 : next(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t at) {
    NEXT(pwrite); return write_is_told(fd) ? -1 : next(fd, b, n, at);
}
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t at) {
    NEXT(pwrite64); return write_is_told(fd) ? -1 : next(fd, b, n, at);
}
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) {
    NEXT(pwritev); return write_is_told(fd) ? -1 : next(fd, v, n, at);
}
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t at) {
    NEXT(pwritev64); return write_is_told(fd) ? -1 : next(fd, v, n, at);
}
"#;

/// A directory of PostgreSQL's programs of which `postgres` loads the library.
pub fn programs(directory: &Path, real: &Postgres) -> PathBuf {
    let bin = directory.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let (source, library) = (bin.join("disk.c"), bin.join("disk.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl")
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    for name in ["initdb", "pg_basebackup", "pg_controldata", "pg_rewind"] {
        std::os::unix::fs::symlink(real.bin(name), bin.join(name)).unwrap();
    }
    let postgres = bin.join("postgres");
    let script = format!(
        "#!/bin/sh\nexport LD_PRELOAD={}\nexec {} \"$@\"\n",
        library.display(),
        real.bin("postgres").display()
    );
    std::fs::write(&postgres, script).unwrap();
    for path in [&postgres, &library] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    bin
}

/// What a disk does while this value lives.
pub struct Disk(PathBuf);

impl Disk {
    /// Flushes fail with an input/output error.
    pub fn fails(of: &Instance) -> Disk {
        Disk::told(of, "disk-fails")
    }

    /// Flushes do not return.
    pub fn hangs(of: &Instance) -> Disk {
        Disk::told(of, "disk-hangs")
    }

    /// Nothing more can be written.
    pub fn is_full(of: &Instance) -> Disk {
        Disk::told(of, "disk-full")
    }

    fn told(of: &Instance, what: &str) -> Disk {
        let file = of.paths().root.join(what);
        std::fs::write(&file, "").unwrap();
        Disk(file)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
