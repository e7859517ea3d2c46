//! A filter of system calls (`seccomp(2)`) for programs that read what strangers have written: a
//! QEMU that runs a guest, and QEMU's tools. Such a program needs none of the calls that are
//! refused here (`EPERM`), and a stranger who has taken it over may:
//! - owners, permissions, times and extended attributes of files. Landlock and mounts do not keep
//!   them from who may write to a file. What a layer depends on is noted in such an attribute
//!   (`layer/backing_xattr.rs`), and a file of root's whose set-user-ID bit is set is a way to
//!   become root;
//! - `io_uring(7)`, whose operations no filter sees;
//! - memory and messages that are shared by a number, not by a file;
//! - new namespaces (`clone(2)` and others), in which an ordinary user has all capabilities;
//! - file systems, other processes, keys, programs in the kernel, the clock: ways to the kernel
//!   that need a capability or another process to be of use, as long as the kernel has no flaw;
//! - sockets of other kinds than its guest needs ([`Sockets`]).
//!
//! A call of another architecture (`int 0x80`) ends the program. QEMU's own `-sandbox` comes on
//! top: there it is QEMU that refuses to start programs.

use std::collections::BTreeMap;
use std::io;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
};

pub(crate) use sockets::Sockets;

mod sockets;

/// The files' own: who owns them, who may do what, what is noted beside them, and when they were
/// changed.
const ATTRIBUTES: [i64; 20] = [
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_utimensat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
];

/// The same, of kernels that are newer than the C library: `setxattrat`, `removexattrat`,
/// `open_tree_attr`, `file_setattr`.
const NEWER: [i64; 4] = [463, 466, 467, 469];

const IO_URING: [i64; 3] =
    [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// What is mounted where, and what happens there: who watches a directory learns names.
const FILE_SYSTEMS: [i64; 24] = [
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_inotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
];

const PROCESSES: [i64; 12] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_ioprio_set,
];

/// Memory, queues and semaphores that have no file, of whoever has the same user id
/// (`sysvipc(7)`, `mq_overview(7)`).
const MESSAGES: [i64; 15] = [
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_mq_notify,
];

const KERNEL: [i64; 29] = [
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_lookup_dcookie,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
];

/// The bit of the numbers in the x32 ABI, with which a kernel that has it knows nearly all calls
/// once more.
const X32: i64 = 0x4000_0000;
/// What has a number of its own there: `ptrace`, `kexec_load`, `move_pages`, `process_vm_readv` and
/// `writev`. Before Linux 5.4 they work without the bit, too.
const X32_ONLY: [i64; 5] = [521, 528, 533, 539, 540];

/// The flags of `clone(2)` that make namespaces.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The filter, ready for the kernel: a program for each error.
#[derive(Debug, Clone)]
pub(crate) struct Filter([BpfProgram; 2]);

impl Filter {
    /// Makes the filter of a program that makes these sockets.
    pub(crate) fn new(sockets: Sockets) -> io::Result<Self> {
        // The C library takes `clone` where it is told that there is no `clone3`, whose flags are
        // not seen.
        let clone3 = [(libc::SYS_clone3, Vec::new())].into();
        refused(sockets)
            .and_then(|rules| {
                Ok(Self([program(clone3, libc::ENOSYS)?, program(rules, libc::EPERM)?]))
            })
            .map_err(io::Error::other)
    }

    /// Sets it for the calling thread and whatever it executes, for good; `no_new_privs`, too. It
    /// allocates nothing, so it may be called between fork and exec.
    pub(crate) fn apply(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|program| apply_filter(program)).map_err(|error| match error {
            Error::Prctl(error) | Error::Seccomp(error) => error,
            _ => io::Error::from(io::ErrorKind::Unsupported),
        })
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn whole_calls() -> Vec<i64> {
    [&ATTRIBUTES[..], &NEWER, &IO_URING, &FILE_SYSTEMS, &PROCESSES, &MESSAGES, &KERNEL].concat()
}

fn refused(sockets: Sockets) -> Result<Rules, BackendError> {
    let mut rules = sockets.rules()?;
    rules.extend(whole_calls().into_iter().map(|number| (number, Vec::new())));
    rules.extend(X32_ONLY.map(|number| (number, Vec::new())));
    let first = |operator, value| {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let namespaces = NAMESPACES.map(|flag| {
        let bit = u64::from(flag.unsigned_abs());
        first(SeccompCmpOp::MaskedEq(bit), bit)
    });
    rules.insert(libc::SYS_clone, namespaces.into_iter().collect::<Result<_, _>>()?);
    // The limits of another process.
    rules.insert(libc::SYS_prlimit64, vec![first(SeccompCmpOp::Ne, 0)?]);
    let x32: Vec<_> = rules.iter().map(|(number, rule)| (number | X32, rule.clone())).collect();
    rules.extend(x32);
    Ok(rules)
}

fn program(rules: Rules, error: i32) -> Result<BpfProgram, BackendError> {
    let refuse = SeccompAction::Errno(error.unsigned_abs());
    let here = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, here)?.try_into()
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::{XattrFlags, setxattr};

    use super::*;

    /// A filter is a thread's.
    fn filtered<T: Send>(action: impl FnOnce() -> T + Send) -> T {
        filtered_with(Sockets::Local, action)
    }

    pub(super) fn filtered_with<T: Send>(sockets: Sockets, action: impl FnOnce() -> T + Send) -> T {
        let filter = Filter::new(sockets).expect("a filter");
        let run = || {
            filter.apply().expect("a kernel with seccomp(2)");
            action()
        };
        std::thread::scope(|scope| scope.spawn(run).join().expect("a thread"))
    }

    #[test]
    fn who_may_write_to_a_file_sets_no_permissions_and_no_attributes() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path();
        let set = |name: &str| setxattr(path, name, b"note", XattrFlags::empty());
        let has_attributes = set("user.before").is_ok();
        let (chmod, note, times, written) = filtered(|| {
            (
                std::fs::set_permissions(path, Permissions::from_mode(0o4755)),
                set("user.after"),
                file.as_file().set_modified(std::time::UNIX_EPOCH),
                std::fs::write(path, "it is still written to"),
            )
        });
        written.expect("that is allowed");
        for error in [chmod.expect_err("refused"), times.expect_err("refused")] {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        }
        assert_eq!(note, Err(rustix::io::Errno::PERM));
        assert!(!has_attributes || set("user.after").is_ok(), "this thread has no filter");
    }

    #[test]
    #[allow(unsafe_code)]
    fn threads_and_own_limits_are_allowed_and_namespaces_and_limits_of_others_are_not() {
        use rustix::process::{Resource, getppid, getrlimit, prlimit, setrlimit};
        let own = getrlimit(Resource::Core);
        let parent = getppid().expect("a parent");
        let (thread, limit, of_parent, namespaces) = filtered(|| {
            let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::SIGCHLD;
            // SAFETY: no process is made. If one was, it would end at once.
            let made = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
            if made == 0 {
                // SAFETY: this ends the process without running anything of ours.
                unsafe { libc::_exit(0) };
            }
            (
                std::thread::spawn(|| 5).join(),
                setrlimit(Resource::Core, own),
                prlimit(Some(parent), Resource::Core, own),
                (made, io::Error::last_os_error().raw_os_error()),
            )
        });
        assert_eq!(thread.expect("a thread"), 5);
        limit.expect("that is allowed");
        assert_eq!(of_parent.map(drop), Err(rustix::io::Errno::PERM));
        assert_eq!(namespaces, (-1, Some(libc::EPERM)));
    }

    #[test]
    fn the_program_is_one_that_a_kernel_takes_and_no_call_is_named_twice() {
        // BPF_MAXINSNS.
        for sockets in [Sockets::Local, Sockets::Listening, Sockets::All] {
            let filter = Filter::new(sockets).expect("a filter");
            assert!(filter.0.iter().all(|program| program.len() <= 4096));
        }
        let mut once = whole_calls();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), whole_calls().len());
    }
}
