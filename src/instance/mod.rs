//! The one QEMU of a VM: where its sockets are, whether it runs, a connection to it, its start and
//! its end. Nothing here decides whether a VM may be started or changed; the verbs do.

pub mod boot_files;
pub mod connect;
mod descriptors;
pub mod fingerprint;
pub mod launch;
pub mod logs;
pub mod ports;
pub mod sockets;
pub mod status;
pub mod terminate;
