use std::path::PathBuf;

use clap::{Args, Subcommand};
use dwcp_core::wire::Name;
use dwcp_hde::{MAX_DICTIONARY_BYTES, MIN_DICTIONARY_BYTES};

use crate::exit::{self, Exit};
use crate::units;

const EXITS: [Exit; 4] = [Exit::Ok, Exit::Failed, Exit::Usage, Exit::Integrity];

#[derive(Debug, Args)]
#[command(after_help = exit::help(&EXITS, "\
Examples:
  # make one of images like those that will be sent
  dwcp dictionary train --store /var/lib/dwcp/dict --name debian \\
      golden1.mem golden2.mem
  # tell of all that are in the store
  dwcp dictionary list --store /var/lib/dwcp/dict
  # use them; the receiver names its copy of the store, too
  dwcp send ... --dictionary-store /var/lib/dwcp/dict

A dictionary is what many pages have in common. Where both ends hold the same one, extents of few pages refer to it \
and become smaller; an end that does not hold it costs nothing. It holds pieces of guests' memory in clear: keep its \
file as secret as the guests, bring it to other nodes over a safe way, and use one store for each tenant."))]
pub(crate) struct DictionaryArgs {
    #[command(subcommand)]
    pub(crate) command: DictionaryCommand,
    /// Print JSON lines; the last one is the summary
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DictionaryCommand {
    /// Make a dictionary of images of guests
    #[command(after_help = exit::help(&EXITS, "\
Examples:
  dwcp dictionary train --store DIR --name debian golden.mem
  dwcp dictionary train --store DIR --name thin --size 1MiB \\
      vm1.mem vm2.mem vm3.mem

Give images of the kind that will be sent: other guests of the same system, or earlier states. At most 16,384 pages \
that are not zero are taken, evenly from all. The same images give the same dictionary. One of the same name is \
replaced."))]
    Train(TrainArgs),
    /// Tell of all dictionaries
    #[command(after_help = exit::help(&EXITS, "\
Examples:
  dwcp dictionary list --store DIR
  dwcp dictionary list --store DIR --json"))]
    List(StoreArgs),
    /// Tell all that is known of one
    #[command(after_help = exit::help(&EXITS, "\
Examples:
  dwcp dictionary show debian --store DIR

The id is BLAKE3 of the content: two nodes have the same dictionary if they tell the same id."))]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// The directory of the store
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// What it is called: 1 to 64 of a-z 0-9 . _ -
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Name,
    /// Bytes of it at most, 256 to 1MiB; more than the default pays on thin links only
    #[arg(long, value_name = "SIZE", default_value = "128KiB", value_parser = size)]
    pub(crate) size: usize,
    /// Images to learn from
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Its name
    pub(crate) name: Name,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// As large as a dictionary may be.
fn size(text: &str) -> Result<usize, String> {
    let bytes = usize::try_from(units::size(text)?).ok();
    let allowed = bytes.filter(|bytes| (MIN_DICTIONARY_BYTES..=MAX_DICTIONARY_BYTES).contains(bytes));
    allowed.ok_or_else(|| format!("`{text}` is no size of a dictionary; write 256B to 1MiB"))
}

/// `--dictionary-store` of `dwcp send` and `dwcp receive`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UseOfDictionaries {
    /// Use the dictionaries of this directory (see `dwcp dictionary`) with a peer that holds them, too
    #[arg(long, value_name = "DIR")]
    pub(crate) dictionary_store: Option<PathBuf>,
}
