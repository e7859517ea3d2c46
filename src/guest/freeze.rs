//! Freezing the guest's file systems for the instant of a snapshot (`guest-fsfreeze-freeze`, `-thaw`). The deadlines are ours: a
//! freeze can hang in the guest for ever.

use std::time::Duration;

use qapi::qga::{GuestFsfreezeStatus, guest_fsfreeze_freeze, guest_fsfreeze_status, guest_fsfreeze_thaw};

use super::session;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::Name;

/// How long a freeze may take, from the first word to the agent to its answer.
pub const FREEZE: Duration = Duration::from_secs(5);
/// How long a thaw may take. Longer: there is no alternative to it.
const THAW: Duration = Duration::from_secs(20);

/// Freezes the file systems of `name`. After an error they have been thawed again, unless somebody else had frozen them.
pub async fn freeze(context: &Context, name: &Name) -> Result<()> {
    let mut session = session::open(context, name, FREEZE).await?;
    let status = session.agent.run(&guest_fsfreeze_status {}, FREEZE).await?;
    if status == GuestFsfreezeStatus::frozen {
        return Err(Error::refused(format!("the file systems of {name} are frozen already, by somebody else")));
    }
    let frozen = match session.agent.run(&guest_fsfreeze_freeze {}, FREEZE).await {
        Ok(frozen) => frozen,
        Err(error) => {
            // It may have frozen something all the same, only without telling us.
            drop(session);
            return Err(match thaw(context, name).await {
                Ok(()) => error.into(),
                Err(second) => Error::from(error).hint(format!("it may still be frozen: {}", second.full_message())),
            });
        }
    };
    if frozen == 0 { Err(Error::qemu("the guest has no file system that can be frozen")) } else { Ok(()) }
}

/// Thaws the file systems of `name`; ones that are not frozen stay as they are.
pub async fn thaw(context: &Context, name: &Name) -> Result<()> {
    let mut session = session::open(context, name, THAW).await?;
    session.agent.run(&guest_fsfreeze_thaw {}, THAW).await?;
    Ok(())
}
