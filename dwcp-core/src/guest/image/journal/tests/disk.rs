use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use crate::storage::{Disk, File, Folder, Stat};

/// Makes the error of a disk that fails.
pub(in crate::guest::image::journal) type Failure = fn() -> io::Error;

/// A disk that tells in which order it is written to, and fails when it comes to what it is told to fail at.
#[derive(Debug)]
pub(in crate::guest::image::journal) struct Told {
    disk: Disk,
    ear: Arc<Ear>,
}

#[derive(Debug)]
struct Ear {
    told: Sender<&'static str>,
    failing: Mutex<Option<(&'static str, Failure)>>,
}

#[derive(Debug)]
struct ToldFile {
    file: Arc<dyn File>,
    ear: Arc<Ear>,
    writes: &'static str,
    syncs: &'static str,
}

impl Ear {
    fn tell(&self, what: &'static str) -> io::Result<()> {
        let _ = self.told.send(what);
        match *self.failing.lock().unwrap() {
            Some((at, failure)) if at == what => Err(failure()),
            _ => Ok(()),
        }
    }
}

impl Told {
    pub(in crate::guest::image::journal) fn open(path: &Path) -> (Arc<Self>, Receiver<&'static str>) {
        let (told, heard) = mpsc::channel();
        let ear = Arc::new(Ear { told, failing: Mutex::new(None) });
        (Arc::new(Self { disk: Disk::open(path).unwrap(), ear }), heard)
    }

    fn told(&self, name: &str, file: Arc<dyn File>) -> Arc<dyn File> {
        let (writes, syncs) = match name {
            "data" => ("write data", "sync data"),
            _ => ("write journal", "sync journal"),
        };
        Arc::new(ToldFile { file, ear: Arc::clone(&self.ear), writes, syncs })
    }

    pub(in crate::guest::image::journal) fn fail(&self, at: Option<(&'static str, Failure)>) {
        *self.ear.failing.lock().unwrap() = at;
    }
}

impl Folder for Told {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.told(name, self.disk.open(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.told(name, self.disk.create(name)?))
    }

    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        self.disk.stat(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        self.ear.tell("name journal")?;
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
        self.ear.tell("sync names")?;
        self.disk.sync()
    }
}

impl File for ToldFile {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_at(at, into)
    }

    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.ear.tell(self.writes)?;
        self.file.write_at(at, from)
    }

    fn punch(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.file.punch(at, bytes)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.file.reserve(bytes)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.file.stat()
    }

    fn sync(&self) -> io::Result<()> {
        self.ear.tell(self.syncs)?;
        self.file.sync()
    }

    fn lock(&self) -> io::Result<bool> {
        self.file.lock()
    }

    fn wait_lock(&self) -> io::Result<()> {
        self.file.wait_lock()
    }

    fn share(&self) -> io::Result<bool> {
        self.file.share()
    }
}
