//! A change to a VM is a list of steps with one point of no return, the *pivot*.
//!
//! ```text
//! journal written ─▶ steps before the pivot ─▶ PIVOT ─▶ steps after it ─▶ journal removed
//!                    failed or cut short:       failed or cut short after it:
//!                    undone in reverse          carried on, by us or by the next command
//! ```
//! Every step is idempotent: applying it again, or undoing what never happened, does no harm. So
//! the journal needs no notes on how far it got; whether the pivot happened is *observed*
//! ([`recover`]). The same code undoes a change after an error, after Ctrl-C and after our own
//! death.
//!
//! | file | what it is |
//! |---|---|
//! | [`step`] | what a step is, and what it has to say of itself |
//! | [`run`](mod@run) | what the steps of one change share |
//! | [`engine`] | a plan, and how it is carried out |
//! | [`recover`], [`lost`] | what the next command does about a change that was cut short |
//! | [`dependents`], [`foreign`] | how changes of different VMs keep out of each other's way |
//! | [`claims`] | what unfinished changes need, which `gc` leaves alone |
//! | [`planned`] | steps of any kind: how they are called, saved and read |
//! | [`open`] | how every change begins: the lock, recovery, the record, one look at QEMU |

pub mod claims;
pub(crate) mod dependents;
pub(crate) mod engine;
mod foreign;
pub(crate) mod lost;
pub(crate) mod open;
pub(crate) mod planned;
pub(crate) mod recover;
pub(crate) mod run;
pub(crate) mod step;

pub use engine::{Plan, run};
pub use open::OpenVm;
pub use planned::Planned;
pub use run::{Report, Run};
