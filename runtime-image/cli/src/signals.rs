//! SIGTERM and SIGINT ask the job to stop; a second one does not wait for it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Code, Failure};

/// A flag that the first signal raises. Signals are caught from here on.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                if raised.swap(true, Ordering::Relaxed) {
                    std::process::exit(Code::Interrupted as i32);
                }
                eprintln!("stopping after a checkpoint; a second signal stops at once");
            }
        });
    })?;
    Ok(flag)
}
