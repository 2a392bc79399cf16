//! A device with one fault, for tests of what becomes of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use petaflop_kernel::ir::{Kernel, Launch};
use petaflop_plan::Numerics;

use crate::device::{Device, DeviceError, View};

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It disappears after so many launches, and nothing brings it back.
    Lost {
        /// Launches that still work.
        after: usize,
    },
    /// Its driver does not take this kernel.
    Compile(&'static str),
    /// What is read from it is not what was computed.
    Wrong,
    /// It has only so many bytes of memory.
    Memory(u64),
}

/// A device that works but for its fault.
#[derive(Debug)]
pub struct Failing<D> {
    device: D,
    fault: Fault,
    launches: AtomicUsize,
}

impl<D> Failing<D> {
    /// This device, with this fault.
    pub fn new(device: D, fault: Fault) -> Self {
        Self { device, fault, launches: AtomicUsize::new(0) }
    }

    fn here(&self) -> Result<(), DeviceError> {
        match self.fault {
            Fault::Lost { after } if self.launches.load(Ordering::Relaxed) > after => {
                Err(DeviceError::Lost(format!("it was made to fail after {after} launches")))
            }
            _ => Ok(()),
        }
    }
}

impl<D: Device> Device for Failing<D> {
    type Buffer = D::Buffer;
    type Stream = D::Stream;

    fn name(&self) -> String {
        format!("{} with a fault", self.device.name())
    }

    fn numerics(&self) -> Numerics {
        self.device.numerics()
    }

    fn memory(&self) -> Option<u64> {
        match self.fault {
            Fault::Memory(bytes) => Some(bytes),
            _ => self.device.memory(),
        }
    }

    fn buffer(&self, words: usize) -> Result<D::Buffer, DeviceError> {
        self.here().and_then(|()| self.device.buffer(words))
    }

    fn whole<'a>(&self, buffer: &'a D::Buffer) -> View<'a, D::Buffer> {
        self.device.whole(buffer)
    }

    fn write(&self, buffer: &mut D::Buffer, at: usize, words: &[u32]) -> Result<(), DeviceError> {
        self.here().and_then(|()| self.device.write(buffer, at, words))
    }

    fn read(&self, view: View<'_, D::Buffer>) -> Result<Vec<u32>, DeviceError> {
        self.here()?;
        let mut words = self.device.read(view)?;
        if let (Fault::Wrong, Some(word)) = (self.fault, words.last_mut()) {
            *word ^= 1;
        }
        Ok(words)
    }

    fn stream(&self) -> D::Stream {
        self.device.stream()
    }

    fn launch(
        &self,
        stream: &mut D::Stream,
        kernel: &Kernel,
        launch: &Launch,
        buffers: &[(&str, View<'_, D::Buffer>)],
    ) -> Result<(), DeviceError> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        self.here()?;
        match self.fault {
            Fault::Compile(name) if name == kernel.name => Err(DeviceError::Compile {
                kernel: kernel.name.clone(),
                log: "it was made to refuse it".to_owned(),
            }),
            _ => self.device.launch(stream, kernel, launch, buffers),
        }
    }

    fn finish(&self, stream: D::Stream) -> Result<(), DeviceError> {
        self.here().and_then(|()| self.device.finish(stream))
    }
}
