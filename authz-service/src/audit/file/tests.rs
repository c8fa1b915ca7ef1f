use std::os::unix::fs::PermissionsExt as _;

use ::audit::{Chain, Draft, Event, Outcome, Record, Verifier};
use permission::Timestamp;
use tempfile::TempDir;

use super::*;

const LARGE: u64 = 1 << 20;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    (folder, path)
}

/// Appends so many records, one at a time; each other one is on disk then.
fn append(file: &mut AuditFile, records: usize) -> io::Result<()> {
    for number in 0..records {
        match number % 2 {
            0 => write(file)?,
            _ => append_with(file, AuditFile::append_synced)?,
        }
    }
    file.sync()
}

/// Appends a record that is not known to be on disk then.
fn write(file: &mut AuditFile) -> io::Result<()> {
    append_with(file, AuditFile::append)
}

fn append_with(
    file: &mut AuditFile,
    append: fn(&mut AuditFile, &[u8], Head) -> io::Result<()>,
) -> io::Result<()> {
    let mut chain = Chain::after(file.head());
    let deny = Record::new(Timestamp::MIN, Event::Decision(Outcome::Deny, 403));
    let mut line = Vec::new();
    chain.seal(&Draft::new(&deny, "gw-1"), &mut line);
    append(file, &line, chain.head())
}

/// The chain in these files, held against its rules.
fn verified(paths: &[PathBuf]) -> Head {
    let mut verifier = Verifier::after(Head::START);
    for path in paths {
        let text = fs::read(path).unwrap();
        let lines = text.strip_suffix(b"\n").unwrap();
        for line in lines.split(|byte| *byte == b'\n') {
            verifier.next(line).unwrap();
        }
    }
    verifier.head()
}

/// The chain's files in the order in which a shell names them.
fn files(folder: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
        .collect();
    paths.sort();
    paths
}

#[test]
fn it_goes_on_where_it_ended_and_only_its_owner_reads_it() {
    let (_folder, path) = folder();
    for round in 1..=3 {
        let (mut file, torn) = AuditFile::open(&path, LARGE).unwrap();
        assert_eq!(torn, 0);
        append(&mut file, 2).unwrap();
        assert_eq!(file.head().seq, 2 * round);
    }
    assert_eq!(verified(std::slice::from_ref(&path)).seq, 6);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_line_that_was_never_completed_is_removed() {
    let (_folder, path) = folder();
    let (mut file, _) = AuditFile::open(&path, LARGE).unwrap();
    append(&mut file, 3).unwrap();
    drop(file);
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .unwrap()
        + 1;
    for torn in [
        &whole[last..=last],
        &whole[last..last + 100],
        &whole[last..whole.len() - 1],
        &[0; 5000],
    ] {
        fs::write(&path, [&whole, torn].concat()).unwrap();
        let (mut file, removed) = AuditFile::open(&path, LARGE).unwrap();
        assert_eq!(removed, torn.len() as u64);
        assert_eq!(file.head().seq, 3);
        append(&mut file, 1).unwrap();
        assert_eq!(verified(std::slice::from_ref(&path)).seq, 4);
    }
    // The very first.
    fs::write(&path, &whole[..100]).unwrap();
    let (file, removed) = AuditFile::open(&path, LARGE).unwrap();
    assert_eq!((file.head(), removed), (Head::START, 100));
}

#[test]
fn what_does_not_end_with_a_record_is_left_alone() {
    let (folder, path) = folder();
    let (mut file, _) = AuditFile::open(&path, LARGE).unwrap();
    append(&mut file, 2).unwrap();
    drop(file);
    let edited = fs::read_to_string(&path).unwrap().replace("deny", "allow");
    for content in [
        edited.as_str(),
        "a key without a line end",
        "{}\n",
        "\n",
        "root:x:0:0\n{\"",
    ] {
        fs::write(&path, content).unwrap();
        let refused = AuditFile::open(&path, LARGE).unwrap_err();
        assert!(
            matches!(refused, AuditFileError::NotAnAudit(_)),
            "{refused}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    let missing = folder.path().join("missing").join("audit.jsonl");
    let refused = AuditFile::open(&missing, LARGE).unwrap_err();
    assert!(matches!(refused, AuditFileError::Io { .. }), "{refused}");
}

#[test]
fn two_processes_do_not_write_one_chain() {
    let (_folder, path) = folder();
    let (mut file, _) = AuditFile::open(&path, 1000).unwrap();
    for _ in 0..3 {
        let refused = AuditFile::open(&path, 1000).unwrap_err();
        assert!(matches!(refused, AuditFileError::InUse(_)), "{refused}");
        // Nor after it began another file.
        append(&mut file, 3).unwrap();
    }
    drop(file);
    AuditFile::open(&path, 1000).unwrap();
}

#[test]
fn rotated_files_hold_one_chain() {
    let (folder, path) = folder();
    let (mut file, _) = AuditFile::open(&path, 1000).unwrap();
    append(&mut file, 20).unwrap();
    let head = file.head();
    drop(file);
    let found = files(&folder);
    assert!(found.len() > 5, "{found:?}");
    assert_eq!(found.last(), Some(&path));
    assert_eq!(verified(&found), head);
    for file in &found {
        assert!(fs::metadata(file).unwrap().len() <= 1000);
    }
    // As a crash leaves it between the two steps of a rotation, or in the middle of the next line.
    for content in [None, Some("{\"caller\"")] {
        let before = head_of_last(&path);
        let aside = super::rotated(
            &path,
            first_record(&File::open(&path).unwrap()).unwrap().unwrap(),
        );
        fs::rename(&path, aside).unwrap();
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let (mut file, _) = AuditFile::open(&path, 1000).unwrap();
        assert_eq!(file.head(), before);
        append(&mut file, 1).unwrap();
        assert_eq!(verified(&files(&folder)), file.head());
    }
}

fn head_of_last(path: &Path) -> Head {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    last_record(&file, len).unwrap().unwrap().0.unwrap()
}

#[test]
fn a_file_that_somebody_removed_is_begun_again() {
    let (folder, path) = folder();
    let (mut file, _) = AuditFile::open(&path, LARGE).unwrap();
    append(&mut file, 2).unwrap();
    let kept = folder.path().join("kept");
    fs::copy(&path, &kept).unwrap();
    fs::remove_file(&path).unwrap();
    append(&mut file, 2).unwrap();
    assert_eq!(verified(&[kept, path]).seq, 4);
}

/// As fdatasync fails: the kernel says so once, and forgets what it could not write.
#[test]
fn what_was_written_is_written_again_after_the_disk_lost_it() {
    for lost in [&b"\0\0\0\0"[..], b"{\"caller\":null,\"deci", b""] {
        let (_folder, path) = folder();
        let (mut file, _) = AuditFile::open(&path, LARGE).unwrap();
        append(&mut file, 2).unwrap();
        let on_disk = fs::metadata(&path).unwrap().len();
        for _ in 0..3 {
            write(&mut file).unwrap();
        }
        let written = fs::metadata(&path).unwrap().len() - on_disk;
        assert_eq!(file.unsynced() as u64, written);
        let mut torn = fs::read(&path).unwrap();
        torn.truncate(usize::try_from(on_disk).unwrap());
        fs::write(&path, [&torn, lost].concat()).unwrap();
        file.end = super::End::Lost;
        assert!(!file.has_room(0));
        // Nor is it forgotten when the disk fails again.
        file.failing_syncs = 2;
        for _ in 0..2 {
            append_with(&mut file, AuditFile::append_synced).unwrap_err();
        }
        append_with(&mut file, AuditFile::append_synced).unwrap();
        assert_eq!(file.unsynced(), 0);
        assert_eq!(file.head().seq, 6);
        assert_eq!(verified(std::slice::from_ref(&path)), file.head());
    }
}

#[test]
fn the_part_of_a_line_that_did_not_fit_is_removed_and_what_came_before_it_stays() {
    let (_folder, path) = folder();
    let (mut file, _) = AuditFile::open(&path, LARGE).unwrap();
    append(&mut file, 1).unwrap();
    write(&mut file).unwrap();
    let mut content = fs::read(&path).unwrap();
    content.extend_from_slice(b"{\"caller\"");
    fs::write(&path, content).unwrap();
    file.end = super::End::Torn;
    // The failure may be of what came before it, which must not be forgotten.
    file.failing_syncs = 1;
    write(&mut file).unwrap_err();
    assert_eq!(file.end, super::End::Lost);
    write(&mut file).unwrap();
    assert_eq!(verified(std::slice::from_ref(&path)), file.head());
    assert_eq!(file.head().seq, 3);
}

/// As a crash of the machine leaves it: the file's length was on disk, and some of its data was not.
#[test]
fn what_a_crash_of_the_machine_left_out_ends_the_chain() {
    let (folder, path) = folder();
    let (mut file, _) = AuditFile::open(&path, LARGE).unwrap();
    append(&mut file, 400).unwrap();
    drop(file);
    let whole = fs::read(&path).unwrap();
    // Far from the end, with whole lines after it; up to the end; and the last of all.
    for zeros in [
        4096..8192,
        4096..whole.len(),
        whole.len() - 100..whole.len() - 1,
        0..100,
    ] {
        let mut content = whole.clone();
        content[zeros.clone()].fill(0);
        fs::write(&path, &content).unwrap();
        let (mut file, torn) = AuditFile::open(&path, LARGE).unwrap();
        let kept = whole[..zeros.start].iter().filter(|byte| **byte == b'\n');
        let kept = kept.count();
        assert_eq!(file.head().seq, kept as u64);
        let torn = usize::try_from(torn).unwrap();
        assert!(torn >= whole.len() - zeros.start);
        // Whole lines are not thrown away.
        let removed = &content[content.len() - torn..];
        let aside = folder
            .path()
            .join(format!("audit.jsonl.torn-{:016}", kept + 1));
        if removed.contains(&b'\n') {
            assert_eq!(fs::read(&aside).unwrap(), removed);
            fs::remove_file(aside).unwrap();
        } else {
            assert!(!aside.exists());
        }
        append(&mut file, 1).unwrap();
        assert_eq!(verified(std::slice::from_ref(&path)).seq, kept as u64 + 1);
    }
}

#[test]
fn a_file_that_somebody_cut_off_is_gone_on_with_where_it_ends() {
    let (_folder, path) = folder();
    let (mut file, _) = AuditFile::open(&path, LARGE).unwrap();
    append(&mut file, 2).unwrap();
    // As programs do that rotate files of those who don't notice.
    fs::write(&path, "").unwrap();
    append(&mut file, 2).unwrap();
    let content = fs::read(&path).unwrap();
    assert!(content.starts_with(b"{"), "a hole");
    assert_eq!(file.head().seq, 4);
}
