//! What a command elsewhere prints, brought here while it runs: for `petaflop logs` it is a file as
//! that of a command here.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use petaflop_store::StoreError;
use petaflop_store::logs::LogReader;

/// Between two looks: an agent keeps what is printed for up to five seconds.
const LOOK: Duration = Duration::from_secs(3);

/// A store that takes longer is asked again, and keeps nothing else waiting.
const LIMIT: Duration = Duration::from_secs(5);

/// Why output cannot be brought.
#[derive(Debug, thiserror::Error)]
pub enum BroughtError {
    /// It cannot be read there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be written here.
    #[error("what the command prints cannot be kept here: {0}")]
    Io(#[from] io::Error),
}

/// The output of one claim's command.
#[derive(Debug)]
pub struct BroughtLog {
    claim_uid: String,
    reader: LogReader,
    file: File,
    /// Time since boot of the next look.
    due: Duration,
}

impl BroughtLog {
    /// Into `log` of this folder. Whoever brings it anew writes the same bytes to the same places.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(claim_uid: &str, reader: LogReader, folder: &Path) -> Result<Self, BroughtError> {
        std::fs::create_dir_all(folder)?;
        let mut file = File::options();
        let file = file.create(true).write(true).truncate(false).open(folder.join("log"))?;
        Ok(Self { claim_uid: claim_uid.to_owned(), reader, file, due: Duration::ZERO })
    }

    /// Whether it is this claim's.
    pub fn is_of(&self, claim_uid: &str) -> bool {
        self.claim_uid == claim_uid
    }

    /// Brings what is new, if it is time; at the end at once, and all that is there.
    ///
    /// # Errors
    /// What was in the way; it goes on from there.
    pub async fn bring(&mut self, clock: &Clock, last: bool) -> Result<(), BroughtError> {
        let now = clock.boottime();
        if !last && now < self.due {
            return Ok(());
        }
        self.due = now.saturating_add(LOOK);
        tokio::select! {
            brought = self.pieces() => brought,
            () = clock.sleep(LIMIT) => Ok(()),
        }
    }

    async fn pieces(&mut self) -> Result<(), BroughtError> {
        while let Some(piece) = self.reader.next().await? {
            self.file.write_all(&piece)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use petaflop_store::logs::LogWriter;

    use super::*;

    #[tokio::test]
    async fn what_is_printed_elsewhere_is_here_once_however_often_it_is_brought() {
        let store = Arc::new(InMemory::new());
        let mut writer = LogWriter::new(store.clone(), "logs/n/j/c");
        let folder = tempfile::tempdir().expect("a folder");
        let open = || {
            let reader = LogReader::new(store.clone(), "logs/n/j/c");
            BroughtLog::new("uid", reader, folder.path()).expect("a log")
        };
        let here = || std::fs::read_to_string(folder.path().join("log")).expect("a log");
        let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
        let mut log = open();
        log.bring(&clock, false).await.expect("nothing yet");
        writer.write("one\n".into()).await.expect("kept");
        log.bring(&clock, false).await.expect("not yet its time");
        assert_eq!(here(), "");
        clock.advance(LOOK);
        log.bring(&clock, false).await.expect("brought");
        assert_eq!(here(), "one\n");
        // Another process goes on.
        let mut log = open();
        assert_eq!(here(), "one\n", "nothing is lost while it looks");
        writer.write("two\n".into()).await.expect("kept");
        log.bring(&clock, true).await.expect("brought");
        assert_eq!(here(), "one\ntwo\n");
    }
}
