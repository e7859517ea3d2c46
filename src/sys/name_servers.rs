//! The name servers that this host asks (`resolv.conf(5)`).

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;

/// Where they are listed. libslirp asks them for its guest.
pub(crate) const LIST: &str = "/etc/resolv.conf";
/// How much of the list is read, in bytes.
const LONGEST: u64 = 64 * 1024;
/// The C library asks three of them.
const MOST: usize = 8;

/// Their addresses, as far as they can be read.
pub(crate) fn of_host() -> Vec<IpAddr> {
    let mut text = Vec::new();
    let read = File::open(LIST).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
    match read {
        Ok(_) => listed(&String::from_utf8_lossy(&text)),
        Err(_) => Vec::new(),
    }
}

fn listed(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        // fe80::1%eth0
        address.split('%').next()?.parse().ok()
    };
    text.lines().filter_map(server).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_are_those_of_the_lines_that_name_them() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 127.0.0.53\n \
                    nameserver\tfe80::1%eth0 # home\nnameserver nonsense\nnameserver\n\
                    options edns0\n";
        let servers: Vec<String> = listed(text).iter().map(IpAddr::to_string).collect();
        assert_eq!(servers, ["127.0.0.53", "fe80::1"]);
        assert_eq!(listed(&"nameserver 10.0.0.1\n".repeat(100)).len(), MOST);
    }
}
