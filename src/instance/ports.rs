//! Ports of the host that lead into a guest: whether they are free. Asked before anything is made
//! or started, so that nothing has to be taken back; QEMU, which binds them itself, still has the
//! last word.

use std::net::TcpListener;

use super::status;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::{Name, PortForward, Protocol};

/// Refuses ports that nobody can listen on now, and says which VM does already. Only TCP: QEMU's
/// UDP forwards share a port with whoever allows it.
pub(crate) fn refuse_taken<'a>(
    context: &Context,
    ports: impl IntoIterator<Item = &'a PortForward>,
) -> Result<()> {
    for port in ports.into_iter().filter(|port| port.protocol == Protocol::Tcp) {
        let Err(source) = TcpListener::bind((port.address, port.host)) else { continue };
        let error =
            Error::refused(format!("nothing can listen on port {} of {}", port.host, port.address));
        let error = match holder(context, port) {
            Some(holder) => {
                error.hint(format!("it leads into {holder}: stop {holder}, or choose another port"))
            }
            None => error,
        };
        return Err(error.because(source));
    }
    Ok(())
}

/// The VM of this store that runs and listens there.
fn holder(context: &Context, port: &PortForward) -> Option<Name> {
    let listens = |name: &Name| {
        let record = context.store.load(name).ok()?;
        let mut ports = record.config.nics.iter().flat_map(|nic| &nic.ports);
        Some(ports.any(|other| other.collides(port)) && status::is_running(context, name).ok()?)
    };
    context.store.names().ok()?.into_iter().find(|name| listens(name) == Some(true))
}
