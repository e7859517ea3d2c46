//! The addresses of a guest's network cards, as its agent tells them
//! (`guest-network-get-interfaces`).

use std::net::Ipv4Addr;
use std::time::Duration;

use qapi::qga::{GuestIpAddressType, guest_network_get_interfaces};
use tokio::time::Instant;

use super::session;
use crate::context::Context;
use crate::error::Result;
use crate::model::Name;

/// The hardware address of each card of `name` with each of its IPv4 addresses. The guest decides
/// what it answers.
pub(crate) async fn addresses(
    context: &Context,
    name: &Name,
    limit: Duration,
) -> Result<Vec<(String, Ipv4Addr)>> {
    let deadline = Instant::now() + limit;
    let mut session = session::open(context, name, limit).await?;
    let left = deadline.saturating_duration_since(Instant::now());
    let cards = session.agent.run(&guest_network_get_interfaces {}, left).await?;
    let mut all = Vec::new();
    for card in cards {
        let Some(mac) = card.hardware_address else { continue };
        let of_card = card.ip_addresses.into_iter().flatten();
        let v4 = of_card.filter(|address| address.ip_address_type == GuestIpAddressType::ipv4);
        all.extend(v4.filter_map(|address| Some((mac.clone(), address.ip_address.parse().ok()?))));
    }
    Ok(all)
}
