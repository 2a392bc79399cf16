//! Output and exit report on their way to the store, where they outlive the machine.

use std::time::Duration;

use bytes::Bytes;
use petaflop_agent_api::message::Exit;
use petaflop_agent_api::task::LogSink;
use petaflop_store::logs::LogWriter;
use petaflop_store::place;
use tokio::sync::watch;

use crate::output::{Output, READ_LIMIT};

/// Output waits for this long, or until there is a whole piece of it.
const EVERY: Duration = Duration::from_secs(5);
/// For what is left when the task has ended.
const LAST: Duration = Duration::from_secs(60);

/// Ships the output as it comes; once `ended` holds how the task ended, also the rest and that.
/// Nothing that goes wrong here ends a task.
pub(crate) async fn ship(sink: LogSink, output: Output, mut ended: watch::Receiver<Option<Exit>>) {
    let credentials = sink.credentials.iter().map(|(k, v)| (k.as_str(), v.expose())).collect();
    let objects = place::objects(
        &sink.uri,
        Some(&credentials).filter(|credentials: &&place::Credentials<'_>| !credentials.is_empty()),
    );
    drop(credentials);
    let mut shipment = match objects {
        Ok(objects) => {
            Shipment { writer: LogWriter::new(objects, &sink.prefix), at: 0, pending: None, output }
        }
        Err(error) => {
            tracing::error!(%error, "output is not kept beyond this machine");
            return;
        }
    };
    let exit = loop {
        tokio::select! {
            exit = ended.wait_for(Option::is_some) => match exit {
                Ok(exit) => break exit.clone(),
                Err(_) => return,
            },
            () = shipment.whole_piece_or_time() => {}
        }
        // A store that is away for a while costs nothing: the piece waits, the rest is on disk.
        tokio::select! {
            shipped = shipment.next() => if let Err(error) = shipped {
                tracing::warn!(%error, "output could not be shipped; trying again");
            },
            exit = ended.wait_for(Option::is_some) => match exit {
                Ok(exit) => break exit.clone(),
                Err(_) => return,
            },
        }
    };
    if tokio::time::timeout(LAST, shipment.finish(exit)).await.is_err() {
        tracing::error!("the last output and the exit report did not reach the store in time");
    }
}

struct Shipment {
    writer: LogWriter,
    output: Output,
    /// Bytes that were taken over.
    at: u64,
    /// Taken over, not yet in the store.
    pending: Option<Bytes>,
}

impl Shipment {
    async fn whole_piece_or_time(&self) {
        let due = tokio::time::Instant::now() + EVERY;
        while tokio::time::Instant::now() < due {
            if self.pending.is_some() || self.output.total() - self.at >= READ_LIMIT {
                return;
            }
            tokio::time::sleep(EVERY / 10).await;
        }
    }

    /// Ships a piece. Whether there was one.
    async fn next(&mut self) -> Result<bool, String> {
        if self.pending.is_none() {
            let piece = self.output.read(self.at, READ_LIMIT).map_err(|e| e.to_string())?;
            if piece.bytes.is_empty() {
                return Ok(false);
            }
            let gap = piece.offset - self.at;
            self.at = piece.offset + piece.bytes.len() as u64;
            self.pending = Some(if gap == 0 {
                piece.bytes.into()
            } else {
                let note = format!(
                    "\n[petaflop: {gap} bytes of output came too fast and were not kept]\n"
                );
                [note.as_bytes(), &piece.bytes].concat().into()
            });
        }
        if let Some(piece) = &self.pending {
            self.writer.write(piece.clone()).await.map_err(|e| e.to_string())?;
            self.pending = None;
        }
        Ok(true)
    }

    async fn finish(&mut self, exit: Option<Exit>) {
        loop {
            match self.next().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, "output could not be shipped; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        let report = serde_json::to_vec(&exit).expect("a report is a map with text keys");
        while let Err(error) = self.writer.finish(report.clone().into()).await {
            tracing::warn!(%error, "the exit report could not be shipped; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
