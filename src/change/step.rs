//! The steps a change is made of, as plain data that can be written to the journal.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::{FileId, Layer, Merge, Name, RamImage, Record};
use crate::store::schema::RecordV1;
use crate::store::trash::Stamp;

/// One step. How each is applied, undone and observed: [`super::apply`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// An empty qcow2 layer.
    MakeLayer {
        /// The new layer.
        layer: Layer,
        /// What it stands on.
        backing: Option<Layer>,
        /// The size the guest sees.
        virtual_bytes: u64,
    },
    /// A layer copied from a file of the user's.
    CopyFile {
        /// The file.
        from: PathBuf,
        /// Which file it was when it was examined; another one in its place is not copied.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<FileId>,
        /// The new layer.
        layer: Layer,
        /// What backs it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backing: Option<Layer>,
    },
    /// A qcow2 layer with the content of a small raw file.
    WrapFile {
        /// The file.
        from: PathBuf,
        /// The new layer.
        layer: Layer,
    },
    /// A layer that is an independent copy of another and all it stands on.
    CopyChain {
        /// What is copied.
        source: Layer,
        /// The new layer.
        layer: Layer,
    },
    /// A layer that is a file of the user's, in its place.
    LinkFile {
        /// The file.
        file: PathBuf,
        /// The new layer.
        layer: Layer,
    },
    /// Make overlays known to the running QEMU.
    AddNodes {
        /// The overlays.
        layers: Vec<Layer>,
    },
    /// Get ready to save the guest's memory, which still runs; undone by calling that off.
    BeginMemory {
        /// The file.
        image: RamImage,
        /// The guest's CPUs run.
        running: bool,
    },
    /// Let the guest's CPUs stand still; undone by letting them go on.
    Pause {
        /// They ran before.
        resume: bool,
    },
    /// Save the guest's memory as it is now, and let its CPUs go on as soon as may be.
    SaveMemory {
        /// The file.
        image: RamImage,
        /// The layers that are the head by now.
        heads: Vec<Layer>,
        /// The guest's CPUs ran before.
        resume: bool,
    },
    /// Start QEMU with the memory of a snapshot, its CPUs standing still; undone by ending it.
    LoadMemory {
        /// The file.
        image: RamImage,
        /// The VM as it will be.
        record: Box<RecordV1>,
    },
    /// Take an internal snapshot: of a running VM with its memory, by its QEMU; else by `qemu-img`.
    InternalSave {
        /// Its name in the images.
        tag: String,
        /// The layers, which are the head.
        layers: Vec<Layer>,
        /// The VM runs.
        live: bool,
    },
    /// Make the layers of the head what they were at an internal snapshot. Undone by going to another one, which was taken just before.
    InternalRevert {
        /// Where to.
        tag: String,
        /// The way back.
        back: String,
        /// The layers.
        layers: Vec<Layer>,
        /// Take up its memory, in a new QEMU.
        memory: Option<Box<RecordV1>>,
        /// The QEMU that ran before.
        old_pid: Option<i32>,
    },
    /// Remove an internal snapshot from layers.
    InternalDelete {
        /// Its name in the images.
        tag: String,
        /// The layers.
        layers: Vec<Layer>,
    },
    /// A layer that is an independent copy of what an internal snapshot holds.
    CopyInternal {
        /// The layer that carries it.
        source: Layer,
        /// Its name in there.
        tag: String,
        /// The size the disk had then.
        virtual_bytes: u64,
        /// The new layer.
        layer: Layer,
    },
    /// Remove memory that no snapshot has any more.
    RemoveMemory {
        /// The files.
        images: Vec<RamImage>,
    },
    /// Freeze the guest's file systems through the guest agent; undone by a thaw.
    Freeze {
        /// The change fails when this does.
        required: bool,
        /// How long it may take, in milliseconds.
        #[serde(default)]
        limit_ms: Option<u64>,
    },
    /// Put overlays on top of the heads of the running VM, all or none (QMP `transaction`).
    Switch {
        /// Which.
        disks: Vec<Switched>,
    },
    /// Thaw the guest's file systems.
    Thaw,
    /// Start QEMU from the memory of a warm template and make its guest one of its own; undone by ending it, because until then it is another's double.
    Wake,
    /// End QEMU (QMP `quit`).
    StopQemu,
    /// Set the permission bits of layers' files.
    SetMode {
        /// Which.
        layers: Vec<Layer>,
        /// Their bits before, in the same order, for the way back.
        before: Vec<u32>,
        /// The bits.
        mode: u32,
    },
    /// Replace `vm.json`.
    Save {
        /// The new record.
        record: Box<RecordV1>,
        /// The snapshot the record adds, if any.
        snapshot: Option<Name>,
    },
    /// Merge layers, in the VM's QEMU or offline; a guest whose active layer is merged is left paused.
    Merge {
        /// All of them: they switch together.
        merges: Vec<Merge>,
    },
    /// Give a disk another size.
    Resize {
        /// The guest's name for it.
        target: String,
        /// Its active layer.
        layer: Layer,
        /// Bytes before.
        before: u64,
        /// Bytes after.
        after: u64,
    },
    /// Let the appliance seal the guest on these overlays. What is to be done is not in the journal: it is done before the pivot or not at all.
    Seal {
        /// The overlays.
        disks: Vec<Sealed>,
    },
    /// Let the guest's CPUs go on after a merge.
    Resume,
    /// Move layers nobody names any more into the trash.
    Trash {
        /// The directory in the trash.
        directory: String,
        /// The verb.
        what: String,
        /// Which layers.
        layers: Vec<Layer>,
        /// The record before the change, for the way back.
        before: Box<RecordV1>,
        /// The internal snapshot in the head's layers that holds what they were.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        way_back: Option<String>,
    },
    /// Move layers out of the trash, back into the pool; undone by moving them into it again.
    RestoreLayers {
        /// The directory in the trash.
        directory: String,
        /// Which layers.
        layers: Vec<Layer>,
        /// What they stand on, as it was when they went into it.
        #[serde(default)]
        below: Vec<Stamp>,
    },
    /// Remove a directory of the trash that has served its purpose.
    DropTrash {
        /// Which.
        directory: String,
    },
    /// Remove layers whose data was merged into another.
    RemoveMerged {
        /// Which.
        layers: Vec<Layer>,
    },
}

/// One disk of a [`Step::Switch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Switched {
    /// The guest's name for the disk.
    pub target: String,
    /// The layer that was the head.
    pub head: Layer,
    /// The layer that becomes the head.
    pub overlay: Layer,
}

/// One disk of a [`Step::Seal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// The VM's name for the disk.
    pub target: String,
    /// The overlay.
    pub layer: Layer,
}

impl Step {
    /// Its name, for people.
    pub fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_owned()
    }

    /// The record of the VM, before or after the change, that the step holds.
    pub fn record(&self) -> Option<&RecordV1> {
        match self {
            Self::Save { record, .. } | Self::LoadMemory { record, .. } => Some(record),
            Self::Trash { before, .. } => Some(before),
            Self::InternalRevert { memory, .. } => memory.as_deref(),
            _ => None,
        }
    }

    /// A new `vm.json`.
    pub fn save(record: &Record) -> Self {
        Self::Save { record: Box::new(RecordV1::from(record)), snapshot: None }
    }

    /// The layers that this step relies on or brings into being.
    pub fn layers(&self) -> Vec<Layer> {
        match self {
            Self::MakeLayer { layer, backing, .. } | Self::CopyFile { layer, backing, .. } => {
                backing.iter().chain([layer]).cloned().collect()
            }
            Self::LinkFile { layer, .. } | Self::WrapFile { layer, .. } => {
                vec![layer.clone()]
            }
            Self::CopyChain { source, layer } | Self::CopyInternal { source, layer, .. } => {
                vec![source.clone(), layer.clone()]
            }
            Self::Resize { layer, .. } => vec![layer.clone()],
            Self::RestoreLayers { layers, below, .. } => {
                layers.iter().chain(below.iter().map(|stamp| &stamp.layer)).cloned().collect()
            }
            Self::Trash { layers, .. } | Self::RemoveMerged { layers } => layers.clone(),
            Self::InternalSave { layers, .. } | Self::InternalRevert { layers, .. } => layers.clone(),
            Self::Merge { merges } => merges.iter().flat_map(Merge::layers).cloned().collect(),
            Self::Switch { disks } => disks.iter().flat_map(|disk| [disk.head.clone(), disk.overlay.clone()]).collect(),
            _ => Vec::new(),
        }
    }

    /// The layer that nothing writes to any more once the change is done: a new one stands on it.
    pub fn sealed(&self) -> Option<&Layer> {
        match self {
            Self::MakeLayer { backing, .. } => backing.as_ref(),
            _ => None,
        }
    }

    /// The merges it does.
    pub fn merges(&self) -> &[Merge] {
        match self {
            Self::Merge { merges } => merges,
            _ => &[],
        }
    }

    /// The layer this step makes, which its undoing removes.
    pub fn makes(&self) -> Option<&Layer> {
        match self {
            Self::MakeLayer { layer, .. } | Self::CopyFile { layer, .. } | Self::WrapFile { layer, .. } => Some(layer),
            Self::CopyChain { layer, .. } | Self::CopyInternal { layer, .. } => Some(layer),
            Self::LinkFile { layer, .. } => Some(layer),
            _ => None,
        }
    }
}
