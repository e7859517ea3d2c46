//! System calls and programs. The only room where `unsafe` may stand, and the only one that starts
//! processes.

pub mod boot;
pub mod bpf;
pub mod cage;
pub mod cgroup;
pub mod command;
pub mod confine;
pub mod cpu_time;
pub mod elf;
pub mod fault;
pub mod fd_passing;
pub mod files;
pub mod flock;
pub mod follow;
pub mod holder;
pub mod image_lock;
pub mod inside;
pub mod limiter;
pub mod name_servers;
pub mod owner;
pub mod parallel;
pub mod pidfd;
pub mod pipe;
pub mod ready;
pub mod relay;
pub mod rotated;
pub mod seccomp;
#[cfg(test)]
pub mod skipped;
pub mod space;
pub mod sparse;
pub mod started;
pub mod terminal;
