//! Images of the store: from a file, from a server that is what servers are, from the catalogue;
//! shared by VMs, and never changed.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::lab::{Lab, eventually, files_in, guest, kill, qemu_img, tool};

#[path = "../tests/server.rs"]
pub mod server;

use server::{Reply, Request, Server};

/// A small qcow2 with something in it.
fn small(lab: &Lab, name: &str) -> PathBuf {
    let path = lab.path().join(name);
    let file = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", file, "16M"]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1M 2M", file]);
    path
}

fn sha256(path: &Path) -> String {
    tool("sha256sum", &[path.to_str().unwrap()]).split(' ').next().unwrap().to_owned()
}

/// A server that has `content` at every address.
fn serving(content: Vec<u8>) -> Server {
    Server::new(move |request: &Request, _| Reply::file(&content, "\"one\"", request))
}

/// What is in the store: names, layers and downloads.
fn things(lab: &Lab) -> [Vec<String>; 3] {
    let in_store = |name: &str| {
        let path = lab.store().join(name);
        if path.exists() { files_in(&path) } else { Vec::new() }
    };
    [in_store("vms"), in_store("layers"), in_store("downloads")]
}

fn names(lab: &Lab, args: &[&str]) -> Vec<String> {
    lab.json(args)
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn vms_share_an_image_that_none_of_them_changes() {
    let lab = Lab::new();
    let tiny = guest("tiny");
    let added = lab.json(&["image", "add", &tiny.disk(), "base"]);
    assert_eq!((&added["name"], &added["verified"]), (&Value::from("base"), &Value::from(false)));
    let file = lab.store().join("layers").join(&files_in(&lab.store().join("layers"))[0]);
    let before = sha256(&file);
    let boot = [
        "--kernel", &tiny.kernel, "--initrd", &tiny.initrd, "--append", &tiny.cmdline, "--cpu",
        "qemu64",
    ];
    let create = |name: &str| {
        let mut args = vec!["create", name, "--image", "base", "--memory", "192M", "--cpus", "1"];
        args.extend(boot);
        lab.ok(&args);
    };
    for number in 0..20 {
        create(&format!("vm{number}"));
    }
    let shown = lab.json(&["image", "ls"]);
    assert_eq!(shown[0]["dependents"].as_array().unwrap().len(), 20, "{shown}");
    lab.ok(&["start", "vm7"]);
    lab.write("vm7", "/own", "words");
    assert_eq!(lab.read("vm7", "/own").as_deref(), Some("words"));
    lab.ok(&["stop", "vm7"]);
    assert_eq!(sha256(&file), before);
    assert_eq!(lab.json(&["show", "vm7"])["from"], "base");
    // It is kept while somebody depends on it, also by gc, and names them.
    lab.ok(&["gc", "--older-than", "0"]);
    lab.run(&["image", "rm", "base"]).fails(
        5,
        &["image base is the base of 20 others", "vm19", "cowhand image rm base --cascade"],
    );
    lab.ok(&["image", "rm", "base", "--cascade"]);
    assert!(names(&lab, &["ls", "-a"]).is_empty());
    lab.ok(&["undo", "base"]);
    create("again");
    lab.ok(&["doctor"]);
}

#[test]
fn an_image_is_no_vm_and_no_template_and_says_so() {
    let lab = Lab::new();
    let file = small(&lab, "disk.qcow2");
    lab.ok(&["image", "add", file.to_str().unwrap()]);
    lab.ok(&["create", "web", "--image", "disk", "--disk-size", "1G"]);
    lab.ok(&["create", "frozen", "--size", "16M"]);
    lab.ok(&["template", "create", "frozen", "--no-seal"]);
    for (args, code, words) in [
        (&["start", "disk"][..], 5, &["it is an image", "cowhand create NEW --image disk"][..]),
        (&["rm", "disk"], 5, &["disk is an image", "cowhand image rm disk"]),
        (&["template", "rm", "disk"], 5, &["disk is an image", "cowhand image rm disk"]),
        (&["template", "show", "disk"], 5, &["disk is an image, not a template"]),
        (&["image", "rm", "web"], 5, &["web is a VM", "cowhand rm web"]),
        (&["image", "rm", "frozen"], 5, &["frozen is a template", "cowhand template rm frozen"]),
        (
            &["create", "x", "--image", "web"],
            5,
            &["web is a VM, not an image", "cowhand clone web NEW"],
        ),
        (&["create", "x", "--image", "nothing"], 3, &["nothing"]),
        (
            &["create", "x", "--image", "./disk.qcow2"],
            2,
            &["--disk ./disk.qcow2", "cowhand image add"],
        ),
        (
            &["create", "x", "--image", "disk", "--disk-size", "8M"],
            5,
            &["smaller than image disk", "16 MiB"],
        ),
        (
            &["create", "x", "--image", "disk", "--sha256", "ab"],
            2,
            &["checked when an image is added"],
        ),
        (&["create", "x", "--size", "1G", "--sha256", "ab"], 2, &["--image URL"]),
        (&["create", "x", "--size", "1G", "--disk-size", "2G"], 2, &["--image"]),
        (
            &["image", "add", file.to_str().unwrap()],
            4,
            &["the name disk is taken by another image", "NAME"],
        ),
        (&["image", "add", file.to_str().unwrap(), "web"], 4, &["taken by another VM"]),
        (&["image", "add", "nowhere.qcow2"], 3, &["no disk file nowhere.qcow2"]),
        (&["image", "add", "ftp://host/x"], 2, &["ftp:// is not supported"]),
        (&["image", "add", "https://me:secret@host/x"], 2, &["user and password"]),
        (&["image", "add", "debian:1"], 3, &["no image debian:1", "debian:12"]),
        (&["image", "add", "/dev/zero", "zero"], 5, &["not an ordinary file"]),
    ] {
        let done = lab.run(args).fails(code, words);
        assert!(!done.err.contains("secret"), "{done:?}");
    }
    assert_eq!(names(&lab, &["template", "ls"]), ["frozen"]);
    assert_eq!(names(&lab, &["image", "ls"]), ["disk"]);
    assert!(
        lab.ok(&["ls", "-a"])
            .lines()
            .any(|line| line.starts_with("disk") && line.contains("image"))
    );
    let shown = lab.ok(&["show", "disk"]);
    assert!(shown.contains(file.to_str().unwrap()) && shown.contains("not verified"), "{shown}");
    // Back on the image, the disk is as large as it was made.
    lab.ok(&["reset", "web", "--stopped"]);
    assert_eq!(lab.json(&["show", "web"])["disks"][0]["virtual_bytes"], 1 << 30);
    assert_eq!(lab.chain("web").len(), 2);
    // A clone has a machine of its own.
    lab.ok(&["clone", "disk", "copy"]);
    lab.ok(&["rename", "disk", "other"]);
    assert_eq!(lab.json(&["show", "copy"])["from"], "other");
    lab.run(&["image", "prune"]).ok();
    assert_eq!(names(&lab, &["image", "ls"]), ["other"]);
    lab.ok(&["rm", "web", "copy"]);
    assert!(lab.ok(&["image", "prune", "--dry-run"]).contains("would remove image other"));
    assert!(lab.ok(&["image", "prune"]).contains("removed image other"));
    assert!(names(&lab, &["image", "ls"]).is_empty());
    assert!(lab.ok(&["image", "prune"]).contains("nothing to remove"));
    lab.ok(&["doctor"]);
}

#[test]
fn an_image_that_was_changed_behind_cowhands_back_is_not_used() {
    let lab = Lab::new();
    let file = small(&lab, "disk.qcow2");
    lab.ok(&["image", "add", file.to_str().unwrap()]);
    let layer = lab.store().join("layers").join(&files_in(&lab.store().join("layers"))[0]);
    assert!(std::fs::metadata(&layer).unwrap().permissions().readonly());
    std::fs::File::options().append(true).open(&layer).unwrap().write_all(&[0; 512]).unwrap();
    lab.run(&["create", "web", "--image", "disk"]).fails(8, &["changed"]);
    assert_eq!(names(&lab, &["ls", "-a"]), ["disk"]);
}

#[test]
fn an_image_of_a_server_is_downloaded_once_verified_and_shared() {
    let lab = Lab::new();
    let file = small(&lab, "x");
    let content = std::fs::read(&file).unwrap();
    let server = serving(content.clone());
    let url = server.url("/pub/disk.qcow2");
    lab.ok(&["create", "web", "--image", &url, "--sha256", &sha256(&file)]);
    assert_eq!(server.requests().len(), 1);
    // What is there is not asked for again; with another checksum, it is not what is wanted.
    lab.ok(&["create", "web2", "--image", &url]);
    lab.run(&["create", "web3", "--image", &url, "--sha256", &"0".repeat(64)])
        .fails(4, &["from the same source"]);
    assert_eq!(server.requests().len(), 1);
    let image = &lab.json(&["image", "ls"])[0];
    assert_eq!(image["source"], url);
    assert_eq!(image["sha256"], sha256(&file));
    assert_eq!(image["verified"], true);
    assert_eq!(image["dependents"].as_array().unwrap().len(), 2);
    let layer = &files_in(&lab.store().join("layers"));
    assert!(
        layer
            .iter()
            .any(|layer| std::fs::read(lab.store().join("layers").join(layer)).unwrap() == content)
    );
    assert!(things(&lab)[2].is_empty());
    // What is secret in an address is kept to oneself.
    let done = lab.run(&["image", "add", &server.url("/other.qcow2?token=secret")]);
    assert!(done.err.contains("not verified") && !done.err.contains("secret"), "{done:?}");
    let record = std::fs::read_to_string(lab.store().join("vms/other/vm.json")).unwrap();
    assert!(!record.contains("secret"), "{record}");
}

/// Whatever the server does, nothing half-made stays.
#[test]
fn a_download_that_is_not_the_image_leaves_nothing_behind() {
    let lab = Lab::new();
    let file = small(&lab, "x");
    let content = std::fs::read(&file).unwrap();
    let (sum, other) = (sha256(&file), "1".repeat(64));
    let server = Server::new(move |request, _| match request.path.as_str() {
        "/good.qcow2" => Reply::file(&content, "\"one\"", request),
        "/page.qcow2" => Reply::new(200, "<!DOCTYPE html><html></html>")
            .header("Content-Type", "text/html; charset=utf-8"),
        "/quiet.img" => Reply::new(200, format!("<html>{}", " ".repeat(506))),
        "/forbidden.qcow2" => Reply::new(403, ""),
        "/endless.qcow2" => Reply::new(200, "").promise(1 << 50),
        "/SHA256SUMS" => Reply::new(200, format!("{}  good.qcow2\n", "1".repeat(64))),
        "/short.xz" => Reply::new(200, &b"\xfd7zXZ\0"[..]),
        _ => Reply::new(404, ""),
    });
    let at = |path: &str| server.url(path);
    lab.ok(&["create", "other", "--size", "16M"]);
    let before = things(&lab);
    for (args, code, words) in [
        (
            vec![at("/good.qcow2"), "--sha256".into(), other.clone()],
            5,
            vec!["does not have the SHA-256 checksum", &sum],
        ),
        (
            vec![at("/good.qcow2"), "--sums".into(), at("/SHA256SUMS")],
            5,
            vec!["does not have the SHA-256 checksum"],
        ),
        (vec![at("/good.qcow2"), "--sums".into(), at("/none")], 3, vec!["/none is not there"]),
        (
            vec![at("/bad.qcow2"), "--sums".into(), at("/SHA256SUMS")],
            5,
            vec!["has no checksum of bad.qcow2"],
        ),
        (vec![at("/page.qcow2")], 5, vec!["is a web page", "not of the page"]),
        (vec![at("/none.qcow2")], 3, vec!["is not there", "404"]),
        (vec![at("/forbidden.qcow2")], 5, vec!["403", "cowhand image add FILE"]),
        (vec![at("/endless.qcow2")], 5, vec!["free", "1.0 PiB"]),
        (vec![at("/short.xz"), "name".into()], 1, vec!["cannot decompress"]),
    ] {
        let mut line = vec!["image", "add"];
        line.extend(args.iter().map(String::as_str));
        lab.run(&line).fails(code, &words);
        assert_eq!(things(&lab), before, "{args:?}");
    }
    // This one is no image either, and says what it is; it can be looked at.
    lab.run(&["image", "add", &at("/quiet.img")]).fails(5, &["a web page (HTML)"]);
    assert_eq!(things(&lab)[..2], before[..2]);
    lab.ok(&["image", "prune"]);
    assert_eq!(things(&lab), before);
    lab.run(&["create", "web", "--image", &at("/none.qcow2")]).fails(3, &["404"]);
    assert_eq!(things(&lab), before);
}

#[test]
fn a_download_whose_format_is_in_question_is_not_downloaded_again() {
    let lab = Lab::new();
    let file = small(&lab, "x");
    let server = serving(std::fs::read(&file).unwrap());
    let url = server.url("/server-cloudimg-amd64.img");
    lab.run(&["image", "add", &url]).fails(5, &["qcow2 by its header", "-f qcow2"]);
    lab.ok(&["image", "add", &url, "ubuntu", "-f", "qcow2"]);
    let ranges: Vec<Option<usize>> = server.requests().iter().map(Request::from).collect();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    assert_eq!(ranges, [None, Some(length)]);
    assert_eq!(lab.json(&["image", "ls"])[0]["format"], "qcow2");
    assert!(things(&lab)[2].is_empty());
}

#[test]
fn a_download_that_is_killed_goes_on_where_it_was() {
    let lab = Lab::new();
    let file = small(&lab, "x");
    let content = std::fs::read(&file).unwrap();
    let half = content.len() / 2;
    let server = Server::new(move |request, number| match number {
        0 => Reply::file(&content, "\"one\"", request).stall(half),
        _ => Reply::file(&content, "\"one\"", request),
    });
    let url = server.url("/disk.qcow2");
    let args = ["image", "add", &url, "--sha256", &sha256(&file)];
    let mut child = lab.spawn(&args);
    let arrived = || {
        let directories = things(&lab)[2].clone();
        directories.first().is_some_and(|directory| {
            let path = lab.store().join("downloads").join(directory).join("disk.qcow2");
            path.metadata().is_ok_and(|about| about.len() == half as u64)
        })
    };
    eventually("half of the image", arrived);
    kill(i32::try_from(child.id()).unwrap());
    child.wait().unwrap();
    // gc leaves it for some days.
    lab.ok(&["gc"]);
    lab.ok(&args);
    let requests = server.requests();
    assert_eq!(requests.iter().map(Request::from).collect::<Vec<_>>(), [None, Some(half)]);
    assert_eq!(requests[1].header("if-range"), Some("\"one\""));
    assert!(things(&lab)[2].is_empty());
}

/// The image has no record yet, so the next command undoes what was begun.
#[test]
fn an_image_whose_copy_was_cut_short_can_be_added_again() {
    let lab = Lab::new();
    let file = small(&lab, "disk.qcow2");
    let args = ["image", "add", file.to_str().unwrap()];
    lab.ok(&["create", "other", "--size", "16M"]);
    let before = things(&lab);
    for at in ["journal.json, in its place", "copy-file, done", "set-mode, done"] {
        let died = lab.command(&args).env("COWHAND_FAULT", format!("{at}:die")).output().unwrap();
        assert!(!died.status.success(), "{at}");
        assert_eq!(names(&lab, &["image", "ls"]), Vec::<String>::new());
        lab.ok(&args);
        lab.ok(&["image", "rm", "disk"]);
        lab.ok(&["gc", "--older-than", "0"]);
        assert_eq!(things(&lab), before, "{at}");
    }
    lab.ok(&["doctor"]);
}

#[test]
fn what_a_link_in_the_place_of_downloads_leads_to_is_not_emptied() {
    let lab = Lab::new();
    let file = small(&lab, "x");
    let server = serving(std::fs::read(&file).unwrap());
    let url = server.url("/disk.img");
    lab.run(&["image", "add", &url]).fails(5, &["-f qcow2"]);
    let (downloads, outside) = (lab.store().join("downloads"), lab.path().join("outside"));
    let key = things(&lab)[2][0].clone();
    std::fs::create_dir_all(outside.join("directory")).unwrap();
    std::fs::write(outside.join("directory/precious"), "words").unwrap();
    std::fs::remove_dir_all(downloads.join(&key)).unwrap();
    std::os::unix::fs::symlink(outside.join("directory"), downloads.join(&key)).unwrap();
    let look = || {
        lab.ok(&["image", "prune"]);
        lab.ok(&["gc", "--older-than", "0"]);
        lab.run(&["image", "add", &url, "-f", "qcow2"]).fails(8, &["is not a directory", "mv "]);
        assert_eq!(std::fs::read_to_string(outside.join("directory/precious")).unwrap(), "words");
    };
    look();
    std::fs::remove_dir_all(&downloads).unwrap();
    std::os::unix::fs::symlink(&outside, &downloads).unwrap();
    look();
}

#[test]
fn what_is_left_of_a_download_goes_with_gc() {
    let lab = Lab::new();
    let file = small(&lab, "x");
    let server = serving(std::fs::read(&file).unwrap());
    let url = server.url("/disk.img?token=secret");
    lab.run(&["image", "add", &url]).fails(5, &["-f qcow2"]);
    assert_eq!(things(&lab)[2].len(), 1);
    let collected = lab.json(&["gc", "--older-than", "0"]).to_string();
    assert!(
        collected.contains("the download of http://127.0.0.1") && !collected.contains("secret"),
        "{collected}"
    );
    assert!(things(&lab)[2].is_empty());
}

#[test]
fn two_commands_that_want_the_same_image_download_it_once() {
    let lab = Lab::new();
    let file = small(&lab, "x");
    let server = serving(std::fs::read(&file).unwrap());
    let url = server.url("/disk.qcow2");
    lab.ok(&["create", "other", "--size", "16M"]);
    let names: Vec<String> = (0..4).map(|number| format!("web{number}")).collect();
    let children: Vec<_> =
        names.iter().map(|name| lab.spawn(&["create", name, "--image", &url])).collect();
    for child in children {
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    assert_eq!(server.requests().len(), 1);
    assert_eq!(lab.json(&["image", "ls"])[0]["dependents"].as_array().unwrap().len(), 4);
}

#[test]
fn compressed_images_are_unpacked_from_a_file_and_from_a_server() {
    let lab = Lab::new();
    let file = small(&lab, "x");
    let plain = std::fs::read(&file).unwrap();
    let path = file.to_str().unwrap();
    for (program, extension) in [("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz"), ("zstd", "zst")] {
        let packed = lab.path().join(format!("{program}.qcow2.{extension}"));
        let bytes = std::process::Command::new(program).args(["-c", path]).output().unwrap();
        assert!(bytes.status.success(), "{program}: {bytes:?}");
        std::fs::write(&packed, &bytes.stdout).unwrap();
        let sums = lab.path().join("SHA512SUMS");
        std::fs::write(&sums, tool("sha512sum", &[packed.to_str().unwrap()])).unwrap();
        lab.ok(&["image", "add", packed.to_str().unwrap(), "--sums", sums.to_str().unwrap()]);
        let layers = files_in(&lab.store().join("layers"));
        assert!(
            layers.iter().any(|layer| std::fs::read(lab.store().join("layers").join(layer))
                .unwrap()
                == plain)
        );
        assert_eq!(lab.json(&["image", "ls"])[0]["name"], program);
        assert_eq!(lab.json(&["image", "ls"])[0]["verified"], true);
        let server = serving(bytes.stdout);
        let url = server.url(&format!("/far.qcow2.{extension}"));
        lab.ok(&["image", "add", &url, "--sha256", &sha256(&packed)]);
        lab.ok(&["create", "web", "--image", "far"]);
        assert_eq!(lab.json(&["show", "web"])["disks"][0]["virtual_bytes"], 16 << 20);
        assert!(things(&lab)[2].is_empty());
        lab.ok(&["image", "rm", "far", program, "--cascade"]);
    }
    // What is called so and is something else is refused, and so is an archive.
    let wrong = lab.path().join("wrong.qcow2.xz");
    std::fs::write(&wrong, &plain).unwrap();
    lab.run(&["image", "add", wrong.to_str().unwrap()])
        .fails(1, &["cannot decompress", "wrong.qcow2.xz"]);
    assert!(things(&lab)[2].is_empty());
}

#[test]
fn the_catalogue_of_the_store_names_images_and_their_checksums() {
    let lab = Lab::new();
    let file = small(&lab, "x");
    let content = std::fs::read(&file).unwrap();
    let sums = format!("{}  disk.img\n", sha256(&file));
    let server = Server::new(move |request, _| match request.path.as_str() {
        "/SHA256SUMS" => Reply::new(200, sums.clone()),
        _ => Reply::file(&content, "\"one\"", request),
    });
    lab.ok(&["create", "other", "--size", "16M"]);
    let entry = |name: &str, sums: &str| {
        format!(
            "[[image]]\nname = \"{name}\"\nversion = \"1\"\naliases = [\"first\"]\nurl = \
             \"{}\"\nformat = \"qcow2\"\n{sums}\n",
            server.url("/disk.img")
        )
    };
    let text = entry("ours", &format!("sums = \"{}\"", server.url("/SHA256SUMS")))
        + &entry("wrong", &format!("sha256 = \"{}\"", "2".repeat(64)));
    std::fs::write(lab.store().join("catalogue.toml"), text).unwrap();
    let listed = lab.ok(&["image", "ls", "--catalogue"]);
    assert!(listed.contains("ours:1") && listed.contains("debian:12"), "{listed}");
    lab.ok(&["create", "web", "--image", "ours:first"]);
    lab.ok(&["create", "web2", "--image", "ours:1"]);
    assert_eq!(server.requests().len(), 2);
    let image = &lab.json(&["image", "ls"])[0];
    assert_eq!(
        (&image["name"], &image["catalogue"]),
        (&Value::from("ours-1"), &Value::from("ours:1"))
    );
    // Over http, checksums can be changed on their way as well.
    assert_eq!(image["verified"], false);
    lab.run(&["image", "add", "wrong:1"]).fails(5, &["does not have the SHA-256 checksum 2222"]);
    assert!(lab.ok(&["doctor"]).contains("store"));
    std::fs::write(lab.store().join("catalogue.toml"), "[[image]]\nname = 1\n").unwrap();
    lab.run(&["image", "add", "ours:1", "again"]).fails(2, &["catalogue.toml", "line 2"]);
}
