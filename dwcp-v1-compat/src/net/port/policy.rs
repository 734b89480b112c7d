use std::collections::BTreeSet;
use std::net::IpAddr;

use super::spoken::SpokenV3;
use crate::wire::Framing;

/// With whom v1 is spoken in clear text: with nobody whom the operator did not name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextPolicy {
    framing: Framing,
    allowed: BTreeSet<IpAddr>,
    downgrade: bool,
}

/// Why v1 is not spoken with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody allowed it.
    #[error("version 1 is clear text, and nobody allowed that for {address}")]
    NotAllowed {
        /// The peer's.
        address: IpAddr,
    },
    /// It can do better.
    #[error("{address} spoke version 3 with this node before: version 1 in clear text would be a downgrade")]
    SpokeV3 {
        /// The peer's.
        address: IpAddr,
    },
}

impl PlaintextPolicy {
    /// With these addresses, in this framing: the two cannot be told apart.
    pub fn new(framing: Framing, allowed: impl IntoIterator<Item = IpAddr>) -> Self {
        let allowed = allowed.into_iter().map(|address| address.to_canonical()).collect();
        Self { framing, allowed, downgrade: false }
    }

    /// Whether addresses that spoke v3 may speak v1 all the same; by default not.
    #[must_use]
    pub fn with_downgrade(self, downgrade: bool) -> Self {
        Self { downgrade, ..self }
    }

    /// The addresses that were named.
    pub(super) fn allowed(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.allowed.iter().copied()
    }

    /// As the peers are set.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether v1 may be spoken with this address.
    ///
    /// # Errors
    /// It may not.
    ///
    /// spec: H-12
    pub fn allows(&self, address: IpAddr, spoken: &SpokenV3) -> Result<(), Refused> {
        let address = address.to_canonical();
        if !self.allowed.contains(&address) {
            return Err(Refused::NotAllowed { address });
        }
        if !self.downgrade && spoken.holds(address) {
            return Err(Refused::SpokeV3 { address });
        }
        Ok(())
    }
}
