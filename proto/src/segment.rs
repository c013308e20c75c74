//! Memory that a coordinator and a worker on the same machine both reach, so that chunks need
//! not pass through a socket.
//!
//! A segment is an anonymous file in memory, made by the coordinator and cut into *slots* of
//! one chunk. The worker is told which process holds it under which descriptor, and opens it
//! through `/proc`; it can if it runs on the same machine, in view of that process, as the same user.
//! Nothing is left behind when either dies, however it dies.
//!
//! Chunks are copied in and out, by a library for memory that another process may be writing to. A peer that writes
//! while the other side reads can spoil only its own numbers. The file's size is sealed, so no process can take the
//! memory away (**TRUST-1**). What lies where is said in messages; the two sides' rules for when a slot may be
//! written again are in the worker's `session/slots.rs` and the coordinator's `server/shared_sums.rs`.

use std::io;

use tally_numerics::CHUNK;

/// Bytes of a slot.
pub const SLOT: usize = 4 * CHUNK;

#[cfg(target_os = "linux")]
pub use linux::Segment;
#[cfg(not(target_os = "linux"))]
pub use nowhere::Segment;

/// No such slot, or more than fits one.
fn beyond(slot: u32, slots: u32, bytes: usize) -> io::Error {
    let what = format!("slot {slot} of {slots}, {bytes} bytes");
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::hash::{BuildHasher as _, RandomState};
    use std::io;
    use std::os::fd::AsRawFd as _;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
    use rustix::mm::{MapFlags, ProtFlags};
    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{FileOffset, MmapRegion, VolatileMemory as _, VolatileSlice};

    use super::{SLOT, beyond};
    use crate::v1;

    /// What the names of segments begin with.
    const PREFIX: &str = "tally-";
    /// Memory that was mapped cannot be taken away.
    const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

    /// A file in memory with room for some chunks.
    #[derive(Debug)]
    pub struct Segment {
        memory: MmapRegion,
        descriptor: u32,
        name: String,
        slots: u32,
        writable: bool,
    }

    impl Segment {
        /// Makes one. Memory is used when a slot is written first.
        ///
        /// # Errors
        /// If the system has no such files, or gives none.
        pub fn create(slots: u32) -> io::Result<Self> {
            let random = RandomState::new().hash_one(std::process::id());
            let name = format!("{PREFIX}{random:016x}");
            let file = File::from(memfd_create(&name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
            file.set_len(u64::from(slots) * SLOT as u64)?;
            fcntl_add_seals(&file, SEALS)?;
            Self::map(file, name, slots, true)
        }

        fn map(file: File, name: String, slots: u32, writable: bool) -> io::Result<Self> {
            let descriptor = file.as_raw_fd().unsigned_abs();
            let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
            let memory = MmapRegionBuilder::new(slots as usize * SLOT)
                .with_mmap_prot(protection.bits() as i32)
                .with_mmap_flags(MapFlags::SHARED.bits() as i32)
                .with_file_offset(FileOffset::new(file, 0))
                .build()
                .map_err(io::Error::other)?;
            Ok(Self { memory, descriptor, name, slots, writable })
        }

        /// How a worker finds it.
        #[must_use]
        pub fn offer(&self) -> v1::Segment {
            let (descriptor, name, slots) = (self.descriptor, self.name.clone(), self.slots);
            v1::Segment { process: std::process::id(), descriptor, name, slots }
        }

        /// Opens one that was offered, for writing too if `writable`.
        ///
        /// # Errors
        /// If it is not on this machine or not within reach. Nothing else is ever opened,
        /// whatever the offer says.
        pub fn open(offer: &v1::Segment, writable: bool) -> io::Result<Self> {
            let v1::Segment { process, descriptor, name, slots } = offer;
            let path = format!("/proc/{process}/fd/{descriptor}");
            let target = std::fs::read_link(&path)?;
            if !name.starts_with(PREFIX) || target.as_os_str() != format!("/memfd:{name} (deleted)").as_str()
            {
                return Err(io::Error::other("it is not on this machine"));
            }
            let file = File::options().read(true).write(writable).open(&path)?;
            let whole = file.metadata()?.len() == u64::from(*slots) * SLOT as u64;
            if !whole || !fcntl_get_seals(&file)?.contains(SEALS) {
                return Err(io::Error::other("it has another size, or may change it"));
            }
            Self::map(file, name.clone(), *slots, writable)
        }

        /// How many chunks it has room for.
        #[must_use]
        pub fn slots(&self) -> u32 {
            self.slots
        }

        /// Copies a chunk to a slot.
        ///
        /// # Errors
        /// If there is no such slot, or it was opened for reading.
        pub fn write(&self, slot: u32, chunk: &[u8]) -> io::Result<()> {
            if !self.writable {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.at(slot, chunk.len())?.copy_from(chunk);
            Ok(())
        }

        /// Copies a chunk out of a slot. The values are arbitrary, and have to be checked.
        ///
        /// # Errors
        /// If there is no such slot.
        pub fn read(&self, slot: u32, into: &mut [u8]) -> io::Result<()> {
            self.at(slot, into.len())?.copy_to(into);
            Ok(())
        }

        fn at(&self, slot: u32, bytes: usize) -> io::Result<VolatileSlice<'_>> {
            let there = slot < self.slots && bytes <= SLOT;
            let slice = if there { self.memory.get_slice(slot as usize * SLOT, bytes).ok() } else { None };
            slice.ok_or_else(|| beyond(slot, self.slots, bytes))
        }
    }
}

/// Elsewhere chunks take the network.
#[cfg(not(target_os = "linux"))]
#[allow(missing_docs, clippy::missing_errors_doc, clippy::must_use_candidate)]
mod nowhere {
    use std::io::{self, ErrorKind};

    use super::beyond;
    use crate::v1;

    #[derive(Debug)]
    pub struct Segment(());

    impl Segment {
        pub fn create(_: u32) -> io::Result<Self> {
            Err(ErrorKind::Unsupported.into())
        }

        pub fn open(_: &v1::Segment, _: bool) -> io::Result<Self> {
            Err(ErrorKind::Unsupported.into())
        }

        pub fn offer(&self) -> v1::Segment {
            v1::Segment::default()
        }

        pub fn slots(&self) -> u32 {
            0
        }

        pub fn write(&self, slot: u32, chunk: &[u8]) -> io::Result<()> {
            Err(beyond(slot, 0, chunk.len()))
        }

        pub fn read(&self, slot: u32, into: &mut [u8]) -> io::Result<()> {
            Err(beyond(slot, 0, into.len()))
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    use super::*;
    use crate::v1;

    #[test]
    fn a_chunk_written_on_one_side_is_read_on_the_other() {
        let ours = Segment::create(3).unwrap();
        let theirs = Segment::open(&ours.offer(), true).unwrap();
        let mut chunk = vec![0; SLOT];
        theirs.write(2, &vec![7; SLOT]).unwrap();
        ours.read(2, &mut chunk).unwrap();
        assert_eq!(chunk, vec![7; SLOT]);
        // The last chunk of a vector is short.
        theirs.write(1, &[1, 2, 3]).unwrap();
        ours.read(1, &mut chunk[..3]).unwrap();
        assert_eq!(chunk[..4], [1, 2, 3, 7]);
    }

    #[test]
    fn trust_1_there_is_nothing_beyond_its_places() {
        let segment = Segment::create(2).unwrap();
        assert!(segment.write(2, &[0; 4]).is_err());
        assert!(segment.write(u32::MAX, &[0; 4]).is_err());
        assert!(segment.write(0, &vec![0; SLOT + 1]).is_err());
        assert!(segment.read(2, &mut [0]).is_err());
        let theirs = Segment::open(&segment.offer(), true).unwrap();
        let v1::Segment { process, descriptor, .. } = theirs.offer();
        let file = File::options().write(true).open(format!("/proc/{process}/fd/{descriptor}")).unwrap();
        assert!(file.set_len(0).is_err(), "its size is sealed");
        assert!(file.set_len(1 << 40).is_err(), "its size is sealed");
    }

    #[test]
    fn trust_1_nothing_but_a_segment_is_opened() {
        let segment = Segment::create(1).unwrap();
        let offer = segment.offer();
        let other = tempfile::NamedTempFile::new().unwrap();
        let path = other.path().to_str().unwrap().to_string();
        let wrong = [
            v1::Segment { descriptor: other.as_file().as_raw_fd().unsigned_abs(), ..offer.clone() },
            v1::Segment {
                descriptor: other.as_file().as_raw_fd().unsigned_abs(),
                name: path,
                ..offer.clone()
            },
            v1::Segment { descriptor: u32::MAX, ..offer.clone() },
            v1::Segment { process: u32::MAX, ..offer.clone() },
            v1::Segment { name: "tally-0".into(), ..offer.clone() },
            v1::Segment { name: String::new(), ..offer.clone() },
            v1::Segment { slots: 2, ..offer.clone() },
        ];
        for offer in wrong {
            assert!(Segment::open(&offer, true).is_err(), "{offer:?}");
        }
        // One of the right name that could be taken away while it is read.
        let name = "tally-unsealed".to_string();
        let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create(&name, flags).unwrap());
        file.set_len(SLOT as u64).unwrap();
        let descriptor = file.as_raw_fd().unsigned_abs();
        let unsealed = v1::Segment { descriptor, name, ..offer.clone() };
        assert!(Segment::open(&unsealed, true).unwrap_err().to_string().contains("may change"));
        drop(segment);
        assert!(Segment::open(&offer, true).is_err(), "it is gone");
    }

    #[test]
    fn one_opened_for_reading_is_not_written() {
        let ours = Segment::create(1).unwrap();
        let theirs = Segment::open(&ours.offer(), false).unwrap();
        assert!(theirs.write(0, &[1; 4]).is_err());
        assert!(theirs.read(0, &mut [0; 4]).is_ok());
    }
}
