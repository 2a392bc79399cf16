//! Writing a job's progress file, and following it while somebody else writes it.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::{StoreError, report::Progress};

/// A line longer than this is garbage; bounds what a reader holds in memory.
const LONGEST_LINE: usize = 1 << 20;

/// Appends lines to a progress file.
#[derive(Debug)]
pub struct ProgressWriter {
    path: PathBuf,
    file: File,
}

impl ProgressWriter {
    /// Opens the file to go on after what is there, and makes it where it is not. A line that a
    /// crash cut off is ended, so that it cannot swallow the next.
    ///
    /// # Errors
    /// Why it cannot be opened or written.
    pub fn append(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let open = || -> io::Result<File> {
            let mut file = File::options().create(true).read(true).append(true).open(&path)?;
            if file.seek(SeekFrom::End(0))? > 0 {
                file.seek(SeekFrom::End(-1))?;
                let mut last = [0];
                file.read_exact(&mut last)?;
                if last != *b"\n" {
                    file.write_all(b"\n")?;
                }
            }
            Ok(file)
        };
        let file = open().map_err(|e| StoreError::io(&path, e).writing())?;
        Ok(Self { path, file })
    }

    /// Writes one line, by one call to the system. The last line of a job (finished, stopped or failed)
    /// is on the disk when this returns.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn write(&mut self, progress: &Progress) -> Result<(), StoreError> {
        let failed = |e| StoreError::io(&self.path, e).writing();
        let mut line = serde_json::to_vec(progress).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(failed)?;
        if progress.is_last() {
            self.file.sync_all().map_err(failed)?;
        }
        Ok(())
    }
}

/// Follows a progress file from its beginning. Asked again, it gives what was added.
#[derive(Debug)]
pub struct ProgressReader {
    path: PathBuf,
    /// Bytes of the file that were taken over.
    at: u64,
    /// The beginning of a line whose end was not written yet.
    partial: Vec<u8>,
    /// Inside a line that is too long, up to its end.
    overlong: bool,
    skipped: u64,
}

impl ProgressReader {
    /// Of this file, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), at: 0, partial: Vec::new(), overlong: false, skipped: 0 }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lines so far that were not progress: garbage, cut off by a crash, or longer than 1 MiB.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Lines that were completed since the last call; none where the file is not there. A file that
    /// became shorter was replaced and is read from its beginning.
    ///
    /// # Errors
    /// Why the file cannot be read. What was read before stays read.
    pub fn poll(&mut self) -> Result<Vec<Progress>, StoreError> {
        let mut lines = Vec::new();
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(lines),
            Err(e) => return Err(StoreError::io(&self.path, e)),
        };
        let read = self.take_over(&mut file, &mut lines);
        match read {
            Ok(()) => Ok(lines),
            // Hand out what is complete; the failure will come again.
            Err(_) if !lines.is_empty() => Ok(lines),
            Err(e) => Err(StoreError::io(&self.path, e)),
        }
    }

    fn take_over(&mut self, file: &mut File, lines: &mut Vec<Progress>) -> io::Result<()> {
        if file.metadata()?.len() < self.at {
            self.at = 0;
            self.partial.clear();
            self.overlong = false;
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let got = match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            self.at += got as u64;
            for piece in buffer[..got].split_inclusive(|b| *b == b'\n') {
                self.take_piece(piece, lines);
            }
        }
    }

    fn take_piece(&mut self, piece: &[u8], lines: &mut Vec<Progress>) {
        let ended = piece.ends_with(b"\n");
        if self.partial.len() + piece.len() > LONGEST_LINE {
            self.overlong = true;
            self.partial = Vec::new();
        }
        if !self.overlong {
            self.partial.extend_from_slice(piece);
        }
        if !ended {
            return;
        }
        if std::mem::take(&mut self.overlong) {
            self.skipped += 1;
            return;
        }
        let line = std::mem::take(&mut self.partial);
        if line.trim_ascii().is_empty() {
            return;
        }
        match serde_json::from_slice(&line) {
            Ok(progress) => lines.push(progress),
            Err(_) => self.skipped += 1,
        }
    }
}
