//! Words of users and paths of hosts reach programs, QMP and option lists as they are: nothing in
//! them is ever a shell's, a list's or a format's.

use std::path::PathBuf;

use crate::lab::{Done, Lab};

#[test]
fn paths_with_everything_in_them_work_for_the_whole_job() {
    let lab = Lab::new();
    let marker = lab.path().join("pwned");
    let touch = format!(
        "$(touch {0})`touch {0}`;touch {0};",
        marker.file_name().unwrap().to_str().unwrap()
    );
    let store: PathBuf =
        lab.path().join(format!("s,t=o json:{{\"x\":1}} %s%n \"q\" 'x' \\ {touch}\nline"));
    let runtime = lab.path().join("r,u=n %s 'x'");
    std::fs::create_dir(&runtime).unwrap();
    let disk = lab.path().join("json:{\"driver\":\"null-co\"},x=raw %d \"q\"\n.img");
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let run = |args: &[&str]| -> Done {
        let mut command = lab.command(args);
        command
            .env("COWHAND_STORE", &store)
            .env("XDG_RUNTIME_DIR", &runtime)
            .current_dir(lab.path());
        command.output().unwrap().into()
    };
    let words = format!("x,y=z json:{{}} %s%n \"q\" 'x' \\ {touch}\nline");
    let out = lab.path().join(format!("out,{words}.raw").replace('/', "_"));
    let (out, tag) = (out.to_str().unwrap(), format!("tag.a={words}"));
    // The comma of an option behind the file's name is the last one.
    run(&[
        "create",
        "web",
        "--disk",
        &format!("{},copy,format=raw", disk.to_str().unwrap()),
        "--memory",
        "64M",
        "--tag",
        &format!("k={words}"),
    ])
    .ok();
    run(&["set", "web", &tag]).ok();
    for args in [
        &["start", "web"][..],
        &["snapshot", "create", "web", "disk", "--description", &words, "--quiesce", "never"],
        &["snapshot", "create", "web", "memory", "--memory", "--description", &words],
        &["snapshot", "create", "web", "inside", "--internal", "--description", &words],
        &["snapshot", "revert", "web@inside"],
        &["snapshot", "revert", "web@memory"],
        &["snapshot", "rm", "web@disk"],
        &["disk", "resize", "web", "vda", "+1M"],
        &["stop", "--force", "web"],
        &["undo", "web"],
        &["clone", "web@memory", "thin"],
        &["clone", "web@memory", "full", "--full"],
        &["flatten", "thin"],
        &["disk", "check", "web"],
        &["image", "export", "web@memory", out, "-O", "raw"],
        &["image", "info", out],
        &["doctor"],
        &["plan", "web"],
        &["template", "create", "full", "--no-seal"],
        &["gc", "--older-than", "0"],
    ] {
        run(args).ok();
    }
    assert_eq!(std::fs::read(out).unwrap(), std::fs::read(disk).unwrap());
    let shown: serde_json::Value =
        serde_json::from_str(&run(&["--format", "json", "show", "web"]).ok()).unwrap();
    assert_eq!(shown["tags"]["a"], words);
    let snapshots: serde_json::Value =
        serde_json::from_str(&run(&["--format", "json", "snapshot", "ls", "web"]).ok()).unwrap();
    assert_eq!(snapshots[0]["description"], words);
    assert!(!marker.exists(), "a word became a command");
}

#[test]
fn names_that_could_be_anything_else_are_refused() {
    let lab = Lab::new();
    for name in [
        "a,b", "../x", "json:{}", "a b", "a\nb", "%s", "-x", ".x", "a/b", "", "ä", "a@b", "$(x)",
        "a;b",
    ] {
        let done = lab.run(&["create", "--size", "1M", "--", name]);
        assert_eq!(done.code, 2, "{name:?}: {done:?}");
    }
    assert_eq!(lab.vm_directories(), Vec::<String>::new());
}
