//! Network cards, and ports of the host that lead into a guest.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::network::FORM;
use super::{Network, PciSlot};
use crate::error::{Error, Result};

/// The address that QEMU's DHCP server gives to the first card that asks, and that forwarded ports
/// lead to.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// A network card with user-mode networking (`-netdev user`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its address, `52:54:00:…`.
    pub mac: String,
    /// What the guest needs a driver for.
    pub model: NicModel,
    /// What the guest reaches through it.
    pub network: Network,
    /// Where it sits; without a place, QEMU finds one.
    pub place: Option<PciSlot>,
    /// Ports of the host that lead into the guest.
    pub ports: Vec<PortForward>,
}

impl Nic {
    /// A card with a new address (QEMU's own prefix, so it is locally administered) and no ports.
    pub fn new() -> Self {
        let random = Uuid::new_v4().into_bytes();
        let mac = format!("52:54:00:{:02x}:{:02x}:{:02x}", random[0], random[1], random[2]);
        Self {
            mac,
            model: NicModel::Virtio,
            network: Network::default(),
            place: None,
            ports: Vec::new(),
        }
    }

    /// Is it the address of one card: six bytes, not those of a group, in the form that QEMU takes?
    pub fn is_address(text: &str) -> bool {
        let byte = |part: &str| {
            u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.starts_with('+'))
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        bytes.is_some_and(|bytes| {
            bytes.len() == 6 && bytes[0] & 1 == 0 && bytes.iter().any(|byte| *byte != 0)
        })
    }

    /// Lets these ports of the host lead into the guest, and no others. Two that listen on the same
    /// are refused.
    pub fn forward(&mut self, ports: &[PortForward]) -> Result<()> {
        for (at, port) in ports.iter().enumerate() {
            if let Some(before) = ports[..at].iter().find(|before| before.collides(port)) {
                return Err(Error::usage(format!(
                    "{before} and {port} listen on the same port of the host"
                )));
            }
        }
        self.ports = ports.to_vec();
        Ok(())
    }

    /// Do its ports lead in? A restricted card answers no datagram (libslirp, `udp_input`).
    pub fn check_ports(&self) -> Result<()> {
        let is_udp = |port: &&PortForward| port.protocol == Protocol::Udp;
        match self.ports.iter().find(is_udp) {
            Some(port) if self.network == Network::Restricted => Err(Error::usage(format!(
                "{port} cannot be forwarded: a restricted network forwards TCP ports only"
            ))),
            _ => Ok(()),
        }
    }
}

impl std::str::FromStr for Nic {
    type Err = Error;

    /// A network as [`Network`] reads it, with `mac=ADDRESS` and `model=MODEL` among its words.
    fn from_str(text: &str) -> Result<Self> {
        let hint = format!("write {FORM}, either with [,mac=ADDRESS][,model=MODEL]; or none");
        let Some((network, words)) = Network::read(text)? else {
            return Err(Error::usage(format!("{text:?} is not a network")).hint(hint));
        };
        let mut nic = Self { network, ..Self::new() };
        for word in words {
            match word.split_once('=') {
                Some(("mac", mac)) if Self::is_address(mac) => nic.mac = mac.to_ascii_lowercase(),
                Some(("mac", mac)) => {
                    return Err(Error::usage(format!(
                        "{mac:?} is not the address of a network card"
                    ))
                    .hint("six bytes, the first one even: 52:54:00:12:34:56"));
                }
                Some(("model", model)) => nic.model = model.parse()?,
                _ => {
                    return Err(
                        Error::usage(format!("{word:?} is no option of a network")).hint(hint)
                    );
                }
            }
        }
        Ok(nic)
    }
}

/// The model of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NicModel {
    /// `virtio-net`: the fastest, for guests that have its driver.
    #[default]
    Virtio,
    /// Intel 82540EM, for older guests.
    E1000,
    /// Intel 82574L, for which Windows has a driver.
    E1000e,
    /// Realtek RTL8139, what libvirt takes where nothing is said.
    Rtl8139,
}

impl NicModel {
    /// Every model there is.
    pub const ALL: [Self; 4] = [Self::Virtio, Self::E1000, Self::E1000e, Self::Rtl8139];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Rtl8139 => "rtl8139",
        }
    }
}

impl std::str::FromStr for NicModel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|model| model.as_str() == text).ok_or_else(|| {
            Error::usage(format!("{text:?} is not a model of network card that is supported"))
                .hint(format!("models: {}", Self::ALL.map(Self::as_str).join(", ")))
        })
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
        (self.protocol, self.host) == (other.protocol, other.host)
            && (everywhere || self.address == other.address)
    }
}

impl std::str::FromStr for PortForward {
    type Err = Error;

    /// `HOST:GUEST`, `ADDRESS:HOST:GUEST`, either with `/tcp` or `/udp` behind it. The address is
    /// 127.0.0.1 unless given.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("{text:?} is not a port forward")).hint(
                "write HOST:GUEST or ADDRESS:HOST:GUEST, with /udp behind it for UDP: \
                 8080:80, 0.0.0.0:2222:22, 53:53/udp",
            )
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
            let ports: Vec<PortForward> =
                ports.iter().map(|port| port.parse().expect("a forward")).collect();
            Nic::new().forward(&ports)
        };
        assert!(forward(&["2222:22", "2222:22/udp", "127.0.0.2:2222:22", "2223:22"]).is_ok());
        assert!(forward(&["2222:22", "0.0.0.0:2222:22"]).is_err());
        let mut restricted = Nic { network: Network::Restricted, ..Nic::new() };
        restricted.forward(&["22:22".parse().expect("a forward")]).expect("a port");
        restricted.check_ports().expect("it leads in");
        restricted.forward(&["53:53/udp".parse().expect("a forward")]).expect("a port");
        assert!(restricted.check_ports().is_err());
        assert!(Nic { network: Network::default(), ..restricted }.check_ports().is_ok());
        let error = forward(&["2222:22", "2222:80"]).expect_err("twice the same");
        assert!(error.message().contains("127.0.0.1:2222:80"), "{}", error.message());
    }

    #[test]
    fn a_network_reads_as_typed_and_never_guesses() {
        let nic: Nic = "user,mac=52:54:00:AB:cd:ef,model=e1000".parse().expect("a card");
        assert_eq!((nic.mac.as_str(), nic.model), ("52:54:00:ab:cd:ef", NicModel::E1000));
        let nic: Nic = "user,allow=10.1.2.3,model=e1000,host-loopback".parse().expect("a card");
        assert_eq!(nic.network.to_string(), "user,host-loopback,allow=10.1.2.3");
        let nic: Nic = "restricted,mac=52:54:00:AB:cd:ef".parse().expect("a card");
        assert_eq!((nic.network, nic.mac.as_str()), (Network::Restricted, "52:54:00:ab:cd:ef"));
        for bad in [
            "", "bridge=br0", "user,", "user,mac=", "user,mac=01:00:5e:00:00:01",
            "user,mac=00:00:00:00:00:00", "user,mac=52:54:00:ab:cd", "user,mac=+2:54:00:ab:cd:ef",
            "user,model=ne2k", "user,mtu=9000", "restricted,host-loopback",
        ] {
            assert!(bad.parse::<Nic>().is_err(), "{bad:?} was accepted");
        }
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
