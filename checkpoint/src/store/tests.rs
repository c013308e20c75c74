//! **CKPT-1**: a checkpoint is whole or absent, and verified when it is read.

use proptest::prelude::*;
use safetensors::SafeTensors;
use tally_numerics::manifest::{Manifest, TensorSpec};
use tempfile::TempDir;

use super::*;
use crate::read_weights;

const OPTIMIZER: &str = MOMENTS[0];

/// Three tensors that are trained, and one that is not.
fn network() -> Manifest {
    let tensor = |name, shape: &[u32]| TensorSpec::with_fan_in(name, shape, 9);
    let constant = TensorSpec { constant: true, ..tensor("z", &[2]) };
    let trained = [tensor("conv2.weight", &[2, 1, 3]), tensor("conv1.weight", &[4]), tensor("b", &[1])];
    Manifest::new([&trained[..], &[constant]].concat()).unwrap()
}

/// A checkpoint of `step` whose values follow from it and `salt`.
fn checkpoint(step: u64, salt: f32) -> Checkpoint {
    let tensors = network();
    let parameters: Vec<f32> = (0..tensors.len()).map(|i| (i as f32 + salt) * 0.3 - step as f32).collect();
    let trained = &parameters[..tensors.trained_len()];
    let moments = [-0.1, 0.01].map(|factor| trained.iter().map(|p| factor * p).collect()).into();
    let state = State { parameters, moments };
    let meta = Meta {
        version: VERSION,
        run: "run".into(),
        program: crate::ProgramConfig {
            name: "tests".into(),
            variant: "net".into(),
            arguments: serde_json::json!({"loss": "cross-entropy"}),
        },
        step,
        epoch: 1,
        digest: state.digest(),
        parameters_sha256: tensors.sha256(&state.parameters),
        tensors,
        moments: vec!["exp_avg".into(), "exp_avg_sq".into()],
        config: serde_json::json!({ "seed": 1 }),
    };
    Checkpoint { meta, state }
}

fn save(root: &Path, checkpoint: &Checkpoint) -> Result<PathBuf, CheckpointError> {
    write(root, &checkpoint.meta, &checkpoint.state)
}

/// A root with checkpoints of these steps.
fn root_with(steps: &[u64]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for &step in steps {
        save(root.path(), &checkpoint(step, 0.0)).unwrap();
    }
    root
}

fn steps(root: &Path) -> Vec<u64> {
    list(root).unwrap().into_iter().map(|(step, _)| step).collect()
}

/// The names in a directory, hidden ones too.
fn everything(root: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn newest(root: &Path) -> Option<Checkpoint> {
    newest_whole(root, None).unwrap().checkpoint
}

#[test]
fn a_checkpoint_comes_back_as_it_was_written() {
    let root = tempfile::tempdir().unwrap();
    let nested = root.path().join("run/checkpoints");
    let written = checkpoint(1234, 0.0);
    let path = save(&nested, &written).unwrap();
    assert_eq!(path, nested.join("step-00001234"));
    assert_eq!(read(&path).unwrap(), written);
    assert_eq!(everything(&nested), ["step-00001234"]);
    assert_eq!(everything(&path), [MANIFEST, MODEL, MOMENTS[1], OPTIMIZER]);
}

#[test]
fn the_safetensors_crate_reads_every_file() {
    let root = tempfile::tempdir().unwrap();
    let written = checkpoint(7, 0.0);
    let path = save(root.path(), &written).unwrap();
    let State { parameters, moments } = &written.state;
    for (name, values) in [(MODEL, parameters), (MOMENTS[0], &moments[0]), (MOMENTS[1], &moments[1])] {
        let bytes = fs::read(path.join(name)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let all = ["b", "conv1.weight", "conv2.weight", "z"];
        assert_eq!(header.offset_keys(), all[..if name == MODEL { 4 } else { 3 }]);
        let tensor =
            SafeTensors::deserialize(&bytes).unwrap().tensor("conv2.weight").unwrap().data().to_vec();
        let wanted: Vec<u8> = values[..6].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(tensor, wanted);
    }
    let read = read_weights(&path, &network()).unwrap();
    assert_eq!((read.values, read.unknown.len()), (written.state.parameters.clone(), 0));
    assert_eq!(read_weights(&path.join(MODEL), &network()).unwrap().values, written.state.parameters);
}

/// CKPT-1: whatever bit of whatever file is flipped, and wherever a file is cut, the
/// checkpoint is refused with the file's name.
#[test]
fn ckpt_1_every_flipped_bit_and_every_truncation_is_found() {
    let root = root_with(&[5]);
    let path = directory(root.path(), 5);
    for name in [MODEL, MOMENTS[1], MANIFEST] {
        let file = path.join(name);
        let good = fs::read(&file).unwrap();
        let refused = |bytes: &[u8], how: String| {
            fs::write(&file, bytes).unwrap();
            match read(&path) {
                Err(CheckpointError::Damaged { file, .. }) => assert_eq!(file, name, "{how}"),
                other => panic!("{name}, {how}: {other:?}"),
            }
        };
        for bit in 0..8 * good.len() {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            refused(&flipped, format!("bit {bit} flipped"));
        }
        for end in 0..good.len() {
            refused(&good[..end], format!("cut at {end}"));
        }
        refused(&[good.as_slice(), b" "].concat(), "one byte more".into());
        fs::write(&file, &good).unwrap();
    }
    assert_eq!(read(&path).unwrap(), checkpoint(5, 0.0));
}

#[test]
fn ckpt_1_a_missing_file_is_found() {
    let root = root_with(&[5]);
    let path = directory(root.path(), 5);
    fs::remove_file(path.join(OPTIMIZER)).unwrap();
    let text = read(&path).unwrap_err().to_string();
    assert!(
        text.contains("step-00000005 is damaged: optimizer.safetensors is not there; use an older"),
        "{text}"
    );
    fs::remove_file(path.join(MANIFEST)).unwrap();
    assert!(matches!(read(&path), Err(CheckpointError::Absent { .. })));
    assert!(matches!(read(Path::new("no/such")), Err(CheckpointError::Absent { .. })));
}

/// CKPT-1: files of two checkpoints do not make one, though each is whole.
#[test]
fn ckpt_1_files_of_two_checkpoints_are_not_mixed() {
    let root = root_with(&[5, 6]);
    let (five, six) = (directory(root.path(), 5), directory(root.path(), 6));
    fs::copy(six.join(OPTIMIZER), five.join(OPTIMIZER)).unwrap();
    assert!(matches!(read(&five), Err(CheckpointError::Damaged { file: OPTIMIZER, .. })));
    let eight = directory(root.path(), 8);
    fs::rename(&six, &eight).unwrap();
    assert!(matches!(read(&eight), Err(CheckpointError::Damaged { file: MANIFEST, .. })));
    // Under a name of the user's own it is a checkpoint still.
    let own = root.path().join("the-good-one");
    fs::rename(&eight, &own).unwrap();
    assert_eq!(read(&own).unwrap(), checkpoint(6, 0.0));
}

/// CKPT-1: a process that dies before the rename has changed nothing, whichever files
/// it had begun and however far it got with them.
#[test]
fn ckpt_1_a_crash_before_the_rename_leaves_the_old_state() {
    let root = root_with(&[10, 20]);
    let new = checkpoint(30, 0.0);
    let names = [MODEL, OPTIMIZER, MANIFEST];
    for (begun, part) in [(0, 0.0), (0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0), (2, 0.0), (2, 0.9), (2, 1.0)] {
        let temporary = Temporary::new(root.path(), &name_of(30));
        fs::create_dir(&temporary.0).unwrap();
        fill(&temporary.0, &new.meta, &new.state).unwrap();
        for name in &names[begun + 1..] {
            fs::remove_file(temporary.0.join(name)).unwrap();
        }
        let last = temporary.0.join(names[begun]);
        let bytes = fs::read(&last).unwrap();
        fs::write(&last, &bytes[..(bytes.len() as f64 * part) as usize]).unwrap();
        std::mem::forget(temporary); // The crash: no destructor runs.

        assert_eq!(steps(root.path()), [10, 20]);
        assert_eq!(newest(root.path()).unwrap(), checkpoint(20, 0.0));
        assert!(newest_whole(root.path(), None).unwrap().skipped.is_empty());
    }
    assert_eq!(clean(root.path()).unwrap().len(), 8);
    assert_eq!(everything(root.path()), ["step-00000010", "step-00000020"]);
    save(root.path(), &new).unwrap();
    assert_eq!(newest(root.path()).unwrap(), new);
}

#[test]
fn ckpt_1_a_checkpoint_of_the_same_step_is_replaced() {
    let root = root_with(&[10]);
    let path = save(root.path(), &checkpoint(10, 0.5)).unwrap();
    assert_eq!(read(&path).unwrap(), checkpoint(10, 0.5));
    assert_eq!(everything(root.path()), ["step-00000010"]);
    // A damaged one is replaced as well, and so is an empty directory.
    fs::write(path.join(MODEL), b"x").unwrap();
    save(root.path(), &checkpoint(10, 0.75)).unwrap();
    assert_eq!(read(&path).unwrap(), checkpoint(10, 0.75));
    fs::create_dir(directory(root.path(), 11)).unwrap();
    save(root.path(), &checkpoint(11, 0.5)).unwrap();
    assert_eq!(newest(root.path()).unwrap(), checkpoint(11, 0.5));
    assert_eq!(everything(root.path()), ["step-00000010", "step-00000011"]);
}

/// CKPT-1 where two names cannot be exchanged: a crash between the two renames.
#[test]
fn ckpt_1_a_crash_amid_a_replacement_leaves_the_old_one() {
    let root = root_with(&[10]);
    let path = directory(root.path(), 10);
    set_aside(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(clean(root.path()).unwrap().len(), 1);
    assert_eq!(read(&path).unwrap(), checkpoint(10, 0.0));

    // And one after the second rename, before the old one was removed.
    set_aside(&path).unwrap();
    save(root.path(), &checkpoint(10, 0.5)).unwrap();
    clean(root.path()).unwrap();
    assert_eq!(read(&path).unwrap(), checkpoint(10, 0.5));
    assert_eq!(everything(root.path()), ["step-00000010"]);
}

/// CKPT-1 where two names cannot be exchanged, as on some network file systems.
#[test]
fn ckpt_1_without_an_exchange_a_checkpoint_is_replaced_or_left() {
    let unsupported = |_: &Path, _: &Path| Err(io::ErrorKind::Unsupported.into());
    let root = root_with(&[10]);
    let path = directory(root.path(), 10);
    let new = checkpoint(10, 0.5);

    publish(&root.path().join(".tmp-vanished"), &path, unsupported).unwrap_err();
    assert_eq!(read(&path).unwrap(), checkpoint(10, 0.0));
    assert_eq!(everything(root.path()), ["step-00000010"]);

    let temporary = Temporary::new(root.path(), &name_of(10));
    fs::create_dir(&temporary.0).unwrap();
    fill(&temporary.0, &new.meta, &new.state).unwrap();
    publish(&temporary.0, &path, unsupported).unwrap();
    assert_eq!(read(&path).unwrap(), new);
    assert_eq!(everything(root.path()), ["step-00000010"]);
}

/// CKPT-1: a disk that is full when the second file is written.
#[cfg(target_os = "linux")]
#[test]
fn ckpt_1_a_full_disk_leaves_what_was_there_and_nothing_else() {
    let root = root_with(&[10]);
    let new = checkpoint(20, 0.0);
    let temporary = Temporary::new(root.path(), &name_of(20));
    fs::create_dir(&temporary.0).unwrap();
    std::os::unix::fs::symlink("/dev/full", temporary.0.join(OPTIMIZER)).unwrap();
    let error = fill(&temporary.0, &new.meta, &new.state).unwrap_err();
    let CheckpointError::Io { source, path, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert!(path.ends_with(OPTIMIZER), "{error}");
    drop(temporary);
    assert_eq!(everything(root.path()), ["step-00000010"]);
    assert_eq!(newest(root.path()).unwrap(), checkpoint(10, 0.0));
}

#[test]
fn a_root_that_cannot_be_written_is_an_error_with_its_path() {
    // A file where the root should be; permissions do not stop a test run by root.
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("checkpoints");
    fs::write(&root, b"a file").unwrap();
    let text = save(&root, &checkpoint(1, 0.0)).unwrap_err().to_string();
    assert!(text.starts_with("cannot make the directory "), "{text}");
    assert!(text.contains(&root.display().to_string()), "{text}");
    assert_eq!(fs::read(&root).unwrap(), b"a file");
    assert!(list(&root).is_err());
}

#[test]
fn a_directory_without_permission_is_left_as_it_was() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = root_with(&[10]);
    let permit = |mode| fs::set_permissions(root.path(), fs::Permissions::from_mode(mode)).unwrap();
    permit(0o555);
    let result = save(root.path(), &checkpoint(20, 0.0));
    permit(0o755);
    // Whoever is root may write all the same.
    let left = if rustix::process::geteuid().is_root() { vec![10, 20] } else { vec![10] };
    assert_eq!((result.is_ok(), steps(root.path())), (left.len() == 2, left));
    assert_eq!(read(&directory(root.path(), 10)).unwrap(), checkpoint(10, 0.0));
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let root = root_with(&[10]);
    let good = checkpoint(20, 0.0);
    let with = |change: fn(&mut Checkpoint)| {
        let mut bad = good.clone();
        change(&mut bad);
        bad
    };
    for bad in [
        with(|c| c.meta.version = 2),
        with(|c| c.meta.digest.0 ^= 1),
        with(|c| c.meta.parameters_sha256 = "00".repeat(32)),
        with(|c| c.state.parameters.truncate(3)),
        with(|c| c.state.moments.truncate(1)),
        with(|c| c.state.moments[1][0] += 1.0),
    ] {
        assert!(matches!(save(root.path(), &bad), Err(CheckpointError::Refused { step: 20, .. })));
    }
    assert_eq!(everything(root.path()), ["step-00000010"]);
}

#[test]
fn the_list_is_ascending_and_has_checkpoints_alone() {
    let root = root_with(&[900, 20, 123_456_789, 100_000_000]);
    for name in
        ["step-7", "step-000000007", "step-+0000007", "step-abcdefgh", "other", ".tmp-step-00000001-1-1"]
    {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    fs::write(root.path().join("step-00000003"), b"a file").unwrap();
    assert_eq!(steps(root.path()), [20, 900, 100_000_000, 123_456_789]);
    assert!(list(&root.path().join("none")).unwrap().is_empty());
    assert!(newest(&root.path().join("none")).is_none());
}

#[test]
fn the_newest_whole_one_is_found_past_damaged_ones() {
    let root = root_with(&[10, 20, 30, 40]);
    fs::write(directory(root.path(), 40).join(MODEL), b"x").unwrap();
    fs::remove_file(directory(root.path(), 30).join(MANIFEST)).unwrap();
    let newest = newest_whole(root.path(), None).unwrap();
    assert_eq!(newest.checkpoint.unwrap(), checkpoint(20, 0.0));
    let skipped: Vec<_> = newest.skipped.iter().map(|(step, _)| *step).collect();
    assert_eq!(skipped, [40, 30]);
    assert!(
        newest.skipped[0].1.to_string().contains("step-00000040 is damaged: model.safetensors has 1 bytes")
    );

    let earlier = newest_whole(root.path(), Some(19)).unwrap();
    assert_eq!((earlier.checkpoint.unwrap(), earlier.skipped.len()), (checkpoint(10, 0.0), 0));
    assert!(newest_whole(root.path(), Some(9)).unwrap().checkpoint.is_none());
}

#[test]
fn links_lead_to_checkpoints_and_are_replaced() {
    let root = root_with(&[10, 20]);
    link(root.path(), "last", 10).unwrap();
    link(root.path(), "best", 10).unwrap();
    link(root.path(), "last", 20).unwrap();
    assert_eq!(fs::read_link(root.path().join("last")).unwrap(), Path::new("step-00000020"));
    assert_eq!(read(&root.path().join("last")).unwrap(), checkpoint(20, 0.0));
    assert_eq!(read(&root.path().join("best")).unwrap(), checkpoint(10, 0.0));
    assert_eq!(
        read_weights(&root.path().join("best"), &network()).unwrap().values,
        checkpoint(10, 0.0).state.parameters
    );
    assert_eq!(steps(root.path()), [10, 20]);
    assert_eq!(everything(root.path()), ["best", "last", "step-00000010", "step-00000020"]);
    for (name, step) in [("last", 30), ("../last", 10), ("newest", 10), ("", 10)] {
        assert!(matches!(link(root.path(), name, step), Err(CheckpointError::Link { .. })), "{name} {step}");
    }
}

/// FAT, some network shares and FUSE.
#[test]
fn without_symbolic_links_a_file_leads_to_the_checkpoint() {
    let root = root_with(&[10, 20, 30]);
    let none = |_: &str, _: &Path| Err(io::Error::from(io::ErrorKind::PermissionDenied));
    for (name, step) in [("best", 10), ("last", 20), ("last", 30)] {
        let lacking = link_by(root.path(), name, step, none).unwrap();
        assert_eq!(lacking.unwrap().kind(), io::ErrorKind::PermissionDenied);
    }
    let best = root.path().join("best");
    assert_eq!(fs::read_to_string(&best).unwrap(), "step-00000010\n");
    assert_eq!(read(&best).unwrap(), checkpoint(10, 0.0));
    assert_eq!(read_weights(&best, &network()).unwrap().values, checkpoint(10, 0.0).state.parameters);
    assert_eq!(prune(root.path(), 1, &[]).unwrap(), [20]);
    assert_eq!(everything(root.path()), ["best", "last", "step-00000010", "step-00000030"]);
    // Moved to where there are links, they become links again.
    assert!(link(root.path(), "best", 30).unwrap().is_none());
    assert_eq!(fs::read_link(&best).unwrap(), Path::new("step-00000030"));
}

/// `cp -rL`, and object stores: the link has become a copy of the checkpoint.
#[test]
fn a_copy_of_a_checkpoint_in_a_links_place_is_replaced_and_other_directories_are_not() {
    let root = root_with(&[10, 20]);
    let copy = root.path().join("last");
    fs::create_dir(&copy).unwrap();
    fs::write(copy.join("notes"), b"mine").unwrap();
    assert!(link(root.path(), "last", 20).is_err());
    assert_eq!(fs::read(copy.join("notes")).unwrap(), b"mine");
    fs::remove_dir_all(&copy).unwrap();
    fs::rename(directory(root.path(), 10), &copy).unwrap();
    assert_eq!(read(&copy).unwrap(), checkpoint(10, 0.0));
    // A crash where two names cannot be exchanged.
    set_aside(&copy).unwrap();
    assert_eq!(clean(root.path()).unwrap().len(), 1);
    assert_eq!(read(&copy).unwrap(), checkpoint(10, 0.0));
    link(root.path(), "last", 20).unwrap();
    assert_eq!(read(&copy).unwrap(), checkpoint(20, 0.0));
    assert_eq!(everything(root.path()), ["last", "step-00000020"]);
}

/// OverlayFS renames no directory of a lower layer.
#[test]
fn pruning_does_without_renames_of_directories() {
    let root = root_with(&[10, 20, 30]);
    let none = |_: &Path, _: &Path| Err(io::Error::from(io::ErrorKind::CrossesDevices));
    // One that was half removed before a crash.
    fs::remove_file(directory(root.path(), 10).join(MANIFEST)).unwrap();
    assert_eq!(prune_by(root.path(), 1, &[], none).unwrap(), [10, 20]);
    assert_eq!(everything(root.path()), ["step-00000030"]);
}

#[test]
fn what_the_system_refused_is_told_with_what_helps() {
    let text = |doing, kind: io::ErrorKind| {
        CheckpointError::io(doing, Path::new("the-file"))(kind.into()).to_string()
    };
    let missing = text("read", io::ErrorKind::NotFound);
    assert!(missing.contains("check the path") && !missing.contains("room"), "{missing}");
    let full = text("write", io::ErrorKind::StorageFull);
    assert!(full.contains("make room") && full.contains("untouched"), "{full}");
    assert!(text("write", io::ErrorKind::ReadOnlyFilesystem).contains("another directory"));
    let nowhere = read(Path::new("no/such")).unwrap_err().to_string();
    assert!(nowhere.contains("there is nothing by that name"), "{nowhere}");
}

#[test]
fn pruning_keeps_the_newest_the_protected_and_the_linked() {
    let root = root_with(&[10, 20, 30, 40, 50, 60]);
    link(root.path(), "best", 20).unwrap();
    assert_eq!(prune(root.path(), 2, &[40]).unwrap(), [10, 30]);
    assert_eq!(steps(root.path()), [20, 40, 50, 60]);
    assert!(prune(root.path(), 2, &[40]).unwrap().is_empty());
    assert!(prune(root.path(), 9, &[]).unwrap().is_empty());
    assert_eq!(prune(root.path(), 0, &[]).unwrap(), [40, 50, 60]);
    assert_eq!(everything(root.path()), ["best", "step-00000020"]);
    assert!(prune(&root.path().join("none"), 1, &[]).unwrap().is_empty());
}

#[test]
fn cleaning_touches_nothing_of_others() {
    let root = root_with(&[10]);
    link(root.path(), "last", 10).unwrap();
    fs::write(root.path().join(".hidden"), b"").unwrap();
    fs::write(root.path().join(".old-notes"), b"").unwrap();
    fs::write(root.path().join(".tmp-last-1-1"), b"").unwrap();
    assert_eq!(clean(root.path()).unwrap(), [root.path().join(".tmp-last-1-1")]);
    assert_eq!(everything(root.path()), [".hidden", ".old-notes", "last", "step-00000010"]);
    assert!(clean(&root.path().join("none")).unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Garbage in any file is an error, never a panic.
    #[test]
    fn garbage_in_a_checkpoint_is_an_error(
        name in prop::sample::select(vec![MODEL, OPTIMIZER, MANIFEST]),
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let root = root_with(&[1]);
        let path = directory(root.path(), 1);
        fs::write(path.join(name), bytes).unwrap();
        prop_assert!(read(&path).is_err());
    }
}
