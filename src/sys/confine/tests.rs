//! A program in the place of a QEMU that was taken over: it is this test program once more, and
//! tries what an attacker would.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use rustix::fs::{XattrFlags, removexattr, setxattr};
use rustix::process::{Pid, PidfdFlags, getrlimit, pidfd_open, prlimit, test_kill_process};
use rustix::thread::{
    CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
};

use super::super::skipped::skipped;
use super::capabilities::kept_by;
use super::*;

/// Where the attacker finds what it may, and what it may not; without it, there is none.
const ROOM: &str = "COWHAND_TEST_ROOM";
/// The number of the process that has started the attacker, which is its parent.
const PARENT: &str = "COWHAND_TEST_PARENT";
/// The port of a service on the host's loopback.
const PORT: &str = "COWHAND_TEST_PORT";
/// An ordinary user, who has nothing on this host.
const USER: u32 = 54_321;

/// What the ordinary user says instead, where the host cannot confine a program for them.
const IS_NOT_COMPLETE: &str = "no: ";

/// What the program may have, and what it may not.
struct Room {
    directory: PathBuf,
    _made: Option<tempfile::TempDir>,
    service: TcpListener,
    confinement: Confinement,
}

impl Room {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        let at = |name: &str| path.join(name);
        for name in ["sockets", "layers"] {
            std::fs::create_dir(at(name)).expect("a directory");
        }
        for name in ["layers/own", "log", "iso", "secret", "sockets/pipe"] {
            std::fs::write(at(name), name).expect("a file");
        }
        // Where there are such attributes.
        let _ = setxattr(at("layers/own"), NOTE, b"noted", XattrFlags::empty());
        Self { _made: Some(directory), ..Self::at(&path) }
    }

    /// One that was made before.
    fn at(directory: &Path) -> Self {
        let at = |name: &str| directory.join(name);
        let confinement = Confinement::new(false)
            .reading(&at("iso"))
            .writing(&at("layers"))
            .writing(&at("log"))
            .listening(&at("sockets"))
            .saving_memory();
        let service = TcpListener::bind("127.0.0.1:0").expect("a port");
        Self { directory: directory.to_owned(), _made: None, service, confinement }
    }

    /// What succeeded of all that was tried.
    fn attacked(&self, confined: bool) -> Vec<String> {
        let mut command = self.test("the_attacker");
        if !confined {
            return self.outcome(&mut command);
        }
        let ended = self.confinement.start(command, |_| ()).and_then(|program| program.wait());
        assert_eq!(ended.expect("a program"), Some(0));
        self.told()
    }

    /// The same, confined by an ordinary user.
    fn attacked_as_user(&self) -> Vec<String> {
        let mut command = self.test("the_user");
        std::os::unix::process::CommandExt::uid(&mut command, USER);
        self.outcome(&mut command)
    }

    /// This program, for one of its tests.
    fn test(&self, name: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let test = format!("sys::confine::tests::{name}");
        command.args(["--exact", &test, "--nocapture", "--test-threads", "1"]);
        command.env(ROOM, &self.directory).env(PARENT, std::process::id().to_string());
        let port = self.service.local_addr().expect("an address").port();
        command.env(PORT, port.to_string());
        command
    }

    fn outcome(&self, command: &mut Command) -> Vec<String> {
        let output = command.output().expect("a program");
        assert!(output.status.success(), "{output:?}");
        self.told()
    }

    fn told(&self) -> Vec<String> {
        let told = std::fs::read_to_string(self.directory.join("log")).expect("a log");
        told.lines().map(str::to_owned).collect()
    }
}

/// Not a test of its own: the ordinary user of [`Room::attacked_as_user`].
#[test]
fn the_user() {
    let Some(room) = std::env::var_os(ROOM).map(PathBuf::from) else { return };
    match tried::strictly(Path::new("/bin/true")) {
        None => drop(Room::at(&room).attacked(true)),
        Some(why) => {
            std::fs::write(room.join("log"), format!("{IS_NOT_COMPLETE}{why}")).expect("a log")
        }
    }
}

/// Not a test of its own: the program that [`Room::attacked`] starts.
#[test]
fn the_attacker() {
    let Some(room) = std::env::var_os(ROOM).map(PathBuf::from) else { return };
    let at = |name: &str| room.join(name);
    // As another user it could not open it any more.
    let mut log = OpenOptions::new().write(true).truncate(true).open(at("log")).expect("its log");
    let parent = std::env::var(PARENT).expect("a parent").parse().expect("a number");
    let parent = Pid::from_raw(parent).expect("a number");
    let tried: Vec<(&str, bool)> = vec![
        // What its guest needs.
        ("read its ISO", std::fs::read(at("iso")).is_ok()),
        ("write its layer", OpenOptions::new().write(true).open(at("layers/own")).is_ok()),
        ("append to its log", OpenOptions::new().append(true).open(at("log")).is_ok()),
        ("listen in its directory", UnixListener::bind(at("sockets/new")).is_ok()),
        ("remove its socket", std::fs::remove_file(at("sockets/new")).is_ok()),
        ("read random numbers", File::open("/dev/urandom").is_ok()),
        // What nobody but an attacker does.
        ("read a secret", std::fs::read(at("secret")).is_ok()),
        ("read passwords", std::fs::read("/etc/shadow").is_ok()),
        ("list a directory", std::fs::read_dir(&room).is_ok()),
        ("list the root directory", std::fs::read_dir("/").is_ok()),
        ("see how large a secret is", at("secret").metadata().is_ok()),
        ("see what processes there are", Path::new("/proc/1").exists()),
        ("open a secret to others", sets_permissions(&at("secret"))),
        ("open its ISO to others", sets_permissions(&at("iso"))),
        ("open its layer to others", sets_permissions(&at("layers/own"))),
        ("give its layer away", gives_away(&at("layers/own"))),
        ("say when its layer was changed", sets_time(&at("layers/own"))),
        ("change a note beside its layer", notes(&at("layers/own"))),
        ("remove a note beside its layer", forgets(&at("layers/own"))),
        ("open a device to others", sets_permissions(Path::new("/dev/null"))),
        ("make the root directory writable", sets_permissions(Path::new("/"))),
        ("connect to a service", UnixStream::connect(at("service")).is_ok()),
        ("have a root directory above", nix::unistd::chroot("..").is_ok()),
        ("list the layers", std::fs::read_dir(at("layers")).is_ok()),
        ("write its ISO", OpenOptions::new().write(true).open(at("iso")).is_ok()),
        ("make a layer", File::create(at("layers/new")).is_ok()),
        ("empty a file", truncates(&at("secret"))),
        ("give a file another name", std::fs::rename(at("secret"), at("sockets/secret")).is_ok()),
        ("remove a layer", std::fs::remove_file(at("layers/own")).is_ok()),
        ("link a layer", std::os::unix::fs::symlink("/etc", at("layers/link")).is_ok()),
        ("replace a pipe", std::os::unix::fs::symlink("/etc", at("sockets/link")).is_ok()),
        ("make a file in /tmp", tempfile::tempfile_in("/tmp").is_ok()),
        ("read an environment", std::fs::read("/proc/1/environ").is_ok()),
        ("look at its parent", std::fs::read_dir(format!("/proc/{}/fd", parent)).is_ok()),
        ("signal its parent", test_kill_process(parent).is_ok()),
        ("trace its parent", traces(parent)),
        ("hold its parent", pidfd_open(parent, PidfdFlags::empty()).is_ok()),
        (
            "limit its parent",
            prlimit(Some(parent), Resource::Core, getrlimit(Resource::Core)).is_ok(),
        ),
        ("move its parent", moves(parent)),
        ("let the kernel signal its parent", is_told_of(&log, parent)),
        ("make calls that no filter sees", makes_a_ring()),
        ("connect to an abstract socket", connect_abstract().is_ok()),
        ("connect to a port of the host", connects_to_a_port()),
        ("make a socket for datagrams", UdpSocket::bind("127.0.0.1:0").is_ok()),
        ("listen on a port of the host", TcpListener::bind("127.0.0.1:0").is_ok()),
        ("mount", mounts()),
        ("make a device", makes_a_device(&at("sockets/device"))),
        ("become another user", nix::unistd::setuid(nix::unistd::Uid::from_raw(4711)).is_ok()),
    ];
    let done: Vec<&str> =
        tried.into_iter().filter(|(_, done)| *done).map(|(what, _)| what).collect();
    log.write_all(done.join("\n").as_bytes()).expect("its log");
}

#[allow(unsafe_code)]
fn traces(process: Pid) -> bool {
    use nix::libc::{PTRACE_SEIZE, ptrace};
    // SAFETY: with this request, ptrace(2) takes no pointer and writes to no memory of ours.
    unsafe { ptrace(PTRACE_SEIZE, process.as_raw_nonzero().get(), 0, 0) == 0 }
}

/// To the processors where it is.
fn moves(process: Pid) -> bool {
    use rustix::thread::{sched_getaffinity, sched_setaffinity};
    let set = sched_getaffinity(Some(process));
    set.is_ok_and(|set| sched_setaffinity(Some(process), &set).is_ok())
}

/// When there is something to read (`SIGIO`).
#[allow(unsafe_code)]
fn is_told_of(file: &File, process: Pid) -> bool {
    use nix::libc::{F_SETOWN, fcntl};
    // SAFETY: with this request, fcntl(2) takes a number.
    unsafe { fcntl(file.as_raw_fd(), F_SETOWN, process.as_raw_nonzero().get()) == 0 }
}

#[allow(unsafe_code)]
fn makes_a_ring() -> bool {
    use nix::libc::{SYS_io_uring_setup, syscall};
    // An `io_uring_params` has 120 bytes.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel writes to the parameters alone, which live longer than the call.
    unsafe { syscall(SYS_io_uring_setup, 1, parameters.as_mut_ptr()) >= 0 }
}

fn connect_abstract() -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    let address = SocketAddr::from_abstract_name(std::env::var(ROOM).unwrap_or_default())?;
    UnixStream::connect_addr(&address).map(drop)
}

fn connects_to_a_port() -> bool {
    let port = std::env::var(PORT).expect("a port").parse().expect("a number");
    TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// As they are: that it is allowed at all is the point.
fn sets_permissions(path: &Path) -> bool {
    path.metadata().is_ok_and(|about| std::fs::set_permissions(path, about.permissions()).is_ok())
}

fn gives_away(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|about| nix::unistd::chown(path, None, Some(about.gid().into())).is_ok())
}

fn sets_time(path: &Path) -> bool {
    let file = OpenOptions::new().write(true).open(path).expect("its layer");
    file.set_modified(std::time::UNIX_EPOCH).is_ok()
}

const NOTE: &str = "user.cowhand.test";

fn notes(path: &Path) -> bool {
    setxattr(path, NOTE, b"another", XattrFlags::empty()).is_ok()
}

fn forgets(path: &Path) -> bool {
    removexattr(path, NOTE).is_ok()
}

fn truncates(path: &Path) -> bool {
    nix::unistd::truncate(path, 0).is_ok()
}

fn mounts() -> bool {
    let none = CString::default();
    let mounted = rustix::mount::mount(
        c"none",
        c"/mnt",
        c"tmpfs",
        rustix::mount::MountFlags::empty(),
        &*none,
    );
    if mounted.is_ok() {
        let _ = rustix::mount::unmount(c"/mnt", rustix::mount::UnmountFlags::DETACH);
    }
    mounted.is_ok()
}

fn makes_a_device(path: &Path) -> bool {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let null = makedev(1, 3);
    mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR, null).is_ok()
}

/// Sockets of the host that anybody may connect to: one without a file, and one with.
fn listeners(room: &Room) -> [UnixListener; 2] {
    use std::os::linux::net::SocketAddrExt;
    let name = room.directory.to_str().expect("a path");
    let address = SocketAddr::from_abstract_name(name).expect("an address");
    let service = room.directory.join("service");
    let listening = UnixListener::bind(&service).expect("a socket");
    std::fs::set_permissions(service, PermissionsExt::from_mode(0o666)).expect("a socket");
    [UnixListener::bind_addr(&address).expect("a socket"), listening]
}

const NEEDED: [&str; 6] = [
    "read its ISO", "write its layer", "append to its log", "listen in its directory",
    "remove its socket", "read random numbers",
];

/// Can this host do all of it?
fn is_complete() -> bool {
    tried::strictly(Path::new("/bin/true")).is_none()
}

#[test]
fn what_a_guest_needs_works_and_every_attack_fails() {
    if !is_complete() {
        return skipped("this host cannot confine a program as strictly as this");
    }
    let room = Room::new();
    let _listeners = listeners(&room);
    assert_eq!(room.attacked(true), NEEDED);
}

#[test]
fn the_same_holds_for_an_ordinary_user_who_owns_all_of_it() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root becomes another user");
    }
    let program = std::env::current_exe().expect("this program");
    let is_for_all = |path: &Path| path.metadata().is_ok_and(|about| about.mode() & 0o1 == 0o1);
    if !program.ancestors().all(is_for_all) {
        return skipped("this program is in a private directory");
    }
    let room = Room::new();
    let _listeners = listeners(&room);
    for name in ["", "sockets", "layers", "layers/own", "log", "iso", "secret", "sockets/pipe"] {
        let path = room.directory.join(name);
        nix::unistd::chown(&path, Some(nix::unistd::Uid::from_raw(USER)), None).expect("root");
    }
    let done = room.attacked_as_user();
    if let Some(why) = done.first().and_then(|line| line.strip_prefix(IS_NOT_COMPLETE)) {
        return skipped(why);
    }
    assert_eq!(done, NEEDED);
}

#[test]
fn the_same_attacks_succeed_without_confinement() {
    let room = Room::new();
    let _listeners = listeners(&room);
    let done = room.attacked(false);
    for attack in [
        "read a secret", "signal its parent", "connect to an abstract socket",
        "connect to a service", "see how large a secret is", "open a secret to others",
        "open its layer to others", "give its layer away", "say when its layer was changed",
        "limit its parent", "move its parent", "let the kernel signal its parent",
        "hold its parent", "connect to a port of the host", "make a socket for datagrams",
        "listen on a port of the host",
    ] {
        assert!(done.iter().any(|one| one == attack), "{attack}: {done:?}");
    }
    let has_attributes = setxattr(&room.directory, NOTE, b"", XattrFlags::empty()).is_ok();
    let of_notes = done.iter().filter(|one| one.ends_with("a note beside its layer")).count();
    assert_eq!(of_notes, if has_attributes { 2 } else { 0 });
    assert!(done.len() >= NEEDED.len() + 10, "{done:?}");
}

#[test]
fn a_file_that_root_opens_by_privilege_alone_keeps_that_and_no_other() {
    let ours = capabilities(None).expect("capabilities").permitted;
    let all = CapabilitySet::DAC_OVERRIDE;
    let memory = CapabilitySet::SYS_PTRACE;
    if !ours.contains(all | memory) {
        return skipped("root's capabilities are needed");
    }
    let room = Room::new();
    assert_eq!(kept_by(&room.confinement), memory);
    let file = room.directory.join("iso");
    let mode = |bits| std::fs::set_permissions(&file, PermissionsExt::from_mode(bits));
    mode(0o200).expect("a file");
    assert_eq!(kept_by(&room.confinement), memory | all);
    mode(0o400).expect("a file");
    assert_eq!(kept_by(&room.confinement), memory);
    assert_eq!(kept_by(&room.confinement.clone().writing(&file)), memory | all);
    // A directory of another user, for that user alone; also on the way, as a link.
    let chown = |path: &Path, user: u32| {
        nix::unistd::chown(path, Some(nix::unistd::Uid::from_raw(user)), None).expect("root");
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).expect("a directory");
    };
    let private = tempfile::tempdir().expect("a directory");
    let link = private.path().join("link");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    chown(private.path(), 1000);
    let linked = room.confinement.clone().reading(&link);
    assert_eq!(kept_by(&linked), memory | all);
    chown(&room.directory, 1000);
    assert_eq!(kept_by(&room.confinement), memory | all);
    let low = Confinement::new(false).on_low_ports();
    assert_eq!(kept_by(&low), CapabilitySet::NET_BIND_SERVICE & ours);
    // What was looked at in between changes nothing for us.
    assert_eq!(capabilities(None).expect("capabilities").permitted, ours);
}

#[test]
fn capabilities_that_are_given_up_do_not_come_back_wherever_they_were() {
    let room = Room::new();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "cat /proc/self/status"]);
    // As a container or systemd may start us.
    cage::in_the_child(&mut command, || {
        let sets = capabilities(None)?;
        set_capabilities(None, CapabilitySets { inheritable: sets.permitted, ..sets })?;
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if sets.permitted.contains(capability) {
                configure_capability_in_ambient_set(capability, true)?;
            }
        }
        Ok(())
    });
    let confinement = room.confinement.clone().reading(Path::new("/proc"));
    let kept = kept_by(&confinement);
    confinement.confine(&mut command, kept, Arc::default()).expect("a program");
    let output = command.output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        u64::from_str_radix(line.trim(), 16).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let ours = capabilities(None).expect("capabilities").permitted;
    let kept = (CapabilitySet::SYS_PTRACE & ours).bits();
    for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        assert_eq!(field(set), kept, "{set} {text}");
    }
    assert_eq!(field("NoNewPrivs:"), 1, "{text}");
}

#[test]
fn a_directory_with_the_name_servers_is_read_where_nothing_else_lies_in_it() {
    let at = |path: &str| changes_in(Path::new(path)).map(|path| path.display().to_string());
    let resolved = "/run/systemd/resolve/stub-resolv.conf";
    assert_eq!(at(resolved).as_deref(), Some("/run/systemd/resolve"));
    for path in ["/etc/resolv.conf", "/run/resolv.conf", "/run/NetworkManager/resolv.conf"] {
        assert_eq!(at(path), None, "{path}");
    }
}
