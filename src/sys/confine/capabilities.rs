//! Capabilities of a confined QEMU (`capabilities(7)`).

use std::path::{Path, PathBuf};

use rustix::fs::{Access as Permission, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::Confinement;

/// The capabilities that a QEMU keeps, as far as we have them. Files without the permission bits
/// for us, those of another user for example, root opens by `CAP_DAC_OVERRIDE` alone. That is more
/// than is needed where they are only read; but `CAP_DAC_READ_SEARCH` lifts the root directory, too
/// (`open_by_handle_at(2)`).
pub(super) fn kept_by(confinement: &Confinement) -> CapabilitySet {
    let by_privilege = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    let ours = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted);
    if !ours.intersects(by_privilege) {
        return confinement.kept & ours;
    }
    // Capabilities are those of a thread.
    let opens = || {
        let without = |sets: CapabilitySet| sets & !by_privilege;
        let sets = capabilities(None)?;
        let (effective, permitted) = (without(sets.effective), without(sets.permitted));
        set_capabilities(None, CapabilitySets { effective, permitted, ..sets })?;
        let (read, write) = (Permission::READ_OK, Permission::READ_OK | Permission::WRITE_OK);
        let all = |paths: &[PathBuf], how| paths.iter().all(|path| is_open(path, how));
        let socket = write | Permission::EXEC_OK;
        let writes = all(&confinement.write, write)
            && all(&confinement.merge, write)
            && all(&confinement.sockets, socket);
        Ok::<_, Errno>(writes && all(&confinement.read, read))
    };
    let needs_none = std::thread::scope(|scope| {
        scope.spawn(opens).join().ok().and_then(Result::ok).unwrap_or_default()
    });
    let needed = match needs_none {
        true => CapabilitySet::empty(),
        false => CapabilitySet::DAC_OVERRIDE,
    };
    (confinement.kept | needed) & ours
}

/// May the calling thread open what lies at `path`? What is not there is no matter of permissions.
fn is_open(path: &Path, how: Permission) -> bool {
    accessat(CWD, path, how, AtFlags::empty()) != Err(Errno::ACCESS)
}

/// Gives up all capabilities of the calling thread but those in `kept`, for whatever it executes
/// next, too. The bounding set is what root would have then, where it may be emptied; with
/// `no_new_privs`, no program has more than its caller.
pub(super) fn keep(kept: CapabilitySet) -> Result<(), Errno> {
    let each = || (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    // There are none before Linux 4.3.
    let _ = clear_ambient_capability_set();
    for capability in each().filter(|capability| !kept.contains(*capability)) {
        match remove_capability_from_bounding_set(capability) {
            // The kernel knows no more of them, or we may not.
            Err(Errno::INVAL | Errno::PERM) => break,
            other => other?,
        }
    }
    let permitted = capabilities(None)?.permitted & kept;
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: permitted };
    set_capabilities(None, sets)?;
    // Else an ordinary user's program would lose them.
    for capability in each().filter(|capability| permitted.contains(*capability)) {
        let _ = configure_capability_in_ambient_set(capability, true);
    }
    Ok(())
}
