//! From which addresses the clients of a logical server may come.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Networks that one list may name.
pub const MAX_NETWORKS: usize = 64;

/// What stands for everybody.
const ALL: &str = "all";

/// Empty: from everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowList(Vec<IpNet>);

/// A list that is none. Safe to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowError {
    #[error("\"{0}\" is no address and no network")]
    Malformed(String),
    /// As PostgreSQL's type `cidr` has it: most likely another length was meant.
    #[error("\"{0}\" has bits set to the right of its mask")]
    HostBits(String),
    #[error("more than {MAX_NETWORKS} networks")]
    TooMany,
}

impl AllowList {
    /// Reads addresses and networks with commas between them, or `all`.
    pub fn parse(text: &str) -> Result<AllowList, AllowError> {
        if text.trim().eq_ignore_ascii_case(ALL) {
            return Ok(AllowList::default());
        }
        let networks: Vec<IpNet> =
            text.split(',').map(|part| network(part.trim())).collect::<Result<_, _>>()?;
        if networks.len() > MAX_NETWORKS {
            return Err(AllowError::TooMany);
        }
        Ok(AllowList(networks))
    }

    /// Whether a client with this address may come; none: it is not known.
    pub fn admits(&self, address: Option<IpAddr>) -> bool {
        // An IPv4 client of a socket that speaks both comes with its address inside an IPv6 one.
        let address = address.map(|address| address.to_canonical());
        self.0.is_empty() || address.is_some_and(|address| self.0.iter().any(|net| net.contains(&address)))
    }
}

fn network(text: &str) -> Result<IpNet, AllowError> {
    let malformed = || AllowError::Malformed(text.to_owned());
    if !text.contains('/') {
        return text.parse::<IpAddr>().map(IpNet::from).map_err(|_| malformed());
    }
    let network: IpNet = text.parse().map_err(|_| malformed())?;
    if network.trunc() != network {
        return Err(AllowError::HostBits(text.to_owned()));
    }
    Ok(network)
}

impl fmt::Display for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(ALL);
        }
        for (i, network) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{network}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn admits(list: &str, address: &str) -> bool {
        AllowList::parse(list).unwrap().admits(Some(address.parse().unwrap()))
    }

    #[test]
    fn who_may_come() {
        assert!(admits("all", "192.0.2.1") && admits("ALL", "::1"));
        let list = "10.0.0.0/8, 192.0.2.7,2001:db8::/32";
        for address in ["10.255.0.1", "192.0.2.7", "2001:db8::5", "::ffff:10.1.2.3"] {
            assert!(admits(list, address), "{address}");
        }
        for address in ["11.0.0.1", "192.0.2.8", "2001:db9::5", "::1"] {
            assert!(!admits(list, address), "{address}");
        }
        assert!(!AllowList::parse(list).unwrap().admits(None) && AllowList::default().admits(None));
        let shown = AllowList::parse(list).unwrap().to_string();
        assert_eq!(shown, "10.0.0.0/8, 192.0.2.7/32, 2001:db8::/32");
        assert_eq!(AllowList::parse(&shown).unwrap().to_string(), shown);
    }

    #[test]
    fn what_is_no_list_is_told() {
        for text in ["", "here", "10.0.0.0/33", "10.0.0.0/8,", "300.0.0.1"] {
            assert!(matches!(AllowList::parse(text), Err(AllowError::Malformed(_))), "{text}");
        }
        assert_eq!(AllowList::parse("10.1.0.0/8"), Err(AllowError::HostBits("10.1.0.0/8".into())));
        assert_eq!(AllowList::parse(&["::1"; MAX_NETWORKS + 1].join(",")), Err(AllowError::TooMany));
    }
}
