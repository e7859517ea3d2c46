//! The packages, and what is in them: `scripts/package`, docs/how-to/minimal-host.md.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Done, Lab, files_in, guest, skip, tool};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Packs the program that is tested; where the packages are.
fn packed(lab: &Lab, name: &str) -> PathBuf {
    let out = lab.path().join(name);
    let mut command = Command::new(Path::new(ROOT).join("scripts/package"));
    command
        .arg("--fast")
        .arg("--binary")
        .arg(Lab::program())
        .arg("--out")
        .arg(&out)
        .current_dir("/");
    let done = Done::from(command.output().unwrap());
    assert_eq!(done.code, 0, "{done:?}");
    out
}

fn one(directory: &Path, extension: &str) -> PathBuf {
    let name = files_in(directory).into_iter().find(|name| name.ends_with(extension)).unwrap();
    directory.join(name)
}

/// What the shell offers for the last of these words.
fn offered(script: &Path, line: &str, word: &str, lab: &Lab) -> String {
    let bash = format!(
        "source {}; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9; _cowhand cowhand \
         '{word}' ''; echo ${{COMPREPLY[*]}}",
        script.display()
    );
    let path = format!("{}:/usr/bin:/bin", Path::new(&Lab::program()).parent().unwrap().display());
    let output = Command::new("bash")
        .args(["-c", &bash])
        .env("PATH", path)
        .env("COWHAND_STORE", lab.store())
        .output();
    let done = Done::from(output.unwrap());
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{done:?}");
    done.out.trim().to_owned()
}

#[test]
fn the_packages_hold_the_program_its_manual_its_units_and_completions_that_know_the_vms() {
    let lab = Lab::new();
    let out = packed(&lab, "out");
    assert_eq!(files_in(&out).len(), 3);
    tool("sh", &["-c", &format!("cd {} && sha256sum --check --quiet SHA256SUMS", out.display())]);
    let deb = one(&out, ".deb");
    let fields = tool("dpkg-deb", &["--field", deb.to_str().unwrap()]);
    for field in
        ["Package: cowhand\n", "Architecture: amd64\n", "Depends: qemu-system-x86, qemu-utils\n"]
    {
        assert!(fields.contains(field), "{fields}");
    }
    let tree = lab.path().join("tree");
    tool("dpkg-deb", &["--extract", deb.to_str().unwrap(), tree.to_str().unwrap()]);
    let owners =
        tool("tar", &["--list", "--verbose", "--file", one(&out, ".tar.xz").to_str().unwrap()]);
    assert!(owners.lines().all(|line| line.contains(" root/root ")), "{owners}");
    let usr = tree.join("usr");
    let version = tool(usr.join("bin/cowhand").to_str().unwrap(), &["--version"]);
    assert_eq!(version.trim(), format!("cowhand {}", env!("CARGO_PKG_VERSION")));
    for unit in ["cowhand-autostart.service", "cowhand-gc.service", "cowhand-gc.timer"] {
        let text = std::fs::read_to_string(usr.join("lib/systemd/system").join(unit)).unwrap();
        // What it calls is there.
        assert!(
            text.split_whitespace()
                .all(|word| !word.contains("bin/cowhand") || word.ends_with("/usr/bin/cowhand")),
            "{text}"
        );
    }
    // Each verb has its page.
    let pages = files_in(&usr.join("share/man/man1"));
    for page in ["cowhand.1.gz", "cowhand-clone.1.gz", "cowhand-snapshot-create.1.gz"] {
        assert!(pages.contains(&page.to_owned()), "{pages:?}");
    }
    let script = usr.join("share/bash-completion/completions/cowhand");
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    lab.ok(&["create", "db", "--size", "16M", "--net", "none"]);
    lab.ok(&["snapshot", "create", "web", "before"]);
    for (line, word, offers) in [
        ("cowhand sta", "sta", "start"),
        ("cowhand stop w", "w", "web"),
        ("cowhand plan ", "", "db web"),
        ("cowhand snapshot revert web@", "", "before"),
        ("cowhand clone web@be", "be", "before"),
        // A name that is to be new.
        ("cowhand rename web d", "d", ""),
        ("cowhand --store /nowhere stop w", "w", ""),
    ] {
        let now = offered(&script, line, word, &lab);
        assert!(
            now == offers || (word.is_empty() && now.starts_with(&format!("{offers} -"))),
            "{line}: {now}"
        );
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(lab.ok(&["completions", shell]).contains("cowhand"));
    }
}

/// The commands of the how-to, run in the root file system that it makes.
#[test]
fn a_host_of_busybox_and_qemu_alone_runs_vms() {
    let lab = Lab::new();
    let test = "a_host_of_busybox_and_qemu_alone_runs_vms";
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "only root can change the root directory");
    }
    let namespaces =
        Command::new("unshare").args(["--mount", "--pid", "--net", "--fork", "true"]).output();
    if !namespaces.is_ok_and(|output| output.status.success()) {
        return skip(test, "there can be no namespaces");
    }
    let out = packed(&lab, "out");
    let text =
        std::fs::read_to_string(Path::new(ROOT).join("docs/how-to/minimal-host.md")).unwrap();
    let script = text.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut make = Command::new("sh");
    make.args(["-e", "-c", script]).current_dir(&out).env_clear().env("PATH", path);
    let made = Done::from(make.output().unwrap());
    assert_eq!(made.code, 0, "{made:?}");
    let root = out.join("host");
    let tiny = guest("tiny");
    for (file, name) in [
        (tiny.disk(), "debian.qcow2"),
        (tiny.kernel.clone(), "kernel"),
        (tiny.initrd.clone(), "initrd"),
    ] {
        std::fs::copy(file, root.join(name)).unwrap();
    }
    let here = "mount --make-rprivate / && cd $ROOT && mount -t proc proc proc && \
                mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs dev && \
                for name in null zero random urandom; do cp -a /dev/$name dev; done && \
                mount -t tmpfs tmpfs var/lib && exec chroot . /bin/sh -e -c \"$WORDS\"";
    let boot = format!("--kernel kernel --initrd initrd --append '{}' --memory 192M", tiny.cmdline);
    let mut words = "export PATH=/usr/bin COWHAND_ACCEL=tcg\n".to_owned();
    let shown = text.lines().filter_map(|line| line.strip_prefix("$ "));
    for line in shown {
        let options = if line.contains(" create web") && !line.contains("snapshot") {
            boot.as_str()
        } else {
            ""
        };
        words.push_str(&format!("{line} {options}\n"));
    }
    words.push_str("cowhand ls --all\n");
    let mut run = Command::new("unshare");
    run.args(["--mount", "--pid", "--net", "--fork", "--kill-child=KILL", "sh", "-e", "-c", here]);
    let done = Done::from(
        run.env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("ROOT", &root)
            .env("WORDS", words)
            .output()
            .unwrap(),
    );
    assert_eq!(done.code, 0, "{done:?}");
    for row in ["web", "copy", "0 failed"] {
        assert!(done.out.contains(row), "{done:?}");
    }
}

mod full {
    use super::*;

    /// Twice, because what differs from one run to the next need not differ at once.
    #[test]
    fn packages_of_one_program_are_the_same_byte_for_byte() {
        let lab = Lab::new();
        let sums =
            |name: &str| std::fs::read_to_string(packed(&lab, name).join("SHA256SUMS")).unwrap();
        assert_eq!(sums("one"), sums("another"));
    }

    /// What a user types who has installed a package: nothing else is there of Rust, or of these
    /// tests.
    const WALK: &str = "
        cowhand --version
        cowhand doctor --quiet
        man cowhand-clone | head -n 20
        bash -c 'source /usr/share/bash-completion/bash_completion; \
                        source /usr/share/bash-completion/completions/cowhand
            COMP_LINE=\"cowhand stop w\"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; \
                        _cowhand cowhand w stop; echo offered: ${COMPREPLY[*]}'
        cowhand snapshot create web before
        cowhand start web --paused
        cowhand clone web@before copy
        cowhand stop web --force
        cowhand snapshot revert web@before
        cowhand ls --all
        cowhand rm copy web
        cowhand undo web
        cowhand gc
        cowhand doctor
    ";

    /// A Debian with QEMU, a manual and completions, and no Rust.
    fn bare_debian(lab: &Lab, test: &str) -> Option<PathBuf> {
        let namespaces =
            Command::new("unshare").args(["--mount", "--pid", "--net", "--fork", "true"]).output();
        if !nix::unistd::geteuid().is_root()
            || !namespaces.is_ok_and(|output| output.status.success())
        {
            skip(test, "only root can change the root directory");
            return None;
        }
        let root = lab.path().join("debian");
        let packages = "--include=qemu-system-x86,qemu-utils,man-db,bash-completion";
        let mut make = Command::new("mmdebstrap");
        make.args([
            "--quiet",
            "--variant=minbase",
            packages,
            "--dpkgopt=path-include=/usr/share/man/*",
        ]);
        let done = Done::from(make.arg("bookworm").arg(&root).output().unwrap());
        assert_eq!(done.code, 0, "{done:?}");
        Some(root)
    }

    /// Runs a script in the root file system, alone.
    fn in_root(root: &Path, words: &str) -> Done {
        let here = "mount --make-rprivate / && cd $ROOT && mount -t proc proc proc && \
                    mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs dev && \
                    for name in null zero random urandom; do cp -a /dev/$name dev; done && \
                    ln -s /proc/self/fd dev/fd && exec chroot . /bin/sh -e -c \"$WORDS\"";
        let mut run = Command::new("unshare");
        run.args([
            "--mount", "--pid", "--net", "--fork", "--kill-child=KILL", "sh", "-e", "-c", here,
        ])
        .env_clear();
        run.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("COWHAND_ACCEL", "tcg")
            .env("LC_ALL", "C.UTF-8");
        Done::from(run.env("ROOT", root).env("WORDS", words).output().unwrap())
    }

    #[test]
    fn the_packages_serve_a_bare_debian() {
        let lab = Lab::new();
        let Some(root) = bare_debian(&lab, "the_packages_serve_a_bare_debian") else { return };
        let out = packed(&lab, "out");
        std::fs::copy(one(&out, ".deb"), root.join("cowhand.deb")).unwrap();
        let tarball = one(&out, ".tar.xz");
        let create = "cowhand create web --size 16M --net none\n";
        let remove = "cowhand rm web; dpkg --remove cowhand; test ! -e /usr/bin/cowhand\n";
        for words in [
            format!("dpkg --install cowhand.deb\n{create}{WALK}{remove}"),
            format!("{create}{WALK}"),
        ] {
            if !words.contains("dpkg") {
                let usr = root.join("usr");
                tool(
                    "tar",
                    &[
                        "-C",
                        usr.to_str().unwrap(),
                        "--strip-components",
                        "1",
                        "-xf",
                        tarball.to_str().unwrap(),
                    ],
                );
            }
            let done = in_root(&root, &words);
            assert_eq!(done.code, 0, "{done:?}");
            for shown in ["cowhand 0.", "cowhand-clone(1)", "offered: web", "copy", "0 failed"] {
                assert!(done.out.contains(shown), "{shown}: {done:?}");
            }
        }
    }
}
