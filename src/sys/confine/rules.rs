//! The rules of Landlock for a confined QEMU (`landlock(7)`).

use std::ffi::CStr;
use std::path::Path;

use landlock::{
    Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, make_bitflags, path_beneath_rules,
};
use rustix::fs::{Mode, OFlags, open};

use super::Confinement;
use crate::sys::cage::{self, RULES};

/// The rules for `program`. Those of networks are not among them: they know ports, and no
/// addresses.
pub(super) fn of(
    confinement: &Confinement,
    program: &Path,
) -> Result<RulesetCreated, RulesetError> {
    let read = AccessFs::from_read(RULES);
    let write = to_write();
    let listen = write | make_bitflags!(AccessFs::{ReadDir | MakeSock | RemoveFile});
    let level = match confinement.strict {
        true => CompatLevel::HardRequirement,
        false => CompatLevel::BestEffort,
    };
    Ruleset::default()
        .set_compatibility(level)
        .handle_access(AccessFs::from_all(RULES))?
        .scope(Scope::from_all(RULES))?
        // It listens on sockets, and connects to none that is a file (Linux 7.1).
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::ResolveUnix)?
        .create()?
        .add_rules(path_beneath_rules(cage::programs(program), read))?
        .add_rules(path_beneath_rules(&confinement.read, AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(confinement.write.iter().chain(&confinement.merge), write))?
        .add_rules(path_beneath_rules(&confinement.sockets, listen))
}

/// What a file that is written to is opened with.
fn to_write() -> BitFlags<AccessFs> {
    make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | IoctlDev})
}

/// With the layers in the directory `pool` of the calling process's root directory.
pub(super) fn with_layers(
    rules: RulesetCreated,
    pool: &CStr,
) -> Result<RulesetCreated, RulesetError> {
    let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match open(pool, how, Mode::empty()) {
        Ok(directory) => rules.add_rule(PathBeneath::new(directory, to_write())),
        // There are none.
        Err(_) => Ok(rules),
    }
}
