//! Which sockets a program makes.

use nix::libc;
use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::Rules;

/// Which sockets a program makes. Those that are files it always makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// No others.
    Local,
    /// Those of TCP on which it listens. It connects to none.
    Listening,
    /// Those of TCP, UDP and `ping`.
    All,
}

impl Sockets {
    /// The calls by which it would make or use others.
    pub(super) fn rules(self) -> Result<Rules, BackendError> {
        let is = |argument, operator, value: i32| {
            let value = u64::from(value.unsigned_abs());
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        };
        let not_local = || is(0, SeccompCmpOp::Ne, libc::AF_UNIX);
        let internet = [libc::AF_INET, libc::AF_INET6];
        let [v4, v6] = internet.map(|family| move || is(0, SeccompCmpOp::Ne, family));
        if self == Self::Local {
            let calls = [libc::SYS_socket, libc::SYS_socketpair];
            let rule = |call| Ok((call, vec![SeccompRule::new(vec![not_local()?])?]));
            return calls.into_iter().map(rule).collect();
        }
        let (types, protocols): (&[i32], &[i32]) = match self {
            Self::Listening => (&[libc::SOCK_STREAM], &[libc::IPPROTO_TCP]),
            Self::Local | Self::All => (
                &[libc::SOCK_STREAM, libc::SOCK_DGRAM],
                &[libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6],
            ),
        };
        let mut other = vec![SeccompRule::new(vec![not_local()?, v4()?, v6()?])?];
        for kind in (0..TYPES).filter(|kind| !types.contains(kind)) {
            let of_kind = SeccompCmpOp::MaskedEq(u64::from(TYPES.unsigned_abs()) - 1);
            other.push(SeccompRule::new(vec![not_local()?, is(1, of_kind, kind)?])?);
        }
        let mut others = vec![not_local()?, is(2, SeccompCmpOp::Ne, 0)?];
        for protocol in protocols {
            others.push(is(2, SeccompCmpOp::Ne, *protocol)?);
        }
        other.push(SeccompRule::new(others)?);
        let pairs = SeccompRule::new(vec![not_local()?])?;
        // A datagram to all hosts of a network comes to this one as well, by no address of its own.
        let broadcasts = vec![
            is(1, SeccompCmpOp::Eq, libc::SOL_SOCKET)?,
            is(2, SeccompCmpOp::Eq, libc::SO_BROADCAST)?,
        ];
        let mut rules: Rules = [
            (libc::SYS_socket, other),
            (libc::SYS_socketpair, vec![pairs]),
            (libc::SYS_setsockopt, vec![SeccompRule::new(broadcasts)?]),
        ]
        .into();
        if self == Self::Listening {
            rules.insert(libc::SYS_connect, Vec::new());
            // It connects, too (`tcp(7)`).
            let opening = u64::from(libc::MSG_FASTOPEN.unsigned_abs());
            for (call, flags) in
                [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)]
            {
                let opens = is(flags, SeccompCmpOp::MaskedEq(opening), libc::MSG_FASTOPEN)?;
                rules.insert(call, vec![SeccompRule::new(vec![opens])?]);
            }
        }
        Ok(rules)
    }
}

/// The kinds of sockets are below this (`SOCK_TYPE_MASK`); the bits above are flags.
const TYPES: i32 = 16;

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::tests::filtered_with;
    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn a_socket_of_another_kind_than_was_asked_for_is_not_made() {
        use libc::{
            AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, AF_VSOCK, IPPROTO_TCP, SOCK_CLOEXEC,
            SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW, SOCK_STREAM,
        };
        const IPPROTO_MPTCP: i32 = 262;
        // Not refused: made, or the kernel does not know it.
        let made = |(family, kind, protocol): (i32, i32, i32)| {
            // SAFETY: no pointer is given. What is made is left open.
            let made = unsafe { libc::syscall(libc::SYS_socket, family, kind, protocol) };
            made >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EPERM)
        };
        let flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
        let local = [(AF_UNIX, SOCK_STREAM, 0), (AF_UNIX, SOCK_DGRAM | flags, 0)];
        let tcp = [
            (AF_INET, SOCK_STREAM, 0),
            (AF_INET6, SOCK_STREAM | flags, 0),
            (AF_INET, SOCK_STREAM, IPPROTO_TCP),
        ];
        let datagrams = [(AF_INET, SOCK_DGRAM, 0), (AF_INET6, SOCK_DGRAM | flags, 0)];
        let never = [
            (AF_INET, SOCK_STREAM, IPPROTO_MPTCP),
            (AF_NETLINK, SOCK_RAW, 0),
            (AF_VSOCK, 1, 0),
            (AF_PACKET, SOCK_DGRAM, 0),
            (AF_INET, SOCK_RAW, 255),
            (AF_INET, 5, 132),
            (AF_INET, SOCK_STREAM, 132),
            (AF_INET, SOCK_DGRAM, 136),
            (AF_INET, 6, 33),
        ];
        for (sockets, tcp_made, datagrams_made) in [
            (Sockets::Local, false, false),
            (Sockets::Listening, true, false),
            (Sockets::All, true, true),
        ] {
            filtered_with(sockets, || {
                for (group, expected) in [
                    (&local[..], true),
                    (&tcp[..], tcp_made),
                    (&datagrams[..], datagrams_made),
                    (&never[..], false),
                ] {
                    for socket in group {
                        assert_eq!(made(*socket), expected, "{sockets:?}: {socket:?}");
                    }
                }
            });
        }
    }

    #[test]
    #[allow(unsafe_code)]
    fn who_only_listens_connects_to_nobody_and_answers_who_comes() {
        use std::io::{Read, Write};
        use std::net::{TcpListener, TcpStream};
        use std::os::fd::AsRawFd;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut guest = TcpStream::connect(address).expect("a connection");
        let (connected, opened) = filtered_with(Sockets::Listening, || {
            let own = TcpListener::bind("127.0.0.1:0").expect("a port of its own");
            let (mut stream, _) = listener.accept().expect("who came");
            stream.write_all(b"hello").expect("an answer");
            let flags = libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL;
            // SAFETY: no memory is read: nothing is sent, to nobody.
            let opened = unsafe {
                libc::sendto(own.as_raw_fd(), std::ptr::null(), 0, flags, std::ptr::null(), 0)
            };
            let opened = (opened, io::Error::last_os_error().raw_os_error());
            (TcpStream::connect(address), opened)
        });
        let mut answer = [0; 5];
        guest.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"hello");
        assert_eq!(connected.expect_err("refused").raw_os_error(), Some(libc::EPERM));
        assert_eq!(opened, (-1, Some(libc::EPERM)));
    }
}
