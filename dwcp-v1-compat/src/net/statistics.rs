use dwcp_core::net::Endpoint;

use super::port::LegacyListener;
use super::tally::{Tally, TransferCounts};
use crate::detect::GroupCounts;
use crate::message::DefectCounts;

/// All that an exporter reads of a node that speaks both versions: one look at what each part counts by itself. No address
/// or name is in here.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Statistics {
    /// Sessions inside TLS, of either version; hand-overs, refusals, flags, offences.
    pub node: dwcp_core::net::Statistics,
    /// Connections to the port, of addresses that may speak v1 in clear text.
    pub port: GroupCounts,
    /// Connections that say nothing now: watched for 5 s, or held for a transfer.
    pub silent_now: usize,
    /// How often it could not be written down who spoke v3: zero is good.
    pub spoken_unwritten: u64,
    /// How often an address that spoke v3 was forgotten to make room for another: zero is good. Those that v1 is allowed with are
    /// never.
    pub spoken_forgotten: u64,
    /// v1 transfers in clear text that were received.
    pub received: TransferCounts,
    /// v1 transfers in clear text that were sent.
    pub sent: TransferCounts,
    /// What was wrong with incoming messages.
    pub defects: DefectCounts,
}

impl Statistics {
    /// Of a node, of its port, and of the transfers that were given this tally.
    pub fn of(endpoint: &Endpoint, port: &LegacyListener, tally: &Tally) -> Self {
        Self {
            node: endpoint.statistics(),
            port: port.counts(),
            silent_now: port.silent(),
            spoken_unwritten: port.unwritten(),
            spoken_forgotten: port.forgotten(),
            received: tally.received(),
            sent: tally.sent(),
            defects: tally.defects(),
        }
    }
}
