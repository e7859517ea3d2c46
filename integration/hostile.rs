//! What strangers try: guests, authors of images, other users of the host. Each test is one attack
//! of the table in docs/security.md, named after what the attacker would get if it worked; the
//! attack itself is written out here, byte for byte.
//!
//! | module | stranger | what they hold |
//! |---|---|---|
//! | [`images`] | the author of an image | every byte of a file for `create`, `seal`, `image` |
//! | [`copies`] | the guest | its answers to `cp`, `--copy-out`, `exec`, the agent |
//! | [`host`] | a job, a local user | what QEMU inherits from whoever starts it |
//! | [`logs`] | the guest | what it prints: serial port, QEMU's messages |
//! | [`secrets`] | a local user, another job | locks, journals, processes, files beside an image |
//! | [`terminals`] | the guest, the author of an image | what a person sees of it on a terminal |

mod copies;
mod host;
mod images;
mod logs;
mod secrets;
mod terminals;
mod victim;
