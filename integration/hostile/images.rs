//! What the author of an image writes into it. The file of the host that the attacks are after is
//! called `secret`; whether a program opened it is seen with strace(1).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cowhand::layer::inspect::{self, Content};
use cowhand::model::Format;

use crate::lab::{Done, Lab, Random, guest, qemu_img, skip};

const SECRET: &[u8] = b"the secret of the host, which no image may reach";

/// A laboratory with a file that nobody may reach.
struct Site {
    lab: Lab,
}

impl Site {
    fn new() -> Self {
        let site = Self { lab: Lab::new() };
        site.hide_secret();
        site
    }

    fn hide_secret(&self) {
        let mut secret = SECRET.to_vec();
        secret.resize(1 << 20, b'.');
        std::fs::write(self.secret(), secret).unwrap();
    }

    fn at(&self, name: &str) -> String {
        self.lab.path().join(name).to_str().unwrap().to_owned()
    }

    fn secret(&self) -> String {
        self.at("secret")
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.at(name), bytes).unwrap();
        self.at(name)
    }

    /// Runs a command under strace. Returns what it did, and every path that it or a child of it
    /// tried to open.
    fn traced(&self, args: &[&str]) -> (Done, BTreeSet<String>) {
        let log = self.at("strace");
        let own = self.lab.command(args);
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-s", "4096", "-e", "trace=open,openat,openat2", "-o", &log]);
        command.arg(own.get_program()).args(own.get_args()).stdin(Stdio::null());
        for (name, value) in own.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let done = command.output().unwrap().into();
        let opened = opened(Path::new(&log));
        assert!(!opened.is_empty(), "strace saw nothing of {args:?}");
        (done, opened)
    }

    /// Runs a command that must refuse the image with these words, and that opens the secret as
    /// little as its children do.
    #[track_caller]
    fn refuses(&self, args: &[&str], words: &[&str]) {
        let before = self.lab.fingerprint();
        let (done, opened) = self.traced(args);
        assert!(!opened.contains(&self.secret()), "{args:?} opened the secret");
        done.fails(5, words);
        assert_eq!(self.lab.fingerprint(), before, "{args:?} changed the store");
        assert!(std::fs::read(self.secret()).unwrap().starts_with(SECRET));
    }

    /// Every command that takes an image refuses this one, says what it names, and opens nothing of
    /// it.
    #[track_caller]
    fn every_command_refuses(&self, image: &str, words: &[&str]) {
        let out = self.at("out.qcow2");
        self.refuses(&["create", "x", "--disk", image], words);
        self.refuses(&["create", "x", "--disk", &format!("{image},use")], words);
        self.refuses(&["image", "convert", image, &out], words);
        self.refuses(&["image", "check", image], words);
        self.refuses(&["seal", image], words);
        self.refuses(&["seal", image, "--out", &out], words);
        assert!(!Path::new(&out).exists());
        // This one tells what the image names, from its bytes.
        let (done, opened) = self.traced(&["--format", "json", "image", "info", image]);
        assert!(!opened.contains(&self.secret()), "image info opened the secret");
        let info: serde_json::Value = serde_json::from_str(&done.ok()).unwrap();
        assert!(info["names"].as_array().is_some_and(|names| !names.is_empty()), "{info}");
    }
}

/// The paths that a log of strace says were to be opened.
fn opened(log: &Path) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
    text.lines().filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect()
}

fn descriptor(kind: &str, extents: &str) -> Vec<u8> {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"{kind}\"\n\n{extents}\n"
    )
    .into_bytes()
}

/// THREATS: a VMDK descriptor gives the guest any file of the host to read and write.
#[test]
fn a_file_of_the_host_through_the_extent_of_a_vmdk() {
    let site = Site::new();
    let secret = site.secret();
    for (name, kind, line) in [
        ("flat.vmdk", "monolithicFlat", format!("RW 2048 FLAT \"{secret}\" 0")),
        ("tabs.vmdk", "monolithicFlat", format!("RW\t2048  FLAT\t\"{secret}\" 0")),
        ("relative.vmdk", "twoGbMaxExtentFlat", "RW 2048 FLAT \"secret\" 0".to_owned()),
        ("vmfs.vmdk", "vmfs", format!("RW 2048 VMFS \"{secret}\"")),
        ("sparse.vmdk", "twoGbMaxExtentSparse", format!("RW 2048 SPARSE \"{secret}\"")),
    ] {
        let image = site.file(name, &descriptor(kind, &line));
        site.every_command_refuses(&image, &[name, "names other files", "secret"]);
    }
}

/// The same, behind a header that looks like a self-contained file: QEMU reads an embedded
/// descriptor when the capacity is 0.
#[test]
fn a_file_of_the_host_through_a_descriptor_that_is_embedded_in_a_vmdk() {
    let site = Site::new();
    let image = site.file("embedded.vmdk", &embedded(&site.secret()));
    site.every_command_refuses(&image, &["embedded.vmdk", "names other files", &site.secret()]);
}

fn embedded(secret: &str) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..8].copy_from_slice(b"KDMV\x01\0\0\0");
    bytes[28..36].copy_from_slice(&1u64.to_le_bytes());
    bytes.extend(descriptor("monolithicFlat", &format!("RW 2048 FLAT \"{secret}\" 0")));
    bytes.resize(4096, 0);
    bytes
}

/// The parent of a delta disk, in a header that is otherwise whole.
#[test]
fn a_file_of_the_host_through_the_parent_of_a_vmdk() {
    let site = Site::new();
    let image = site.at("delta.vmdk");
    qemu_img(&["create", "-q", "-f", "vmdk", &image, "8M"]);
    let mut bytes = std::fs::read(&image).unwrap();
    let end = bytes[512..].iter().position(|byte| *byte == 0).unwrap() + 512;
    let line = format!("\nparentFileNameHint=\"{}\"\n", site.secret());
    bytes[end..end + line.len()].copy_from_slice(line.as_bytes());
    std::fs::write(&image, bytes).unwrap();
    site.every_command_refuses(&image, &["delta.vmdk", "parent", &site.secret()]);
}

/// Backing files and external data files of qcow2, in the spellings that QEMU follows.
#[test]
fn a_file_of_the_host_through_the_backing_file_or_data_file_of_a_qcow2() {
    let site = Site::new();
    let secret = site.secret();
    for (name, backing) in [
        ("absolute.qcow2", secret.clone()),
        ("relative.qcow2", "secret".to_owned()),
        ("file.qcow2", format!("file:{secret}")),
        (
            "json.qcow2",
            format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}"#),
        ),
        ("nbd.qcow2", "nbd://127.0.0.1:1/x".to_owned()),
    ] {
        let image = site.at(name);
        qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", &backing, "-F", "raw", &image, "1M"]);
        site.every_command_refuses(&image, &[name, "names other files", "backing file"]);
    }
    let image = site.at("data.qcow2");
    let options = format!("data_file={secret},data_file_raw=on");
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, &image, "1M"]);
    site.hide_secret();
    site.every_command_refuses(&image, &["data.qcow2", "external data file", &secret]);
}

/// THREATS: a guest writes a header into its raw disk; what was exported comes back as another
/// format.
#[test]
fn another_format_for_the_raw_disk_of_a_guest() {
    let site = Site::new();
    let secret = site.secret();
    let mut qcow2 = vec![0; 512];
    qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    qcow2[8..16].copy_from_slice(&256u64.to_be_bytes());
    qcow2[16..20].copy_from_slice(&(secret.len() as u32).to_be_bytes());
    qcow2[20..24].copy_from_slice(&16u32.to_be_bytes());
    qcow2[24..32].copy_from_slice(&(1u64 << 20).to_be_bytes());
    qcow2[100..104].copy_from_slice(&104u32.to_be_bytes());
    qcow2[256..256 + secret.len()].copy_from_slice(secret.as_bytes());
    let mut footer = vec![0; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[60..64].copy_from_slice(&2u32.to_be_bytes());
    let heads: [(&str, Vec<u8>, Vec<u8>); 7] = [
        ("vmdk", descriptor("monolithicFlat", &format!("RW 2048 FLAT \"{secret}\" 0")), Vec::new()),
        ("kdmv", embedded(&secret), Vec::new()),
        ("qcow2", qcow2, Vec::new()),
        ("luks", b"LUKS\xba\xbe\0\x01".to_vec(), Vec::new()),
        ("vhd", Vec::new(), footer),
        ("xml", b"<domain type='kvm'>".to_vec(), Vec::new()),
        ("gzip", b"\x1f\x8b\x08".to_vec(), Vec::new()),
    ];
    for (name, head, tail) in heads {
        let mut disk = vec![0; 1 << 20];
        disk[..head.len()].copy_from_slice(&head);
        let end = disk.len() - tail.len();
        disk[end..].copy_from_slice(&tail);
        let raw = site.file(&format!("{name}.raw"), &disk);
        site.lab.ok(&["create", name, "--disk", &format!("{raw},format=raw")]);
        for extension in ["raw", "img", "disk"] {
            let back = site.at(&format!("{name}-back.{extension}"));
            let (done, opened) = site.traced(&["image", "export", name, &back, "-O", "raw"]);
            done.ok();
            assert!(!opened.contains(&secret), "exporting {name} opened the secret");
            assert!(std::fs::read(&back).unwrap() == disk, "{name}: the export is another disk");
            // Without a format: refused, with both readings. With raw: the same bytes. Never
            // another file.
            site.refuses(&["create", "again", "--disk", &back], &["format=raw"]);
            let (done, opened) =
                site.traced(&["create", "again", "--disk", &format!("{back},format=raw")]);
            done.ok();
            assert!(!opened.contains(&secret), "creating from {name} opened the secret");
            let third = site.at("third.raw");
            site.lab.ok(&["image", "export", "again", &third]);
            assert!(std::fs::read(&third).unwrap() == disk, "{name}: it came back as another disk");
            site.lab.ok(&["rm", "again", "--force"]);
            std::fs::remove_file(&third).unwrap();
        }
    }
}

/// THREATS: `image info FIFO` hangs and ignores Ctrl-C.
#[test]
fn a_command_that_hangs_on_a_fifo_or_touches_a_device() {
    let site = Site::new();
    let fifo = site.at("fifo");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = site.at("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let directory = site.lab.path().to_str().unwrap().to_owned();
    let link = site.at("link.qcow2");
    std::os::unix::fs::symlink(&fifo, &link).unwrap();
    for (file, what) in [
        (fifo.as_str(), "FIFO"),
        (&link, "FIFO"),
        (&socket, "socket"),
        (&directory, "directory"),
        ("/dev/zero", "device"),
    ] {
        let out = site.at("out.qcow2");
        site.refuses(&["image", "info", file], &[what]);
        site.refuses(&["image", "check", file], &[what]);
        site.refuses(&["image", "convert", file, &out], &[what]);
        site.refuses(&["image", "convert", "--with-backing", file, &out], &[what]);
        site.refuses(&["create", "x", "--disk", file], &[what]);
        site.refuses(&["create", "x", "--disk", &format!("{file},use,format=raw")], &[what]);
        site.refuses(&["seal", file], &[what]);
    }
    // Nor is one written to, or a file put in its place.
    let (image, device) = (site.at("image.qcow2"), site.at("device"));
    qemu_img(&["create", "-q", "-f", "qcow2", &image, "1M"]);
    site.lab.ok(&["create", "vm", "--disk", &image]);
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        nix::sys::stat::mknod(
            device.as_str(),
            kind,
            nix::sys::stat::Mode::S_IRWXU,
            nix::sys::stat::makedev(1, 3),
        )
        .unwrap();
    }
    for (out, what) in [(&fifo, "FIFO"), (&link, "FIFO"), (&socket, "socket"), (&device, "device")]
    {
        if !is_root && out == &device {
            continue;
        }
        let before = std::fs::symlink_metadata(out).unwrap().file_type();
        for force in [&[][..], &["--force"]] {
            site.refuses(&[&["image", "convert", &image, out][..], force].concat(), &[what]);
            site.refuses(&[&["image", "export", "vm", out][..], force].concat(), &[what]);
            site.refuses(&[&["seal", &image, "--out", out][..], force].concat(), &[what]);
        }
        assert_eq!(std::fs::symlink_metadata(out).unwrap().file_type(), before, "{out}");
    }
    // What a backing file leads to is looked at in the same way.
    let overlay = site.at("overlay.qcow2");
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", "fifo", "-F", "raw", &overlay, "1M"]);
    site.refuses(&["create", "x", "--disk", &overlay, "--with-backing"], &["FIFO"]);
}

/// The owner of a file that is used in its place changes it while the VM is stopped.
#[test]
fn a_file_of_the_host_through_an_image_that_changes_after_it_was_taken() {
    let site = Site::new();
    let image = site.at("used.vmdk");
    qemu_img(&["create", "-q", "-f", "vmdk", &image, "8M"]);
    site.lab.ok(&["create", "used", "--disk", &format!("{image},use"), "--net", "none"]);
    let line = format!("RW 2048 FLAT \"{}\" 0", site.secret());
    std::fs::write(&image, descriptor("monolithicFlat", &line)).unwrap();
    for args in [
        &["start", "used"][..],
        &["image", "export", "used", &site.at("out.raw")],
        &["clone", "used", "c", "--full"],
    ] {
        let (done, opened) = site.traced(args);
        assert_ne!(done.code, 0, "{args:?}");
        assert!(!opened.contains(&site.secret()), "{args:?} opened the secret");
    }
    let image = site.at("used.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", &image, "8M"]);
    site.lab.ok(&["create", "other", "--disk", &format!("{image},use"), "--net", "none"]);
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", &site.secret(), "-F", "raw", &image]);
    let (done, opened) = site.traced(&["start", "other"]);
    done.fails(8, &["not a layer of the store"]);
    assert!(!opened.contains(&site.secret()));
    // Nor may it choose among the layers of others.
    site.lab.ok(&["create", "victim", "--size", "8M"]);
    let layer = &site.lab.chain("victim")[0];
    qemu_img(&[
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-b",
        &format!("{layer}.qcow2"),
        "-F",
        "qcow2",
        &image,
    ]);
    for args in [
        &["start", "other"][..],
        &["image", "export", "other", &site.at("out.raw")],
        &["clone", "other", "d", "--full"],
    ] {
        site.lab.run(args).fails(8, &["is a file in its place"]);
    }
    site.lab.ok(&["clone", "victim", "mine"]);
    site.lab.ok(&["rm", "mine"]);
    site.lab.ok(&["rm", "victim"]);
}

/// THREATS: `qemu-img` looks at images as root, without limits. Here an image has taken it over: it
/// is a program of the attacker's.
#[test]
fn the_host_through_a_qemu_img_that_an_image_has_taken_over() {
    let site = Site::new();
    let bin = site.lab.path().join("tools/bin");
    std::fs::create_dir_all(&bin).unwrap();
    let real = std::env::var_os("COWHAND_QEMU")
        .map_or_else(|| PathBuf::from("/usr/bin/qemu-system-x86_64"), PathBuf::from);
    if !real.is_absolute() {
        return skip(
            "the_host_through_a_qemu_img_that_an_image_has_taken_over",
            "COWHAND_QEMU is not a path",
        );
    }
    std::os::unix::fs::symlink(&real, bin.join("qemu-system-x86_64")).unwrap();
    let image = site.at("image.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", &image, "8M"]);
    let run = |script: &str| {
        let path = bin.join("qemu-img");
        let mut file = std::fs::File::create(&path).unwrap();
        write!(file, "#!/bin/sh\n{script}\n").unwrap();
        drop(file);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let mut command = site.lab.command(&["image", "info", &image]);
        let done: Done = command
            .env("COWHAND_QEMU", bin.join("qemu-system-x86_64"))
            .env("STOLEN", "variable")
            .output()
            .unwrap()
            .into();
        done
    };
    // What it can reach, it would print as its last words.
    let done = run(&format!("cat {} >&2; exit 1", site.secret()));
    if done.err.contains("the secret of the host") {
        return skip(
            "the_host_through_a_qemu_img_that_an_image_has_taken_over",
            "this kernel has no Landlock",
        );
    }
    done.fails(7, &["Permission denied"]);
    run(&format!("echo x > {}; exit 1", site.at("planted"))).fails(7, &[]);
    assert!(!Path::new(&site.at("planted")).exists());
    run(&format!("echo x >> {image}; exit 1")).fails(7, &["Permission denied"]);
    let done = run("env >&2; cat /proc/self/environ >&2; exit 1");
    assert!(!done.err.contains("STOLEN") && !done.err.contains("COWHAND_STORE"), "{}", done.err);
    // Memory: the limit ends it. (Processor time and file size: see the tests in `sys/cage`.)
    run("x=x; while :; do x=$x$x; done").fails(7, &[]);
    // Signals reach nobody else.
    let sleeper = Command::new("sleep").arg("300").spawn().unwrap();
    run(&format!("kill -9 {}; exit 1", sleeper.id()));
    let mut sleeper = sleeper;
    let alive = sleeper.try_wait().unwrap().is_none();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    if cowhand_kernel_scopes_signals() {
        assert!(alive, "a program in the cage has killed another one");
    }
}

/// Landlock scopes signals from Linux 6.12 on.
fn cowhand_kernel_scopes_signals() -> bool {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 12)
}

/// A file with what is expected of it.
struct Sample {
    path: PathBuf,
    format: Format,
    /// It names another file.
    names: bool,
}

/// Every format and variant that `qemu-img create` writes, with references and without.
fn corpus(room: &Path, qemu_img: &Path) -> Vec<Sample> {
    let mut samples = Vec::new();
    let base = room.join("base.raw");
    std::fs::write(&base, vec![0; 8 << 20]).unwrap();
    let base = base.to_str().unwrap();
    let mut make = |name: &str, format: Format, names: bool, args: &[&str]| {
        let path = room.join(name);
        let mut command = Command::new(qemu_img);
        command.args(["create", "-q", "-f", format.as_str()]).args(args).arg(&path);
        if !args.contains(&"-b") {
            command.arg("8M");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        samples.push(Sample { path, format, names });
    };
    use Format::{Qcow2, Raw, Vdi, Vhdx, Vmdk, Vpc};
    make("plain.raw", Raw, false, &[]);
    for (name, options) in [
        ("v2", "compat=0.10"),
        ("v3", "compat=1.1"),
        ("lazy", "lazy_refcounts=on"),
        ("extended", "extended_l2=on"),
        ("small", "cluster_size=512"),
        ("large", "cluster_size=2M"),
        ("zstd", "compression_type=zstd"),
        ("refcounts", "refcount_bits=1"),
        ("full", "preallocation=full"),
        ("metadata", "preallocation=metadata"),
    ] {
        make(&format!("{name}.qcow2"), Qcow2, false, &["-o", options]);
    }
    for (name, options) in [
        ("backed-v2", "compat=0.10"),
        ("backed-v3", "compat=1.1"),
        ("backed-large", "cluster_size=2M"),
    ] {
        make(&format!("{name}.qcow2"), Qcow2, true, &["-o", options, "-b", base, "-F", "raw"]);
    }
    let json = format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{base}"}}}}"#);
    make("json.qcow2", Qcow2, true, &["-b", &json, "-F", "raw"]);
    for (name, raw) in [("data", "off"), ("data-raw", "on")] {
        let data = room.join(format!("{name}.bin"));
        make(
            &format!("{name}.qcow2"),
            Qcow2,
            true,
            &["-o", &format!("data_file={},data_file_raw={raw}", data.display())],
        );
    }
    for kind in ["monolithicSparse", "streamOptimized"] {
        make(&format!("{kind}.vmdk"), Vmdk, false, &["-o", &format!("subformat={kind}")]);
    }
    make("zeroed.vmdk", Vmdk, false, &["-o", "zeroed_grain=on"]);
    make("compat6.vmdk", Vmdk, false, &["-o", "compat6=on"]);
    for kind in ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"] {
        make(&format!("{kind}.vmdk"), Vmdk, true, &["-o", &format!("subformat={kind}")]);
    }
    let parent = room.join("monolithicSparse.vmdk");
    make("child.vmdk", Vmdk, true, &["-b", parent.to_str().unwrap(), "-F", "vmdk"]);
    for kind in ["dynamic", "fixed"] {
        make(&format!("{kind}.vhdx"), Vhdx, false, &["-o", &format!("subformat={kind}")]);
        make(&format!("{kind}.vhd"), Vpc, false, &["-o", &format!("subformat={kind}")]);
    }
    for kind in ["off", "on"] {
        make(&format!("static-{kind}.vdi"), Vdi, false, &["-o", &format!("static={kind}")]);
    }
    samples
}

/// The files that `qemu-io` opens when it reads from `path`, but for itself and its libraries.
fn opened_by_qemu(room: &Path, path: &Path, format: Format) -> BTreeSet<String> {
    let log = room.join("strace.log");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-s", "4096", "-e", "trace=open,openat,openat2", "-o"]).arg(&log);
    command.env_remove("LD_LIBRARY_PATH");
    command.args(["qemu-io", "-r", "-f", format.as_str(), "-c", "read 0 512"]).arg(path);
    command.stdin(Stdio::null()).output().unwrap();
    let others = |opened: &String| {
        let own = ["/usr/", "/lib", "/etc/", "/proc/", "/sys/", "/dev/"]
            .iter()
            .any(|start| opened.starts_with(start));
        !own && Path::new(opened) != path
    };
    let all = opened(&log);
    assert!(
        all.contains(path.to_str().unwrap()),
        "qemu-io did not open {}: {all:?}",
        path.display()
    );
    all.into_iter().filter(others).collect()
}

fn verdict(path: &Path, format: Format) -> bool {
    let file = std::fs::File::open(path).unwrap();
    let inspection = inspect::inspect(&file, format).unwrap();
    !inspection.names.is_empty()
}

fn other_qemu_img() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/qemu-next");
    let output = Command::new(script).output().unwrap();
    let system = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| Path::new(system.trim()).with_file_name("qemu-img"))
}

#[test]
fn the_inspector_sees_every_reference_that_qemu_img_can_write() {
    let mut programs = vec![PathBuf::from("qemu-img")];
    match other_qemu_img() {
        Some(program) => programs.push(program),
        None => skip(
            "the_inspector_sees_every_reference_that_qemu_img_can_write",
            "there is no newer QEMU here",
        ),
    }
    for program in programs {
        let room = tempfile::tempdir().unwrap();
        let samples = corpus(room.path(), &program);
        for Sample { path, format, names } in &samples {
            let file = std::fs::File::open(path).unwrap();
            let content = inspect::content(&file).unwrap();
            let expected =
                if *format == Format::Raw { Content::Raw } else { Content::Image(*format) };
            assert_eq!(content, expected, "{}", path.display());
            assert_eq!(verdict(path, *format), *names, "{}", path.display());
            let opened = opened_by_qemu(room.path(), path, *format);
            assert_eq!(!opened.is_empty(), *names, "{}: QEMU opened {opened:?}", path.display());
            let inspection = inspect::inspect(&file, *format).unwrap();
            assert!(inspection.virtual_bytes >= 8 << 20, "{}: {inspection:?}", path.display());
        }
        assert!(samples.len() >= 30, "{} samples", samples.len());
    }
}

/// A sample of damaged and forged headers: whenever the verdict is that nothing is named, QEMU
/// opens nothing.
#[test]
fn a_forged_header_that_the_inspector_takes_for_harmless_opens_nothing() {
    let room = tempfile::tempdir().unwrap();
    let samples = corpus(room.path(), Path::new("qemu-img"));
    let mut numbers = Random(15);
    let (mut harmless, mut tried) = (0, 0);
    while tried < 4000 && harmless < 70 {
        tried += 1;
        let sample = &samples[numbers.below(samples.len())];
        let mut bytes = std::fs::read(&sample.path).unwrap();
        bytes.truncate(1 << 20);
        // Where headers lie, a few bytes become others; sometimes the first sector of another
        // sample takes its place.
        for _ in 0..=numbers.below(4) {
            let within = [64, 512, 2048][numbers.below(3)].min(bytes.len());
            bytes[numbers.below(within)] = [0, 1, 4, 0xff, b'"'][numbers.below(5)];
        }
        if numbers.below(4) == 0 {
            let other = std::fs::read(&samples[numbers.below(samples.len())].path).unwrap();
            let length = [80, 512].map(|length: usize| length.min(other.len()).min(bytes.len()))
                [numbers.below(2)];
            bytes[..length].copy_from_slice(&other[..length]);
        }
        let format = Format::ALL[1 + numbers.below(Format::ALL.len() - 1)];
        let forged = room.path().join("forged");
        std::fs::write(&forged, &bytes).unwrap();
        let file = std::fs::File::open(&forged).unwrap();
        let inspection = inspect::inspect(&file, format).unwrap();
        if !inspection.names.is_empty() || inspection.unusable.is_some() {
            continue;
        }
        harmless += 1;
        let opened = opened_by_qemu(room.path(), &forged, format);
        if !opened.is_empty() {
            let kept = std::env::temp_dir().join("cowhand-forged");
            std::fs::copy(&forged, &kept).unwrap();
            panic!(
                "taken for harmless as {format}, QEMU opened {opened:?}; kept as {}",
                kept.display()
            );
        }
    }
    assert!(harmless >= 60, "only {harmless} of {tried} were harmless");
}

/// What a user asks for with `--with-backing`: the files beside the image, listed, and no others.
#[test]
fn a_directory_of_the_host_through_with_backing() {
    let site = Site::new();
    let room = site.lab.path().join("images");
    let elsewhere = site.lab.path().join("elsewhere");
    std::fs::create_dir_all(&room).unwrap();
    std::fs::create_dir_all(&elsewhere).unwrap();
    let at = |name: &str| room.join(name).to_str().unwrap().to_owned();
    // A chain of three, of which the lowest is raw.
    std::fs::write(at("base.raw"), vec![7; 1 << 20]).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", &at("middle.qcow2")]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "middle.qcow2",
        "-F",
        "qcow2",
        &at("top.qcow2"),
    ]);
    let done = site.lab.run(&["create", "chain", "--disk", &at("top.qcow2"), "--with-backing"]);
    for name in ["base.raw", "middle.qcow2"] {
        assert!(done.err.contains(&at(name)), "{name} is not listed: {}", done.err);
    }
    done.ok();
    let chain = site.lab.chain("chain");
    assert_eq!(chain.len(), 3, "{chain:?}");
    site.lab.ok(&["image", "export", "chain", &site.at("chain.raw")]);
    assert!(std::fs::read(site.at("chain.raw")).unwrap() == vec![7; 1 << 20]);
    site.lab.ok(&["doctor"]);
    site.lab.check_images();
    // In several parts: made one file by the command that the refusal names.
    for kind in ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"] {
        let parts = at(&format!("{kind}.vmdk"));
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            &format!("subformat={kind}"),
            &at("base.raw"),
            &parts,
        ]);
        let whole = site.at(&format!("{kind}.raw"));
        site.refuses(&["create", "x", "--disk", &parts], &["cowhand image convert --with-backing"]);
        site.lab.ok(&["image", "convert", "--with-backing", &parts, &whole]);
        assert!(
            std::fs::read(&whole).unwrap() == vec![7; 1 << 20],
            "{kind} came out as something else"
        );
    }
    // The secret lies outside; and inside lies a link that leads there.
    let overlay = at("greedy.qcow2");
    qemu_img(&[
        "create", "-q", "-u", "-f", "qcow2", "-b", "../secret", "-F", "raw", &overlay, "1M",
    ]);
    std::os::unix::fs::symlink(site.secret(), at("innocent.raw")).unwrap();
    let linked = at("linked.qcow2");
    qemu_img(&[
        "create", "-q", "-u", "-f", "qcow2", "-b", "innocent.raw", "-F", "raw", &linked, "1M",
    ]);
    let vmdk = at("greedy.vmdk");
    std::fs::write(&vmdk, descriptor("monolithicFlat", "RW 2048 FLAT \"../secret\" 0")).unwrap();
    for image in [&overlay, &linked, &vmdk] {
        let out = site.at("out.qcow2");
        for within in
            ["--with-backing".to_owned(), format!("--with-backing={}", elsewhere.display())]
        {
            for args in [
                &["create", "x", "--disk", image, &within][..],
                &["image", "convert", &within, image, &out],
            ] {
                let before = site.lab.fingerprint();
                site.lab.run(args).fails(5, &["another directory", "secret"]);
                assert_eq!(site.lab.fingerprint(), before);
            }
        }
        assert!(!Path::new(&out).exists());
    }
    // What lies in a directory below the image's own is not beside it, and has to be named.
    let below = room.join("keys");
    std::fs::create_dir(&below).unwrap();
    std::fs::copy(at("base.raw"), below.join("key.raw")).unwrap();
    let (named, out) = (format!("--with-backing={}", below.display()), site.at("below.raw"));
    std::fs::write(&vmdk, descriptor("monolithicFlat", "RW 2048 FLAT \"keys/key.raw\" 0")).unwrap();
    site.refuses(
        &["image", "convert", "--with-backing", &vmdk, &out],
        &["another directory", "keys"],
    );
    site.lab.ok(&["image", "convert", &named, &vmdk, &out]);
    // A link leads to a path that would be more than one line of the descriptor that QEMU is given.
    let torn = below.join("a\" 0\nRW 2048 FLAT \"b");
    std::fs::create_dir(&torn).unwrap();
    std::fs::copy(at("base.raw"), torn.join("key.raw")).unwrap();
    std::os::unix::fs::symlink(torn.join("key.raw"), at("plain.raw")).unwrap();
    std::fs::write(&vmdk, descriptor("monolithicFlat", "RW 2048 FLAT \"plain.raw\" 0")).unwrap();
    site.refuses(
        &["image", "convert", &named, &vmdk, &site.at("torn.raw")],
        &["not one line of text"],
    );
    // A loop ends.
    qemu_img(&[
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "loop.qcow2",
        "-F",
        "qcow2",
        &at("loop.qcow2"),
        "1M",
    ]);
    site.refuses(&["create", "x", "--disk", &at("loop.qcow2"), "--with-backing"], &["never end"]);
}

/// A real guest whose image names nothing is taken as ever.
#[test]
fn nothing_of_an_honest_image_is_refused() {
    let site = Site::new();
    let disk = guest("tiny").disk();
    let sealed = site.at("converted.vhdx");
    site.lab.ok(&["image", "convert", &disk, &sealed]);
    site.lab.ok(&["image", "info", &sealed]);
    site.lab.ok(&["create", "honest", "--disk", &sealed]);
    let vmdk = site.at("honest.vmdk");
    site.lab.ok(&["image", "convert", &disk, &vmdk]);
    site.lab.ok(&["create", "honest2", "--disk", &vmdk]);
    site.lab.ok(&["snapshot", "create", "honest2", "s"]);
    let back = site.at("back.qcow2");
    site.lab.ok(&["image", "export", "honest2@s", &back]);
    let compare = Command::new("qemu-img")
        .args(["compare", "-f", "qcow2", "-F", "qcow2", &disk, &back])
        .output()
        .unwrap();
    assert!(compare.status.success(), "{compare:?}");
}
