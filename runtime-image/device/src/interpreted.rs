//! The interpreter as a device: slow, on any machine, and what every other device is held against.
//! Where a processor has fused multiply-adds its results have the CPU kernels' very bits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use petaflop_kernel::ir::interpret::interpret;
use petaflop_kernel::ir::{Kernel, Launch, Memory};
use petaflop_plan::Numerics;

use crate::device::{Device, DeviceError, View, operands, within};

/// The device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interpreter;

/// Memory of an [`Interpreter`].
#[derive(Debug)]
pub struct Words(Shared);

type Shared = Arc<Mutex<Vec<u32>>>;

/// Words are whole whatever became of who held them.
fn held(words: &Shared) -> MutexGuard<'_, Vec<u32>> {
    words.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A launch that waits for its stream to be finished.
#[derive(Debug)]
pub struct Pending {
    kernel: Kernel,
    launch: Launch,
    operands: Vec<Operand>,
}

#[derive(Debug)]
struct Operand {
    name: &'static str,
    words: Shared,
    at: usize,
    count: usize,
    written: bool,
}

impl Pending {
    fn run(self) -> Result<(), DeviceError> {
        let Self { kernel, launch, operands } = self;
        let read = |of: &Operand| held(&of.words)[of.at..][..of.count].to_vec();
        let mut memory: Memory = operands.iter().map(|of| (of.name, read(of))).collect();
        interpret(&kernel, &launch, &mut memory)?;
        for Operand { name, words, at, count, .. } in operands.iter().filter(|of| of.written) {
            held(words)[*at..][..*count].copy_from_slice(&memory[name]);
        }
        Ok(())
    }
}

impl Device for Interpreter {
    type Buffer = Words;
    type Stream = Vec<Pending>;

    fn name(&self) -> String {
        "the interpreter".to_owned()
    }

    fn numerics(&self) -> Numerics {
        Numerics::Exact
    }

    fn memory(&self) -> Option<u64> {
        None
    }

    fn buffer(&self, words: usize) -> Result<Words, DeviceError> {
        let mut memory = Vec::new();
        let short = |_| DeviceError::OutOfMemory { bytes: words as u64 * 4 };
        memory.try_reserve_exact(words).map_err(short)?;
        memory.resize(words, 0);
        Ok(Words(Arc::new(Mutex::new(memory))))
    }

    fn whole<'a>(&self, buffer: &'a Words) -> View<'a, Words> {
        View { buffer, at: 0, words: held(&buffer.0).len() }
    }

    fn write(&self, buffer: &mut Words, at: usize, words: &[u32]) -> Result<(), DeviceError> {
        let mut to = held(&buffer.0);
        within("write", at, words.len(), to.len())?;
        to[at..][..words.len()].copy_from_slice(words);
        Ok(())
    }

    fn read(&self, View { buffer, at, words }: View<'_, Words>) -> Result<Vec<u32>, DeviceError> {
        let from = held(&buffer.0);
        within("read", at, words, from.len())?;
        Ok(from[at..][..words].to_vec())
    }

    fn stream(&self) -> Vec<Pending> {
        Vec::new()
    }

    fn launch(
        &self,
        stream: &mut Vec<Pending>,
        kernel: &Kernel,
        launch: &Launch,
        buffers: &[(&str, View<'_, Words>)],
    ) -> Result<(), DeviceError> {
        let operands = operands(kernel, launch, buffers, |buffer| held(&buffer.0).len())?;
        // Those that the skeletons of attention's gradients write are marked by no program.
        let results = ["dq", "dk", "dv"];
        let written = |name: &str| {
            results.contains(&name) || kernel.fields.iter().any(|f| f.name == name && f.written)
        };
        let operands = operands.into_iter().map(|(name, View { buffer, at, words })| Operand {
            name,
            words: Arc::clone(&buffer.0),
            at,
            count: words,
            written: written(name),
        });
        stream.push(Pending {
            kernel: kernel.clone(),
            launch: launch.clone(),
            operands: operands.collect(),
        });
        Ok(())
    }

    fn finish(&self, stream: Vec<Pending>) -> Result<(), DeviceError> {
        stream.into_iter().try_for_each(Pending::run)
    }
}
