//! Guests that come over from libvirt: what a domain has, the VM has, or it is told.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{Lab, eventually, files_in, guest, qemu_img, tool};
use crate::ports::free_port;

const UUID: &str = "5bb3ec0e-0f5c-4c8e-8f3a-3f3c7d1a2b4c";
const MAC: &str = "52:54:00:12:ab:cd";

/// The XML of a domain called `web`, with these disks, as `virsh dumpxml` prints it.
fn domain(disks: &str, os: &str) -> String {
    format!(
        "<domain type='kvm' id='3'>
  <name>web</name>
  <uuid>{UUID}</uuid>
  <memory unit='KiB'>196608</memory>
  <currentMemory unit='KiB'>196608</currentMemory>
  <vcpu placement='static'>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>{os}</os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='allow'>qemu64</model></cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/></clock>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {disks}
    <interface type='network'><mac address='{MAC}'/><source network='default'/><model \
         type='virtio'/></interface>
    <graphics type='vnc' port='-1'/>
  </devices>
</domain>
"
    )
}

fn disk(file: &Path, target: &str) -> String {
    let (file, format) = (file.display(), file.extension().unwrap().to_str().unwrap());
    let bus = if target.starts_with("vd") { "virtio" } else { "sata" };
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source \
         file='{file}'/><target dev='{target}' bus='{bus}'/></disk>"
    )
}

pub fn write(lab: &Lab, name: &str, xml: &str) -> String {
    let path = lab.path().join(name);
    std::fs::write(&path, xml).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A domain that boots.
pub fn booting(lab: &Lab) -> String {
    let tiny = guest("tiny");
    let copy = lab.path().join("web.qcow2");
    std::fs::copy(tiny.disk(), &copy).unwrap();
    let [kernel, initrd] =
        [(&tiny.kernel, "vmlinuz"), (&tiny.initrd, "initrd")].map(|(file, name)| {
            let beside = lab.path().join(name);
            std::fs::copy(file, &beside).unwrap();
            beside.display().to_string()
        });
    let cmdline = tiny.cmdline.replace('&', "&amp;");
    let os =
        format!("<kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{cmdline}</cmdline>");
    domain(&disk(&copy, "vda"), &os)
}

fn parts(value: &Value, fate: &str) -> Vec<String> {
    let parts = value["parts"].as_array().unwrap().iter().filter(|part| part["fate"] == fate);
    parts.map(|part| part["what"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_domain_boots_with_its_disk_its_addresses_and_its_identity() {
    let lab = Lab::new();
    let xml = booting(&lab);
    let path = write(&lab, "web.xml", &xml);
    let listed = lab.ok(&["import", &path, "--dry-run"]);
    for words in [
        "comes over:", "192 MiB", "is changed:", "network default becomes a user network",
        "is left out:", "vnc",
    ] {
        assert!(listed.contains(words), "{words}: {listed}");
    }
    assert!(!lab.store().join("vms").exists() || lab.vm_directories().is_empty());
    let done = lab.json(&["import", &path]);
    assert_eq!(done["uuid"], UUID);
    assert!(parts(&done, "kept").contains(&"disk vda".to_owned()), "{done}");
    let shown = lab.json(&["show", "web"]);
    assert_eq!((&shown["uuid"], &shown["nics"][0]["mac"]), (&Value::from(UUID), &Value::from(MAC)));
    assert!(shown["machine"].as_str().unwrap().starts_with("pc-q35-"), "{shown}");
    lab.ok(&["start", "web"]);
    assert_eq!(lab.sh("web", "cat /sys/class/net/e*/address").trim(), MAC);
    assert_eq!(
        lab.sh("web", "cat /sys/class/dmi/id/product_uuid").trim().to_ascii_lowercase(),
        UUID
    );
    lab.ok(&["stop", "web"]);
    // What is there already is left alone, and so is its identity.
    lab.run(&["import", &path]).fails(4, &["the name web is taken", "--name"]);
    let again = lab.json(&["import", &path, "--name", "other"]);
    assert_ne!(again["uuid"], UUID);
    assert!(parts(&again, "changed").contains(&"UUID".to_owned()), "{again}");
}

/// The user's way: a domain becomes a template, and that four web servers.
#[test]
fn a_domain_becomes_a_template_and_that_four_web_servers() {
    let lab = Lab::new();
    let xml = booting(&lab);
    let mut import = lab.command(&["import", "-", "--template", "--name", "tpl"]);
    let mut child = import
        .current_dir(lab.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(xml.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stdout).contains("cowhand clone tpl NEW"));
    lab.ok(&["clone", "tpl", "web", "-n", "4"]);
    let listed = lab.json(&["template", "ls"]);
    assert_eq!(listed[0]["dependents"].as_array().unwrap().len(), 4, "{listed}");
    // Each answers on a port of its own, and has an address of its own.
    let names: Vec<String> = (1..=4).map(|at| format!("web-{at}")).collect();
    let ports: Vec<u16> = names.iter().map(|_| free_port()).collect();
    for (name, port) in names.iter().zip(&ports) {
        lab.ok(&["set", name, &format!("ports={port}:80")]);
    }
    let mut start = vec!["start"];
    start.extend(names.iter().map(String::as_str));
    lab.ok(&start);
    for (name, port) in names.iter().zip(&ports) {
        lab.write(name, "/var/www/index.html", name);
        eventually("the web server answers", || {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", *port)) else { return false };
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut answer = String::new();
            let asked = stream
                .write_all(b"GET / HTTP/1.0\r\n\r\n")
                .and_then(|()| stream.read_to_string(&mut answer));
            asked.is_ok() && answer.trim_end().ends_with(name)
        });
    }
    let macs =
        (1..=4).map(|at| lab.json(&["show", &format!("web-{at}")])["nics"][0]["mac"].to_string());
    let macs: std::collections::BTreeSet<String> = macs.collect();
    assert!(macs.len() == 4 && !macs.contains(MAC));
}

#[test]
fn a_chain_of_files_comes_over_whole_and_the_originals_stay() {
    let lab = Lab::new();
    let at = |name: &str| lab.path().join(name);
    let word = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let (base, top, raw) = (at("base.qcow2"), at("top.qcow2"), at("data.raw"));
    qemu_img(&["create", "-q", "-f", "qcow2", &word(&base), "16M"]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1M 1M", &word(&base)]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &word(&base), "-F", "qcow2", &word(&top)]);
    std::fs::write(&raw, vec![7; 1 << 20]).unwrap();
    let sums =
        |files: [&PathBuf; 3]| files.map(|file| tool("sha256sum", &[file.to_str().unwrap()]));
    let before = sums([&base, &top, &raw]);
    // The data disk is named first, and the other one is booted from.
    let disks =
        disk(&raw, "sda") + &disk(&top, "vda").replace("<source", "<boot order='1'/><source");
    let path = write(&lab, "web.xml", &domain(&disks, ""));
    let done = lab.json(&["import", &path]);
    assert!(parts(&done, "kept").contains(&"disk sda".to_owned()), "{done}");
    let shown = lab.json(&["show", "web"]);
    let drives: Vec<&Value> = shown["disks"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|disk| [&disk["target"], &disk["bus"]])
        .collect();
    assert_eq!(drives, ["vda", "virtio", "sda", "sata"]);
    assert_eq!(shown["disks"][0]["chain"].as_array().unwrap().len(), 2);
    assert_eq!(shown["disks"][1]["virtual_bytes"], 1 << 20);
    lab.ok(&["image", "export", "web", &word(&at("flat.raw")), "--disk", "vda"]);
    let flat = std::fs::read(at("flat.raw")).unwrap();
    assert!(flat[1 << 20..2 << 20].iter().all(|byte| *byte == 9));
    assert_eq!(sums([&base, &top, &raw]), before);
    // In their place, they are the VM's.
    lab.ok(&[
        "import",
        &write(&lab, "use.xml", &domain(&disk(&raw, "vda"), "")),
        "--name",
        "used",
        "--disk-mode",
        "use",
    ]);
    assert_eq!(lab.json(&["show", "used"])["disks"][0]["format"], "raw");
}

#[test]
fn what_cannot_come_over_makes_no_vm_and_says_why() {
    let lab = Lab::new();
    lab.ok(&["create", "taken", "--size", "16M"]);
    let at = |name: &str| lab.path().join(name);
    let good = at("good.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", good.to_str().unwrap(), "16M"]);
    // A chain that never ends, a file of the host, a format that it is not.
    let (a, b) = (at("a.qcow2"), at("b.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", a.to_str().unwrap(), "16M"]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        a.to_str().unwrap(),
        "-F",
        "qcow2",
        b.to_str().unwrap(),
    ]);
    qemu_img(&["rebase", "-u", "-b", b.to_str().unwrap(), "-F", "qcow2", a.to_str().unwrap()]);
    let hidden = at("hidden.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "/etc/passwd",
        "-F",
        "raw",
        hidden.to_str().unwrap(),
        "16M",
    ]);
    let (gone, lies) = (at("gone.qcow2"), at("lies.qcow2"));
    std::fs::write(&lies, vec![0; 1 << 20]).unwrap();
    let network = "<disk type='network' device='disk'><source protocol='rbd' name='x'/><target \
                   dev='vda' bus='virtio'/></disk>";
    let before = lab.fingerprint();
    for (xml, args, code, words) in [
        (domain(&disk(&gone, "vda"), ""), &[][..], 3, &["disk vda is not there", "gone.qcow2"][..]),
        (domain(&disk(&a, "vda"), ""), &[], 5, &["a.qcow2"]),
        (domain(&disk(&hidden, "vda"), ""), &[], 5, &["/etc/passwd"]),
        (domain(&disk(&lies, "vda"), ""), &[], 5, &["is not qcow2"]),
        (
            domain(network, ""),
            &[],
            5,
            &[
                "disk vda, from which it boots, does not come over",
                "of the type network",
                "--disk vda=FILE",
            ],
        ),
        (
            domain(&disk(&good, "vda"), ""),
            &["--strict"],
            5,
            &["cannot be imported unchanged", "left graphics", "--strict"],
        ),
        (domain(&disk(&good, "vda"), ""), &["--name", "taken"], 4, &["taken"]),
        (domain(&disk(&good, "vda"), "").replace("<name>web", "<name>my web"), &[], 2, &["--name"]),
        (
            "<domain type='lxc'><name>x</name></domain>".to_owned(),
            &[],
            5,
            &["another hypervisor (lxc)"],
        ),
        ("QFI\u{fb}".to_owned(), &[], 5, &["is not the XML of a libvirt domain"]),
    ] {
        let path = write(&lab, "bad.xml", &xml);
        let mut line = vec!["import", &path];
        line.extend(args);
        lab.run(&line).fails(code, words);
        assert_eq!(lab.fingerprint(), before, "{xml}");
    }
    lab.run(&["import", "/nowhere.xml"]).fails(3, &["/nowhere.xml"]);
    lab.run(&["import"]).fails(2, &["XML"]);
    assert_eq!(lab.fingerprint(), before);
}

/// Whoever wrote the XML could name any file of the host in it.
#[test]
fn a_file_that_the_xml_alone_names_is_not_used() {
    let lab = Lab::new();
    let (here, elsewhere) = (lab.path().join("here"), lab.path().join("elsewhere"));
    std::fs::create_dir(&here).unwrap();
    std::fs::create_dir(&elsewhere).unwrap();
    let secret = elsewhere.join("secret.raw");
    std::fs::write(&secret, vec![7; 1 << 20]).unwrap();
    let link = here.join("link.raw");
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    let own = here.join("own.raw");
    std::fs::write(&own, vec![8; 1 << 20]).unwrap();
    let below = here.join("below/own.raw");
    std::fs::create_dir(here.join("below")).unwrap();
    std::fs::copy(&own, &below).unwrap();
    lab.ok(&["create", "other", "--size", "16M"]);
    let layer = lab.store().join("layers").join(lab.layer_files()[0].clone());
    let kernel = format!("<kernel>{0}</kernel><initrd>{0}</initrd>", secret.display());
    let with = format!("--with-backing={}", elsewhere.display());
    let before = lab.fingerprint();
    for (xml, words) in [
        (
            domain(&disk(&secret, "vda"), ""),
            &["disk vda is", "only the XML names", "--with-backing=", "--disk vda=FILE"][..],
        ),
        (domain(&disk(&link, "vda"), ""), &["only the XML names"]),
        (domain(&disk(&own, "vda"), &kernel), &["the kernel is", "only the XML names"]),
        (domain(&disk(&below, "vda"), ""), &["only the XML names"]),
        (domain(&disk(Path::new("own.raw"), "vda"), ""), &["is not absolute"]),
    ] {
        let path = write(&lab, "here/web.xml", &xml);
        lab.run(&["import", &path]).fails(5, words);
    }
    let path = write(&lab, "here/web.xml", &domain(&disk(&layer, "vda"), ""));
    let all = format!("--with-backing={}", lab.path().display());
    lab.run(&["import", &path, &all]).fails(5, &["disk vda belongs to the store"]);
    assert_eq!(lab.fingerprint(), before);
    // What the user names is used.
    let path = write(&lab, "here/web.xml", &domain(&disk(&secret, "vda"), ""));
    lab.ok(&["import", &path, &with]);
    lab.ok(&["import", &path, "--name", "named", "--disk", &format!("vda={}", own.display())]);
    let network = "<disk type='network' device='disk'><source protocol='rbd' name='x'/><target \
                   dev='vda' bus='virtio'/></disk>";
    let path = write(&lab, "here/web.xml", &domain(network, ""));
    lab.ok(&["import", &path, "--name", "far", "--disk", &format!("vda={}", own.display())]);
    lab.run(&["import", &path, "--name", "x", "--disk", "vdb=/x"])
        .fails(2, &["has no disk vdb", "it has: vda"]);
    lab.run(&["import", &path, "--name", "x", "--disk", "vdb"]).fails(2, &["is not TARGET=FILE"]);
    lab.run(&["import", &path, "--name", "x", "--disk", "vda=/x", "--disk", "vda=/y"])
        .fails(2, &["twice"]);
    // A file is one disk; and what is noted leads to the same file from wherever the VM is started.
    let twice = disk(&own, "vda") + &disk(&own, "vdb");
    let path = write(&lab, "here/web.xml", &domain(&twice, ""));
    lab.run(&["import", &path, "--name", "x", "--disk-mode", "use"]).fails(5, &["is named twice"]);
    std::os::unix::fs::symlink(&own, here.join("kernel")).unwrap();
    let os = format!("<kernel>{}</kernel>", here.join("kernel").display());
    let path = write(&lab, "here/web.xml", &domain(&disk(&own, "vda"), &os));
    lab.ok(&["import", &path, "--name", "linked"]);
    assert_eq!(
        lab.json(&["show", "linked"])["kernel"]["kernel"],
        own.canonicalize().unwrap().to_str().unwrap()
    );
}

/// UEFI variables come over where they are as long as those of this host's firmware.
#[test]
fn uefi_variables_come_over_where_they_fit() {
    let lab = Lab::new();
    let image = lab.path().join("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "16M"]);
    let variables = lab.path().join("web_VARS.fd");
    std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables).unwrap();
    let mut file = std::fs::File::options().write(true).open(&variables).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(5000)).unwrap();
    file.write_all(b"a boot entry").unwrap();
    let os = format!(
        "<loader readonly='yes' type='pflash'>/c.fd</loader><nvram>{}</nvram>",
        variables.display()
    );
    let path = write(&lab, "web.xml", &domain(&disk(&image, "vda"), &os));
    let done = lab.json(&["import", &path]);
    assert!(parts(&done, "kept").contains(&"UEFI variables".to_owned()), "{done}");
    let nvram = lab.json(&["disk", "ls", "web"]);
    let nvram =
        nvram.as_array().unwrap().iter().find(|disk| disk["target"] == "nvram").unwrap()["file"]
            .clone();
    let raw = lab.path().join("nvram.raw");
    qemu_img(&["convert", "-O", "raw", nvram.as_str().unwrap(), raw.to_str().unwrap()]);
    assert!(std::fs::read(&raw).unwrap()[5000..].starts_with(b"a boot entry"));
    std::fs::write(&variables, vec![0; 1000]).unwrap();
    let done = lab.json(&["import", &path, "--name", "other"]);
    assert!(parts(&done, "changed").contains(&"UEFI variables".to_owned()), "{done}");
}

#[test]
fn libvirt_is_asked_for_a_domain_by_its_name() {
    let lab = Lab::new();
    let xml = write(&lab, "web.xml", &booting(&lab));
    let programs = lab.path().join("programs");
    std::fs::create_dir(&programs).unwrap();
    let virsh = programs.join("virsh");
    let script = format!(
        "#!/bin/sh\n[ \"$*\" = 'dumpxml --inactive --domain web' ] && exec cat {xml}\necho no \
         domain >&2; exit 1\n"
    );
    std::fs::write(&virsh, script).unwrap();
    std::fs::set_permissions(&virsh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let import = |domain: &str| {
        lab.command(&["import", "--libvirt", domain]).env("PATH", &path).output().unwrap()
    };
    let done = import("nothing");
    assert!(
        !done.status.success() && String::from_utf8_lossy(&done.stderr).contains("no domain"),
        "{done:?}"
    );
    let done = import("web");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(lab.json(&["show", "web"])["uuid"], UUID);
    assert_eq!(files_in(&lab.store().join("layers")).len(), 1);
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    /// Each of them that has a disk in a file: with its firmware, its machine, its addresses.
    #[test]
    fn domains_as_virt_install_makes_them_boot() {
        let lab = Lab::new();
        let tiny = guest("tiny");
        let counter = crate::buses::counter(&lab, "counter.qcow2");
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/libvirt");
        let mut booted = 0;
        for file in files_in(&fixtures).iter().filter(|file| file.ends_with(".defined.xml")) {
            let xml = std::fs::read_to_string(fixtures.join(file)).unwrap();
            let images = lab.path().join("images");
            let xml = xml.replace("/var/lib/libvirt/images", images.to_str().unwrap());
            let below = format!("--with-backing={}", images.display());
            let _ = std::fs::remove_dir_all(&images);
            std::fs::create_dir(&images).unwrap();
            for name in xml.split('\'').filter(|word| word.starts_with(images.to_str().unwrap())) {
                match name.ends_with(".qcow2") {
                    // Linux has no driver for SATA and SCSI there, so the boot sector uses the
                    // BIOS's.
                    true if matches!(&file[..2], "05" | "06") => {
                        std::fs::copy(&counter, name).map(drop).unwrap()
                    }
                    true => std::fs::copy(tiny.disk(), name).map(drop).unwrap(),
                    false => std::fs::write(name, vec![0; 1 << 20]).unwrap(),
                }
            }
            let path = write(&lab, "domain.xml", &xml);
            let done = lab.run(&["import", &path, "--name", "web", &below]);
            if file.starts_with("07-nvme") {
                done.fails(5, &["from which it boots, does not come over", "of the type nvme"]);
                continue;
            }
            assert_eq!(done.code, 0, "{file}: {done:?}");
            let shown = lab.json(&["show", "web"]);
            let targets = |kind: &str| -> Vec<String> {
                let all = shown[kind].as_array().unwrap().iter();
                all.map(|one| {
                    format!("{} {}", one["target"].as_str().unwrap(), one["bus"].as_str().unwrap())
                })
                .collect()
            };
            let mut here: Vec<String> = [targets("disks"), targets("cdroms")]
                .concat()
                .into_iter()
                .filter(|disk| !disk.starts_with("nvram"))
                .collect();
            let mut there: Vec<String> = xml
                .split("<target dev='")
                .skip(1)
                .filter_map(|rest| rest.split_once("' bus='"))
                .map(|(target, rest)| format!("{target} {}", rest.split_once('\'').unwrap().0))
                .collect();
            here.sort();
            there.sort();
            assert_eq!(here, there, "{file}");
            let line = match &file[..2] {
                "05" | "06" => Some("boots: 1 "),
                // The firmware has started Linux from the SATA disk, which Linux has no driver for.
                "13" => Some("no file system labelled root"),
                _ => None,
            };
            if let Some(line) = line {
                lab.ok(&["set", "web", "memory=512M", "cpu="]);
                lab.ok(&["start", "web"]);
                eventually(line, || lab.ok(&["logs", "web", "--raw"]).contains(line));
                lab.ok(&["rm", "--force", "web"]);
                booted += 1;
                continue;
            }
            if shown["firmware"] == "bios" {
                let (kernel, initrd) =
                    (format!("kernel={}", tiny.kernel), format!("initrd={}", tiny.initrd));
                lab.ok(&["set", "web", &kernel, &initrd, &format!("append={}", tiny.cmdline)]);
            }
            lab.ok(&["set", "web", "memory=512M", "cpu="]);
            lab.ok(&["start", "web"]);
            // Linux has the driver of virtio alone there; the others have what QEMU says of them.
            let macs = lab.sh("web", "cat /sys/class/net/e*/address");
            for (at, mac) in xml.split("<mac address='").skip(1).map(|rest| &rest[..17]).enumerate()
            {
                let path = format!("/machine/peripheral/dev-net{at}");
                let ask =
                    json!({"execute": "qom-get", "arguments": {"path": path, "property": "mac"}});
                assert_eq!(lab.user_qmp("web", &[ask])[1], mac, "{file}");
                assert!(
                    macs.contains(mac) || (file.starts_with("09") && at > 0),
                    "{file}: {mac}: {macs}"
                );
            }
            lab.ok(&["rm", "--force", "web"]);
            booted += 1;
        }
        assert_eq!(booted, 13);
    }
}
