//! The virtio-serial ports of the helper: the same on both sides.

/// How many ports a VM has: so many conversations with its guest can go on at once.
pub const PORTS: usize = 4;

/// The name of a port in the guest.
pub fn port_name(index: usize) -> String {
    format!("org.cowhand.{index}")
}
