//! A file is whole or absent: written under another name, synced, renamed.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::RunDirError;

/// Replaces `path` by a file with these bytes. After a crash at any moment the old file or the new one is there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), RunDirError> {
    let name = path.file_name().ok_or_else(|| RunDirError::bad(path, "not a file's name"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    let temporary = path.with_file_name(temporary);

    let written =
        write_synced(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path).map_err(RunDirError::io(path)));
    if written.is_err() {
        // What could not be finished only takes room; the error that counts is the first one.
        let _ = std::fs::remove_file(&temporary);
        return written;
    }
    sync_parent(path)
}

/// Writes a file and waits until the disk has it.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), RunDirError> {
    let mut file = File::create(path).map_err(RunDirError::io(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(RunDirError::io(path))
}

/// A rename lasts once the directory that holds the name is synced.
pub(crate) fn sync_parent(path: &Path) -> Result<(), RunDirError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Not every file system lets a directory be opened; then there is nothing to sync.
    match File::open(parent) {
        Ok(directory) if cfg!(unix) => directory.sync_all().map_err(RunDirError::io(parent)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("summary.json");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_names_the_path_and_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("occupied");
        std::fs::create_dir_all(path.join("inside")).unwrap();
        let error = write(&path, b"text").unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_says_so() {
        let error = write_synced(Path::new("/dev/full"), b"text").unwrap_err().to_string();
        assert!(error.starts_with("/dev/full: No space left on device"), "{error}");
    }
}
