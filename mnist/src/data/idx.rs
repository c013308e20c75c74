//! A strict reader of the two kinds of IDX file that MNIST consists of.
//!
//! A file is plain or gzip, decided by its first two bytes and not by its name. It is
//! accepted whole or not at all: the magic number, the 28×28 size, the count, every label
//! and the absence of anything behind the last sample are checked, and of a gzip file its
//! checksum as well. Memory follows the bytes that are there, never what a header
//! claims, and no more than a header's worth is ever unpacked, so that a small file
//! cannot fill the memory.
//!
//! The format is LeCun's: big-endian 32-bit words, first `0x803` (unsigned bytes, three
//! axes) and count, rows, columns for images, or `0x801` (one axis) and the count for
//! labels; then the bytes.
//!
//! The `mnist` crate is the tests' independent reader and not the product's. It reads no
//! gzip and no embedded bytes, knows only the official counts, and panics on whatever is
//! wrong; what it reads of the official files is compared with what is read here, byte
//! for byte.

use std::io::{self, BufRead, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use thiserror::Error;

use super::samples::{PIXELS, SIDE};

/// The most samples a file may have: 2²⁰, 784 MiB of pixels. Sample ids are `u32`.
pub const MAX_SAMPLES: usize = 1 << 20;

const IMAGES: u32 = 0x803;
const LABELS: u32 = 0x801;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// An IDX file that cannot be used: what is wrong, in which file, and what to do.
#[derive(Debug, Error)]
pub enum IdxError {
    /// The file could not be opened or read.
    #[error("{file}: cannot be read ({source}); check the path, its permissions and the disk")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file starts as gzip but does not unpack.
    #[error("{file}: the gzip data is damaged ({source}); fetch the file again")]
    Gzip {
        /// The file.
        file: PathBuf,
        /// What the decoder said.
        source: io::Error,
    },
    /// Another kind of file.
    #[error(
        "{file}: starts with {found:#010x}, not with the {wanted:#010x} of MNIST {what}; \
         check that it is an IDX file and that images and labels are not swapped"
    )]
    Magic {
        /// The file.
        file: PathBuf,
        /// "images" or "labels".
        what: &'static str,
        /// The file's first word.
        found: u32,
        /// What it should be.
        wanted: u32,
    },
    /// Images of another size.
    #[error(
        "{file}: its images have {rows}×{columns} pixels; the network takes {SIDE}×{SIDE}, so scale them first"
    )]
    Size {
        /// The file.
        file: PathBuf,
        /// Rows of an image.
        rows: u32,
        /// Columns of an image.
        columns: u32,
    },
    /// No samples, or more than [`MAX_SAMPLES`].
    #[error("{file}: says that it has {count} samples; use a file of 1 to {MAX_SAMPLES}")]
    Count {
        /// The file.
        file: PathBuf,
        /// The header's count.
        count: u32,
    },
    /// The file ends too early.
    #[error("{file}: ends after {found} of {wanted} bytes; fetch the file again")]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Bytes there should be, unpacked.
        wanted: u64,
        /// Bytes there are, unpacked.
        found: u64,
    },
    /// The file goes on after its last sample.
    #[error("{file}: has more than the {wanted} bytes its header speaks of; fetch the file again")]
    Trailing {
        /// The file.
        file: PathBuf,
        /// Bytes there should be, unpacked.
        wanted: u64,
    },
    /// A label that is no digit.
    #[error(
        "{file}: the label of sample {index} is {value}, not a digit from 0 to 9; use a set of ten digits"
    )]
    Label {
        /// The file.
        file: PathBuf,
        /// The sample, from 0.
        index: usize,
        /// Its label.
        value: u8,
    },
}

/// The pixels of a file of 28×28 images, image after image, row-major. `file` is for
/// error messages alone.
///
/// # Errors
/// [`IdxError`] says what is wrong with the file.
pub fn images(file: &Path, reader: impl BufRead) -> Result<Vec<u8>, IdxError> {
    let mut source = Source::open(file, reader)?;
    let count = source.header(IMAGES, "images")?;
    let (rows, columns) = (source.word(IMAGES_HEADER)?, source.word(IMAGES_HEADER)?);
    if (rows, columns) != (SIDE as u32, SIDE as u32) {
        return Err(IdxError::Size { file: file.into(), rows, columns });
    }
    source.rest(IMAGES_HEADER, count as u64 * PIXELS as u64)
}

/// The labels of a file of labels, all from 0 to 9. `file` is for error messages alone.
///
/// # Errors
/// [`IdxError`] says what is wrong with the file.
pub fn labels(file: &Path, reader: impl BufRead) -> Result<Vec<u8>, IdxError> {
    let mut source = Source::open(file, reader)?;
    let count = source.header(LABELS, "labels")?;
    let labels = source.rest(LABELS_HEADER, count as u64)?;
    match labels.iter().position(|&label| label > 9) {
        Some(index) => Err(IdxError::Label { file: file.into(), index, value: labels[index] }),
        None => Ok(labels),
    }
}

/// Bytes of an images file's header.
const IMAGES_HEADER: u64 = 16;
/// Bytes of a labels file's header.
const LABELS_HEADER: u64 = 8;

/// What a file holds, unpacked, with the file's name for the errors.
struct Source<'a> {
    file: &'a Path,
    bytes: Box<dyn Read + 'a>,
    gzip: bool,
    read: u64,
}

impl<'a> Source<'a> {
    fn open(file: &'a Path, mut reader: impl BufRead + 'a) -> Result<Self, IdxError> {
        // A reader may hand out one byte at a time, so the two that decide are taken
        // out and put in front again.
        let mut head = Vec::new();
        let io = |source| IdxError::Io { file: file.into(), source };
        (&mut reader).take(GZIP.len() as u64).read_to_end(&mut head).map_err(io)?;
        let gzip = head == GZIP;
        let whole = Cursor::new(head).chain(reader);
        let bytes: Box<dyn Read + 'a> =
            if gzip { Box::new(Members(Some(GzDecoder::new(whole)))) } else { Box::new(whole) };
        Ok(Self { file, bytes, gzip, read: 0 })
    }

    /// Reads up to `n` bytes; fewer only if the file ends.
    fn take(&mut self, n: u64) -> Result<Vec<u8>, IdxError> {
        let mut into = Vec::new();
        let read = self.bytes.by_ref().take(n).read_to_end(&mut into);
        self.read += into.len() as u64;
        match read {
            Ok(_) => Ok(into),
            Err(source) if self.gzip && is_damage(&source) => {
                Err(IdxError::Gzip { file: self.file.into(), source })
            }
            Err(source) => Err(IdxError::Io { file: self.file.into(), source }),
        }
    }

    fn truncated(&self, wanted: u64) -> IdxError {
        IdxError::Truncated { file: self.file.into(), wanted, found: self.read }
    }

    /// The next big-endian word of a header of `header` bytes.
    fn word(&mut self, header: u64) -> Result<u32, IdxError> {
        let bytes = self.take(4)?;
        let bytes = <[u8; 4]>::try_from(bytes.as_slice()).map_err(|_| self.truncated(header))?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// Checks the magic number and returns the count.
    fn header(&mut self, wanted: u32, what: &'static str) -> Result<u32, IdxError> {
        let found = self.word(LABELS_HEADER)?;
        if found != wanted {
            return Err(IdxError::Magic { file: self.file.into(), what, found, wanted });
        }
        let count = self.word(LABELS_HEADER)?;
        if count == 0 || count as usize > MAX_SAMPLES {
            return Err(IdxError::Count { file: self.file.into(), count });
        }
        Ok(count)
    }

    /// The `n` bytes behind a header of `header` bytes, with which the file must end.
    fn rest(&mut self, header: u64, n: u64) -> Result<Vec<u8>, IdxError> {
        // One byte more than there should be: its absence shows that the file ends, and
        // reading up to the end is what makes the gzip decoder compare its checksum.
        let bytes = self.take(n + 1)?;
        match bytes.len() as u64 {
            found if found < n => Err(self.truncated(header + n)),
            found if found > n => Err(IdxError::Trailing { file: self.file.into(), wanted: header + n }),
            _ => Ok(bytes),
        }
    }
}

/// The content of a gzip file's members, one after the other. Zeros after the last member are padding, which tapes and block
/// devices add and `gzip -t` accepts; anything else there is damage.
struct Members<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let read = member.read(buf)?;
            if read > 0 || buf.is_empty() {
                return Ok(read);
            }
            let rest = self.0.take().map(GzDecoder::into_inner);
            self.0 = rest.map(next_member).transpose()?.flatten();
        }
        Ok(0)
    }
}

/// The member that begins here, unless the file ends here.
fn next_member<R: BufRead>(mut rest: R) -> io::Result<Option<GzDecoder<R>>> {
    let mut padded = false;
    loop {
        let bytes = rest.fill_buf()?;
        match (bytes.len(), bytes.iter().position(|&byte| byte != 0)) {
            (0, _) => return Ok(None),
            (zeros, None) => {
                padded = true;
                rest.consume(zeros);
            }
            (_, Some(0)) if !padded => return Ok(Some(GzDecoder::new(rest))),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "there is something after its padding",
                ));
            }
        }
    }
}

/// Whether the gzip decoder found the fault, and not the disk.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::io::{BufReader, Write as _};

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_be_bytes()).collect()
    }

    fn images_file(n: u32) -> Vec<u8> {
        let mut bytes = words(&[IMAGES, n, 28, 28]);
        bytes.extend((0..n as usize * PIXELS).map(|i| (i * 7 % 256) as u8));
        bytes
    }

    fn labels_file(labels: &[u8]) -> Vec<u8> {
        let mut bytes = words(&[LABELS, labels.len() as u32]);
        bytes.extend(labels);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read_images(bytes: &[u8]) -> Result<Vec<u8>, IdxError> {
        images(Path::new("some-images"), bytes)
    }

    fn read_labels(bytes: &[u8]) -> Result<Vec<u8>, IdxError> {
        labels(Path::new("some-labels"), bytes)
    }

    #[test]
    fn plain_and_gzip_files_read_alike_whatever_their_name() {
        let (pixels, digits) = (images_file(3), labels_file(&[7, 0, 9]));
        assert_eq!(read_images(&pixels).unwrap(), pixels[16..]);
        assert_eq!(read_images(&gzip(&pixels)).unwrap(), pixels[16..]);
        assert_eq!(read_labels(&digits).unwrap(), [7, 0, 9]);
        assert_eq!(read_labels(&gzip(&digits)).unwrap(), [7, 0, 9]);
    }

    #[test]
    fn a_reader_that_hands_out_single_bytes_is_read_alike() {
        let packed = gzip(&labels_file(&[1, 2]));
        let slow = BufReader::with_capacity(1, packed.as_slice());
        assert_eq!(labels(Path::new("slow"), slow).unwrap(), [1, 2]);
    }

    #[test]
    fn a_gzip_file_of_several_members_is_one_file() {
        let whole = labels_file(&[1, 2, 3, 4]);
        let packed = [gzip(&whole[..9]), gzip(&whole[9..])].concat();
        assert_eq!(read_labels(&packed).unwrap(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_gzip_file_padded_with_zeros_is_read() {
        let packed = gzip(&labels_file(&[1, 2, 3]));
        for zeros in [1, 7, 512, 100_000] {
            let padded = [&packed[..], &vec![0; zeros]].concat();
            assert_eq!(read_labels(&padded).unwrap(), [1, 2, 3], "{zeros}");
            let slow = BufReader::with_capacity(1, padded.as_slice());
            assert_eq!(labels(Path::new("slow"), slow).unwrap(), [1, 2, 3]);
            // Anything else after zeros is damage.
            for behind in [&b"x"[..], &packed] {
                let error = read_labels(&[&padded[..], behind].concat()).unwrap_err();
                assert!(matches!(error, IdxError::Gzip { .. }), "{zeros}: {error}");
            }
        }
    }

    #[test]
    fn swapped_files_are_told_apart() {
        let error = read_images(&labels_file(&[1])).unwrap_err();
        assert!(matches!(error, IdxError::Magic { found: LABELS, wanted: IMAGES, .. }));
        let text = error.to_string();
        assert!(text.starts_with("some-images: starts with 0x00000801"), "{text}");
        assert!(text.contains("swapped"), "{text}");
        assert!(matches!(read_labels(&images_file(1)), Err(IdxError::Magic { .. })));
    }

    #[test]
    fn images_of_another_size_are_refused() {
        let mut bytes = words(&[IMAGES, 1, 32, 28]);
        bytes.resize(16 + 32 * 28, 0);
        assert!(matches!(read_images(&bytes), Err(IdxError::Size { rows: 32, columns: 28, .. })));
    }

    #[test]
    fn a_label_over_nine_is_refused_with_its_place() {
        let error = read_labels(&labels_file(&[3, 9, 10, 4])).unwrap_err();
        assert!(matches!(error, IdxError::Label { index: 2, value: 10, .. }), "{error}");
    }

    #[test]
    fn every_truncation_is_found() {
        let pixels = images_file(1);
        for end in 0..pixels.len() {
            let error = read_images(&pixels[..end]).unwrap_err();
            assert!(
                matches!(error, IdxError::Truncated { found, .. } if found == end as u64),
                "{end}: {error}"
            );
        }
        let packed = gzip(&labels_file(&[1, 2, 3]));
        for end in 2..packed.len() {
            let error = read_labels(&packed[..end]).unwrap_err();
            assert!(matches!(error, IdxError::Gzip { .. }), "{end}: {error}");
        }
    }

    #[test]
    fn trailing_bytes_are_refused_outside_and_inside_gzip() {
        let mut longer = labels_file(&[1, 2, 3]);
        longer.push(4);
        assert!(matches!(read_labels(&longer), Err(IdxError::Trailing { wanted: 11, .. })));
        assert!(matches!(read_labels(&gzip(&longer)), Err(IdxError::Trailing { wanted: 11, .. })));
        let mut behind = gzip(&labels_file(&[1, 2, 3]));
        behind.extend(b"more");
        assert!(matches!(read_labels(&behind), Err(IdxError::Gzip { .. })));
    }

    /// The header may claim what it likes: memory follows the bytes that are there.
    #[test]
    fn a_count_the_file_cannot_hold_costs_no_memory() {
        let claim = words(&[IMAGES, MAX_SAMPLES as u32, 28, 28]);
        let error = read_images(&claim).unwrap_err();
        assert!(matches!(error, IdxError::Truncated { found: 16, .. }), "{error}");
        for count in [0, MAX_SAMPLES as u32 + 1, u32::MAX] {
            assert!(matches!(read_labels(&words(&[LABELS, count])), Err(IdxError::Count { .. })));
        }
    }

    /// A gzip bomb: 64 MiB of zeros behind a header that speaks of one label.
    #[test]
    fn no_more_is_unpacked_than_the_header_speaks_of() {
        let mut bytes = labels_file(&[0]);
        bytes.resize(64 << 20, 0);
        assert!(matches!(read_labels(&gzip(&bytes)), Err(IdxError::Trailing { wanted: 9, .. })));
    }

    #[test]
    fn a_failing_disk_is_no_damaged_file() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the cable fell out"))
            }
        }
        let packed = gzip(&labels_file(&[1, 2, 3]));
        let reader = BufReader::new(packed[..12].chain(Broken));
        let error = labels(Path::new("far"), reader).unwrap_err();
        assert!(matches!(error, IdxError::Io { .. }), "{error}");
        assert!(error.to_string().contains("the cable fell out"));
    }

    proptest! {
        #[test]
        fn flipped_bits_of_a_gzip_file_never_change_what_is_read(at in 0usize..200, bit in 0u8..8) {
            let good: Vec<u8> = (0..100).map(|i| i % 10).collect();
            let mut packed = gzip(&labels_file(&good));
            let at = at % packed.len();
            packed[at] ^= 1 << bit;
            // Bits of gzip's own header (time, system) may flip without harm.
            if let Ok(read) = read_labels(&packed) {
                prop_assert_eq!(read, good);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), packed: bool) {
            let bytes = if packed { [&GZIP[..], &[8, 0], &bytes].concat() } else { bytes };
            let _ = (read_images(&bytes), read_labels(&bytes));
        }
    }
}
