//! The programs, as the kernel runs them in a control group.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::super::super::super::cgroup::{self, Group};
use super::super::super::super::skipped::skipped;
use super::{rule, to};
use crate::sys::confine::networks::{Destinations, Rule, Verdict};

/// A group for a test, which goes with it.
struct Held(Option<Group>);

impl Held {
    /// One in which these destinations are reached; or why there is none.
    fn new(name: &str, destinations: &Destinations) -> Option<Self> {
        let path = cgroup::planned(&format!("test-{name}-{}", std::process::id()));
        let group = path.ok_or(Errno::NOTSUP).and_then(|path| Group::make(&path));
        let made = group.and_then(|group| {
            let held = Self(Some(group));
            destinations.hold_for(held.group()).map(|()| held)
        });
        if let Err(error) = &made {
            skipped(&format!("this host filters no destinations: {error}"));
        }
        made.ok()
    }

    fn group(&self) -> &Group {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Group::remove);
    }
}

#[test]
fn the_kernel_takes_the_programs() {
    let everything = ["0.0.0.0/0", "::/0"];
    let many: Vec<Rule> = (0..100)
        .map(|n| rule(&format!("10.{n}.0.0/16"), Some(n + 1), Verdict::Allowed))
        .chain((0..100).map(|n| rule(&format!("fd00:{n}::/32"), None, Verdict::Refused)))
        .collect();
    for (rules, forwarded) in [
        (Vec::new(), Vec::new()),
        (many, vec![53, 54]),
        // Nothing that comes behind these is ever reached.
        (everything.map(|all| rule(all, None, Verdict::AllowedOnHost)).to_vec(), vec![53]),
    ] {
        if Held::new("kernel", &Destinations { rules, forwarded }).is_none() {
            return;
        }
    }
}

/// Set for the program that tries it: the addresses, of which it prints those that it reached.
const TRY: &str = "COWHAND_TEST_DESTINATIONS";

/// The port from which it answers whoever has sent a datagram there.
const FROM: &str = "COWHAND_TEST_FROM";

/// Not a test of its own: what [`reached`] starts. It prints `+` for what it reached, `-` for what
/// was refused, and `.` for what nobody has answered: by TCP, with a datagram, and by `connect(2)`
/// for datagrams.
#[test]
fn the_one_who_connects() {
    let Ok(all) = std::env::var(TRY) else { return };
    let mark = |result: io::Result<()>| match result {
        Ok(()) => '+',
        Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) => '-',
        Err(error) if error.kind() == io::ErrorKind::TimedOut => '.',
        Err(error) => panic!("{error}"),
    };
    let from = std::env::var(FROM).ok().map(|from| from.parse().expect("a port"));
    let answering = from.map(|from: u16| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, from)).expect("a socket");
        socket.recv(&mut [0; 8]).expect("a question");
        socket
    });
    let mut told = OpenOptions::new().append(true).open("/dev/stdout").expect("an output");
    for address in all.split(' ').map(to) {
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let limit = std::time::Duration::from_secs(1);
        let tcp = mark(TcpStream::connect_timeout(&address, limit).map(drop));
        let fresh = UdpSocket::bind((any, 0)).expect("a socket");
        let socket = answering.as_ref().unwrap_or(&fresh);
        let udp = mark(socket.send_to(b"x", address).map(drop));
        let connected = mark(socket.connect(address));
        writeln!(told, "\n{address} {tcp}{udp}{connected}").expect("an answer");
    }
}

fn reached(group: &Group, addresses: &str, from: Option<u16>) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let name = "sys::confine::destinations::tests::kernel::the_one_who_connects";
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(TRY, addresses);
    command.envs(from.map(|from| (FROM, from.to_string())));
    let directory = group.as_fd().as_raw_fd();
    #[allow(unsafe_code)]
    // SAFETY: the child makes two system calls.
    unsafe {
        command.pre_exec(move || {
            let group = std::os::fd::BorrowedFd::borrow_raw(directory);
            let how = rustix::fs::OFlags::WRONLY;
            let members =
                rustix::fs::openat(group, c"cgroup.procs", how, rustix::fs::Mode::empty())?;
            Ok(rustix::io::write(members, b"0").map(drop)?)
        })
    };
    let output = command.output().expect("a program");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| line.ends_with(['+', '-', '.'])).map(str::to_owned).collect()
}

/// Says so when it is dropped, also by a panic.
struct Told<'a>(&'a AtomicBool);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_kernel_refuses_what_the_rules_refuse_in_whatever_form_the_address_is_written() {
    let (one, other) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
    let port = |listener: io::Result<TcpListener>| {
        let listener = listener.expect("a port");
        (listener.local_addr().expect("an address").port(), listener)
    };
    let ((one, _one), (other, _other)) = (port(one), port(other));
    let forwarded = {
        let free = UdpSocket::bind("127.0.0.1:0").expect("a port");
        free.local_addr().expect("an address").port()
    };
    let destinations = Destinations {
        rules: vec![
            rule("127.0.0.1/32", Some(one), Verdict::AllowedOnHost),
            // Of the host's own addresses, none is among these.
            rule("127.0.0.3/32", None, Verdict::Allowed),
            rule("127.0.0.0/8", None, Verdict::Refused),
            rule("0.0.0.0/8", None, Verdict::Refused),
            rule("::/96", None, Verdict::Refused),
        ],
        forwarded: vec![forwarded],
    };
    let Some(held) = Held::new("refuses", &destinations) else { return };
    let group = held.group();
    let refused = [
        format!("127.0.0.1:{other}"),
        format!("127.0.0.2:{one}"),
        format!("0.0.0.0:{other}"),
        format!("[::1]:{one}"),
        format!("[::]:{one}"),
        format!("[::ffff:127.0.0.1]:{other}"),
    ];
    let allowed = [format!("127.0.0.1:{one}"), format!("[::ffff:127.0.0.1]:{one}")];
    let all = [&refused[..], &allowed[..]].concat().join(" ");
    let expected: Vec<String> = refused
        .iter()
        .map(|address| format!("{} ---", to(address)))
        .chain(allowed.iter().map(|address| format!("{} +++", to(address))))
        .collect();
    assert_eq!(reached(group, &all, None), expected);
    // The packet does not leave, of which the call knows for datagrams alone.
    let own = reached(group, &format!("127.0.0.3:{other}"), None);
    assert_eq!(own, [format!("127.0.0.3:{other} .-+")]);
    // Whoever has come through a forwarded port is answered, and nobody else.
    let [peer, stranger] = [(); 2].map(|()| UdpSocket::bind("127.0.0.2:0").expect("a socket"));
    let address = |socket: &UdpSocket| socket.local_addr().expect("an address");
    let both = format!("{} {}", address(&peer), address(&stranger));
    let answered = AtomicBool::new(false);
    let answers = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !answered.load(Ordering::Relaxed) {
                // Until the other end listens.
                let _ = peer.send_to(b"who?", (Ipv4Addr::LOCALHOST, forwarded));
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        let _told = Told(&answered);
        reached(group, &both, Some(forwarded))
    });
    assert_eq!(answers, [format!("{} -+-", address(&peer)), format!("{} ---", address(&stranger))]);
    // Others are not asked.
    TcpStream::connect(("127.0.0.1", other)).expect("a connection");
}
