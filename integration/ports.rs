//! Ports of the host for guests.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below those that the kernel chooses from (`net.ipv4.ip_local_port_range`), so that no connection
/// and no `bind` to port 0 takes one of these.
const FIRST: u16 = 21_000;
const COUNT: u16 = 10_000;

/// A port of the loopback that is free. It stays this test's until the test ends: the name of an
/// abstract socket keeps other tests off.
pub fn free_port() -> u16 {
    let begin = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap();
    let mut ports = (0..COUNT).map(|at| FIRST + (begin + at) % COUNT);
    let port = ports.find(|port| {
        let name = format!("cowhand-test-port-{port}");
        let Ok(claim) = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap())
        else {
            return false;
        };
        let is_free = TcpListener::bind(("127.0.0.1", *port)).is_ok();
        if is_free {
            std::mem::forget(claim);
        }
        is_free
    });
    port.expect("one of them is free")
}
