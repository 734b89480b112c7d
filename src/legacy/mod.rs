//! Version 1 in clear text, with peers that were never updated: only with those that the command line names.

mod advice;
mod args;
mod exit;
mod receive;
mod send;
mod show;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use dwcp_v1_compat::net::SpokenV3;

pub(crate) use self::args::{ReceiveV1Args, SendV1Args};
pub(crate) use self::receive::Port;
pub(crate) use self::send::send;
use crate::exit::{Exit, Failure};

/// In a node's state: addresses that spoke version 3 with it.
const SPOKEN: &str = "spoken-v3";

/// `dwcp send` spoke version 3 with this receiver, so clear text with it would be a downgrade from now on.
pub(crate) async fn spoke_v3(to: &str, state_dir: &Path) {
    let Ok(spoken) = SpokenV3::open(state_dir.join(SPOKEN)) else {
        return tracing::warn!("who spoke version 3 cannot be read; {to} is not remembered");
    };
    for address in resolve(to).await.unwrap_or_default() {
        spoken.remember(address.ip());
    }
    // The process ends next.
    let written = tokio::task::spawn_blocking(move || {
        spoken.flush();
        spoken.unwritten()
    });
    if written.await.unwrap_or(1) > 0 {
        tracing::warn!("who spoke version 3 cannot be written in {}; {to} is not remembered", state_dir.display());
    }
}

async fn resolve(to: &str) -> Result<Vec<SocketAddr>, Failure> {
    let found = tokio::net::lookup_host(to).await;
    let found = found.map(Iterator::collect).map_err(|error| {
        Failure::new(Exit::Unreachable, format!("cannot find {to}: {error}"))
            .advise("Check the host in --to, or use its address.")
    })?;
    Ok(found)
}

/// Clear text needs the operator's word, for each peer.
fn not_allowed(refused: dwcp_v1_compat::net::Refused) -> Failure {
    use dwcp_v1_compat::net::Refused::{NotAllowed, SpokeV3};
    let failure = Failure::new(Exit::Unauthorised, refused.to_string());
    match refused {
        NotAllowed { address } => failure.advise(allowance(Some(address))),
        SpokeV3 { .. } => failure
            .advise("Leave out --v1. If that peer really went back to version 1, say so with --allow-downgrade-v1."),
    }
}

fn allowance(address: Option<IpAddr>) -> String {
    let shown = address.map_or_else(|| "ADDRESS".to_owned(), |address| address.to_string());
    format!(
        "If that peer was never updated and nobody else can reach the network between, add --allow-plaintext-v1 {shown}."
    )
}
