//! Memory that a coordinator and a worker on the same machine both reach, so that chunks need
//! not pass through a socket.
//!
//! A segment is an anonymous file in memory, made by the coordinator and cut into *places* of
//! one chunk. The worker is told which process holds it under which descriptor, and opens it
//! through `/proc`; it can if it runs on the same machine, in view of that process, as the same user.
//! Nothing is left behind when either dies, however it dies.
//!
//! Chunks are copied in and out by the system (`pwrite`, `pread`), not mapped: a peer that
//! writes while the other reads can spoil its own numbers and nothing else, and the file's size is
//! sealed (**TRUST-1**). What lies where is said in messages; the two sides' rules for when a place may be
//! written again are the sender's (`worker`) and the board's (`coordinator`).

use std::fs::File;
use std::hash::BuildHasher as _;
use std::io;
#[cfg(target_os = "linux")]
use std::os::{fd::AsRawFd as _, unix::fs::FileExt as _};

use tally_exact::CHUNK;

use crate::v1;

/// What the names of segments begin with.
const PREFIX: &str = "tally-";
/// Bytes of a place.
const PLACE: u64 = 4 * CHUNK as u64;

/// A file in memory with room for some chunks.
#[derive(Debug)]
pub struct Segment {
    file: File,
    name: String,
    places: u32,
}

impl Segment {
    /// Makes one. Memory is used when a place is written first.
    ///
    /// # Errors
    /// If the system has no such files, or gives none.
    #[cfg(target_os = "linux")]
    pub fn create(places: u32) -> io::Result<Self> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

        let random = std::hash::RandomState::new().hash_one(std::process::id());
        let name = format!("{PREFIX}{random:016x}");
        let file = File::from(memfd_create(&name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(u64::from(places) * PLACE)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { file, name, places })
    }

    /// How a worker finds it.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn offer(&self) -> v1::Segment {
        v1::Segment {
            process: std::process::id(),
            descriptor: self.file.as_raw_fd().unsigned_abs(),
            name: self.name.clone(),
            places: self.places,
        }
    }

    /// Opens one that was offered, for writing too if `writable`.
    ///
    /// # Errors
    /// If it is not on this machine or not within reach. Nothing else is ever opened, whatever
    /// the offer says.
    #[cfg(target_os = "linux")]
    pub fn open(offer: &v1::Segment, writable: bool) -> io::Result<Self> {
        let v1::Segment { process, descriptor, name, places } = offer;
        let path = format!("/proc/{process}/fd/{descriptor}");
        let target = std::fs::read_link(&path)?;
        if !name.starts_with(PREFIX) || target.as_os_str() != format!("/memfd:{name} (deleted)").as_str() {
            return Err(io::Error::other("it is not on this machine"));
        }
        let file = File::options().read(true).write(writable).open(&path)?;
        if file.metadata()?.len() != u64::from(*places) * PLACE {
            return Err(io::Error::other("it has another size"));
        }
        Ok(Self { file, name: name.clone(), places: *places })
    }

    /// Copies a chunk to a place.
    ///
    /// # Errors
    /// If there is no such place, or no memory for it.
    #[cfg(target_os = "linux")]
    pub fn write(&self, place: u32, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all_at(chunk, self.at(place, chunk.len())?)
    }

    /// Copies a chunk out of a place. The bits are any: they have to be checked.
    ///
    /// # Errors
    /// If there is no such place.
    #[cfg(target_os = "linux")]
    pub fn read(&self, place: u32, into: &mut [f32]) -> io::Result<()> {
        let bytes = bytemuck::cast_slice_mut::<f32, u8>(into);
        self.file.read_exact_at(bytes, self.at(place, bytes.len())?)
    }

    /// How many chunks it has room for.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn places(&self) -> u32 {
        self.places
    }

    #[cfg(target_os = "linux")]
    fn at(&self, place: u32, bytes: usize) -> io::Result<u64> {
        if place >= self.places || bytes as u64 > PLACE {
            let what = format!("place {place} of {}, {bytes} bytes", self.places);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(u64::from(place) * PLACE)
    }
}

/// Elsewhere chunks take the network.
#[cfg(not(target_os = "linux"))]
#[allow(missing_docs, clippy::missing_errors_doc, clippy::must_use_candidate)]
impl Segment {
    pub fn places(&self) -> u32 {
        0
    }

    pub fn create(_: u32) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[must_use]
    pub fn offer(&self) -> v1::Segment {
        v1::Segment::default()
    }

    pub fn open(_: &v1::Segment, _: bool) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn write(&self, _: u32, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn read(&self, _: u32, _: &mut [f32]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_written_on_one_side_is_read_on_the_other() {
        let ours = Segment::create(3).unwrap();
        let theirs = Segment::open(&ours.offer(), true).unwrap();
        let mut chunk = vec![0.0; CHUNK];
        theirs.write(2, bytemuck::cast_slice(&vec![1.5f32; CHUNK])).unwrap();
        ours.read(2, &mut chunk).unwrap();
        assert_eq!(chunk, vec![1.5; CHUNK]);
        // The last chunk of a vector is short.
        theirs.write(1, bytemuck::cast_slice(&[2.5f32, -1.0])).unwrap();
        ours.read(1, &mut chunk[..2]).unwrap();
        assert_eq!(chunk[..3], [2.5, -1.0, 1.5]);
    }

    #[test]
    fn trust_1_there_is_nothing_beyond_its_places() {
        let segment = Segment::create(2).unwrap();
        assert!(segment.write(2, &[0; 4]).is_err());
        assert!(segment.write(u32::MAX, &[0; 4]).is_err());
        assert!(segment.write(0, &vec![0; 4 * CHUNK + 1]).is_err());
        assert!(segment.read(2, &mut [0.0]).is_err());
        let theirs = Segment::open(&segment.offer(), true).unwrap();
        assert!(theirs.file.set_len(0).is_err(), "its size is sealed");
        assert!(theirs.file.set_len(1 << 40).is_err(), "its size is sealed");
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
            v1::Segment { name: format!("{PREFIX}0"), ..offer.clone() },
            v1::Segment { name: String::new(), ..offer.clone() },
            v1::Segment { places: 2, ..offer.clone() },
        ];
        for offer in wrong {
            assert!(Segment::open(&offer, true).is_err(), "{offer:?}");
        }
        drop(segment);
        assert!(Segment::open(&offer, true).is_err(), "it is gone");
    }

    #[test]
    fn one_opened_for_reading_is_not_written() {
        let ours = Segment::create(1).unwrap();
        let theirs = Segment::open(&ours.offer(), false).unwrap();
        assert!(theirs.write(0, &[1; 4]).is_err());
        assert!(theirs.read(0, &mut [0.0; 4]).is_ok());
    }
}
