//! What a guest reaches through each kind of network: of the host, of private networks, of what
//! stands for the Internet, and how it is reached through forwarded ports.
//!
//! ```text
//! the host                                   everybody else
//!  lo 127.0.0.1, 10.9.0.9                     lo 10.9.0.1        private
//!  out 203.0.113.1 ──────────────────── in 203.0.113.2          as on the Internet
//!                                             lo 169.254.169.254 where clouds have their metadata
//! ```
//! Both are network namespaces. On each, a service listens on all of its addresses.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;

use crate::lab::{Done, Lab, PATIENCE, eventually, kill, skip};

/// The port of the services.
const SERVICE: u16 = 8000;

/// A network namespace, and mounts of its own: there for as long as a process in it.
struct Namespace(Child);

impl Namespace {
    fn new(script: &str) -> Self {
        let script = format!("set -e; {script}; echo ready; exec sleep 3000");
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        let made = Self(holder);
        assert_eq!(ready, "ready\n");
        made
    }

    /// A command, as it is there.
    fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.args(["--target", &self.0.id().to_string(), "--net", "--mount", "--"]);
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        inside
    }

    fn sh(&self, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-ec", script]);
        assert!(self.command(&command).status().unwrap().success(), "{script}");
    }

    /// What `action` makes there.
    fn with<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        let inside = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            action()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Answers whoever connects with one line.
    fn serve(&self) {
        let listener = self.with(|| TcpListener::bind(("0.0.0.0", SERVICE)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream);
            }
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        kill(self.0.id().cast_signed());
        let _ = self.0.wait();
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    BufReader::new(stream.try_clone()?).read_line(&mut String::new())?;
    stream.write_all(b"here\n")
}

/// Says that every name has the address 203.0.113.2 (RFC 1035).
fn name_server(socket: &UdpSocket) {
    let mut query = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut query) {
        let mut reply = query[..length].to_vec();
        reply[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
        reply[8..12].fill(0);
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 2]);
        let _ = socket.send_to(&reply, from);
    }
}

/// The host and everybody else.
fn networks(lab: &Lab) -> [Namespace; 2] {
    let servers = lab.path().join("resolv.conf");
    std::fs::write(&servers, "nameserver 10.9.0.1\n").unwrap();
    let host = Namespace::new(&format!(
        "mount --bind {} /etc/resolv.conf; ip link set lo up; ip address add 10.9.0.9/32 dev lo",
        servers.display()
    ));
    let others = Namespace::new("ip link set lo up");
    host.sh(&format!(
        "ip link add out type veth peer name in netns {}; ip address add 203.0.113.1/24 dev out; \
         ip link set out up",
        others.0.id()
    ));
    others
        .sh("ip address add 203.0.113.2/24 dev in; ip link set in up; ip address add 10.9.0.1/32 \
         dev lo; ip address add 169.254.169.254/32 dev lo");
    host.sh(
        "ip route add 10.9.0.0/16 via 203.0.113.2; ip route add 169.254.169.254 via 203.0.113.2",
    );
    host.serve();
    others.serve();
    let names = others.with(|| UdpSocket::bind("10.9.0.1:53").unwrap());
    std::thread::spawn(move || name_server(&names));
    [host, others]
}

/// Where a guest may want to go. The last one is a question to the host's name server.
const DESTINATIONS: [(&str, &str); 7] = [
    ("the host's loopback", "10.0.2.2"),
    ("the host's own address", "203.0.113.1"),
    ("the host's private address", "10.9.0.9"),
    ("a private network", "10.9.0.1"),
    ("metadata", "169.254.169.254"),
    ("the Internet", "203.0.113.2"),
    ("names", "10.0.2.3"),
];

/// Which of them a guest reaches, by what it printed.
fn reached(told: &str) -> Vec<&'static str> {
    let all = DESTINATIONS.into_iter();
    all.filter(|(_, address)| told.lines().any(|line| line == *address)).map(|one| one.0).collect()
}

/// Prints the addresses that are reached. Where that is not expected, it is given two seconds.
fn script(expected: &[&str]) -> String {
    let limit = |name: &str| if expected.contains(&name) { 60 } else { 2 };
    let places = DESTINATIONS[..6].iter().map(|(name, address)| {
        let seconds = limit(name);
        let ask = format!("echo | nc -w {seconds} {address} {SERVICE} | grep -q here");
        format!("({ask} && echo {address}) & ")
    });
    let names = format!(
        "timeout {} nslookup somewhere.example 10.0.2.3 | grep -q 203.0.113.2 && echo 10.0.2.3; \
         wait; true",
        limit("names")
    );
    places.chain([names]).collect()
}

#[test]
fn a_guest_reaches_what_its_network_allows_and_nothing_else_of_the_host_and_its_networks() {
    let test = "a_guest_reaches_what_its_network_allows_and_nothing_else_of_the_host";
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "only root makes network namespaces and filters destinations");
    }
    let lab = Lab::warm();
    let told = lab.run(&["--format", "json", "doctor", "--security"]).out;
    if !told.contains("QEMU has a filter of destinations") {
        return skip(test, &told);
    }
    let [host, _others] = networks(&lab);
    let run = |args: &[&str]| Done::from(host.command(&lab.command(args)).output().unwrap());
    let (loopback, own, private) = (DESTINATIONS[0].0, DESTINATIONS[1].0, DESTINATIONS[3].0);
    let metadata = DESTINATIONS[4].0;
    let all = DESTINATIONS.map(|one| one.0);
    let outside = [all[5], all[6]];
    let ask = |network: &str, confine: &str, expected: &[&str]| {
        let script = script(expected);
        let args = ["run", "--warm", "--net", network, "t", "--", "sh", "-c", &script];
        let mut command = host.command(&lab.command(&args));
        let told = Done::from(command.env("COWHAND_CONFINE", confine).output().unwrap()).ok();
        assert_eq!(reached(&told), expected, "{network}, --confine {confine}");
    };
    let user = |exceptions: &str, also: &[&str]| {
        let mut expected = [also, &outside].concat();
        expected.sort_by_key(|name| all.iter().position(|one| one == name));
        ask(&format!("user{exceptions}"), "default", &expected);
    };
    // They wait most of the time.
    std::thread::scope(|scope| {
        scope.spawn(|| user("", &[]));
        scope.spawn(|| user(",host-loopback", &[loopback]));
        scope.spawn(|| user(",private-networks", &[private]));
        scope.spawn(|| user(",allow=10.9.0.1:8000", &[private]));
        scope.spawn(|| user(",allow=10.9.0.1:8001", &[]));
        scope.spawn(|| user(",allow=169.254.169.254,allow=203.0.113.1", &[own, metadata]));
        scope.spawn(|| ask("restricted", "default", &[]));
        // The test sees what is there.
        scope.spawn(|| ask("user", "off", &all));
    });

    // Forwarded ports lead in, whatever the guest reaches.
    for (vm, network) in [("open", "user"), ("closed", "restricted")] {
        run(&["clone", "--warm", "--net", network, "-p", "8080:80", "t", vm]).ok();
        let page = || {
            let mut stream = TcpStream::connect("127.0.0.1:8080")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            std::io::read_to_string(stream)
        };
        eventually("the guest's page", || {
            host.with(page).is_ok_and(|page| page.contains("hello from the tiny guest"))
        });
        let shown = &lab.json(&["show", vm]);
        assert_eq!(shown["nics"][0]["mode"], network);
        let is_filtered = network == "user";
        assert_eq!(shown["confinement"]["destination_filter"], is_filtered, "{vm}: {shown}");
        // The group goes with its QEMU.
        let groups = format!("/proc/{}/cgroup", shown["pid"]);
        let group = std::fs::read_to_string(groups).unwrap();
        let group = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
        run(&["stop", "--force", vm]).ok();
        for tree in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let left = std::path::Path::new(tree).join(group.trim_start_matches('/'));
            assert!(!is_filtered || !left.exists(), "{}", left.display());
        }
    }
}

#[test]
fn what_a_guest_may_reach_is_taken_over_by_clones_and_what_is_refused_leaves_nothing_behind() {
    let lab = Lab::new();
    let card = "user,host-loopback,allow=10.1.0.0/16:443,model=e1000";
    lab.ok(&["create", "web", "--size", "16M", "--net", card, "--net", "restricted"]);
    let reaches = |vm: &str, card: usize| lab.json(&["show", vm])["nics"][card]["reaches"].clone();
    let named = json!({
        "host_loopback": true, "private_networks": false, "allow": ["10.1.0.0/16:443"],
    });
    lab.ok(&["clone", "web", "a"]);
    for vm in ["web", "a"] {
        assert_eq!((reaches(vm, 0), reaches(vm, 1)), (named.clone(), json!(null)), "{vm}");
    }
    lab.ok(&["clone", "web", "b", "--net", "restricted", "-p", "2222:22"]);
    lab.ok(&["set", "web", "net=user,private-networks"]);
    assert_eq!(reaches("b", 0), json!(null));
    assert_eq!(reaches("web", 1)["private_networks"], true);
    lab.ok(&["set", "web", "net="]);
    assert_eq!(reaches("web", 0)["private_networks"], false);

    lab.ok(&["create", "alone", "--size", "16M", "--net", "none"]);
    lab.run(&["set", "alone", "net=user"]).fails(5, &["no network card"]);
    lab.ok(&["set", "web", "ports=5353:53/udp"]);
    lab.run(&["set", "web", "net=restricted"]).fails(2, &["forwards TCP ports only"]);
    let before = lab.layer_files();
    lab.run(&["clone", "alone", "c", "--net", "user"]).fails(5, &["has no network card"]);
    lab.run(&["clone", "web", "c", "--net", "restricted", "-p", "5354:53/udp"])
        .fails(2, &["forwards TCP ports only"]);
    lab.run(&["clone", "web", "c", "--net", "none"]).fails(2, &["restricted lets its guest reach"]);
    lab.run(&["create", "c", "--size", "16M", "--net", "user,allow=example.org"])
        .fails(2, &["example.org", "10.1.2.3:3128"]);
    assert_eq!(lab.layer_files(), before);
    assert_eq!(lab.json(&["snapshot", "ls", "alone"]), json!([]));
}
