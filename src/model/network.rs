//! What a guest reaches through a network card.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::error::{Error, Result};

/// How many destinations may be named for a card.
const DESTINATIONS: usize = 32;

/// What a guest reaches through a network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// What lies outside of the host and of private networks, with these exceptions.
    User(Exceptions),
    /// Nothing. Forwarded ports lead in.
    Restricted,
}

/// What else a guest reaches than what lies outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exceptions {
    /// The host's loopback addresses.
    pub host_loopback: bool,
    /// The networks that are for private use.
    pub private_networks: bool,
    /// These.
    pub destinations: Vec<Destination>,
}

/// Addresses that a guest may connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The addresses.
    pub addresses: IpNet,
    /// The port; `None`: all of them.
    pub port: Option<u16>,
}

impl Default for Network {
    fn default() -> Self {
        Self::User(Exceptions::default())
    }
}

impl Network {
    /// The word for it, without the exceptions.
    pub fn mode(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Restricted => "restricted",
        }
    }

    /// The exceptions.
    pub fn exceptions(&self) -> Option<&Exceptions> {
        match self {
            Self::User(exceptions) => Some(exceptions),
            Self::Restricted => None,
        }
    }

    /// Adds what one word says; false where it is no word of a network.
    fn add(&mut self, word: &str) -> Result<bool> {
        let Self::User(exceptions) = self else { return Ok(false) };
        match word.split_once('=') {
            None if word == "host-loopback" => exceptions.host_loopback = true,
            None if word == "private-networks" => exceptions.private_networks = true,
            Some(("allow", destination)) => {
                let destination = destination.parse()?;
                if exceptions.destinations.len() == DESTINATIONS {
                    return Err(Error::usage(format!(
                        "a network card has at most {DESTINATIONS} destinations"
                    ))
                    .hint("name a network that they all lie in: allow=10.1.0.0/16"));
                }
                if !exceptions.destinations.contains(&destination) {
                    exceptions.destinations.push(destination);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Reads `user[,EXCEPTION]…` or `restricted`, and gives back the words that are neither.
    pub(super) fn read(text: &str) -> Result<Option<(Self, Vec<&str>)>> {
        let mut words = text.split(',');
        let mut network = match words.next() {
            Some("user") => Self::default(),
            Some("restricted") => Self::Restricted,
            _ => return Ok(None),
        };
        let mut others = Vec::new();
        for word in words {
            if !network.add(word)? {
                others.push(word);
            }
        }
        Ok(Some((network, others)))
    }
}

/// What can be written.
pub(super) const FORM: &str =
    "user[,host-loopback][,private-networks][,allow=ADDRESS[/LENGTH][:PORT]]…, or restricted";

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |what: String| Error::usage(what).hint(format!("write {FORM}"));
        if text == "none" {
            return Err(Error::usage(
                "a network card stays where it is: restricted lets its guest reach nothing",
            ));
        }
        match Self::read(text)? {
            Some((network, others)) => match others.first() {
                None => Ok(network),
                Some(word) => Err(bad(format!("{word:?} is no option of a network"))),
            },
            None => Err(bad(format!("{text:?} is not a network"))),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mode())?;
        let Some(exceptions) = self.exceptions() else { return Ok(()) };
        if exceptions.host_loopback {
            f.write_str(",host-loopback")?;
        }
        if exceptions.private_networks {
            f.write_str(",private-networks")?;
        }
        exceptions.destinations.iter().try_for_each(|destination| write!(f, ",allow={destination}"))
    }
}

impl FromStr for Destination {
    type Err = Error;

    /// `ADDRESS`, `ADDRESS/LENGTH`, either with `:PORT` behind it; an IPv6 address with a port
    /// stands in brackets.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("{text:?} is no address that a guest can be allowed")).hint(
                "write ADDRESS, ADDRESS/LENGTH, or either with a port: 10.1.2.3, 10.1.0.0/16, \
                 10.1.2.3:3128, [fd00::1]:3128",
            )
        };
        let one = |address: IpAddr| IpNet::from(address);
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let text = inner.filter(|inner| inner.contains(':')).unwrap_or(text);
        let (addresses, port) = if let Ok(address) = text.parse::<IpAddr>() {
            (one(address), None)
        } else if let Ok(network) = text.parse::<IpNet>() {
            (network, None)
        } else if let Ok(address) = text.parse::<SocketAddr>() {
            (one(address.ip()), Some(address.port()))
        } else {
            let (network, port) = text.rsplit_once(':').ok_or_else(bad)?;
            let network = network
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
                .unwrap_or(network);
            (network.parse().map_err(|_| bad())?, Some(port.parse().map_err(|_| bad())?))
        };
        if port == Some(0) || addresses.trunc() != addresses || holds_v4(&addresses) {
            return Err(bad());
        }
        Ok(Self { addresses, port })
    }
}

/// Is it an IPv4 address in another form (RFC 4291, RFC 6052)? It is known as itself alone.
fn holds_v4(addresses: &IpNet) -> bool {
    let IpNet::V6(addresses) = addresses else { return false };
    let above = addresses.network().to_bits() >> 32;
    addresses.prefix_len() >= 96 && [0xffff, 0x0064_ff9b << 64].contains(&above)
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_one = self.addresses.prefix_len() == self.addresses.max_prefix_len();
        let text = match is_one {
            true => self.addresses.addr().to_string(),
            false => self.addresses.to_string(),
        };
        match (self.port, &self.addresses) {
            (None, _) => f.write_str(&text),
            (Some(port), IpNet::V4(_)) => write!(f, "{text}:{port}"),
            (Some(port), IpNet::V6(_)) => write!(f, "[{text}]:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_network_reads_as_it_is_written_and_never_guesses() {
        for text in [
            "user",
            "restricted",
            "user,host-loopback",
            "user,private-networks",
            "user,host-loopback,private-networks,allow=169.254.169.254",
            "user,allow=10.0.0.0/8,allow=10.1.2.3:3128,allow=10.1.0.0/16:443",
            "user,allow=fd00::1,allow=[fd00::1]:80,allow=fd00::/8,allow=[fd00::/8]:80,allow=::/0",
        ] {
            assert_eq!(text.parse::<Network>().expect(text).to_string(), text);
        }
        for bad in [
            "", "User", "user,", "user,allow", "user,allow=", "user,loopback",
            "restricted,host-loopback", "restricted,allow=10.0.0.1", "user,allow=10.0.0.1/8",
            "user,allow=10.0.0.0/33", "user,allow=10.0.0.1:0", "user,allow=10.0.0.1:65536",
            "user,allow=example.org", "user,allow=10.0.0.1:", "user,allow=fd00::1/8",
            "user,allow=010.0.0.1", "none", "user,allow=::ffff:10.0.0.1",
            "user,allow=64:ff9b::/96",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?} was accepted");
        }
        let many: String = (0..=DESTINATIONS).map(|n| format!(",allow=10.0.0.{n}")).collect();
        let error = format!("user{many}").parse::<Network>().expect_err("too many");
        assert!(error.message().contains("at most 32"), "{}", error.message());
    }

    proptest! {
        #[test]
        fn what_is_shown_of_a_destination_is_read_as_the_same(
            bits in any::<u128>(), is_v4 in any::<bool>(), length in 0..=128_u8,
            port in proptest::option::of(1..=u16::MAX),
        ) {
            let address: IpAddr = match is_v4 {
                true => IpAddr::V4(u32::try_from(bits >> 96).unwrap().into()),
                false => IpAddr::V6(bits.into()),
            };
            let length = if is_v4 { length % 33 } else { length };
            let addresses = IpNet::new(address, length).unwrap().trunc();
            prop_assume!(!holds_v4(&addresses));
            let destination = Destination { addresses, port };
            prop_assert_eq!(destination.to_string().parse::<Destination>().unwrap(), destination);
        }
    }
}
