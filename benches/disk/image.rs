//! The image, the room for it, and whether what arrived is it.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

/// A folder for one benchmark, removed with all that is in it; where it is and on what. Panics when the disk has no
/// room for `bytes`.
pub fn room(dir: &Path, bytes: u64) -> (TempDir, String) {
    let output = Command::new("df").args(["-B1", "--output=avail,fstype"]).arg(dir).output().expect("df");
    assert!(output.status.success(), "--dir {}: {}", dir.display(), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("df speaks text");
    let mut columns = text.lines().nth(1).expect("a line of df").split_whitespace();
    let free: u64 = columns.next().and_then(|free| free.parse().ok()).expect("free bytes");
    let system = columns.next().expect("a file system").to_owned();
    // Journals, records and the file system's own are small beside it.
    let need = bytes + bytes / 50;
    assert!(free >= need, "{} has {free} bytes free and {need} are needed: take a smaller --size", dir.display());
    let folder = tempfile::Builder::new().prefix("dwcp-disk-").tempdir_in(dir).expect("a folder");
    let place = format!("{} ({system})", dir.display());
    (folder, place)
}

/// A ledger keeps nothing of a file that was written to less than 2 s ago.
const SETTLES: Duration = Duration::from_secs(3);

/// Writes random bytes and waits until the disk has them, so that nobody else's run pays for that.
pub fn make(path: &Path, bytes: u64) {
    let mut file = File::create(path).expect("an image");
    let (mut part, mut state) = (vec![0; 1 << 20], 0x9e37_79b9_7f4a_7c15_u64);
    let mut left = bytes;
    while left > 0 {
        for word in part.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let now = part.len().min(left as usize);
        file.write_all(&part[..now]).expect("room for the image");
        left -= now as u64;
    }
    file.sync_all().expect("a disk that syncs");
    std::thread::sleep(SETTLES);
}

/// Panics unless both files are the same.
pub fn compare(one: &Path, other: &Path) {
    let open = |path: &Path| {
        let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(file.metadata().expect("metadata").len(), one.metadata().expect("metadata").len());
        BufReader::with_capacity(1 << 20, file)
    };
    let (mut one_file, mut other_file) = (open(one), open(other));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut left = one.metadata().expect("metadata").len();
    while left > 0 {
        let now = a.len().min(left as usize);
        one_file.read_exact(&mut a[..now]).expect("the image");
        other_file.read_exact(&mut b[..now]).expect("what arrived");
        assert!(a[..now] == b[..now], "{} is not what was sent", other.display());
        left -= now as u64;
    }
}
