//! Where a program may connect to and send datagrams to, decided by programs in the kernel
//! ([`crate::sys::bpf`]).
//!
//! `connect(2)` and a datagram to an address that is not allowed fail at once (`EPERM`). Every
//! packet that leaves and begins something is looked at once more: there, an address of the host's
//! own is known by the interface, whatever address it is, and no other way to send is left
//! (`ping`, options that lead a packet over other hosts). Replies to who has come through a
//! forwarded port always leave: those of TCP begin nothing, and whoever has sent a datagram to such
//! a port is remembered.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use ipnet::IpNet;
use rustix::io::Errno;

use super::super::bpf::code::Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, Stack};
use super::super::bpf::code::{Code, Instruction, Label, Register, Test, Width};
use super::super::bpf::{Hook, attach, load, recent_keys};
use super::super::cgroup::Group;

/// What is decided about some addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The addresses.
    pub addresses: IpNet,
    /// Only this port of theirs.
    pub port: Option<u16>,
    /// What is decided.
    pub verdict: Verdict,
}

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is refused.
    Refused,
    /// It is allowed, but for addresses of the host's own.
    Allowed,
    /// It is allowed, whosever address it is.
    AllowedOnHost,
}

/// Where a program may connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destinations {
    /// The first one that is about an address decides; where none is, it is allowed, but for
    /// addresses of the host's own. An IPv6 address in which an IPv4 address stands (RFC 4291,
    /// RFC 6052) is that.
    pub rules: Vec<Rule>,
    /// The UDP ports of the host that lead in. Whoever has sent there is answered.
    pub forwarded: Vec<u16>,
}

/// The index of the loopback interface, over which all addresses of the host's own are reached.
const LOOPBACK: i32 = 1;
/// `ETH_P_IP` and `ETH_P_IPV6`.
const ETHERNET: [i32; 2] = [0x0800, 0x86dd];
/// The first byte of an IPv4 header without options.
const PLAIN_HEADER: i32 = 0x45;
const TCP: i32 = 6;
const UDP: i32 = 17;
/// What the kernel itself makes of a packet that was decided about (IPsec: ESP, AH).
const WRAPPED: [i32; 2] = [50, 51];
/// `bpf_map_lookup_elem()`.
const LOOK_UP: u32 = 1;
/// `bpf_map_update_elem()`.
const UPDATE: u32 = 2;
/// `bpf_skb_load_bytes()`.
const LOAD_BYTES: u32 = 26;
/// How many are remembered who have sent to forwarded ports.
const PEERS: u32 = 4096;
/// Of each: address, port, and the forwarded port.
const KEY_BYTES: u32 = 8;
/// The prefix of RFC 6052, before the last 32 bits.
const NAT64: [u32; 3] = [0x0064_ff9b, 0, 0];
/// The prefix of IPv4 addresses in RFC 4291, before the last 32 bits.
const MAPPED: [u32; 3] = [0, 0, 0xffff];

impl Destinations {
    /// Lets the programs of the group connect there, and nowhere else.
    pub fn hold_for(&self, group: &Group) -> Result<(), Errno> {
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::NOTSUP);
        let peers = match self.forwarded.is_empty() {
            true => None,
            false => Some(recent_keys(KEY_BYTES, PEERS).map_err(errno)?),
        };
        let number = peers.as_ref().map(AsRawFd::as_raw_fd);
        let noting = number.map(|_| Hook::Ingress);
        noting.into_iter().chain(Hook::SENDING).try_for_each(|hook| {
            let program = self.program(hook, number).ok_or(Errno::TOOBIG)?;
            let program = load(hook, &program).map_err(errno)?;
            attach(group, hook, &program).map_err(errno)
        })
    }

    /// The program that decides; `peers` is the table of those who have sent to a forwarded port.
    /// `None`: it would be too long.
    fn program(&self, hook: Hook, peers: Option<RawFd>) -> Option<Vec<Instruction>> {
        let mut code = Code::default();
        // R6 is what the kernel tells, R8 the port, R9 what is decided where no rule is.
        code.copy(R6, R1);
        code.set(R9, 1);
        match hook {
            Hook::Ingress => self.note(&mut code, peers?),
            Hook::Egress => self.packet(&mut code, peers),
            Hook::Connect4 | Hook::Send4 => {
                if let (Hook::Send4, Some(peers)) = (hook, peers) {
                    // The address, its port, and the port that it is sent from (`struct bpf_sock`,
                    // where it is in the host's order).
                    code.load(Width::Four, R1, R6, 4);
                    code.load(Width::Four, R2, R6, 24);
                    code.load(Width::Eight, R3, R6, 64);
                    code.load(Width::Four, R3, R3, 44);
                    code.host_order(R3, 16);
                    reply(&mut code, peers);
                }
                port_of_call(&mut code);
                load_host(&mut code, R2, R6, 4);
                self.decide4(&mut code);
            }
            Hook::Connect6 | Hook::Send6 => {
                port_of_call(&mut code);
                words(&mut code, R6, 8);
                self.decide6(&mut code);
            }
        }
        code.finish()
    }

    /// Remembers who has sent a datagram to a forwarded port.
    fn note(&self, code: &mut Code, peers: RawFd) {
        let (from_peer, pass) = (code.label(), code.label());
        code.load(Width::Four, R7, R6, 16);
        code.host_order(R7, 16);
        code.go_if(R7, Test::NotEqual, ETHERNET[0], pass);
        load_bytes(code, 0, 24, HEADER, pass);
        code.load(Width::One, R7, Stack, HEADER);
        code.go_if(R7, Test::NotEqual, PLAIN_HEADER, pass);
        code.load(Width::One, R7, Stack, HEADER + 9);
        code.go_if(R7, Test::NotEqual, UDP, pass);
        port(code, R7, HEADER + 22);
        for forwarded in &self.forwarded {
            code.go_if(R7, Test::Equal, (*forwarded).into(), from_peer);
        }
        code.go(pass);
        code.place(from_peer);
        code.load(Width::Four, R1, Stack, HEADER + 12);
        code.load(Width::Two, R2, Stack, HEADER + 20);
        code.load(Width::Two, R3, Stack, HEADER + 22);
        key(code);
        code.store(Width::Four, Stack, VALUE, R9);
        code.map(R1, peers);
        code.copy(R3, Stack);
        code.add(R3, VALUE.into());
        code.set(R4, 0);
        code.call(UPDATE);
        code.place(pass);
        answer(code, true);
    }

    /// Decides about a packet (`struct __sk_buff`).
    fn packet(&self, code: &mut Code, peers: Option<RawFd>) {
        let (v6, ours, drop, pass) = (code.label(), code.label(), code.label(), code.label());
        code.load(Width::Four, R7, R6, 40);
        code.go_if(R7, Test::NotEqual, LOOPBACK, ours);
        code.set(R9, 0);
        code.place(ours);
        code.load(Width::Four, R7, R6, 16);
        code.host_order(R7, 16);
        code.go_if(R7, Test::Equal, ETHERNET[1], v6);
        code.go_if(R7, Test::NotEqual, ETHERNET[0], drop);

        // RFC 791, without options.
        load_bytes(code, 0, 24, HEADER, drop);
        code.load(Width::One, R7, Stack, HEADER);
        code.go_if(R7, Test::NotEqual, PLAIN_HEADER, drop);
        let (decide, is_udp) = (code.label(), code.label());
        code.load(Width::One, R7, Stack, HEADER + 9);
        code.go_if(R7, Test::Equal, UDP, is_udp);
        begins(code, 20, 1, drop, pass);
        code.go(decide);
        code.place(is_udp);
        if let Some(peers) = peers {
            code.load(Width::Four, R1, Stack, HEADER + 16);
            code.load(Width::Two, R2, Stack, HEADER + 22);
            code.load(Width::Two, R3, Stack, HEADER + 20);
            reply(code, peers);
        }
        port(code, R8, HEADER + 22);
        code.place(decide);
        load_host(code, R2, Stack, HEADER + 16);
        self.decide4(code);

        // RFC 8200, without more headers.
        code.place(v6);
        load_bytes(code, 0, 44, HEADER, drop);
        let decide = code.label();
        code.load(Width::One, R7, Stack, HEADER + 6);
        port(code, R8, HEADER + 42);
        code.go_if(R7, Test::Equal, UDP, decide);
        begins(code, 40, 58, drop, pass);
        code.place(decide);
        words(code, Stack, HEADER + 24);
        self.decide6(code);

        code.place(pass);
        answer(code, true);
        code.place(drop);
        answer(code, false);
    }

    /// Decides about the address in R2.
    fn decide4(&self, code: &mut Code) {
        for rule in &self.rules {
            let IpNet::V4(addresses) = rule.addresses else { continue };
            let next = code.label();
            is_in(code, R2, addresses.network().to_bits(), addresses.prefix_len(), next);
            decided(code, rule, next);
            if is_about_all(rule) {
                return;
            }
        }
        code.copy(R0, R9);
        code.end();
    }

    /// Decides about the address in R2, R3, R4 and R5.
    fn decide6(&self, code: &mut Code) {
        let v4 = code.label();
        for prefix in [MAPPED, NAT64] {
            let next = code.label();
            for (register, word) in [R2, R3, R4].into_iter().zip(prefix) {
                code.go_if(register, Test::NotEqual, word.cast_signed(), next);
            }
            code.go(v4);
            code.place(next);
        }
        let mut is_decided = false;
        for rule in &self.rules {
            let IpNet::V6(addresses) = rule.addresses else { continue };
            let next = code.label();
            let bits = addresses.network().to_bits();
            for (place, register) in [R2, R3, R4, R5].into_iter().enumerate() {
                let place = u32::try_from(place).unwrap_or_default() * 32;
                let length = u32::from(addresses.prefix_len()).saturating_sub(place).min(32);
                let word = u32::try_from(bits >> (96 - place) & 0xffff_ffff).unwrap_or_default();
                is_in(code, register, word, u8::try_from(length).unwrap_or_default(), next);
            }
            decided(code, rule, next);
            if is_about_all(rule) {
                is_decided = true;
                break;
            }
        }
        if !is_decided {
            code.copy(R0, R9);
            code.end();
        }
        code.place(v4);
        code.copy(R2, R5);
        self.decide4(code);
    }
}

/// Below the end of the stack: the beginning of a packet, the flags of TCP, a key and a value.
const HEADER: i16 = -48;
const FLAGS: i16 = -56;
const KEY: i16 = -64;
const VALUE: i16 = -72;
/// SYN and ACK.
const OPENING: [u32; 2] = [0x02, 0x10];

/// Puts a key on the stack, and R2 leads to it: of the address in R1 and the ports in R2 and R3,
/// all in the network's order of bytes.
fn key(code: &mut Code) {
    code.store(Width::Four, Stack, KEY, R1);
    code.store(Width::Two, Stack, KEY + 4, R2);
    code.store(Width::Two, Stack, KEY + 6, R3);
    code.copy(R2, Stack);
    code.add(R2, KEY.into());
}

/// Allows what is sent to one of `peers`, whose address and port are in R1 and R2, from the port in
/// R3.
fn reply(code: &mut Code, peers: RawFd) {
    let next = code.label();
    key(code);
    code.map(R1, peers);
    code.call(LOOK_UP);
    code.go_if(R0, Test::Equal, 0, next);
    answer(code, true);
    code.place(next);
}

/// R8 becomes the port of a call (`struct bpf_sock_addr`).
fn port_of_call(code: &mut Code) {
    code.load(Width::Four, R8, R6, 24);
    code.host_order(R8, 16);
}

/// A word of an address.
fn load_host(code: &mut Code, to: Register, base: Register, offset: i16) {
    code.load(Width::Four, to, base, offset);
    code.host_order(to, 32);
}

/// R2 to R5 become an IPv6 address.
fn words(code: &mut Code, base: Register, offset: i16) {
    for (place, register) in (0..).step_by(4).zip([R2, R3, R4, R5]) {
        load_host(code, register, base, offset + place);
    }
}

/// A port of a packet.
fn port(code: &mut Code, to: Register, offset: i16) {
    code.load(Width::Two, to, Stack, offset);
    code.host_order(to, 16);
}

/// Copies bytes of a packet to the stack.
fn load_bytes(code: &mut Code, from: i32, count: i32, to: i16, drop: Label) {
    code.copy(R1, R6);
    code.set(R2, from);
    code.copy(R3, Stack);
    code.add(R3, to.into());
    code.set(R4, count);
    code.call(LOAD_BYTES);
    code.go_if(R0, Test::NotEqual, 0, drop);
}

/// R8 becomes the port of a TCP packet that opens a connection, or 0 for a ping, whose protocol has
/// the number `ping`. Other TCP packets pass, and those of other protocols are dropped. R7 is the
/// protocol; what it carries begins at `payload`.
fn begins(code: &mut Code, payload: i16, ping: i32, drop: Label, pass: Label) {
    let (is_tcp, done) = (code.label(), code.label());
    code.go_if(R7, Test::Equal, TCP, is_tcp);
    for wrapped in WRAPPED {
        code.go_if(R7, Test::Equal, wrapped, pass);
    }
    code.go_if(R7, Test::NotEqual, ping, drop);
    code.set(R8, 0);
    code.go(done);
    code.place(is_tcp);
    load_bytes(code, i32::from(payload) + 13, 1, FLAGS, drop);
    code.load(Width::One, R7, Stack, FLAGS);
    code.and(R7, OPENING[0] | OPENING[1]);
    code.go_if(R7, Test::NotEqual, OPENING[0].cast_signed(), pass);
    port(code, R8, HEADER + payload + 2);
    code.place(done);
}

/// Goes on if the word in `register` has the same first bits. R7 is lost.
fn is_in(code: &mut Code, register: Register, word: u32, bits: u8, not: Label) {
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    if mask != 0 {
        code.copy(R7, register);
        code.differ(R7, word);
        code.and(R7, mask);
        code.go_if(R7, Test::NotEqual, 0, not);
    }
}

/// The addresses fit; `not` is where it goes on if the port does not.
fn decided(code: &mut Code, rule: &Rule, not: Label) {
    if let Some(port) = rule.port {
        code.go_if(R8, Test::NotEqual, port.into(), not);
    }
    match rule.verdict {
        Verdict::Refused => answer(code, false),
        Verdict::AllowedOnHost => answer(code, true),
        Verdict::Allowed => {
            code.copy(R0, R9);
            code.end();
        }
    }
    code.place(not);
}

/// The kernel takes no program with instructions that are never reached.
fn is_about_all(rule: &Rule) -> bool {
    rule.addresses.prefix_len() == 0 && rule.port.is_none()
}

fn answer(code: &mut Code, allowed: bool) {
    code.set(R0, allowed.into());
    code.end();
}

#[cfg(test)]
mod tests;
