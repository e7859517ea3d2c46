//! A VM's life: starting, stopping, pausing, dying, and what its guest says and does meanwhile.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::lab::{Done, Lab, eventually, kill, skip, terminate};
use crate::ports::free_port;

#[test]
fn a_guest_can_be_spoken_to_stopped_and_started_again() {
    let lab = Lab::new();
    lab.booted("web");
    assert_eq!(lab.state("web"), "running");
    assert!(
        lab.ok(&["exec", "web", "--", "cat", "/etc/os-release"]).contains("cowhand tiny guest")
    );
    lab.run(&["start", "web"]).fails(5, &["running already"]);

    // exec: exit codes are the command's own, or the documented ones.
    let code = |args: &[&str]| lab.run(&[&["exec"], args].concat()).code;
    assert_eq!(code(&["web", "--", "sh", "-c", "exit 42"]), 42);
    assert_eq!(code(&["web", "--", "/no/such/program"]), 127);
    assert_eq!(code(&["web", "--", "/etc/os-release"]), 126);
    assert_eq!(code(&["--timeout", "1", "web", "--", "sleep", "30"]), 124);
    assert_eq!(
        lab.ok(&["exec", "-e", "WHO=me", "web", "--", "/bin/sh", "-c", "echo $WHO"]),
        "me\n"
    );
    let mut child = lab
        .command(&["exec", "-i", "web", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"through the agent").unwrap();
    assert_eq!(Done::from(child.wait_with_output().unwrap()).ok(), "through the agent");

    // Files, there and back, with every byte value and more than one message's worth.
    let bytes: Vec<u8> = (0..700_000_usize).map(|n| (n % 256) as u8).collect();
    let (there, back) = (lab.path().join("there"), lab.path().join("back"));
    std::fs::write(&there, &bytes).unwrap();
    lab.ok(&["cp", there.to_str().unwrap(), "web:/root/"]);
    lab.ok(&["cp", "web:/root/there", back.to_str().unwrap()]);
    let fifo = lab.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    lab.run(&["cp", "web:/root/there", fifo.to_str().unwrap()])
        .fails(5, &["FIFO", "cowhand cp VM:FILE -"]);
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fifo.metadata().unwrap().file_type()));
    assert!(std::fs::read(&back).unwrap() == bytes, "the file came back changed");
    lab.run(&["cp", "web:/no/such/file", back.to_str().unwrap()]).fails(3, &["/no/such/file"]);
    // Standard output and input.
    let shown = lab.command(&["cp", "web:/root/there", "-"]).output().unwrap();
    assert!(
        shown.status.success() && shown.stdout == bytes,
        "{:?}",
        String::from_utf8_lossy(&shown.stderr)
    );
    assert_eq!(lab.run(&["cp", "web:/no/such/file", "-"]).fails(3, &["/no/such/file"]).out, "");
    lab.run(&["cp", "web:/root", "-"]).fails(5, &["is a directory"]);
    let mut child =
        lab.command(&["cp", "-", "web:/root/said"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from here\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(lab.read("web", "/root/said").as_deref(), Some("from here"));
    lab.run(&["cp", "-", "web:/root/"]).fails(2, &["cowhand cp - web:/root/NAME"]);
    // One that waits for its input can be ended.
    let mut child =
        lab.command(&["cp", "-", "web:/root/never"]).stdin(Stdio::piped()).spawn().unwrap();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap().flatten();
    let is_waiting =
        || open().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file.ends_with("file")));
    eventually("a file for its input", is_waiting);
    terminate(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(std::fs::read(&back).unwrap() == bytes, "a failed copy damaged the target");

    // The serial console: what the guest printed is kept, and can be talked to.
    eventually("the guest's greeting", || {
        lab.ok(&["logs", "web"]).contains("cowhand tiny guest is up")
    });
    let mut console = lab
        .command(&["console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    console.stdin.take().unwrap().write_all(b"\necho con''sole\n").unwrap();
    assert!(Done::from(console.wait_with_output().unwrap()).ok().contains("console\r\n"));

    // Pausing.
    lab.ok(&["pause", "web"]);
    assert_eq!(lab.state("web"), "paused");
    lab.run(&["stop", "web"]).fails(5, &["paused", "resume"]);
    lab.ok(&["resume", "web"]);
    assert_eq!(lab.state("web"), "running");

    // What must not happen to a running VM.
    for args in [
        &["rm", "web"][..],
        &["set", "web", "cpus=2"],
        &["rename", "web", "x"],
        &["template", "create", "web", "--no-seal"],
        &["clone", "web", "x"],
    ] {
        lab.run(args).fails(5, &["web"]);
    }

    lab.write("web", "/root/kept", "kept");
    assert!(lab.ok(&["stop", "web"]).contains("guest agent"));
    assert_eq!(lab.state("web"), "stopped");
    assert!(lab.ok(&["stop", "web"]).contains("was not running"));
    lab.ok(&["set", "web", "memory=256M", "tag.role=test"]);
    lab.ok(&["rename", "web", "site"]);
    lab.ok(&["start", "site"]);
    assert_eq!(lab.read("site", "/root/kept").as_deref(), Some("kept"));
    assert_eq!(lab.json(&["ls", "--filter", "role=test"])[0]["memory_bytes"], 256 << 20);
    lab.ok(&["rm", "--force", "site"]);
    assert_eq!(lab.json(&["ls", "-a"]), serde_json::json!([]));
}

#[test]
fn a_guest_without_an_agent_is_stopped_by_its_power_button() {
    let lab = Lab::new();
    lab.booted("web");
    // At the console, because the agent cannot say that it has ended; init would start it again.
    // The quotes tell the echo from the answer.
    let end = "sed -i /agent/d /etc/inittab; kill -HUP 1; \
               while killall -q qemu-ga; do sleep 0.1; done; \
               echo The agent is '' gone\n";
    let mut console = lab
        .command(&["console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    console.stdin.take().unwrap().write_all(end.as_bytes()).unwrap();
    assert!(console.wait().unwrap().success());
    eventually("the agent's end", || lab.ok(&["logs", "web"]).contains("The agent is  gone"));
    assert!(lab.ok(&["stop", "web"]).contains("power button"));
    assert_eq!(lab.state("web"), "stopped");
}

#[test]
fn a_guest_that_will_not_stop_goes_on_running_and_is_said_to() {
    let lab = Lab::new();
    lab.ok(&["create", "deaf", "--size", "64M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "deaf"]);
    lab.run(&["stop", "--timeout", "1", "deaf"]).fails(7, &["is still running", "--force"]);
    assert_eq!(lab.state("deaf"), "running");
    lab.ok(&["stop", "--force", "deaf"]);
    assert_eq!(lab.state("deaf"), "stopped");
}

#[test]
fn a_killed_qemu_is_called_crashed_and_starts_again() {
    let lab = Lab::new();
    lab.booted("web");
    lab.write("web", "/root/kept", "kept");
    kill(lab.pid("web"));
    eventually("the end of QEMU", || lab.state("web") == "crashed");
    lab.ok(&["start", "web"]);
    assert_eq!(lab.read("web", "/root/kept").as_deref(), Some("kept"));
}

#[test]
fn a_guest_that_powers_itself_off_is_stopped_not_crashed() {
    let lab = Lab::new();
    lab.booted("web");
    lab.run(&["exec", "--timeout", "5", "web", "--", "poweroff"]);
    eventually("the end of QEMU", || lab.state("web") == "stopped");
}

#[test]
fn the_printed_plan_starts_the_vm_when_a_shell_runs_it() {
    let lab = Lab::new();
    lab.tiny("web", &[]);
    let line = lab.ok(&["plan", "web"]);
    let argv = lab.json(&["plan", "web"]);
    assert!(argv.as_array().unwrap().iter().any(|arg| arg == "-nodefaults"));
    let mut shell = Command::new("sh").args(["-c", &format!("exec {line}")]).spawn().unwrap();
    eventually("a guest that prints", || {
        lab.run(&["logs", "web"]).out.contains("cowhand tiny guest is up")
    });
    // It is seen, though we did not start it.
    assert_eq!(lab.state("web"), "running");
    lab.run(&["start", "web"]).fails(5, &["running already"]);
    lab.run(&["rm", "web"]).fails(5, &["running"]);
    lab.ok(&["snapshot", "create", "web", "s"]);
    assert_eq!(lab.chain("web").len(), 2);
    lab.ok(&["stop", "--force", "web"]);
    shell.wait().unwrap();
    assert_eq!(lab.state("web"), "stopped");
}

#[test]
fn a_record_that_is_gone_is_not_an_invitation_to_throw_its_disks_away() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "web"]);
    lab.ok(&["stop", "--force", "web"]);
    let record = lab.store().join("vms/web/vm.json");
    let text = std::fs::read(&record).unwrap();
    std::fs::remove_file(&record).unwrap();
    let files = lab.layer_files();
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(lab.layer_files(), files);
    assert_eq!(lab.json(&["ls"])[0]["state"], "broken");
    lab.run(&["create", "web", "--size", "64M"]).fails(4, &["taken"]);
    std::fs::write(&record, text).unwrap();
    lab.ok(&["start", "web"]);
    lab.ok(&["stop", "--force", "web"]);
    std::fs::write(&record, "{").unwrap();
    lab.run(&["rm", "web"]).fails(8, &["rm --force web"]);
    lab.ok(&["rm", "--force", "web"]);
    assert_eq!(lab.json(&["ls"]), serde_json::json!([]));
}

#[test]
fn qemu_that_refuses_its_options_is_quoted_and_nothing_is_left_running() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--cpu", "no-such-model"]);
    lab.run(&["start", "web"]).fails(7, &["no-such-model", "cowhand plan"]);
    assert_eq!(lab.state("web"), "stopped");
    lab.ok(&["set", "web", "cpu="]);
    lab.ok(&["start", "web"]);
}

#[test]
fn a_forwarded_port_leads_to_the_guest_and_a_taken_one_is_named() {
    let lab = Lab::new();
    let taken = free_port();
    let listener = std::net::TcpListener::bind(("127.0.0.1", taken)).unwrap();
    lab.tiny("web", &["-p", &format!("{taken}:80")]);
    lab.run(&["start", "web"]).fails(5, &[&taken.to_string(), "in use", "cowhand set web ports="]);
    drop(listener);
    lab.ok(&["start", "web"]);
    lab.sh("web", "true");
    // Nothing is made that could not run.
    lab.ok(&["create", "blank", "--size", "64M"]);
    lab.run(&["clone", "blank", "new", "--start", "-p", &format!("{taken}:22")])
        .fails(5, &["it leads into web"]);
    lab.run(&["run", "blank", "-p", &format!("{taken}:22"), "--", "true"])
        .fails(125, &["it leads into web"]);
    lab.ok(&["set", "blank", &format!("ports={taken}:22")]);
    for verb in ["start", "plan"] {
        lab.run(&[verb, "blank"]).fails(5, &["it leads into web"]);
    }
    assert_eq!(lab.vm_directories(), ["blank", "web"]);
    lab.ok(&["clone", "blank", "later", "-p", &format!("{taken}:22")]);
    let fetch = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", taken)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        std::io::read_to_string(stream).ok()
    };
    eventually("the guest's page", || {
        fetch().is_some_and(|page| page.contains("hello from the tiny guest"))
    });
}

#[test]
fn one_broken_vm_is_listed_as_broken_and_all_others_work() {
    let lab = Lab::new();
    for name in ["good", "typo", "empty", "torn", "newer"] {
        lab.ok(&["create", name, "--size", "64M"]);
    }
    let record = |name: &str| lab.store().join("vms").join(name).join("vm.json");
    let text = std::fs::read_to_string(record("typo")).unwrap();
    std::fs::write(record("typo"), text.replace("\"cpus\"", "\"cpuz\"")).unwrap();
    std::fs::write(record("empty"), "").unwrap();
    std::fs::write(record("torn"), &text[..text.len() / 2]).unwrap();
    std::fs::write(record("newer"), text.replace("\"schema\": 1", "\"schema\": 99")).unwrap();
    let rows = lab.json(&["ls"]);
    let row = |name: &str| rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    assert_eq!(row("good")["state"], "stopped");
    for (name, reason) in
        [("typo", "cpuz"), ("empty", "empty"), ("torn", "EOF"), ("newer", "newer version")]
    {
        assert_eq!(row(name)["state"], "broken");
        assert!(row(name)["reason"].as_str().unwrap().contains(reason), "{}", row(name));
        lab.run(&["start", name]).fails(8, &[reason]);
    }
    lab.ok(&["snapshot", "create", "good", "s"]);
    lab.ok(&["snapshot", "rm", "good@s"]);
    lab.ok(&["rm", "good"]);
}

#[test]
fn a_guest_somebody_left_frozen_is_said_to_be_and_never_waited_for_without_end() {
    let lab = Lab::new();
    lab.booted("web");
    let pipe =
        |name: &str| std::fs::canonicalize(lab.store().join("vms/web/run").join(name)).unwrap();
    let mut output = std::fs::File::options().write(true).open(pipe("agent.in")).unwrap();
    output.write_all(b"{\"execute\": \"guest-fsfreeze-freeze\"}\n").unwrap();
    let mut input = std::fs::File::open(pipe("agent.out")).unwrap();
    std::io::Read::read(&mut input, &mut [0; 64]).unwrap();
    drop((input, output));
    lab.run(&["exec", "--agent-timeout", "3", "web", "--", "true"])
        .fails(125, &["stay frozen", "cowhand console web"]);
    // What somebody else has frozen is not ours to thaw, and not ours to rely on.
    lab.run(&["snapshot", "create", "web", "s", "--quiesce", "require"])
        .fails(5, &["already frozen"]);
    let taken = lab.json(&["snapshot", "create", "web", "s"]);
    assert_eq!(taken["quiesced"], false);
    // It would wake up as it is.
    let taken = lab.run(&["snapshot", "create", "web", "m", "--memory"]);
    assert!(taken.code == 0 && taken.err.contains("they are frozen in web@m, too"), "{taken:?}");
    lab.run(&["exec", "--agent-timeout", "3", "web", "--", "true"]).fails(125, &["stay frozen"]);
}

#[test]
fn piped_input_gets_its_answer_from_a_guest_that_is_slow() {
    let lab = Lab::new();
    lab.booted("web");
    eventually("the guest's shell", || {
        lab.ok(&["logs", "web"]).contains("cowhand tiny guest is up")
    });
    // Nobody has said anything for a while when the input ends, because the guest stands still.
    let qemu = Pid::from_raw(lab.pid("web"));
    signal::kill(qemu, Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    let mut console = lab
        .command(&["console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    console.stdin.take().unwrap().write_all(b"\necho con''sole\n").unwrap();
    let mut left = false;
    while began.elapsed() < Duration::from_secs(3) && !left {
        left = console.try_wait().unwrap().is_some();
        std::thread::sleep(Duration::from_millis(20));
    }
    signal::kill(qemu, Signal::SIGCONT).unwrap();
    assert!(!left, "the console was left before the guest could answer");
    assert!(Done::from(console.wait_with_output().unwrap()).ok().contains("console\r\n"));
    // Without input there is nothing to wait for, and whoever does not want to wait need not.
    lab.ok(&["console", "web"]);
    lab.ok(&["console", "--linger", "0", "web"]);
}

#[test]
fn a_qemu_that_was_killed_and_lives_on_is_not_called_stopped() {
    const NAME: &str = "a_qemu_that_was_killed_and_lives_on_is_not_called_stopped";
    let lab = Lab::new();
    lab.ok(&["create", "stuck", "--size", "64M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "stuck"]);
    let Some(freezer) = Freezer::new(NAME, lab.pid("stuck")) else { return };
    let patient = |args: &[&str]| -> Done {
        lab.command(args).env("COWHAND_PATIENCE", "2").output().unwrap().into()
    };
    patient(&["stop", "--force", "stuck"])
        .fails(7, &["was killed, and has not ended", "cowhand show stuck"]);
    assert_eq!(lab.json(&["show", "stuck"])["state"], "running");
    // Its disk is in use.
    patient(&["rm", "--force", "stuck"]).fails(7, &["stuck"]);
    assert_eq!((lab.vm_directories(), lab.layer_files().len()), (vec!["stuck".to_owned()], 1));
    drop(freezer);
    eventually("its end", || lab.state("stuck") == "crashed");
    lab.ok(&["rm", "stuck"]);
}

/// A process that not even SIGKILL ends, as one that waits for a disk in the kernel, until this is
/// dropped: in the freezer of cgroup v1.
struct Freezer(PathBuf);

impl Freezer {
    fn new(test: &str, pid: i32) -> Option<Self> {
        let group = Path::new("/sys/fs/cgroup/freezer").join(format!("cowhand-{pid}"));
        if let Err(error) = std::fs::create_dir(&group) {
            skip(test, &format!("there is no freezer of cgroup v1 here: {error}"));
            return None;
        }
        let freezer = Self(group);
        std::fs::write(freezer.0.join("cgroup.procs"), pid.to_string()).unwrap();
        std::fs::write(freezer.0.join("freezer.state"), "FROZEN").unwrap();
        eventually("a frozen process", || {
            std::fs::read_to_string(freezer.0.join("freezer.state")).unwrap().trim() == "FROZEN"
        });
        Some(freezer)
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        eventually("an empty group", || std::fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn logs_that_are_followed_end_with_the_vm_and_ctrl_c_is_no_error() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    lab.ok(&["start", "--paused", "web"]);
    let follow = || {
        let args = ["logs", "--follow", "web"];
        let child =
            lab.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It listens to SIGINT, and so it is at the end of the log.
        eventually("a handler of SIGINT", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let caught =
                status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
            u64::from_str_radix(caught, 16).unwrap() & 2 != 0
        });
        child
    };
    let interrupted = follow();
    signal::kill(Pid::from_raw(i32::try_from(interrupted.id()).unwrap()), Signal::SIGINT).unwrap();
    let done = Done::from(interrupted.wait_with_output().unwrap());
    assert!(done.code == 0 && done.err.is_empty(), "{done:?}");
    let ended = follow();
    lab.ok(&["stop", "--force", "web"]);
    Done::from(ended.wait_with_output().unwrap()).ok();
    lab.ok(&["logs", "--follow", "web"]);
}

#[test]
fn a_stopped_vm_gets_another_machine_type_and_is_told_which_memory_stays_behind() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    let before = lab.json(&["show", "web"])["machine"].clone();
    lab.ok(&["start", "--paused", "web"]);
    lab.ok(&["snapshot", "create", "web", "m", "--memory"]);
    // Whatever becomes of a second one: its guest stands still because its memory was saved, and
    // QEMU lives.
    lab.run(&["snapshot", "create", "web", "again", "--memory"]);
    assert_eq!(lab.state("web"), "paused");
    lab.run(&["set", "web", "machine=pc-q35-7.1"]).fails(5, &["stop it first"]);
    lab.ok(&["stop", "--force", "web"]);
    lab.run(&["set", "web", "machine=nothing"]).fails(5, &["no machine type nothing"]);
    let done = lab.run(&["set", "web", "machine=pc-q35-7.1"]);
    assert!(done.code == 0 && done.err.contains("web@m"), "{done:?}");
    assert_eq!(lab.json(&["show", "web"])["machine"], "pc-q35-7.1");
    lab.ok(&["start", "--paused", "web"]);
    lab.ok(&["snapshot", "revert", "web@m"]);
    assert_eq!(lab.json(&["show", "web"])["machine"], before);
    lab.ok(&["stop", "--force", "web"]);
}
