//! Tests of what a program inherits, and when it ends.

use std::os::fd::AsRawFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getppid, pipe};

use super::*;

/// Starts a program from a process that is killed between fork(2) and exec(2); does the program
/// live on?
#[allow(unsafe_code)]
fn lives_on(prepare: impl Fn(&mut Command)) -> bool {
    let (ours, theirs) = pipe().expect("a pipe");
    // SAFETY: the child only starts a program, and ends without unwinding.
    match unsafe { fork() }.expect("a process") {
        ForkResult::Child => {
            let number = theirs.as_raw_fd();
            let mut command = Command::new("sleep");
            command.arg("1000");
            // SAFETY: only getppid(2), kill(2), sched_yield(2) and write(2) are called, which
            // are async-signal-safe.
            unsafe {
                command.pre_exec(move || {
                    let parent = getppid();
                    kill(parent, Signal::SIGKILL)?;
                    while getppid() == parent {
                        std::thread::yield_now();
                    }
                    let theirs = std::os::fd::BorrowedFd::borrow_raw(number);
                    nix::unistd::write(theirs, &std::process::id().to_ne_bytes())?;
                    Ok(())
                });
            }
            prepare(&mut command);
            let _ = command.spawn();
            std::process::abort();
        }
        ForkResult::Parent { child } => {
            waitpid(child, None).expect("its end");
        }
    }
    drop(theirs);
    let mut pid = [0; 4];
    let mut ours = File::from(ours);
    ours.read_exact(&mut pid).expect("the program's number");
    // The other end is open as long as the program lives.
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&ours), PollFlags::POLLIN)];
    let lives = poll(&mut fds, PollTimeout::from(30_000_u16)).expect("an answer") == 0;
    if lives {
        let _ = kill(Pid::from_raw(i32::from_ne_bytes(pid)), Signal::SIGKILL);
    }
    lives
}

#[test]
fn a_program_that_outlives_us_inherits_what_it_was_given_and_nothing_else() {
    use rustix::io::{FdFlags, fcntl_setfd};
    let directory = tempfile::tempdir().expect("a directory");
    let open = |path: &std::path::Path| File::open(path).expect("it is there");
    std::fs::write(directory.path().join("given"), "").expect("a file");
    let (leaked, given) = (open(directory.path()), open(&directory.path().join("given")));
    // As one that was inherited.
    fcntl_setfd(&leaked, FdFlags::empty()).expect("an open file");
    let log = tempfile::tempfile().expect("a file");
    let list = "for fd in /proc/$$/fd/*; do readlink $fd; done";
    let argv = ["/bin/sh", "-c", list].map(str::to_owned);
    let child = detached(&argv, &log, vec![given.into()], false, None);
    child.expect("a program").wait().expect("its end");
    let (mut log, mut told) = (log, String::new());
    std::io::Seek::rewind(&mut log).expect("a log");
    log.read_to_string(&mut told).expect("a log");
    let ours: Vec<&str> =
        told.lines().filter_map(|line| line.strip_prefix(directory.path().to_str()?)).collect();
    assert_eq!(ours, ["/given"], "{told}");
}

#[test]
fn a_program_whose_parent_died_before_it_began_does_not_live_on() {
    assert!(!lives_on(dies_with_us));
    let us = || PidFd::open(std::process::id().cast_signed()).ok();
    assert!(!lives_on(|command| in_new_session(command, us())));
}
