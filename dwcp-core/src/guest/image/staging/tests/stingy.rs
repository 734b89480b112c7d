use std::io;
use std::sync::Arc;

use crate::storage::{Disk, File, Folder, Stat};

/// A folder in which one name cannot be opened, with an error of the system.
#[derive(Debug)]
pub(super) struct Stingy {
    pub(super) disk: Disk,
    pub(super) name: String,
    pub(super) code: i32,
}

impl Folder for Stingy {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        if name == self.name { Err(io::Error::from_raw_os_error(self.code)) } else { self.disk.open(name) }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.disk.create(name)
    }

    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        self.disk.stat(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.replace(from, to)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.link(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }
}
