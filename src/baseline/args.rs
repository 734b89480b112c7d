use std::path::PathBuf;

use clap::{Args, Subcommand};
use dwcp_core::wire::Name;

use crate::exit::{self, Exit};
use crate::units;

const EXITS: [Exit; 4] = [Exit::Ok, Exit::Failed, Exit::Usage, Exit::Integrity];

#[derive(Debug, Args)]
#[command(after_help = exit::help(&EXITS, "\
Examples:
  dwcp baseline add --store /var/lib/dwcp/base --key-file base.key \\
      --make-key --tenant web --name golden golden.mem
  dwcp baseline list --store /var/lib/dwcp/base --key-file base.key
  dwcp baseline verify --store /var/lib/dwcp/base --key-file base.key
  dwcp baseline gc --store /var/lib/dwcp/base --key-file base.key --limit 20GiB

A baseline is an earlier state of a guest that both ends of a transfer hold: only what differs from it need travel. \
Its pages are stored once for a tenant, compressed, and sealed with the key. Nodes that share baselines have the same \
key file: bring it to them over a safe way, readable by the node's user alone. Who has it can read the store. A \
baseline can always be made again from its image, so a store that is lost or damaged costs time, never data."))]
pub(crate) struct BaselineArgs {
    #[command(subcommand)]
    pub(crate) command: BaselineCommand,
    /// Print JSON lines; the last one is the summary
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BaselineCommand {
    /// Make a baseline of an image, or of the regions of a guest
    #[command(after_help = exit::help(&EXITS, "\
Examples:
  dwcp baseline add --store DIR --key-file base.key --make-key \\
      --tenant web --name golden golden.mem
  dwcp baseline add --store DIR --key-file base.key \\
      --tenant web --name vm1 ram-low.mem ram-high.mem

Each file is a region, in this order. A baseline of the same tenant and name is replaced once the new one is whole. \
Nobody may write to the files meanwhile; that is noticed. Pages that the tenant has already are not stored again, but \
compared: adding an image again repairs what is damaged of it. Stopped at any moment, it leaves nothing but garbage \
that `dwcp baseline gc` removes."))]
    Add(AddArgs),
    /// Tell of all baselines
    #[command(after_help = exit::help(&EXITS, "\
Examples:
  dwcp baseline list --store DIR --key-file base.key
  dwcp baseline list --store DIR --key-file base.key --tenant web --json"))]
    List(OfTenantArgs),
    /// Tell all that is known of one baseline
    #[command(after_help = exit::help(&EXITS, "\
Examples:
  dwcp baseline show golden --store DIR --key-file base.key

The digest is the same at two nodes only for the same pages, tenant and key: by it they know that both hold it."))]
    Show(OneArgs),
    /// Read every page and check it
    #[command(after_help = exit::help(&EXITS, "\
Examples:
  dwcp baseline verify --store DIR --key-file base.key
  dwcp baseline verify golden --store DIR --key-file base.key --json

A damaged page is never used: a sender sends it like one that is not known, and at a receiver the transfer fails, and \
the next one goes without the baseline. Adding the image again repairs it."))]
    Verify(VerifyArgs),
    /// Remove what no baseline needs, and baselines that are not wanted any more
    #[command(after_help = exit::help(&EXITS, "\
Examples:
  dwcp baseline gc --store DIR --key-file base.key
  dwcp baseline gc --store DIR --key-file base.key --limit 20GiB
  dwcp baseline gc --store DIR --key-file base.key --tenant web --remove vm1

With --limit those that were used longest ago go, until the rest fits. One that a transfer uses stays. Leftovers of \
processes that died, baselines that were replaced, and manifests whose head cannot be read go in any case."))]
    Gc(GcArgs),
}

/// Which store.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// The directory of the store
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// The key of the store: 32 random bytes, readable by you alone
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Make the key file, if there is none
    #[arg(long)]
    pub(crate) make_key: bool,
    /// Whose it is: pages are compared and shared within a tenant only
    #[arg(long, value_name = "NAME")]
    pub(crate) tenant: Name,
    /// What it is called: 1 to 64 of a-z 0-9 . _ -
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Name,
    /// Bytes that the store may take on the disk; what does not fit is refused
    #[arg(long, value_name = "SIZE", default_value = "64GiB", value_parser = units::size)]
    pub(crate) limit: u64,
    /// The image; more than one file: the regions of a guest
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct OfTenantArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Only those of this tenant
    #[arg(long, value_name = "NAME")]
    pub(crate) tenant: Option<Name>,
}

#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// Its name
    pub(crate) name: Name,
    #[command(flatten)]
    pub(crate) of: OfTenantArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Its name; without it all are read
    pub(crate) name: Option<Name>,
    #[command(flatten)]
    pub(crate) of: OfTenantArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Bytes that the baselines may take on the disk
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) limit: Option<u64>,
    /// A baseline that is to go; may be repeated
    #[arg(long, value_name = "NAME", requires = "tenant")]
    pub(crate) remove: Vec<Name>,
    /// Whose baselines --remove names
    #[arg(long, value_name = "NAME", requires = "remove")]
    pub(crate) tenant: Option<Name>,
}
