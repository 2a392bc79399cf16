//! The machine's host, where it has a timer of its own: it ends the machine some time after the
//! lease has run out, whatever has become of the agent. The agent tells it when that is.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

/// Writes every new deadline (time since boot), in whole seconds, until it is dropped. The first
/// one, which no lease gave, is not written: until there is a lease, the host knows best.
pub(crate) async fn tell_deadlines(file: &Path, mut deadlines: watch::Receiver<Duration>) {
    while deadlines.changed().await.is_ok() {
        let deadline = *deadlines.borrow_and_update();
        if let Err(error) = write(file, deadline) {
            tracing::warn!(%error, file = %file.display(), "the host's timer is not told of the lease");
        }
    }
}

/// Whoever reads it sees all of it.
fn write(file: &Path, deadline: Duration) -> io::Result<()> {
    let partial = file.with_extension("partial");
    fs::write(&partial, format!("{}\n", deadline.as_secs()))?;
    fs::rename(&partial, file)
}
