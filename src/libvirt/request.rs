//! What is to be done with a domain.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::model::Name;
use crate::vm::disk_request::Mode;

/// What is to be done with a domain.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The XML.
    pub xml: String,
    /// What it is called in messages.
    pub shown: String,
    /// The directory of the XML; `None`: libvirt has answered it, and its files are taken as they
    /// are.
    pub beside: Option<PathBuf>,
    /// Files of disks that the user names, by what the domain calls the disk.
    pub files: BTreeMap<String, PathBuf>,
    /// Where else files may lie.
    pub within: Vec<PathBuf>,
    /// What the VM is to be called; without a name, as the domain.
    pub name: Option<Name>,
    /// What becomes of the disk files.
    pub mode: Mode,
    /// Give the VM another UUID than the domain has.
    pub new_uuid: bool,
    /// The XML of its snapshots.
    pub snapshots: Vec<String>,
    /// Their directory; `None`: libvirt has answered them.
    pub snapshots_beside: Option<PathBuf>,
    /// The name of the one that its disks follow, where libvirt has said it.
    pub current: Option<String>,
}
