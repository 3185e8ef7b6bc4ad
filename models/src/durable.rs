//! Files that are whole or absent: written under a temporary name, synced, renamed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `bytes` to `path`. After a crash the path holds the old content or the new one, never a part.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_file(path, |temporary| fs::write(temporary, bytes))
}

/// Has `write` fill a temporary file beside `path`, then puts it in its place.
pub fn replace_file(path: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let temporary = temporary_name(path);
    let written = File::create(&temporary)
        .and_then(|_| keeping_permissions(&temporary, write))
        .and_then(|()| File::open(&temporary)?.sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_folder(path));
    written.map_err(|source| {
        // What is left of a failed attempt serves nobody; that it can't be removed is no second error.
        let _ = fs::remove_file(&temporary);
        Error::io(path, source)
    })
}

/// Has `write` fill a file that is there, which keeps its permissions: some writers make files that nobody else can read,
/// where the user's umask gives others.
pub fn keeping_permissions<E: From<std::io::Error>>(
    path: &Path,
    write: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let usual = fs::metadata(path)?.permissions();
    write(path)?;
    Ok(fs::set_permissions(path, usual)?)
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

/// The rename itself lasts only once the folder is synced.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}
