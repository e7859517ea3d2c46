//! Every file name of the store, in one place.

use std::path::{Path, PathBuf};

use crate::model::{Layer, Name, RamImage, WarmImage};

/// How directories of VMs begin that are gone. No name of a VM does.
pub(super) const GONE: &str = ".gone-";

/// The store's map: pure path arithmetic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The map of the store at `root`, an absolute path.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The store itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `{"schema": 1}`.
    pub fn store_json(&self) -> PathBuf {
        self.root.join("store.json")
    }

    /// The lock that creating, deleting and scanning take.
    pub fn store_lock(&self) -> PathBuf {
        self.root.join("store.lock")
    }

    /// Room for those who make room.
    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// The last time that was believed.
    pub fn clock(&self) -> PathBuf {
        self.root.join("clock.json")
    }

    /// What the QEMU binary was found to be able to do.
    pub fn probe_cache(&self) -> PathBuf {
        self.root.join("qemu-probe.json")
    }

    /// The appliance's initramfs for what is hashed into `key`.
    pub fn appliance(&self, key: u64) -> PathBuf {
        self.root.join(format!("appliance-{key:016x}.cpio"))
    }

    /// Cloud images of the user's, beside those that are built in.
    pub fn catalogue(&self) -> PathBuf {
        self.root.join("catalogue.toml")
    }

    /// Files that are downloaded or decompressed to become images, a directory for each.
    pub fn downloads(&self) -> PathBuf {
        self.root.join("downloads")
    }

    /// The pool of layers.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The file of a layer.
    pub fn layer(&self, layer: &Layer) -> PathBuf {
        self.layers().join(layer.file_name())
    }

    /// The file of a layer while it is being written; renamed when it is whole.
    pub fn partial_layer(&self, layer: &Layer) -> PathBuf {
        self.layers().join(format!("{}.part", layer.file_name()))
    }

    /// The memory of guests at their snapshots.
    pub fn rams(&self) -> PathBuf {
        self.root.join("ram")
    }

    /// The file of one of them.
    pub fn ram(&self, image: &RamImage) -> PathBuf {
        self.rams().join(image.file_name())
    }

    /// The same while it is being written; renamed when it is whole.
    pub fn partial_ram(&self, image: &RamImage) -> PathBuf {
        self.rams().join(format!("{}.part", image.file_name()))
    }

    /// The same when all of it has been written, and nobody has seen yet whether QEMU was content.
    pub fn whole_ram(&self, image: &RamImage) -> PathBuf {
        self.rams().join(format!("{}.whole", image.file_name()))
    }

    /// The memory of a warm template.
    pub fn warm_memory(&self, image: &WarmImage) -> PathBuf {
        self.rams().join(image.memory())
    }

    /// The state of its devices.
    pub fn warm_state(&self, image: &WarmImage) -> PathBuf {
        self.rams().join(image.state())
    }

    /// Overlays on image files outside the store that are being sealed, a directory for each
    /// command.
    pub fn sealing(&self) -> PathBuf {
        self.root.join("sealing")
    }

    /// The slots of runs that go on.
    pub fn slots(&self) -> PathBuf {
        self.root.join("slots")
    }

    /// The lock of whoever fills the pool of a template.
    pub fn pool_lock(&self, template: &str) -> PathBuf {
        self.slots().join(format!("pool-{template}.lock"))
    }

    /// What was taken out of use.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// The directories of VMs and templates.
    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// The directory of one.
    pub fn vm(&self, name: &Name) -> PathBuf {
        self.vms().join(name.as_str())
    }

    /// The directory of one that is gone, and whose files are about to go.
    pub fn gone(&self, id: &str) -> PathBuf {
        self.vms().join(format!("{GONE}{id}"))
    }

    /// Its record.
    pub fn vm_json(&self, name: &Name) -> PathBuf {
        self.vm(name).join("vm.json")
    }

    /// The sums of what the layers of a template hold.
    pub fn sums(&self, name: &Name) -> PathBuf {
        self.vm(name).join("sums.json")
    }

    /// A second copy of its record, for the day on which the first one cannot be read. Nothing but
    /// `doctor --repair` ever reads it.
    pub fn spare_json(&self, name: &Name) -> PathBuf {
        self.vm(name).join("vm.json.spare")
    }

    /// Its lock for changes.
    pub fn lock(&self, name: &Name) -> PathBuf {
        self.vm(name).join("lock")
    }

    /// The lock for a conversation with its guest agent.
    pub fn agent_lock(&self, name: &Name) -> PathBuf {
        self.vm(name).join("agent.lock")
    }

    /// The lock for a conversation with its helper on one of the ports.
    pub fn port_lock(&self, name: &Name, index: usize) -> PathBuf {
        self.vm(name).join(format!("port{index}.lock"))
    }

    /// Its memory while it is being made the warm guest of a template.
    pub fn warming_memory(&self, name: &Name) -> PathBuf {
        self.vm(name).join("memory")
    }

    /// The state of its devices, likewise.
    pub fn warming_state(&self, name: &Name) -> PathBuf {
        self.vm(name).join("state")
    }

    /// The lock that its QEMU holds while it lives.
    pub fn run_lock(&self, name: &Name) -> PathBuf {
        self.vm(name).join("run.lock")
    }

    /// The change that is under way.
    pub fn journal(&self, name: &Name) -> PathBuf {
        self.vm(name).join("journal.json")
    }

    /// What QEMU said.
    pub fn qemu_log(&self, name: &Name) -> PathBuf {
        self.vm(name).join("qemu.log")
    }

    /// The older part of it.
    pub fn older_qemu_log(&self, name: &Name) -> PathBuf {
        self.vm(name).join("qemu.log.1")
    }

    /// What the guest said on its serial console.
    pub fn serial_log(&self, name: &Name) -> PathBuf {
        self.vm(name).join("serial.log")
    }

    /// A symbolic link to the directory of its sockets.
    pub fn run_link(&self, name: &Name) -> PathBuf {
        self.vm(name).join("run")
    }
}
