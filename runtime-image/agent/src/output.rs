//! A task's output: taken from a pipe, kept in two files of bounded size, read by
//! offset. However much a task writes, neither memory nor disk grow beyond that.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Bytes of one file. The one before it is kept, so twice this is on disk at most.
const FILE_BYTES: u64 = 16 << 20;
/// Bytes taken from the pipe at once.
const PIECE: usize = 1 << 16;
/// Bytes given to a reader at most.
pub(crate) const READ_LIMIT: u64 = 1 << 20;

/// The kept output. Clones are the same output.
#[derive(Clone, Debug)]
pub(crate) struct Output(Arc<Mutex<Files>>);

#[derive(Debug)]
struct Files {
    folder: PathBuf,
    /// What is written to.
    current: File,
    /// Offset of the first byte of the current file.
    start: u64,
    /// Of the file before; equal to `start` where there is none.
    before: u64,
    /// Bytes written in all.
    total: u64,
    /// Why the disk took no more, if it did not.
    lost: Option<io::ErrorKind>,
}

/// A piece of output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Of its first byte.
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Output {
    /// In this folder, empty.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        let _ = fs::remove_file(folder.join(OLDER));
        let current = open(&folder.join(NEWEST), true)?;
        Ok(Self(Arc::new(Mutex::new(Files {
            folder: folder.to_owned(),
            current,
            start: 0,
            before: 0,
            total: 0,
            lost: None,
        }))))
    }

    /// Takes what comes from the pipe until its last writer has closed it. `echo` gets a copy.
    pub(crate) fn take(
        &self,
        mut pipe: impl Read + Send + 'static,
        mut echo: Option<io::Stdout>,
    ) -> io::Result<JoinHandle<()>> {
        let output = self.clone();
        std::thread::Builder::new().name("output".into()).stack_size(128 << 10).spawn(move || {
            let mut piece = vec![0; PIECE];
            loop {
                let length = match pipe.read(&mut piece) {
                    Ok(0) => return,
                    Ok(length) => length,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                output.append(&piece[..length]);
                // Whoever read our output went away: the task goes on all the same.
                if let Some(out) = &mut echo
                    && out.write_all(&piece[..length]).and_then(|()| out.flush()).is_err()
                {
                    echo = None;
                }
            }
        })
    }

    pub(crate) fn append(&self, bytes: &[u8]) {
        let mut files = self.files();
        if files.total - files.start >= FILE_BYTES
            && let Err(e) = files.turn_over()
        {
            files.lost = Some(e.kind());
        }
        files.total += bytes.len() as u64;
        // A full disk must not stop the task; what was lost reads as a gap.
        if let Err(e) = files.current.write_all(bytes) {
            files.lost = Some(e.kind());
            files.restart();
        }
    }

    /// Bytes written in all.
    pub(crate) fn total(&self) -> u64 {
        self.files().total
    }

    /// At most `limit` bytes from `offset` on, or from the oldest byte that is still there.
    pub(crate) fn read(&self, offset: u64, limit: u64) -> io::Result<Piece> {
        let files = self.files();
        let offset = offset.clamp(files.before, files.total);
        let (path, start, end) = if offset < files.start {
            (OLDER, files.before, files.start)
        } else {
            (NEWEST, files.start, files.total)
        };
        let mut file = File::open(files.folder.join(path))?;
        drop(files);
        file.seek(SeekFrom::Start(offset - start))?;
        let mut bytes = Vec::new();
        file.take(limit.min(READ_LIMIT).min(end - offset)).read_to_end(&mut bytes)?;
        Ok(Piece { offset, bytes })
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NEWEST: &str = "output.log";
const OLDER: &str = "output.1.log";

impl Files {
    /// Begins a new file; the one before the last goes.
    fn turn_over(&mut self) -> io::Result<()> {
        fs::rename(self.folder.join(NEWEST), self.folder.join(OLDER))?;
        self.current = open(&self.folder.join(NEWEST), true)?;
        self.before = self.start;
        self.start = self.total;
        Ok(())
    }

    /// After a failed write: gives the space back and goes on from here.
    fn restart(&mut self) {
        let _ = fs::remove_file(self.folder.join(OLDER));
        if let Ok(file) = open(&self.folder.join(NEWEST), true) {
            self.current = file;
        }
        self.start = self.total;
        self.before = self.total;
    }
}

fn open(path: &Path, truncate: bool) -> io::Result<File> {
    File::options().create(true).write(true).truncate(truncate).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_by_offset_and_the_disk_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let output = Output::create(dir.path()).unwrap();
        let piece: Vec<u8> = (0..PIECE).map(|i| (i % 251) as u8).collect();
        let pieces = 5 * FILE_BYTES / PIECE as u64;
        for _ in 0..pieces {
            output.append(&piece);
        }
        assert_eq!(output.total(), 5 * FILE_BYTES);
        let on_disk: u64 = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(on_disk <= 2 * FILE_BYTES, "{on_disk}");
        // The beginning is gone; reading goes on at the oldest byte there is.
        let oldest = output.read(0, 10).unwrap();
        assert_eq!(oldest.offset, 3 * FILE_BYTES);
        assert_eq!(oldest.bytes, piece[..10]);
        // Across the two files, piece by piece, nothing is missing.
        let (mut at, mut read) = (oldest.offset, 0);
        loop {
            let piece = output.read(at, u64::MAX).unwrap();
            if piece.bytes.is_empty() {
                break;
            }
            assert_eq!(piece.offset, at);
            at += piece.bytes.len() as u64;
            read += piece.bytes.len() as u64;
        }
        assert_eq!(read, 2 * FILE_BYTES);
        assert_eq!(output.read(u64::MAX, 5).unwrap(), Piece { offset: at, bytes: vec![] });
    }
}
