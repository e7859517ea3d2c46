//! Real QEMU, real guests, real files. A test says in its name what the user would lose if it
//! failed.
//!
//! The guests come from `scripts/guest`; `COWHAND_QEMU` chooses the QEMU. Each test has a store and
//! sockets of its own, and its VMs end with it.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, unreachable_pub)]

mod lab;

mod autostart;
mod buses;
mod clones;
mod cloud_init;
mod concurrency;
mod confined;
mod content;
mod copied;
mod crash;
mod create;
mod damage;
mod debian;
mod disks;
mod doctor;
mod documentation;
mod exchanged;
mod exhaustion;
mod export;
mod faults;
mod faults_running;
mod faults_warm;
mod foreign_journals;
mod guests;
mod host;
mod hostile;
mod images;
mod import;
mod internal;
mod kept;
mod kvm;
mod libvirt_snapshots;
mod lifecycle;
mod limits;
mod locks;
mod memory;
mod merges;
mod model_based;
mod moved;
mod networks;
mod not_files;
mod odd_words;
mod old_stores;
mod packages;
mod ports;
mod prepared;
mod qcow2;
mod reach;
mod seal;
mod snapshots;
mod templates;
mod tier;
mod tree;
mod uefi;
mod undo;
mod unmounted;
mod user;
mod warm;
