//! PostgreSQL's major version, and every difference between majors that this daemon knows. Nothing else in the
//! crate looks at a version number.

use std::fmt;

/// The oldest major that is supported: what an incomplete record at the end of the log does to a promotion was
/// settled in 15's minor releases.
pub const OLDEST_MAJOR: u32 = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// Reads the output of `postgres --version`: `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)`. Betas
    /// and release candidates (`18beta1`) count as their major.
    pub fn parse(text: &str) -> Option<Version> {
        let number = text.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
        let mut parts = number.split('.');
        let major: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
        let minor: String = parts.next().unwrap_or("0").chars().take_while(char::is_ascii_digit).collect();
        Some(Version { major: major.parse().ok()?, minor: minor.parse().unwrap_or(0) })
    }

    /// Attributes of a tenant's login. From 16 on CREATEROLE reaches only roles that its holder administers;
    /// before that it could take over any role that is not a superuser.
    pub(super) fn tenant_role_attributes(self) -> &'static str {
        if self.major >= 16 {
            "LOGIN NOSUPERUSER NOCREATEDB NOREPLICATION NOBYPASSRLS CREATEROLE"
        } else {
            "LOGIN NOSUPERUSER NOCREATEDB NOREPLICATION NOBYPASSRLS NOCREATEROLE"
        }
    }

    /// Settings that only some majors know.
    pub(super) fn settings(self) -> Vec<(&'static str, &'static str)> {
        let mut settings = Vec::new();
        if self.major >= 17 {
            // The daemon owns the configuration; ALTER SYSTEM would be undone at the next start.
            settings.push(("allow_alter_system", "off"));
        }
        if self.major >= 18 {
            // Worker processes for reads cost an idle instance memory that it is not promised.
            settings.push(("io_method", "sync"));
        }
        settings
    }

    pub(super) fn initdb_arguments(self) -> Vec<String> {
        // `-k` is the default from 18 on and still accepted.
        let fixed = ["-k", "--no-instructions", "--encoding=UTF8", "--locale=C"];
        let segments = format!("--wal-segsize={}", super::wal::SEGMENT_MIB);
        fixed.into_iter().map(str::to_owned).chain([segments]).collect()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_servers_print() {
        let v = |s| Version::parse(s).map(|v| (v.major, v.minor));
        assert_eq!(v("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n"), Some((15, 13)));
        assert_eq!(v("postgres (PostgreSQL) 18beta1"), Some((18, 0)));
        assert_eq!(v("postgres (PostgreSQL) 16.4"), Some((16, 4)));
        assert_eq!(v("psql 15"), None);
    }
}
