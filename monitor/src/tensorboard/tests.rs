//! Event files read back by a reader of their own: framing, checksums, what they say.

use crate::test_support::{evaluation, step_line};

use super::*;

fn step(step: u64) -> Line {
    Line::Step(step_line(step, step as f64))
}

/// The records of a file; every byte must belong to one, and every checksum fit. The
/// checksums are computed bit by bit here.
fn records(path: &Path) -> Vec<Event> {
    let crc = |bytes: &[u8]| {
        let crc = !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
        });
        crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
    };
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut found) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let (length, after) = rest.split_at(8);
        let (length_crc, after) = after.split_at(4);
        assert_eq!(length_crc, crc(length));
        let (record, after) = after.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let (record_crc, after) = after.split_at(4);
        assert_eq!(record_crc, crc(record));
        found.push(<Event as prost::Message>::decode(record).unwrap());
        rest = after;
    }
    found
}

fn scalars(event: &Event) -> Vec<(&str, f32)> {
    let Some(What::Summary(summary)) = &event.what else { return Vec::new() };
    summary.value.iter().map(|v| (v.tag.as_str(), v.simple_value.unwrap())).collect()
}

fn started_at(event: &Event) -> Option<i64> {
    let start = What::SessionLog(SessionLog { status: SessionLog::START });
    (event.what == Some(start)).then_some(event.step)
}

/// As the format's own writer has them: pinned against TensorBoard's.
#[test]
fn the_first_record_has_the_bytes_that_tensorboard_writes() {
    let mut bytes = Vec::new();
    let version = Event { wall_time: 1.0, step: 0, what: Some(What::FileVersion(FILE_VERSION.into())) };
    records::write(&mut bytes, &prost::Message::encode_to_vec(&version)).unwrap();
    assert_eq!(&bytes[..8], 24u64.to_le_bytes());
    assert_eq!(&bytes[12..36], b"\x09\0\0\0\0\0\0\xf0\x3f\x1a\x0dbrain.Event:2");
    // The checksum of a length of 24, which every file that a TensorFlow program writes begins with.
    assert_eq!(&bytes[8..12], [0xa3, 0x7f, 0x4b, 0x22]);
}

#[test]
fn a_run_is_read_back_step_by_step() {
    let root = tempfile::tempdir().unwrap();
    let mut events = EventFile::create(&root.path().join("a/b"), &[]).unwrap();
    let path = events.path().to_path_buf();
    events.append(event_of(&step(1), Clock::wall()), false);
    events.append(event_of(&step(2), Clock::wall()), false);
    events.append(event_of(&Line::Takeover { step: 2, leaves: 1, workers: 1 }, Clock::wall()), false);
    events.append(Some(test_event(2, &evaluation(6.0), Clock::wall())), true);
    let found = records(&path);
    assert_eq!(found[0].what, Some(What::FileVersion("brain.Event:2".into())));
    assert_eq!(started_at(&found[1]), Some(1));
    assert_eq!(found.len(), 5);
    assert_eq!(scalars(&found[4]), [("test/loss", 1.5), ("test/right", 0.75)]);
    let second = scalars(&found[3]);
    assert_eq!(found[3].step, 2);
    for wanted in [
        ("loss/total", 2.0),
        ("loss/a", 0.5),
        ("loss/b", 1.5),
        ("optimizer/learning_rate", 0.25),
        ("cluster/samples_per_second", 128.0),
    ] {
        assert!(second.contains(&wanted), "no {wanted:?} in {second:?}");
    }
    assert!(found[3].wall_time >= found[0].wall_time && found[0].wall_time > 1.7e9);
}

#[test]
fn a_resumed_run_begins_with_its_journal_where_nothing_is_yet() {
    let root = tempfile::tempdir().unwrap();
    let start =
        Line::Start { version: 1, tally: String::new(), incarnation: 1, step: 0, unix_seconds: 1_000 };
    let journal = [start, step(1), step(2)];
    let whole = EventFile::create(root.path(), &journal).unwrap();
    let found = records(whole.path());
    assert_eq!(started_at(&found[1]), Some(1));
    assert_eq!(
        found[2..].iter().map(|e| (e.step, e.wall_time)).collect::<Vec<_>>(),
        [(1, 1000.5), (2, 1001.0)]
    );
    // The next start finds them there, and voids only what comes again.
    let next = EventFile::create(root.path(), &journal).unwrap();
    let found = records(next.path());
    assert_eq!((found.len(), started_at(&found[1])), (2, Some(3)));
    assert_ne!(whole.path(), next.path());
}

#[test]
fn a_place_that_cannot_be_written_to_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(EventFile::create(&file, &[]).is_err());
}
