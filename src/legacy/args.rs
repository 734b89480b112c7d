use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use dwcp_core::guest::ImageSource;
use dwcp_core::wire::Name;
use dwcp_v1_compat::net::{Baseline, DiskOptions, Form, PlaintextPolicy};
use dwcp_v1_compat::wire::Framing;

use super::allowance;
use crate::exit::{Exit, Failure};
use crate::units;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Version 1, at either end.
#[derive(Debug, Args)]
pub(crate) struct LegacyArgs {
    /// Speak version 1, in clear text, as its peers are set; they say nothing that tells the two framings apart
    #[arg(long, value_name = "FRAMING", value_enum)]
    pub(crate) v1: Option<FramingArg>,
    /// Address of a peer that clear text is spoken with; may be repeated
    #[arg(long, value_name = "ADDRESS", requires = "v1")]
    pub(crate) allow_plaintext_v1: Vec<IpAddr>,
    /// Clear text even with an address that spoke version 3 before
    #[arg(long, requires = "v1")]
    pub(crate) allow_downgrade_v1: bool,
    /// How the image is put into a message [default: memory over amst16, plain over mst8]
    #[arg(long, value_enum, value_name = "FORM", requires = "v1")]
    pub(crate) v1_form: Option<FormArg>,
    /// Bytes of a block of a disk, as its peer is set: whole pages, to 4 MiB
    #[arg(long, value_name = "SIZE", requires = "v1", default_value = "1MiB", value_parser = units::size)]
    pub(crate) v1_block: u64,
    /// Bytes of a chunk, as an mst8 peer is set; to receive, whole pages [default: 256KiB for mst8, 64KiB for amst16]
    #[arg(long, value_name = "SIZE", requires = "v1", value_parser = units::size)]
    pub(crate) v1_chunk: Option<u64>,
}

/// Version 1 at `dwcp send`.
#[derive(Debug, Args)]
pub(crate) struct SendV1Args {
    #[command(flatten)]
    pub(crate) shared: LegacyArgs,
    /// Connections of a version 1 message, 1 to 256, as its peer is set; an amst16 peer has 4 at least
    #[arg(long, value_name = "COUNT", requires = "v1", default_value = "16")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) v1_connections: u16,
    /// Where an mst8 peer dials to: it does so even to receive. Then --to only says whom to take
    #[arg(long, value_name = "ADDR:PORT", requires = "v1", value_parser = units::listen_address)]
    pub(crate) v1_listen: Option<String>,
}

/// Version 1 at `dwcp receive`.
#[derive(Debug, Args)]
pub(crate) struct ReceiveV1Args {
    #[command(flatten)]
    pub(crate) shared: LegacyArgs,
    /// Name of what comes over version 1, which names nothing
    #[arg(long, value_name = "NAME", required_if_eq_any = [("v1", "amst16"), ("v1", "mst8")])]
    pub(crate) v1_as: Option<Name>,
    /// Bytes of what comes over version 1, which does not say: `4GiB`, or a number
    #[arg(long, value_name = "SIZE", value_parser = units::length)]
    #[arg(required_if_eq_any = [("v1", "amst16"), ("v1", "mst8")])]
    pub(crate) v1_size: Option<u64>,
    /// An older image of the same guest, which peers may send changes of. Without it only full images are taken
    #[arg(long, value_name = "FILE", requires = "v1")]
    pub(crate) v1_baseline: Option<PathBuf>,
    /// What the peer calls that guest: its baselines are `NAME_memory` and `NAME_disk_<n>` [default: as --v1-as]
    #[arg(long, value_name = "NAME", requires = "v1_baseline")]
    pub(crate) v1_baseline_of: Option<String>,
}

impl ReceiveV1Args {
    /// What op lists of a peer refer to.
    fn baseline(&self) -> Result<Option<Baseline>, Failure> {
        let Some(path) = &self.v1_baseline else { return Ok(None) };
        let image = Arc::new(ImageSource::open(path)?);
        let vm = self.v1_baseline_of.clone().or_else(|| self.v1_as.as_ref().map(ToString::to_string));
        Ok(Some(Baseline { vm: vm.unwrap_or_default(), image }))
    }

    /// How a peer is expected to send the image, and with what it may be told.
    pub(crate) fn form(&self) -> Result<Form, Failure> {
        let (form, baseline) = (self.shared.form()?, self.baseline()?);
        match form {
            FormArg::Plain if baseline.is_some() => {
                Err(Failure::new(Exit::Usage, "a plain image is its bytes as they are, and has no baseline")
                    .advise("Leave out --v1-baseline, or use --v1 amst16 with --v1-form memory or disk."))
            }
            FormArg::Plain if u64::from(self.shared.chunk_bytes()) % PAGE != 0 => {
                let what = format!(
                    "--v1-chunk {}: a plain image comes in chunks of whole pages here",
                    self.shared.chunk_bytes()
                );
                Err(Failure::new(Exit::Usage, what)
                    .advise("Set the peer to chunks of a multiple of 4096 bytes, and name that with --v1-chunk."))
            }
            FormArg::Plain => Ok(Form::Plain),
            FormArg::Memory => Ok(Form::Memory(baseline)),
            FormArg::Disk => Ok(Form::Disk(self.shared.disk(), baseline)),
        }
    }
}

/// Version 1's two transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FramingArg {
    /// The migration transport: each chunk names its offset and the length of all, up to 4 GiB - 1
    Amst16,
    /// The bulk transport: nothing names a length
    Mst8,
}

/// How an image is put into a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormArg {
    /// Its bytes as they are
    Plain,
    /// One packet, up to 256 MiB before it is compressed; amst16 only
    Memory,
    /// A packet for each block; amst16 only
    Disk,
}

impl LegacyArgs {
    pub(crate) fn framing(&self) -> Framing {
        match self.v1 {
            Some(FramingArg::Mst8) => Framing::Mst8,
            Some(FramingArg::Amst16) | None => Framing::Amst16,
        }
    }

    pub(crate) fn word(&self) -> &'static str {
        match self.framing() {
            Framing::Mst8 => "mst8",
            Framing::Amst16 => "amst16",
        }
    }

    pub(crate) fn form(&self) -> Result<FormArg, Failure> {
        let form = self.v1_form.unwrap_or(match self.framing() {
            Framing::Mst8 => FormArg::Plain,
            Framing::Amst16 => FormArg::Memory,
        });
        if self.framing() == Framing::Mst8 && form != FormArg::Plain {
            return Err(Failure::new(Exit::Usage, "version 1 sends packets and blocks over amst16 only")
                .advise("Use --v1 amst16, or --v1-form plain."));
        }
        Ok(form)
    }

    pub(crate) fn chunk_bytes(&self) -> u32 {
        let default = match self.framing() {
            Framing::Mst8 => 256 * 1024,
            Framing::Amst16 => 64 * 1024,
        };
        self.v1_chunk.map_or(default, |bytes| u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    pub(crate) fn disk(&self) -> DiskOptions {
        DiskOptions { block_bytes: u32::try_from(self.v1_block).unwrap_or(u32::MAX), partial: false }
    }

    /// With whom clear text is spoken: never with nobody in particular.
    pub(crate) fn policy(&self) -> Result<PlaintextPolicy, Failure> {
        if self.allow_plaintext_v1.is_empty() {
            let what = "version 1 is clear text, and nobody is named with whom that is allowed";
            return Err(Failure::new(Exit::Usage, what).advise(allowance(None)));
        }
        let policy = PlaintextPolicy::new(self.framing(), self.allow_plaintext_v1.iter().copied());
        Ok(policy.with_downgrade(self.allow_downgrade_v1))
    }
}
