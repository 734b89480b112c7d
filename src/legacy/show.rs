use std::path::Path;
use std::sync::Arc;

use dwcp_core::guest::ImageStaging;
use dwcp_core::{Guest, GuestError};
use tokio::task::spawn_blocking;

/// An image that came whole and did not become visible as it should.
pub(super) struct Unshown {
    pub(super) error: GuestError,
    pub(super) visible: Visible,
}

/// Whether it has its name all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visible {
    No,
    Yes,
    Unknown,
}

impl Visible {
    /// For whoever looks there next.
    pub(super) fn told(self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::No => "Nothing of it became visible here.".into(),
            Self::Yes => {
                format!(
                    "It is visible here, whole, but a power cut may take it away: look at that disk, and at {path}."
                )
            }
            Self::Unknown => format!("It may be visible here or become so, whole: look at {path}."),
        }
    }
}

impl Unshown {
    /// Nobody waited for its end.
    pub(super) fn unknown() -> Self {
        let error = GuestError::Other("all of it came, but it was not made visible in time".into());
        Self { error, visible: Visible::Unknown }
    }
}

/// An image that has come becomes visible under its name. Dropped, it does so all the same.
pub(super) async fn show(staging: Arc<ImageStaging>) -> Result<(), Unshown> {
    spawn_blocking(move || resume(&staging)).await.unwrap_or_else(|_| Err(Unshown::unknown()))
}

fn resume(staging: &ImageStaging) -> Result<(), Unshown> {
    staging.resume().map_err(|error| {
        // Its file would be in the way of the next one. That takes no name from an image that has its own.
        staging.discard();
        let visible = match staging.is_visible() {
            Ok(true) => Visible::Yes,
            Ok(false) => Visible::No,
            Err(_) => Visible::Unknown,
        };
        Unshown { error, visible }
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use dwcp_core::Layout;
    use dwcp_core::guest::ImageFolder;
    use dwcp_core::storage::{Disk, File, Folder, Stat};
    use dwcp_core::wire::{Name, TransferId};

    use super::*;

    /// A directory that cannot be made durable.
    #[derive(Debug)]
    struct Volatile(Disk);

    impl Folder for Volatile {
        fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
            self.0.open(name)
        }
        fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
            self.0.create(name)
        }
        fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
            self.0.stat(name)
        }
        fn list(&self) -> io::Result<Vec<String>> {
            self.0.list()
        }
        fn replace(&self, from: &str, to: &str) -> io::Result<()> {
            self.0.replace(from, to)
        }
        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.0.rename(from, to)
        }
        fn link(&self, old: &str, new: &str) -> io::Result<()> {
            self.0.link(old, new)
        }
        fn remove(&self, name: &str) -> io::Result<()> {
            self.0.remove(name)
        }
        fn sync(&self) -> io::Result<()> {
            Err(io::Error::other("the disk failed"))
        }
    }

    #[test]
    fn an_image_that_has_its_name_is_not_said_to_be_invisible_because_a_disk_fails() {
        let place = tempfile::tempdir().unwrap();
        let (name, path) = (Name::new("vm").unwrap(), place.path().join("vm"));
        let folder = ImageFolder::over(Arc::new(Volatile(Disk::open(place.path()).unwrap())));
        let make = || folder.create(&name, TransferId([7; 16]), Layout::new(&[8192]).unwrap()).unwrap();
        let unshown = resume(&make()).unwrap_err();
        assert_eq!(unshown.visible, Visible::Yes, "{}", unshown.error);
        assert!(unshown.visible.told(&path).contains("visible here, whole") && path.exists());
        std::fs::remove_file(&path).unwrap();
        // The name was taken, and what would have had it is gone.
        let staging = make();
        std::fs::write(&path, "another").unwrap();
        assert_eq!(resume(&staging).unwrap_err().visible, Visible::No);
        let left: Vec<PathBuf> = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [path]);
    }
}
