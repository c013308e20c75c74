//! TFRecord framing: the length (64 bits, little-endian), its checksum, the bytes, their
//! checksum. A checksum is CRC-32C, rotated right by 15 bits, plus a constant, so that a
//! checksum of bytes that hold checksums stays good.

use std::io::{self, Write};

fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Writes a record.
pub fn write(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = (bytes.len() as u64).to_le_bytes();
    for part in [&length[..], &masked(&length), bytes, &masked(bytes)] {
        to.write_all(part)?;
    }
    Ok(())
}
