//! cowhand: templates, clones and snapshots for QEMU virtual machines, without libvirt.
//!
//! The map of the house. Arrows point one way: `cli → output + domain → change → instance → layer →
//! qemu → store → sys → model`. The floors, and the arrows that still run up, stand in
//! `tests/architecture.rs`, which holds them.
//!
//! | room | what it owns |
//! |---|---|
//! | [`cli`] | one file per verb: parse, call, render; the only place that reads the environment |
//! | [`output`] | tables, trees, JSON, progress bars, how an error looks |
//! | [`maintenance`] | what touches everything: remove, undo, collect garbage |
//! | [`vm`] | create, start, stop, rename, set |
//! | [`snapshot`] | take a snapshot, revert to one, remove one, draw the tree |
//! | [`merge`] | what becomes of layers that lose their names, and who depends on them |
//! | [`disk`] | merge, resize and check the disks of a VM by hand |
//! | [`image`] | image files anywhere, and images of the store |
//! | [`warm`] | guests that were booted once, and whose memory clones go on from |
//! | [`template`] | freeze a VM for ever |
//! | [`seal`] | take out of a guest's disks what clones must not share, put in what they need |
//! | [`mod@clone`] | make new VMs from frozen points |
//! | [`cloudinit`] | what a guest is told at its first boot: the seed for cloud-init |
//! | [`ephemeral`] | VMs that are not to stay: a run, the pool, reset |
//! | [`appliance`] | the small Linux that works on a guest's file systems; both ends of it |
//! | [`doctor`] | compares records, journals, headers and running QEMUs with each other; repairs |
//! | [`fetch`] | files from the web: downloaded, resumed, verified, decompressed |
//! | [`libvirt`] | domains of libvirt that become VMs |
//! | [`guest`] | the inside of a running guest, seen from the host: exec, files, identity |
//! | [`helper`] | what runs in a guest for us, and the protocol it is spoken to with |
//! | [`instance`] | the one QEMU of a VM: sockets, whether it runs, connection, start and end |
//! | [`registry`] | all kinds of steps |
//! | [`steps`] | the steps that several changes have in common |
//! | [`change`] | what a step is; carrying out, undoing and recovering them; opening a VM for it |
//! | [`layer`] | image files: inspection, headers, chains, collapse, copying, merging, garbage |
//! | [`qemu`] | argument vector, process, QMP, guest-agent protocol, the offline block engine |
//! | [`context`] | what every operation is handed: settings, store, whom to tell; locks |
//! | [`store`] | where everything lies, atomic writes, locks, journal, references, trash |
//! | [`model`] | names, layers, VMs and snapshots as plain data |
//! | [`sys`] | system calls and programs; the only place where `unsafe` may stand |
//!
//! The library never prints, exits, reads the environment (but to hand an allow-list of it on to
//! programs, [`sys::command`]) or guesses a path: the caller hands in [`settings::Settings`] and a
//! [`ui::Ui`], and gets plain data back.

pub mod appliance;
pub mod change;
pub mod cli;
pub mod clone;
pub(crate) mod cloudinit;
pub(crate) mod context;
pub mod disk;
pub mod doctor;
pub mod ephemeral;
pub mod error;
pub mod fetch;
pub(crate) mod guest;
pub mod helper;
pub mod image;
pub mod instance;
pub mod layer;
pub mod libvirt;
pub mod maintenance;
pub mod merge;
pub mod model;
pub mod output;
pub mod qemu;
pub mod registry;
pub mod seal;
pub mod settings;
pub mod snapshot;
pub(crate) mod steps;
pub mod store;
pub mod sys;
pub mod template;
pub mod ui;
pub mod vm;
pub mod warm;
