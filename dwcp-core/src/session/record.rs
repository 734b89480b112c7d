use super::fingerprint::Fingerprint;
use crate::extent::Layout;
use crate::wire::{Digest, FenceEpoch, Malformed, Name, Offer, TransferId};

/// What a node must remember of a transfer across a crash: one small durable file. spec: P-1
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which transfer.
    pub transfer: TransferId,
    /// Which incarnation.
    pub epoch: FenceEpoch,
    /// Which pause.
    pub attempt: u32,
    /// The root both agreed on.
    pub root: Digest,
    /// The transfer's name.
    pub name: Name,
    /// The regions that the root is over: with them what was staged can be verified again.
    pub layout: Layout,
    /// The other end. Nobody else is told anything of the transfer, or asked about it. spec: P-3
    pub peer: Fingerprint,
    /// What this node had promised.
    pub standing: Standing,
}

/// What a node had promised when it wrote a [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Source: it will never run the guest by itself again.
    GaveUp,
    /// Sink: it holds everything and will run when told.
    Ready,
    /// Sink: it runs the guest, or the image is visible.
    Ran,
}

impl Standing {
    const ALL: [(Self, &'static str); 3] = [(Self::GaveUp, "gave-up"), (Self::Ready, "ready"), (Self::Ran, "ran")];

    /// Its word in the file and in lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GaveUp => "gave-up",
            Self::Ready => "ready",
            Self::Ran => "ran",
        }
    }
}

/// First line of every record, but for the version.
const TITLE: &str = "dwcp record ";
/// Version 1 did not name the peer and the regions.
const VERSION: &str = "2";
/// Lines of a record, its digest included.
const LINES: u8 = 10;

impl Record {
    /// The record of an offer for which this node promises something.
    pub fn of(offer: &Offer, attempt: u32, root: Digest, peer: Fingerprint, standing: Standing) -> Self {
        let Offer { transfer, epoch, name, layout, .. } = offer.clone();
        Self { transfer, epoch, attempt, root, name, layout, peer, standing }
    }

    /// The record as text that an operator can read, closed by its own digest so that a torn write
    /// is never believed.
    pub fn encode(&self) -> String {
        let Self { transfer, epoch, attempt, root, name, layout, peer, standing } = self;
        let regions: String = layout.regions().map(|(_, region)| format!(" {}", region.bytes)).collect();
        let body = format!(
            "{TITLE}{VERSION}\ntransfer {transfer}\nepoch {}\nattempt {attempt}\nroot {root}\nname {name}\n\
             regions{regions}\npeer {peer}\nstanding {}\n",
            epoch.0,
            standing.as_str()
        );
        let digest = Digest(*blake3::hash(body.as_bytes()).as_bytes());
        format!("{body}digest {digest}\n")
    }

    /// Reads a record back.
    ///
    /// # Errors
    /// The text is not exactly what [`Record::encode`] writes.
    pub fn decode(text: &str) -> Result<Self, RecordError> {
        let (body, digest) = text
            .trim_end_matches('\n')
            .rsplit_once('\n')
            .and_then(|(body, last)| Some((format!("{body}\n"), last.strip_prefix("digest ")?)))
            .ok_or(RecordError::Line { line: LINES })?;
        if Digest(*blake3::hash(body.as_bytes()).as_bytes()).to_string() != digest {
            return Err(RecordError::Digest);
        }
        let mut lines = body.lines().zip(1..);
        let version = lines.next().and_then(|(line, _)| line.strip_prefix(TITLE));
        if version.ok_or(RecordError::Line { line: 1 })? != VERSION {
            return Err(RecordError::Version);
        }
        let mut field = |key: &str| {
            let (line, number) = lines.next().ok_or(RecordError::Line { line: LINES })?;
            let value = line.strip_prefix(key).and_then(|rest| rest.strip_prefix(' '));
            value.map(|value| (value, RecordError::Line { line: number })).ok_or(RecordError::Line { line: number })
        };
        let (transfer, bad) = field("transfer")?;
        let transfer = transfer.parse().map_err(|_: Malformed| bad)?;
        let (epoch, bad) = field("epoch")?;
        let epoch = FenceEpoch(epoch.parse().map_err(|_| bad)?);
        let (attempt, bad) = field("attempt")?;
        let attempt = attempt.parse().map_err(|_| bad)?;
        let (root, bad) = field("root")?;
        let root = parse_digest(root).ok_or(bad)?;
        let (name, bad) = field("name")?;
        let name = Name::new(name).map_err(|_| bad)?;
        let (regions, bad) = field("regions")?;
        let regions: Result<Vec<u64>, _> = regions.split(' ').map(str::parse).collect();
        let layout = Layout::new(&regions.map_err(|_| bad)?).map_err(|_| bad)?;
        let (peer, bad) = field("peer")?;
        let peer = peer.parse().map_err(|_| bad)?;
        let (word, bad) = field("standing")?;
        let standing =
            Standing::ALL.iter().find(|(_, known)| *known == word).map(|(standing, _)| *standing).ok_or(bad)?;
        Ok(Self { transfer, epoch, attempt, root, name, layout, peer, standing })
    }
}

fn parse_digest(text: &str) -> Option<Digest> {
    let (first, second) = text.split_at_checked(32)?;
    let (first, second): (TransferId, TransferId) = (first.parse().ok()?, second.parse().ok()?);
    let mut digest = [0; 32];
    for (place, byte) in digest.iter_mut().zip(first.0.iter().chain(&second.0)) {
        *place = *byte;
    }
    Some(Digest(digest))
}

/// Why text is no [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A line is missing or not what it should be.
    #[error("line {line} is not that of a dwcp record")]
    Line {
        /// Which line, from 1.
        line: u8,
    },
    /// The text was torn or edited.
    #[error("the record's digest does not match: it was torn by a crash or edited")]
    Digest,
    /// A whole record, of another version.
    #[error("a record of another version of dwcp; end its transfer with the version that wrote it")]
    Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            transfer: TransferId([7; 16]),
            epoch: FenceEpoch(3),
            attempt: 2,
            root: Digest(std::array::from_fn(|i| u8::try_from(i).unwrap())),
            name: Name::new("vm1").unwrap(),
            layout: Layout::new(&[5000, 8192]).unwrap(),
            peer: Fingerprint([9; 32]),
            standing: Standing::GaveUp,
        }
    }

    // spec: P-1
    #[test]
    fn a_record_reads_back_and_a_torn_one_does_not() {
        let text = record().encode();
        assert_eq!(Record::decode(&text), Ok(record()));
        for cut in 0..text.len() - 1 {
            assert!(Record::decode(&text[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(Record::decode(&text.replace("attempt 2", "attempt 3")), Err(RecordError::Digest));
    }

    // spec: P-1
    #[test]
    fn a_record_names_the_peer_and_one_that_does_not_is_of_another_version() {
        let text = record().encode();
        assert!(text.contains("\nregions 5000 8192\npeer sha256:0909"), "{text}");
        let digested = |body: &str| format!("{body}digest {}\n", blake3::hash(body.as_bytes()).to_hex());
        let body = text.rsplit_once("digest").unwrap().0;
        assert_eq!(Record::decode(&digested(body)), Ok(record()));
        let old: String = body
            .lines()
            .filter(|line| !line.starts_with("peer"))
            .fold(String::new(), |all, line| all + &line.replace("record 2", "record 1") + "\n");
        assert_eq!(Record::decode(&digested(&old)), Err(RecordError::Version));
        assert_eq!(Record::decode(&digested(&old.replace("record 1", "record 2"))), Err(RecordError::Line { line: 8 }));
        assert_eq!(Record::decode(&digested(&body.replace("5000", "0"))), Err(RecordError::Line { line: 7 }));
    }
}
