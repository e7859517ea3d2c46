//! A port that leads into a warm clone, whoever runs the network in the guest.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use crate::lab::{Lab, eventually, guest, terminate};
use crate::ports::free_port;

/// A VM whose network is run by `network`, as a warm template of that name.
fn warm(lab: &Lab, network: &str) {
    let networks = guest("networks");
    let enabled = if network == "cloud-init" { " cloud-init=enabled" } else { "" };
    let append = format!("{} cowhand.network={network}{enabled}", networks.cmdline);
    lab.ok(&[
        "create",
        network,
        "--disk",
        &networks.disk(),
        "--kernel",
        &networks.kernel,
        "--initrd",
        &networks.initrd,
        "--append",
        &append,
        "--memory",
        "512M",
    ]);
    lab.ok(&["template", "create", network, "--no-seal"]);
    let warmed = lab.run(&["template", "warm", network, "--ready", READY]);
    assert!(!warmed.err.contains("its addresses are not known"), "{}", warmed.err);
    warmed.ok();
}

/// The guest has got its address, and from a DHCP server.
const READY: &str = "for i in $(seq 300); do ip -4 addr show dev eth0 | \
                     grep -q 'inet 10.0.2.15/.* dynamic' && exit; sleep 1; done; exit 1";

/// The SSH server of the guest says its name through this port.
fn greets(port: u16) {
    eventually("the SSH server's greeting", || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting).is_ok() && &greeting == b"SSH-2.0-"
    });
}

/// The ports of two clones and of a run are answered, and the guests have one address with a way
/// out.
fn ports_are_answered(network: &str) {
    let lab = Lab::new();
    warm(&lab, network);
    for name in ["one", "two"] {
        let port = free_port();
        lab.ok(&["clone", "--warm", "-p", &format!("127.0.0.1:{port}:22"), network, name]);
        greets(port);
        let addresses =
            lab.ok(&["exec", name, "--", "ip", "-4", "-br", "address", "show", "dev", "eth0"]);
        let found: Vec<&str> =
            addresses.split_whitespace().filter(|word| word.contains('/')).collect();
        assert_eq!(found, ["10.0.2.15/24"], "{addresses}");
        let routes = lab.ok(&["exec", name, "--", "ip", "route"]);
        assert!(routes.contains("default via 10.0.2.2"), "{routes}");
        lab.ok(&["stop", "--force", name]);
    }
    let port = free_port();
    let mut run = lab.spawn(&[
        "run",
        "--warm",
        "-p",
        &format!("127.0.0.1:{port}:22"),
        network,
        "--",
        "sleep",
        "1000",
    ]);
    greets(port);
    terminate(run.id());
    run.wait().unwrap();
}

/// The second tier, see docs/testing.md.
mod full {
    use super::ports_are_answered;

    #[test]
    fn a_port_into_a_warm_clone_is_answered_under_systemd_networkd() {
        ports_are_answered("networkd");
    }

    #[test]
    fn a_port_into_a_warm_clone_is_answered_under_ifupdown() {
        ports_are_answered("ifupdown");
    }

    #[test]
    fn a_port_into_a_warm_clone_is_answered_under_network_manager() {
        ports_are_answered("NetworkManager");
    }

    #[test]
    fn a_port_into_a_warm_clone_is_answered_where_cloud_init_has_configured_the_network() {
        ports_are_answered("cloud-init");
    }
}
