//! What cloud-init in a guest is told at its first boot.

/// The documents of a NoCloud seed, but for the instance's id and name, which belong to each VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// `user-data`: what cloud-init is to do.
    pub user_data: String,
    /// What the user's own `meta-data` says besides.
    pub meta_data: String,
    /// `network-config`, if the guest's network is not to be what the image says.
    pub network_config: Option<String>,
    /// `vendor-data`, which `user-data` overrules.
    pub vendor_data: Option<String>,
    /// The guest's name for itself; without one, the name of the VM.
    pub hostname: Option<String>,
}
