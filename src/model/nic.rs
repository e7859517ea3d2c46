//! Network cards, and ports of the host that lead into a guest.

use std::net::Ipv4Addr;

use uuid::Uuid;

use crate::error::{Error, Result};

/// The address that QEMU's DHCP server gives to the first card that asks, and that forwarded ports lead to.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// A network card with user-mode networking (`-netdev user`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its address, `52:54:00:…`.
    pub mac: String,
    /// Ports of the host that lead into the guest.
    pub ports: Vec<PortForward>,
}

impl Nic {
    /// A card with a new address (QEMU's own prefix, so it is locally administered) and no ports.
    pub fn new() -> Self {
        let random = Uuid::new_v4().into_bytes();
        Self { mac: format!("52:54:00:{:02x}:{:02x}:{:02x}", random[0], random[1], random[2]), ports: Vec::new() }
    }

    /// Lets these ports of the host lead into the guest, and no others. Two that listen on the same are refused.
    pub fn forward(&mut self, ports: &[PortForward]) -> Result<()> {
        for (at, port) in ports.iter().enumerate() {
            if let Some(before) = ports[..at].iter().find(|before| before.collides(port)) {
                return Err(Error::usage(format!("{before} and {port} listen on the same port of the host")));
            }
        }
        self.ports = ports.to_vec();
        Ok(())
    }
}

impl Default for Nic {
    fn default() -> Self {
        Self::new()
    }
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address to listen on.
    pub address: Ipv4Addr,
    /// The port to listen on.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
}

impl PortForward {
    /// Whether both listen on the same port of the host.
    pub fn collides(&self, other: &Self) -> bool {
        let everywhere = self.address.is_unspecified() || other.address.is_unspecified();
        (self.protocol, self.host) == (other.protocol, other.host) && (everywhere || self.address == other.address)
    }
}

impl std::str::FromStr for PortForward {
    type Err = Error;

    /// `HOST:GUEST`, `ADDRESS:HOST:GUEST`, either with `/tcp` or `/udp` behind it. The address is 127.0.0.1 unless given.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("{text:?} is not a port forward"))
                .hint("write HOST:GUEST or ADDRESS:HOST:GUEST, with /udp behind it for UDP: 8080:80, 0.0.0.0:2222:22, 53:53/udp")
        };
        let (ports, protocol) = match text.rsplit_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(bad()),
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(bad);
        let parts: Vec<&str> = ports.split(':').collect();
        let (address, host, guest) = match parts[..] {
            [host, guest] => (Ipv4Addr::LOCALHOST, host, guest),
            [address, host, guest] => (address.parse().map_err(|_| bad())?, host, guest),
            _ => return Err(bad()),
        };
        Ok(Self { protocol, address, host: port(host)?, guest: port(guest)? })
    }
}

impl std::fmt::Display for PortForward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = if self.protocol == Protocol::Udp { "/udp" } else { "" };
        write!(f, "{}:{}:{}{protocol}", self.address, self.host, self.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_forwards_never_listen_on_the_same_port() {
        let forward = |ports: &[&str]| {
            let ports: Vec<PortForward> = ports.iter().map(|port| port.parse().expect("a forward")).collect();
            Nic::new().forward(&ports)
        };
        assert!(forward(&["2222:22", "2222:22/udp", "127.0.0.2:2222:22", "2223:22"]).is_ok());
        assert!(forward(&["2222:22", "0.0.0.0:2222:22"]).is_err());
        let error = forward(&["2222:22", "2222:80"]).expect_err("twice the same");
        assert!(error.message().contains("127.0.0.1:2222:80"), "{}", error.message());
    }

    #[test]
    fn port_forwards_read_as_typed_and_never_guess() {
        for (text, shown) in [
            ("8080:80", "127.0.0.1:8080:80"),
            ("0.0.0.0:2222:22/tcp", "0.0.0.0:2222:22"),
            ("53:53/udp", "127.0.0.1:53:53/udp"),
        ] {
            assert_eq!(text.parse::<PortForward>().expect(text).to_string(), shown);
        }
        for bad in ["", "80", "0:80", "80:0", "a:b", "70000:1", "1:2:3", "1:2/sctp", "::1:2:3"] {
            assert!(bad.parse::<PortForward>().is_err(), "{bad:?} was accepted");
        }
    }
}
