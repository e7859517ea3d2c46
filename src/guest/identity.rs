//! Making a guest that goes on from shared memory a guest of its own, before anything of the user's
//! runs in it (`helper/identity.rs`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::port::Client;
use crate::error::{Error, Result};
use crate::helper::frame::{Became, Identity, Reply, Request};
use crate::model::{Config, Name};

/// How long a guest may take to become another. Host keys are made meanwhile.
const LIMIT: Duration = Duration::from_secs(120);
/// How long it may take to get ready to be saved: it writes everything to its disks.
const PREPARE: Duration = Duration::from_secs(300);

/// Takes down what no two guests may share. What could not be is returned, in words.
pub(crate) async fn prepare(client: &mut Client) -> Result<Vec<String>> {
    client.ask(&Request::Prepare).await?;
    match client.reply(PREPARE).await? {
        Reply::Became(prepared) => Ok(prepared.problems),
        _ => Err(Error::qemu("the guest could not be got ready to be saved")),
    }
}

/// Makes the guest `name`, with the cards of `now` where the saved one had those of `saved`.
pub(crate) async fn become_(
    client: &mut Client,
    name: &Name,
    saved: &Config,
    now: &Config,
) -> Result<Became> {
    let pairs = saved.nics.iter().zip(&now.nics);
    let entropy: Vec<u8> = (0..4).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let identity = Identity {
        hostname: name.to_string(),
        machine_id: Uuid::new_v4().simple().to_string(),
        entropy: entropy.iter().map(|byte| format!("{byte:02x}")).collect(),
        now_ns: u64::try_from(since.as_nanos()).unwrap_or_default(),
        cards: pairs.map(|(then, now)| (then.mac.clone(), now.mac.clone())).collect(),
    };
    client.ask(&Request::Become(identity)).await?;
    match client.reply(LIMIT).await? {
        Reply::Became(became) => Ok(became),
        _ => Err(Error::qemu(format!("the guest of {name} did not get its own identity"))),
    }
}
