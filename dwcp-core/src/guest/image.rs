//! Files as guests: an image that is sent, snapshots of one guest sent as rounds, and the staging
//! file in which an image arrives, with the journal of what of it is durable.

mod folder;
mod journal;
mod ledger;
mod place;
mod rounds;
mod runs;
mod source;
mod staging;
mod written;

pub use self::folder::{ImageFolder, Parked, Swept};
pub use self::rounds::Rounds;
pub use self::source::ImageSource;
pub use self::staging::ImageStaging;
