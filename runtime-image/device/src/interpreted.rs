//! The interpreter as a device: slow, on any machine, and what every other device is held against.
//! Where a processor has fused multiply-adds its results have the CPU kernels' very bits.

use std::cell::RefCell;
use std::rc::Rc;

use petaflop_kernel::ir::interpret::interpret;
use petaflop_kernel::ir::{Kernel, Launch, Memory};

use crate::device::{Device, DeviceError, View, within};

/// The device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interpreter;

/// Memory of an [`Interpreter`].
#[derive(Debug)]
pub struct Words(Rc<RefCell<Vec<u32>>>);

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
    words: Rc<RefCell<Vec<u32>>>,
    at: usize,
    count: usize,
    written: bool,
}

impl Pending {
    fn run(self) -> Result<(), DeviceError> {
        let Self { kernel, launch, operands } = self;
        let read = |of: &Operand| of.words.borrow()[of.at..][..of.count].to_vec();
        let mut memory: Memory = operands.iter().map(|of| (of.name, read(of))).collect();
        interpret(&kernel, &launch, &mut memory)?;
        for Operand { name, words, at, count, .. } in operands.iter().filter(|of| of.written) {
            words.borrow_mut()[*at..][..*count].copy_from_slice(&memory[name]);
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

    fn buffer(&self, words: usize) -> Result<Words, DeviceError> {
        let mut memory = Vec::new();
        let short = |_| DeviceError::OutOfMemory { bytes: words as u64 * 4 };
        memory.try_reserve_exact(words).map_err(short)?;
        memory.resize(words, 0);
        Ok(Words(Rc::new(RefCell::new(memory))))
    }

    fn whole<'a>(&self, buffer: &'a Words) -> View<'a, Words> {
        View { buffer, at: 0, words: buffer.0.borrow().len() }
    }

    fn write(&self, buffer: &mut Words, at: usize, words: &[u32]) -> Result<(), DeviceError> {
        let mut to = buffer.0.borrow_mut();
        within("write", at, words.len(), to.len())?;
        to[at..][..words.len()].copy_from_slice(words);
        Ok(())
    }

    fn read(&self, View { buffer, at, words }: View<'_, Words>) -> Result<Vec<u32>, DeviceError> {
        let from = buffer.0.borrow();
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
        for (name, view) in buffers {
            within(name, view.at, view.words, view.buffer.0.borrow().len())?;
        }
        let of = |name: &str| buffers.iter().find(|(n, _)| *n == name).map(|(_, view)| *view);
        kernel.check(launch, &|name| of(name).map(|view| view.words))?;
        // Those that the skeletons of attention's gradients write are marked by no program.
        let results = ["dq", "dk", "dv"];
        let written = |name: &str| {
            results.contains(&name) || kernel.fields.iter().any(|f| f.name == name && f.written)
        };
        let operands = kernel.buffers().into_iter().filter_map(|(name, ..)| {
            let View { buffer, at, words } = of(name)?;
            Some(Operand {
                name,
                words: Rc::clone(&buffer.0),
                at,
                count: words,
                written: written(name),
            })
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
