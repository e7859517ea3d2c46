//! Freezing the guest's file systems for the instant of a snapshot (`guest-fsfreeze-freeze`,
//! `-thaw`). The deadlines are ours: a freeze can hang in the guest for ever.

use std::time::Duration;

use qapi::qga::{
    GuestFsfreezeStatus, guest_fsfreeze_freeze, guest_fsfreeze_status, guest_fsfreeze_thaw,
};
use tokio::time::Instant;

use super::session;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::{Name, Quiesced};
use crate::qemu::agent::AgentError;

/// How long a freeze may take unless told otherwise, from the first word to the agent to its last
/// answer.
pub(crate) const FREEZE: Duration = Duration::from_secs(5);
/// How long a thaw may take. Longer: there is no alternative to it.
const THAW: Duration = Duration::from_secs(20);

/// A freeze that did not come about: how, and in words. The file systems have been thawed again,
/// unless somebody else had frozen them.
#[derive(Debug)]
pub(crate) struct NotFrozen {
    /// How.
    pub how: Quiesced,
    /// In words.
    pub error: Error,
}

/// Are file systems of `name` frozen, by somebody else? As far as the guest agent knows, which
/// tells within `limit`, or nobody does.
pub(crate) async fn is_frozen(context: &Context, name: &Name, limit: Duration) -> bool {
    let status = async {
        let deadline = Instant::now() + limit;
        let mut session = session::open(context, name, limit).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        Ok(session.agent.run(&guest_fsfreeze_status {}, left).await?)
    };
    let status: Result<_> = status.await;
    match status {
        Ok(status) => matches!(status, GuestFsfreezeStatus::frozen),
        Err(error) => {
            tracing::debug!(
                "whether the file systems of {name} are frozen is not known: {}",
                error.full_message()
            );
            false
        }
    }
}

/// Freezes the file systems of `name` within `limit`.
pub(crate) async fn freeze(
    context: &Context,
    name: &Name,
    limit: Duration,
) -> Result<(), NotFrozen> {
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let absent = |error: Error| NotFrozen { how: Quiesced::Absent, error };
    let mut session = session::open(context, name, limit).await.map_err(absent)?;
    let status = session.agent.run(&guest_fsfreeze_status {}, left()).await;
    match status {
        Ok(GuestFsfreezeStatus::frozen) => {
            let error = Error::refused(format!(
                "the file systems of {name} were already frozen by another program"
            ));
            return Err(NotFrozen {
                how: Quiesced::AlreadyFrozen,
                error: error.hint(how_to_thaw(name)),
            });
        }
        Ok(_) => {}
        Err(error) => return Err(NotFrozen { how: how(&error), error: error.into() }),
    }
    let error = match session.agent.run(&guest_fsfreeze_freeze {}, left()).await {
        Ok(0) => {
            // It passes over those that fsfreeze(8) has frozen (EBUSY) as over those that cannot be
            // (EOPNOTSUPP).
            let error = Error::qemu(
                "the guest agent froze nothing: no file system can be frozen, or all are frozen \
                 already, by fsfreeze(8)",
            )
            .hint(format!("if they are: {}", how_to_thaw(name)));
            return Err(NotFrozen { how: Quiesced::Refused, error });
        }
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    // It may have frozen something all the same, only without telling us.
    drop(session);
    let how = how(&error);
    let error = match how {
        Quiesced::Hung => Error::qemu(format!(
            "the guest of {name} did not freeze within {:.1} s",
            limit.as_secs_f64()
        ))
        .hint("give it longer: --quiesce-timeout SECS; or go without: --quiesce never"),
        _ => error.into(),
    };
    let error = match thaw(context, name).await {
        Ok(()) => error,
        Err(second) => error.hint(format!(
            "it may still be frozen ({}): {}",
            second.full_message(),
            how_to_thaw(name)
        )),
    };
    Err(NotFrozen { how, error })
}

fn how(error: &AgentError) -> Quiesced {
    match error {
        AgentError::Refused { .. } => Quiesced::Refused,
        AgentError::Timeout { .. } => Quiesced::Hung,
        _ => Quiesced::Absent,
    }
}

/// What helps when nothing of ours does.
pub(crate) fn how_to_thaw(name: &Name) -> String {
    format!("thaw them on its console (fsfreeze --unfreeze /): cowhand console {name}")
}

/// Thaws the file systems of `name`; ones that are not frozen stay as they are. Tried twice: a
/// guest that stays frozen is worse than a late one.
pub(crate) async fn thaw(context: &Context, name: &Name) -> Result<()> {
    match thaw_once(context, name).await {
        Ok(()) => Ok(()),
        Err(error) => thaw_once(context, name).await.map_err(|_| error),
    }
}

async fn thaw_once(context: &Context, name: &Name) -> Result<()> {
    let mut session = session::open(context, name, THAW).await?;
    session.agent.run(&guest_fsfreeze_thaw {}, THAW).await?;
    Ok(())
}
