//! All kinds of steps that a journal can hold.

use crate::change::planned::{Kind, install, kind};
use crate::seal;
use crate::snapshot::{internal_steps, live_steps, memory_steps};
use crate::steps::{layers, merge, qemu, record, restore, trash};
use crate::warm;

const KINDS: &[Kind] = &[
    kind::<layers::CreateOverlay>(),
    kind::<layers::CopyFile>(),
    kind::<layers::WrapFile>(),
    kind::<layers::CopyChain>(),
    kind::<layers::CopyInternal>(),
    kind::<layers::LinkFile>(),
    kind::<layers::SetMode>(),
    kind::<layers::Resize>(),
    kind::<merge::MergeLayers>(),
    kind::<merge::RemoveLayers>(),
    kind::<merge::RemoveMemory>(),
    kind::<qemu::StopQemu>(),
    kind::<qemu::Resume>(),
    kind::<record::WriteRecord>(),
    kind::<restore::RestoreLayers>(),
    kind::<trash::TrashLayers>(),
    kind::<trash::DropTrash>(),
    kind::<live_steps::AddNodes>(),
    kind::<live_steps::Switch>(),
    kind::<live_steps::Freeze>(),
    kind::<live_steps::Thaw>(),
    kind::<memory_steps::BeginMemory>(),
    kind::<memory_steps::Pause>(),
    kind::<memory_steps::SaveMemory>(),
    kind::<memory_steps::LoadMemory>(),
    kind::<internal_steps::InternalSave>(),
    kind::<internal_steps::InternalRevert>(),
    kind::<internal_steps::InternalDelete>(),
    kind::<seal::step::Seal>(),
    kind::<warm::steps::ResumeWarm>(),
];

/// The tags of all kinds.
pub fn tags() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(tag, _)| *tag)
}

/// Makes the kinds of steps known to the engine. Without this no journal can be read.
pub fn install_steps() {
    install(KINDS);
}
