//! Making VMs, and everything that must be refused before anything is touched.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::lab::{Lab, qemu_img, skip};

#[test]
fn what_qemu_was_asked_before_there_was_a_store_is_kept_in_it() {
    let lab = Lab::new();
    let probe = lab.store().join("qemu-probe.json");
    lab.run(&["create", "web", "--size", "16M", "--machine", "pc-q35-99.9"])
        .fails(5, &["pc-q35-99.9"]);
    assert!(!lab.store().exists());
    lab.ok(&["create", "web", "--size", "16M"]);
    let kept = std::fs::read_to_string(&probe).unwrap();
    assert!(kept.contains("pc-q35-"), "{kept}");
}

#[test]
fn every_bad_request_is_refused_with_its_code_and_changes_nothing() {
    let lab = Lab::new();
    let at = |name: &str| lab.path().join(name).to_str().unwrap().to_owned();
    let (good, overlay, garbage) = (at("good.qcow2"), at("overlay.qcow2"), at("short.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", &good, "64M"]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &good, "-F", "qcow2", &overlay]);
    std::fs::write(&garbage, b"QFI\xfb\0\0\0\x03").unwrap();
    std::fs::write(at("empty.img"), b"").unwrap();
    std::fs::write(at("odd.img"), b"x").unwrap();
    lab.ok(&["create", "taken", "--size", "64M"]);
    let before = lab.fingerprint();

    let long = "x".repeat(200);
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["create", "a/b", "--size", "1G"], 2, &["'/'"]),
        (&["create", ".a", "--size", "1G"], 2, &["'.'"]),
        (&["create", "a b", "--size", "1G"], 2, &["' '"]),
        (&["create", &long, "--size", "1G"], 2, &["200 characters"]),
        (&["create", "taken", "--size", "1G"], 4, &["taken"]),
        (&["create", "x"], 2, &["boot from"]),
        (&["create", "x", "--size", "1X"], 2, &["1X"]),
        (&["create", "x", "--size", "0"], 2, &["0 bytes"]),
        (&["create", "x", "--size", "1G", "--memory", "lots"], 2, &["lots"]),
        (&["create", "x", "--size", "1G", "--memory", "0"], 2, &["memory"]),
        (&["create", "x", "--size", "1G", "--cpus", "many"], 2, &["many"]),
        (&["create", "x", "--size", "1G", "--machine", "pc-q35-99.9"], 5, &["pc-q35-99.9"]),
        (
            &["create", "x", "--size", "1G", "--kernel", "/nowhere/vmlinuz"],
            3,
            &["/nowhere/vmlinuz"],
        ),
        (&["create", "x", "--size", "1G", "--net", "none", "-p", "1:1"], 2, &["--net none"]),
        (&["create", "x", "--disk", "/nowhere/disk.img"], 3, &["/nowhere/disk.img"]),
        (&["create", "x", "--disk", lab.path().to_str().unwrap()], 5, &["directory"]),
        (&["create", "x", "--disk", "/dev/zero"], 5, &["not an ordinary file"]),
        (&["create", "x", "--disk", &overlay], 5, &["names other files", &good, "--with-backing"]),
        (
            &["create", "x", "--disk", &format!("{good},format=vmdk")],
            5,
            &["is not vmdk", "it is qcow2"],
        ),
        (&["create", "x", "--disk", &garbage], 5, &["no qcow2 header"]),
        (&["create", "x", "--disk", &at("empty.img")], 5, &["0 bytes"]),
        (&["create", "x", "--disk", &at("odd.img")], 5, &["512"]),
        (&["start", "nobody"], 3, &["nobody"]),
        (&["stop", "nobody"], 3, &["nobody"]),
        (&["show", "nobody"], 3, &["nobody"]),
        (&["rm", "nobody"], 3, &["nobody"]),
        (&["start", "take"], 3, &["did you mean taken?"]),
        (&["clone", "nobody", "x"], 3, &["nobody"]),
        (&["clone", "taken", "taken"], 4, &["taken"]),
        (&["snapshot", "ls", "nobody"], 3, &["nobody"]),
        (&["snapshot", "revert", "taken@no"], 3, &["no snapshot no"]),
        (&["snapshot", "revert", "taken@current"], 3, &["has no current snapshot"]),
        (&["snapshot", "revert", "taken"], 2, &["names no snapshot"]),
        (&["snapshot", "create", "taken", "current"], 2, &["current"]),
        (&["disk", "chain", "taken", "vdz"], 3, &["vda"]),
        (&["set", "taken", "memory"], 2, &["KEY=VALUE"]),
        (&["set", "taken", "memory=1G", "colour=red"], 2, &["colour"]),
        (&["set", "taken", "cpus=0"], 2, &["CPUs"]),
        (&["rename", "taken", "taken"], 4, &["taken"]),
        (
            &[
                "template", "create", "taken", "--appliance-kernel", "/none",
                "--appliance-modules", "/none",
            ],
            3,
            &["/none", "--no-seal"],
        ),
        (&["template", "rm", "taken"], 5, &["not a template"]),
        (&["exec", "taken", "--", "true"], 125, &["not running"]),
        (&["console", "taken"], 5, &["not running"]),
        (&["logs", "taken"], 3, &["never been started"]),
        (&["pause", "taken"], 5, &["not running"]),
        (&["cp", "a", "b"], 2, &["VM:PATH"]),
        (&["gc", "--older-than", "soon"], 2, &["soon"]),
        (&["gc", "--older-than", "1"], 2, &["\"1\" has no unit", "1s", "1d"]),
    ];
    for (args, code, words) in cases {
        lab.run(args).fails(*code, words);
        assert_eq!(lab.fingerprint(), before, "{args:?} changed the store");
    }
}

#[test]
fn an_unreadable_disk_is_refused() {
    if nix::unistd::geteuid().is_root() {
        return skip(
            "an_unreadable_disk_is_refused",
            "root reads everything; `user.rs` tries it as somebody else",
        );
    }
    let lab = Lab::new();
    let disk = lab.path().join("disk.img");
    std::fs::write(&disk, [0; 512]).unwrap();
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o0)).unwrap();
    lab.run(&["create", "x", "--disk", disk.to_str().unwrap()]).fails(1, &["Permission denied"]);
}

#[test]
fn a_missing_qemu_is_named_before_anything_is_made() {
    let lab = Lab::new();
    let run = |qemu: &str| {
        lab.command(&["create", "x", "--size", "1G"])
            .env("COWHAND_QEMU", qemu)
            .output()
            .unwrap()
            .into()
    };
    let done: crate::lab::Done = run("qemu-that-is-not-there");
    done.fails(1, &["not in PATH", "COWHAND_QEMU"]);
    let done: crate::lab::Done = run("/nowhere/qemu");
    done.fails(1, &["/nowhere/qemu"]);
    let done: crate::lab::Done = run("/bin/false");
    done.fails(7, &["/bin/false"]);
    assert_eq!(lab.vm_directories(), [""; 0]);
}

#[test]
fn a_store_that_cannot_be_written_and_sockets_that_cannot_be_are_refused() {
    let lab = Lab::new();
    let mut command = lab.command(&["create", "x", "--size", "1G"]);
    let done: crate::lab::Done =
        command.env("COWHAND_STORE", "/proc/nowhere").output().unwrap().into();
    done.fails(1, &["/proc/nowhere", "--store"]);
    let long = lab.path().join("r".repeat(90));
    let mut command = lab.command(&["create", "x", "--size", "1G"]);
    let done: crate::lab::Done = command.env("XDG_RUNTIME_DIR", &long).output().unwrap().into();
    done.fails(5, &["107", "XDG_RUNTIME_DIR"]);
    assert_eq!(lab.vm_directories(), [""; 0]);
}

#[test]
fn a_copied_image_is_the_same_and_the_original_is_left_alone() {
    let lab = Lab::new();
    for format in ["raw", "qcow2", "vmdk", "vhdx", "vdi", "vpc"] {
        let raw = lab.path().join("data.raw");
        let bytes: Vec<u8> = (0..3 << 20).map(|n: usize| (n / 4096 % 251) as u8).collect();
        std::fs::write(&raw, &bytes).unwrap();
        let image = lab.path().join(format!("odd, name.{format}"));
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            format,
            raw.to_str().unwrap(),
            image.to_str().unwrap(),
        ]);
        let before = std::fs::read(&image).unwrap();
        lab.ok(&["create", format, "--disk", image.to_str().unwrap()]);
        assert_eq!(std::fs::read(&image).unwrap(), before, "{format}: the original was changed");
        let disk = lab.json(&["disk", "ls", format])[0].clone();
        assert_eq!(disk["format"], format);
        let back = lab.path().join("back.raw");
        qemu_img(&[
            "convert",
            "-f",
            format,
            "-O",
            "raw",
            disk["file"].as_str().unwrap(),
            back.to_str().unwrap(),
        ]);
        assert_eq!(
            &std::fs::read(&back).unwrap()[..bytes.len()],
            &bytes[..],
            "{format}: the copy differs"
        );
    }
}

#[test]
fn nothing_in_the_store_is_readable_by_others() {
    let lab = Lab::new();
    lab.booted("web");
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["clone", "web@s", "thin"]);
    lab.ok(&["clone", "web@s", "full", "--full"]);
    let mut seen = 0;
    for root in [lab.store(), lab.path().join("run/cowhand")] {
        private_below(&root, &mut seen);
    }
    assert!(seen > 15, "only {seen} files were looked at");
}

fn private_below(path: &Path, seen: &mut usize) {
    let about = path.symlink_metadata().unwrap();
    *seen += 1;
    if !about.is_symlink() && path.extension().is_none_or(|extension| extension != "sock") {
        assert_eq!(about.permissions().mode() & 0o077, 0, "{}", path.display());
    }
    if about.is_dir() {
        std::fs::read_dir(path)
            .unwrap()
            .for_each(|entry| private_below(&entry.unwrap().path(), seen));
    }
}

#[test]
fn a_disk_that_is_used_is_written_in_place_and_never_removed() {
    let lab = Lab::new();
    let disk = lab.path().join("mine.qcow2");
    let image = disk.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", image, "64M"]);
    let request = format!("{image},use");
    lab.ok(&["create", "one", "--disk", &request]);
    lab.run(&["create", "two", "--disk", &request]).fails(5, &["used by another VM"]);
    lab.ok(&["snapshot", "create", "one", "s"]);
    lab.ok(&["snapshot", "rm", "one@s"]);
    assert_eq!(lab.chain("one").len(), 1);
    lab.ok(&["rm", "one"]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert!(disk.exists(), "the user's file is gone");
    lab.ok(&["create", "two", "--disk", &request]);
}
