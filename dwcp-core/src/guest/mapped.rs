#![allow(unsafe_code, reason = "memory shared with another process has no safe type; this module is its only door")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Memory that is shared with other processes: a mapping of a memfd or of a file on a tmpfs.
///
/// Others read and write it all the while, so nothing here ever makes a `&[u8]` of it: every access
/// is an atomic one of a word (of a byte at ragged ends), which tears between words and never within
/// one. A page copied while somebody writes it is torn; its dirty bit says so.
///
/// A file that is truncated below the mapping makes the next access raise SIGBUS, which ends the
/// process. [`MappedRegion::create_memfd`] seals its memory against that.
#[derive(Debug)]
pub struct MappedRegion {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone until it is dropped, is not tied to a thread, and
// every access through it is atomic.
unsafe impl Send for MappedRegion {}
// SAFETY: as above: concurrent accesses are atomic.
unsafe impl Sync for MappedRegion {}

const WORD: usize = size_of::<u64>();

impl MappedRegion {
    /// Maps `bytes` of a file from `offset` on, which is a multiple of 4096.
    ///
    /// # Errors
    /// The range is empty or not all in the file, or the system refuses.
    pub fn map(fd: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<Self> {
        let file_bytes = u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
        let end = u64::try_from(bytes).ok().and_then(|bytes| offset.checked_add(bytes));
        if bytes == 0 || end.is_none_or(|end| end > file_bytes) {
            let text = format!("{bytes} bytes from {offset} cannot be mapped of a file of {file_bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        // SAFETY: the kernel chooses the address, so no mapping of ours is replaced.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                offset,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, bytes })
    }

    /// Makes anonymous shared memory of zeros, which can neither shrink nor grow; to be mapped here
    /// and, through an inherited or passed descriptor, in other processes.
    ///
    /// # Errors
    /// The system refuses.
    pub fn create_memfd(name: &str, bytes: u64) -> io::Result<OwnedFd> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, bytes)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
        Ok(fd)
    }

    /// A memfd of this size, mapped whole, with its descriptor.
    ///
    /// # Errors
    /// The system refuses.
    pub fn anonymous(name: &str, bytes: usize) -> io::Result<(Self, OwnedFd)> {
        let fd = Self::create_memfd(name, u64::try_from(bytes).unwrap_or(u64::MAX))?;
        Ok((Self::map(fd.as_fd(), 0, bytes)?, fd))
    }

    /// Its size in bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "an empty mapping cannot be made")]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// The range is not all in the mapping.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        let (head, words, tail) = self.split(offset, into.len())?;
        let (first, rest) = into.split_at_mut(head.len());
        let (middle, last) = rest.split_at_mut(words.len() * WORD);
        load_bytes(first, head);
        for (bytes, word) in middle.as_chunks_mut::<WORD>().0.iter_mut().zip(words) {
            *bytes = native(word.load(Ordering::Relaxed));
        }
        load_bytes(last, tail);
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// The range is not all in the mapping.
    pub fn write(&self, offset: usize, from: &[u8]) -> io::Result<()> {
        let (head, words, tail) = self.split(offset, from.len())?;
        let (first, rest) = from.split_at(head.len());
        let (middle, last) = rest.split_at(words.len() * WORD);
        store_bytes(head, first);
        for (bytes, word) in middle.as_chunks::<WORD>().0.iter().zip(words) {
            word.store(word_of(*bytes), Ordering::Relaxed);
        }
        store_bytes(tail, last);
        Ok(())
    }

    /// The word at an offset that is a multiple of 8: a dirty bitmap's, or one that two processes
    /// talk by. `None` when it is not all in the mapping or not aligned.
    pub fn atomic_u64(&self, offset: usize) -> Option<&AtomicU64> {
        self.atomics(offset, 1)?.first()
    }

    /// `count` words from an offset that is a multiple of 8.
    pub fn atomics(&self, offset: usize, count: usize) -> Option<&[AtomicU64]> {
        let end = count.checked_mul(WORD).and_then(|bytes| bytes.checked_add(offset))?;
        if !offset.is_multiple_of(WORD) || end > self.bytes {
            return None;
        }
        // SAFETY: the range is in the mapping, which lives as long as `self`; a mapping starts at a
        // page, so it is aligned; and everybody who shares it uses atomic words.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset).cast::<AtomicU64>(), count) })
    }

    /// A range as ragged bytes, whole words, ragged bytes.
    fn split(&self, offset: usize, length: usize) -> io::Result<(&[AtomicU8], &[AtomicU64], &[AtomicU8])> {
        let outside = || {
            let text = format!("{length} bytes from {offset} lie outside a mapping of {} bytes", self.bytes);
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let end = offset.checked_add(length).filter(|&end| end <= self.bytes).ok_or_else(outside)?;
        let words_start = offset.next_multiple_of(WORD).min(end);
        let words_end = words_start + (end - words_start) / WORD * WORD;
        let words = self.atomics(words_start, (words_end - words_start) / WORD);
        let words = if words_start == words_end { Some(&[][..]) } else { words }.ok_or_else(outside)?;
        Ok((self.bytes_at(offset, words_start), words, self.bytes_at(words_end, end)))
    }

    fn bytes_at(&self, start: usize, end: usize) -> &[AtomicU8] {
        assert!(start <= end && end <= self.bytes, "`split` checks the range");
        // SAFETY: the range is in the mapping, which lives as long as `self`; a byte is always
        // aligned; everybody who shares it uses atomic accesses.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(start).cast::<AtomicU8>(), end - start) }
    }
}

impl Drop for MappedRegion {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`; nothing borrows from it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours is unmapped once");
    }
}

fn load_bytes(into: &mut [u8], from: &[AtomicU8]) {
    for (byte, atomic) in into.iter_mut().zip(from) {
        *byte = atomic.load(Ordering::Relaxed);
    }
}

fn store_bytes(into: &[AtomicU8], from: &[u8]) {
    for (atomic, byte) in into.iter().zip(from) {
        atomic.store(*byte, Ordering::Relaxed);
    }
}

#[expect(clippy::host_endian_bytes, reason = "memory of this host, copied as it lies; nothing here goes on a wire")]
fn native(word: u64) -> [u8; WORD] {
    word.to_ne_bytes()
}

#[expect(clippy::host_endian_bytes, reason = "memory of this host, copied as it lies; nothing here comes from a wire")]
fn word_of(bytes: [u8; WORD]) -> u64 {
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_ranges_are_copied_both_ways() {
        let (region, fd) = MappedRegion::anonymous("dwcp-test", 4096 + 5).unwrap();
        let twin = MappedRegion::map(fd.as_fd(), 0, 4096 + 5).unwrap();
        let bytes: Vec<u8> = (0..=200).collect();
        for offset in [0, 1, 7, 8, 4095, 4096 + 5 - 201] {
            for length in [0, 1, 6, 7, 8, 9, 201] {
                let Some(part) = bytes.get(..length).filter(|_| offset + length <= region.len()) else { continue };
                region.write(offset, part).unwrap();
                let mut read = vec![0; length];
                twin.read(offset, &mut read).unwrap();
                assert_eq!(read, part, "{offset}+{length}");
            }
        }
    }

    #[test]
    fn what_lies_outside_is_an_error() {
        let (region, fd) = MappedRegion::anonymous("dwcp-test", 4096).unwrap();
        assert!(region.read(4090, &mut [0; 7]).is_err());
        assert!(region.write(usize::MAX, &[0; 7]).is_err());
        assert!(region.atomic_u64(4096).is_none() && region.atomic_u64(4).is_none());
        assert!(region.atomics(8, usize::MAX).is_none());
        assert!(MappedRegion::map(fd.as_fd(), 0, 4097).is_err());
        assert!(MappedRegion::map(fd.as_fd(), 0, 0).is_err());
        assert!(rustix::fs::ftruncate(&fd, 1).is_err(), "sealed: nobody can take the memory away");
    }

    #[test]
    fn a_word_is_seen_through_another_mapping() {
        let (region, fd) = MappedRegion::anonymous("dwcp-test", 4096).unwrap();
        let twin = MappedRegion::map(fd.as_fd(), 0, 4096).unwrap();
        region.atomic_u64(16).unwrap().fetch_or(5, Ordering::AcqRel);
        assert_eq!(twin.atomic_u64(16).unwrap().swap(0, Ordering::AcqRel), 5);
        assert_eq!(region.atomics(16, 1).unwrap()[0].load(Ordering::Acquire), 0);
    }
}
