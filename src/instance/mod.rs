//! The one QEMU of a VM: where its sockets are, whether it runs, a connection to it, its start and
//! its end. Nothing here decides whether a VM may be started or changed; the verbs do.

pub(crate) mod boot_files;
pub(crate) mod connect;
mod descriptors;
pub(crate) mod fingerprint;
pub(crate) mod launch;
pub(crate) mod limits;
pub(crate) mod logs;
pub(crate) mod ports;
pub(crate) mod sockets;
pub mod status;
pub(crate) mod terminate;
