//! What a QEMU has of networks: by the cards of its guest.
//!
//! QEMU connects for its guest (`-netdev user`, libslirp), so what the guest reaches is what QEMU
//! reaches. libslirp itself refuses no addresses; with `restrict=on` it connects to none.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::model::{Destination, Exceptions, Nic, Protocol};
use crate::sys::confine::networks::{Destinations, Networks, Rule, Verdict};

/// Where name servers listen.
const NAMES: u16 = 53;

/// The networks for private use: RFC 1918, RFC 6598, RFC 2544, RFC 4193.
const PRIVATE: [&str; 6] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7"];
/// The addresses of the host itself.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
/// What else is no address of a host on the Internet (the registries of RFC 6890): this network,
/// link-local, where clouds have their metadata, protocols, groups, later use; of IPv6 also what
/// was once site-local, and IPv4 addresses in other forms than those that are known for IPv4. Those
/// of documentation lead nowhere. The last one is where virtual machines of Azure have their
/// metadata.
const SPECIAL: [&str; 10] = [
    "0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/3", "::/96", "64:ff9b:1::/48",
    "2002::/16", "fe80::/9", "ff00::/8", "168.63.129.16/32",
];

/// The networks of the QEMU of a guest with these cards, on a host that asks these name
/// servers. `group` is where its control group will be.
pub(crate) fn of(
    nics: &[Nic],
    servers: &[IpAddr],
    group: impl FnOnce() -> Option<PathBuf>,
) -> Networks {
    if nics.is_empty() {
        return Networks::None;
    }
    let exceptions: Vec<&Exceptions> =
        nics.iter().filter_map(|nic| nic.network.exceptions()).collect();
    if exceptions.is_empty() {
        return Networks::Listening;
    }
    let ports = nics.iter().flat_map(|nic| &nic.ports);
    let forwarded = ports.filter(|port| port.protocol == Protocol::Udp).map(|port| port.host);
    let rules = rules(&exceptions, servers);
    Networks::To {
        destinations: Destinations { rules, forwarded: forwarded.collect() },
        group: group(),
    }
}

/// What lies outside, and the exceptions of all cards.
fn rules(exceptions: &[&Exceptions], servers: &[IpAddr]) -> Vec<Rule> {
    let any = |is: fn(&Exceptions) -> bool| exceptions.iter().any(|one| is(one));
    let or_refused = |allowed, verdict| if allowed { verdict } else { Verdict::Refused };
    let host = or_refused(any(|one| one.host_loopback), Verdict::AllowedOnHost);
    let private = or_refused(any(|one| one.private_networks), Verdict::Allowed);
    let server = |address: &IpAddr| Rule {
        addresses: address.to_canonical().into(),
        port: Some(NAMES),
        verdict: Verdict::AllowedOnHost,
    };
    let all = |networks: &'static [&'static str], verdict| {
        let known = networks.iter().filter_map(|network| network.parse().ok());
        known.map(move |addresses| Rule { addresses, port: None, verdict })
    };
    let named = exceptions.iter().flat_map(|one| &one.destinations).map(named);
    let (single, wide): (Vec<Rule>, Vec<Rule>) =
        named.partition(|rule| rule.verdict == Verdict::AllowedOnHost);
    // The first rule decides: what is meant by itself comes before what it lies in.
    servers
        .iter()
        .map(server)
        .chain(single)
        .chain(all(&LOOPBACK, host))
        .chain(wide)
        .chain(all(&PRIVATE, private))
        .chain(all(&SPECIAL, Verdict::Refused))
        .collect()
}

/// An address of the host's own is meant only where it is named by itself, or as loopback.
fn named(destination: &Destination) -> Rule {
    let (addresses, port) = (destination.addresses, destination.port);
    let is_one = addresses.prefix_len() == addresses.max_prefix_len();
    let loopback = LOOPBACK.iter().filter_map(|network| network.parse::<IpNet>().ok());
    let verdict = match is_one || loopback.into_iter().any(|all| all.contains(&addresses)) {
        true => Verdict::AllowedOnHost,
        false => Verdict::Allowed,
    };
    Rule { addresses, port, verdict }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Network;

    #[test]
    fn every_network_that_is_known_is_one() {
        for network in PRIVATE.iter().chain(&LOOPBACK).chain(&SPECIAL) {
            let parsed: IpNet = network.parse().expect(network);
            assert_eq!(parsed, parsed.trunc(), "{network}");
        }
    }

    /// What is decided about an address and a port, for cards with these networks.
    fn verdict(networks: &[&str], address: &str, port: u16) -> Option<Verdict> {
        let networks: Vec<Network> =
            networks.iter().map(|network| network.parse().expect(network)).collect();
        let exceptions: Vec<&Exceptions> =
            networks.iter().filter_map(Network::exceptions).collect();
        let servers =
            ["127.0.0.53", "::ffff:10.0.0.53"].map(|server| server.parse().expect(server));
        let address: IpAddr = address.parse().expect(address);
        let fits = |rule: &Rule| {
            rule.addresses.contains(&address) && rule.port.is_none_or(|only| only == port)
        };
        rules(&exceptions, &servers).into_iter().find(fits).map(|rule| rule.verdict)
    }

    #[test]
    fn a_user_network_leads_outside_and_to_what_is_named() {
        let user = ["user"];
        for address in [
            "127.0.0.1", "127.255.255.255", "0.0.0.0", "10.0.0.1", "10.255.255.255", "172.16.0.1",
            "172.31.255.255", "192.168.0.1", "100.64.0.1", "100.100.100.200", "198.18.0.1",
            "198.19.255.255", "169.254.169.254", "192.0.0.170", "224.0.0.251", "239.255.255.250",
            "255.255.255.255", "240.0.0.1", "::", "::1", "::127.0.0.1", "fc00::1", "fd00:ec2::254",
            "168.63.129.16", "fe80::1", "fec0::1", "ff02::1", "2002:7f00:1::", "64:ff9b:1::1",
        ] {
            assert_eq!(verdict(&user, address, 80), Some(Verdict::Refused), "{address}");
        }
        for address in [
            "1.1.1.1", "9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.0.1",
            "192.169.0.1", "100.63.255.255", "100.128.0.0", "128.0.0.1", "169.253.0.1",
            "223.0.0.1", "198.17.0.1", "198.20.0.1", "2606:4700::1111", "2a00::1", "fbff::1",
        ] {
            assert_eq!(verdict(&user, address, 80), None, "{address}");
        }
        let (own, any) = (Some(Verdict::AllowedOnHost), Some(Verdict::Allowed));
        for server in ["127.0.0.53", "10.0.0.53"] {
            assert_eq!(verdict(&user, server, 53), own, "{server}");
            assert_eq!(verdict(&user, server, 80), Some(Verdict::Refused), "{server}");
        }
        assert_eq!(verdict(&["user,host-loopback"], "127.0.0.1", 80), own);
        assert_eq!(verdict(&["user,host-loopback"], "10.0.0.1", 80), Some(Verdict::Refused));
        assert_eq!(verdict(&["user,private-networks"], "10.0.0.1", 80), any);
        assert_eq!(verdict(&["user,private-networks"], "fd00::1", 80), any);
        for address in ["127.0.0.1", "169.254.169.254", "fe80::1"] {
            let refused = Some(Verdict::Refused);
            assert_eq!(verdict(&["user,private-networks"], address, 80), refused, "{address}");
        }
        // An address of the host's own is meant where it is named, not where it is among others.
        assert_eq!(verdict(&["user,allow=10.0.0.1"], "10.0.0.1", 80), own);
        assert_eq!(verdict(&["user,allow=10.0.0.0/8"], "10.0.0.1", 80), any);
        assert_eq!(verdict(&["user,allow=10.0.0.0/8,allow=10.0.0.1"], "10.0.0.1", 80), own);
        assert_eq!(verdict(&["user,allow=127.0.1.0/24"], "127.0.1.1", 80), own);
        let all = "user,allow=0.0.0.0/0";
        assert_eq!(verdict(&[all], "127.0.0.1", 80), Some(Verdict::Refused));
        assert_eq!(verdict(&[all, "user,host-loopback"], "127.0.0.1", 80), own);
        // What is named for one card is reached by all of them.
        assert_eq!(verdict(&["user", "user,allow=10.0.0.1:80"], "10.0.0.1", 80), own);
    }

    #[test]
    fn a_guest_that_connects_to_nobody_has_no_group() {
        let of = |networks: &[&str]| {
            let card =
                |network: &&str| Nic { network: network.parse().expect(network), ..Nic::new() };
            let nics: Vec<Nic> = networks.iter().map(card).collect();
            super::of(&nics, &[], || Some("/group".into()))
        };
        assert_eq!(of(&[]), Networks::None);
        assert_eq!(of(&["restricted", "restricted"]), Networks::Listening);
        let both = of(&["restricted", "user"]);
        assert!(matches!(&both, Networks::To { group: Some(_), .. }), "{both:?}");
    }
}
