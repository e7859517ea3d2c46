//! The programs are run by an interpreter, against what [`Destinations`] says; and by the kernel
//! ([`kernel`]).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use proptest::prelude::*;

use super::*;

fn rule(addresses: &str, port: Option<u16>, verdict: Verdict) -> Rule {
    Rule { addresses: addresses.parse().expect("a network"), port, verdict }
}

/// An IPv4 address, where that stands in it.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    match v6.to_bits() >> 32 {
        0xffff | 0x0064_ff9b_0000_0000_0000_0000 => {
            IpAddr::V4(Ipv4Addr::from_bits(v6.to_bits() as u32))
        }
        _ => address,
    }
}

/// What the programs have to decide. `own`: it is an address of the host's own.
fn allowed(destinations: &Destinations, to: SocketAddr, own: bool) -> bool {
    let fits = |rule: &&Rule| {
        rule.addresses.contains(&plain(to.ip())) && rule.port.is_none_or(|port| port == to.port())
    };
    match destinations.rules.iter().find(fits).map(|rule| rule.verdict) {
        Some(Verdict::Refused) => false,
        Some(Verdict::AllowedOnHost) => true,
        Some(Verdict::Allowed) | None => !own,
    }
}

/// `struct bpf_sock_addr`, and behind it the `struct bpf_sock` that it points to.
fn call(hook: Hook, to: SocketAddr, from: u16) -> Vec<u8> {
    let mut bytes = vec![0; 72 + 80];
    match to.ip() {
        IpAddr::V4(address) => bytes[4..8].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes[8..24].copy_from_slice(&address.octets()),
    }
    bytes[24..26].copy_from_slice(&to.port().to_be_bytes());
    if hook == Hook::Send4 {
        let socket = bytes.as_ptr() as u64 + 72;
        bytes[64..72].copy_from_slice(&socket.to_ne_bytes());
        bytes[72 + 44..72 + 48].copy_from_slice(&u32::from(from).to_ne_bytes());
    }
    bytes
}

/// A packet as it leaves or arrives.
#[derive(Debug, Clone)]
struct Packet {
    to: SocketAddr,
    protocol: u8,
    /// Where it comes from; of an IPv6 packet only the port.
    from: SocketAddrV4,
    /// Those of TCP.
    flags: u8,
    /// The interface's number.
    interface: u32,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = match self.to.ip() {
            IpAddr::V4(address) => {
                let mut header = vec![0; 20];
                (header[0], header[9]) = (0x45, self.protocol);
                header[12..16].copy_from_slice(&self.from.ip().octets());
                header[16..].copy_from_slice(&address.octets());
                header
            }
            IpAddr::V6(address) => {
                let mut header = vec![0; 40];
                (header[0], header[6]) = (0x60, self.protocol);
                header[24..].copy_from_slice(&address.octets());
                header
            }
        };
        bytes.extend(self.from.port().to_be_bytes());
        bytes.extend(self.to.port().to_be_bytes());
        bytes.extend([0; 9]);
        bytes.push(self.flags);
        bytes.extend([0; 6]);
        bytes
    }

    /// `struct __sk_buff`.
    fn about(&self) -> Vec<u8> {
        let kind: u16 = if self.to.is_ipv4() { 0x0800 } else { 0x86dd };
        let mut about = vec![0; 192];
        about[16..18].copy_from_slice(&kind.to_be_bytes());
        about[40..44].copy_from_slice(&self.interface.to_ne_bytes());
        about
    }
}

thread_local! {
    static PACKET: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static TABLE: RefCell<BTreeSet<[u8; 8]>> = const { RefCell::new(BTreeSet::new()) };
}

/// `bpf_skb_load_bytes()`.
#[allow(unsafe_code)]
fn load_bytes_of_packet(_: u64, from: u64, to: u64, count: u64, _: u64) -> u64 {
    PACKET.with_borrow(|packet| {
        let (from, count) = (usize::try_from(from).unwrap(), usize::try_from(count).unwrap());
        let Some(bytes) = packet.get(from..from + count) else { return u64::MAX };
        // SAFETY: the program has given room for as many bytes on its stack; the kernel's verifier
        // insists on that, see `the_kernel_takes_the_programs`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, count) };
        0
    })
}

#[allow(unsafe_code)]
fn key_at(address: u64) -> [u8; 8] {
    // SAFETY: as above; a key has eight bytes.
    unsafe { *(address as *const [u8; 8]) }
}

/// `bpf_map_lookup_elem()`. There is one table, so its number is of no matter.
fn look_up(_: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    TABLE.with_borrow(|table| table.contains(&key_at(key)).into())
}

/// `bpf_map_update_elem()`.
fn update(_: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    TABLE.with_borrow_mut(|table| table.insert(key_at(key)));
    0
}

fn run(destinations: &Destinations, hook: Hook, mut context: Vec<u8>) -> bool {
    let table = (!destinations.forwarded.is_empty()).then_some(5);
    let program = destinations.program(hook, table).expect("a program").concat();
    let mut machine = rbpf::EbpfVmRaw::new(Some(&program)).expect("a program");
    for (number, function) in [
        (LOAD_BYTES, load_bytes_of_packet as rbpf::ebpf::Helper),
        (LOOK_UP, look_up),
        (UPDATE, update),
    ] {
        machine.register_helper(number, function).expect("a function");
    }
    machine.execute_program(&mut context).expect("an answer") == 1
}

fn calls(destinations: &Destinations, to: SocketAddr, from: u16) -> [bool; 2] {
    let hooks = match to {
        SocketAddr::V4(_) => [Hook::Connect4, Hook::Send4],
        SocketAddr::V6(_) => [Hook::Connect6, Hook::Send6],
    };
    hooks.map(|hook| run(destinations, hook, call(hook, to, from)))
}

fn passes(destinations: &Destinations, hook: Hook, packet: &Packet) -> bool {
    PACKET.set(packet.bytes());
    run(destinations, hook, packet.about())
}

/// Addresses near those that the rules are about, as well as any.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = prop_oneof![
        any::<u32>(),
        prop_oneof![Just(0x0a00_0000_u32), Just(0x7f00_0000), Just(0xc0a8_0100)]
            .prop_flat_map(|near| (0..512_u32).prop_map(move |by| near.wrapping_add(by) - 256)),
    ]
    .prop_map(Ipv4Addr::from_bits);
    let v6 = prop_oneof![
        any::<u128>(),
        (0..4_u128).prop_map(|low| low),
        any::<u32>().prop_map(|low| 0xffff_0000_0000 | u128::from(low)),
        any::<u32>().prop_map(|low| 0x0064_ff9b_u128 << 96 | u128::from(low)),
        any::<u128>().prop_map(|low| 0xfd00_u128 << 112 | low >> 16),
    ]
    .prop_map(Ipv6Addr::from_bits);
    prop_oneof![v4.prop_map(IpAddr::V4), v6.prop_map(IpAddr::V6)]
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let verdict =
        prop_oneof![Just(Verdict::Refused), Just(Verdict::Allowed), Just(Verdict::AllowedOnHost),];
    let one = (address(), 0..=128_u8, proptest::option::of(1..4_u16), verdict).prop_map(
        |(address, length, port, verdict)| {
            let length = if address.is_ipv4() { length % 33 } else { length };
            Rule { addresses: IpNet::new(address, length).expect("a network"), port, verdict }
        },
    );
    proptest::collection::vec(one, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_programs_decide_as_the_rules_say(
        rules in rules(), address in address(), port in 1..4_u16, own in any::<bool>(),
        is_udp in any::<bool>(), flags in any::<u8>(), from in 1..4_u16,
        forwarded in proptest::collection::vec(1..4_u16, 0..3), came in any::<bool>(),
    ) {
        TABLE.take();
        let destinations = Destinations { rules, forwarded };
        let to = SocketAddr::new(address, port);
        let here = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), from);
        let interface = if own { 1 } else { 7 };
        // Whoever has sent a datagram to a forwarded port is answered from it, and nobody else.
        if let (true, SocketAddr::V4(peer)) = (came, to) {
            let packet = Packet { to: here.into(), protocol: 17, from: peer, flags, interface };
            if destinations.forwarded.is_empty() {
                prop_assert!(destinations.program(Hook::Ingress, None).is_none());
            } else {
                prop_assert!(passes(&destinations, Hook::Ingress, &packet));
            }
        }
        let is_reply = came && to.is_ipv4() && destinations.forwarded.contains(&from);
        let decided = allowed(&destinations, to, false);
        let sent = decided || is_reply;
        prop_assert_eq!(calls(&destinations, to, from), [decided, sent], "{}", to);

        let protocol = if is_udp { 17 } else { 6 };
        let packet = Packet { to, protocol, from: here, flags, interface };
        let leaves = match is_udp {
            true => is_reply || allowed(&destinations, to, own),
            false => flags & 0x12 != 0x02 || allowed(&destinations, to, own),
        };
        prop_assert_eq!(passes(&destinations, Hook::Egress, &packet), leaves, "{:?}", packet);
    }
}

fn to(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

#[test]
fn what_is_neither_tcp_nor_udp_nor_a_ping_does_not_leave() {
    let all = Destinations::default();
    let packet = |address: &str, protocol: u8| Packet {
        to: to(address),
        protocol,
        from: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1),
        flags: 2,
        interface: 7,
    };
    for (address, ping) in [("192.0.2.1:1", 1), ("[2001:db8::1]:1", 58)] {
        for protocol in 0..=255 {
            let leaves = passes(&all, Hook::Egress, &packet(address, protocol));
            assert_eq!(leaves, [6, 17, 50, 51, ping].contains(&protocol), "{address} {protocol}");
        }
    }
    // Options may lead it over other hosts; what is cut off has no ports.
    let mut with_options = packet("192.0.2.1:1", 6).bytes();
    with_options[0] = 0x46;
    for bytes in [with_options, vec![0x45; 10]] {
        PACKET.set(bytes);
        assert!(!run(&all, Hook::Egress, packet("192.0.2.1:1", 6).about()));
    }
    // Rules for ports are not about a ping.
    let named = Destinations {
        rules: vec![
            rule("192.0.2.0/24", Some(53), Verdict::Allowed),
            rule("192.0.2.0/24", None, Verdict::Refused),
        ],
        ..all
    };
    assert!(!passes(&named, Hook::Egress, &packet("192.0.2.1:53", 1)));
    assert!(passes(&named, Hook::Egress, &packet("192.0.2.1:53", 17)));
}

mod kernel;
