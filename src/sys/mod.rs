//! System calls and programs. The only room where `unsafe` may stand, and the only one that starts
//! processes.

pub(crate) mod boot;
pub(crate) mod bpf;
pub(crate) mod cage;
pub(crate) mod cgroup;
pub(crate) mod command;
pub mod confine;
pub(crate) mod cpu_time;
pub(crate) mod elf;
pub(crate) mod fault;
pub(crate) mod fd_passing;
pub(crate) mod files;
pub(crate) mod flock;
pub(crate) mod follow;
pub(crate) mod holder;
pub(crate) mod image_lock;
pub(crate) mod inside;
pub(crate) mod limiter;
pub(crate) mod name_servers;
pub(crate) mod owner;
pub(crate) mod parallel;
pub(crate) mod pidfd;
pub(crate) mod pipe;
pub(crate) mod ready;
pub(crate) mod relay;
pub(crate) mod rotated;
pub(crate) mod seccomp;
#[cfg(test)]
pub(crate) mod skipped;
pub(crate) mod space;
pub(crate) mod sparse;
pub(crate) mod started;
pub(crate) mod terminal;
