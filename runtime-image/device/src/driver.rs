//! A device behind CUDA's or HIP's driver, which have the same calls under two names: memory,
//! launches, and kernels compiled for exactly this device when they are first launched.
//! [`crate::cuda`] and [`crate::hip`] open one.

pub mod code;
pub mod compiler;
mod library;

use std::collections::HashMap;
use std::ffi::{CString, c_uint, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use petaflop_kernel::ir::print::c::{self, Dialect};
use petaflop_kernel::ir::{Kernel, Launch};
use petaflop_plan::Numerics;

use crate::device::{Device, DeviceError, View, operands, within};
use code::Kept;
use compiler::Compiler;
pub(crate) use library::{Calls, Handle, Library, Status, text};

/// There is no memory left, in both drivers.
const OUT_OF_MEMORY: Status = 2;

/// Makes the context current on this thread.
pub(crate) type Enter = Box<dyn Fn() -> Status + Send + Sync>;
/// The driver's words for a status.
pub(crate) type Words = Box<dyn Fn(Status) -> String + Send + Sync>;

/// A device that was found, before its first use.
pub(crate) struct Found {
    pub(crate) calls: Calls,
    pub(crate) enter: Enter,
    pub(crate) words: Words,
    pub(crate) compiler: Compiler,
    /// How its kernels are printed.
    pub(crate) dialect: Dialect,
    /// How they are compiled, the architecture included.
    pub(crate) options: Vec<String>,
    /// What people call the device.
    pub(crate) name: String,
    /// Of the device, as its compiler calls it.
    pub(crate) architecture: String,
    /// The driver's version, part of what code is kept under.
    pub(crate) version: String,
}

/// An open driver with its one stream.
struct Driver {
    calls: Calls,
    enter: Enter,
    words: Words,
    stream: Handle,
}

impl Driver {
    /// What the driver says to a call, with its context current.
    fn ask(&self, call: impl FnOnce(&Calls) -> Status) -> Result<(), Refusal> {
        let mut status = (self.enter)();
        if status == 0 {
            status = call(&self.calls);
        }
        if status == 0 { Ok(()) } else { Err(Refusal { status, words: (self.words)(status) }) }
    }

    /// Until everything that was launched is done.
    fn wait(&self) -> Result<(), Refusal> {
        // SAFETY: the stream is the driver's own.
        self.ask(|calls| unsafe { (calls.wait)(self.stream) })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.stream.0.is_null() {
            // SAFETY: the stream is this driver's, and nothing that uses it is left.
            drop(self.ask(|calls| unsafe { (calls.destroy)(self.stream) }));
        }
    }
}

/// A call that did not go well.
struct Refusal {
    status: Status,
    words: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (error {})", self.words, self.status)
    }
}

impl From<Refusal> for DeviceError {
    fn from(refusal: Refusal) -> Self {
        Self::Lost(refusal.to_string())
    }
}

/// Device memory, freed with this.
struct Allocation {
    driver: Arc<Driver>,
    at: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: nobody else has it. A device that is gone has freed it already.
        drop(self.driver.ask(|calls| unsafe { (calls.free)(self.at) }));
    }
}

/// Memory of a [`Gpu`].
pub struct Buffer {
    allocation: Arc<Allocation>,
    words: usize,
}

/// A compiled kernel on the device.
struct Module {
    driver: Arc<Driver>,
    module: Handle,
    function: Handle,
}

impl Drop for Module {
    fn drop(&mut self) {
        if !self.module.0.is_null() {
            // SAFETY: launches hold it until they are done.
            drop(self.driver.ask(|calls| unsafe { (calls.unload)(self.module) }));
        }
    }
}

/// A launch that waits for its stream to be finished, with all that it needs until then.
pub struct Pending {
    module: Arc<Module>,
    groups: [u32; 3],
    block: [u32; 3],
    parameters: Vec<u32>,
    operands: Vec<(Arc<Allocation>, u64)>,
}

/// A device behind CUDA's or HIP's driver.
pub struct Gpu {
    driver: Arc<Driver>,
    compiler: Compiler,
    kept: Kept,
    dialect: Dialect,
    options: Vec<String>,
    name: String,
    version: String,
    memory: u64,
    modules: Mutex<HashMap<String, Arc<Module>>>,
}

impl Gpu {
    /// Opens a stream on the device. `kept`: where compiled kernels are.
    pub(crate) fn new(found: Found, kept: Kept) -> Result<Gpu, DeviceError> {
        let Found { calls, enter, words, compiler, dialect, options, name, architecture, version } =
            found;
        let mut driver = Driver { calls, enter, words, stream: Handle::NULL };
        let mut stream = Handle::NULL;
        // Beside the default stream, which waits for others' work.
        const NON_BLOCKING: c_uint = 1;
        // SAFETY: it writes one handle.
        driver.ask(|calls| unsafe { (calls.stream)(&raw mut stream, NON_BLOCKING) })?;
        driver.stream = stream;
        let (mut free, mut total) = (0, 0);
        // SAFETY: it writes two numbers.
        driver.ask(|calls| unsafe { (calls.memory)(&raw mut free, &raw mut total) })?;
        Ok(Gpu {
            driver: Arc::new(driver),
            kept,
            dialect,
            options,
            name: format!("{name} ({architecture}, {version}, {})", compiler.version),
            compiler,
            version,
            memory: free as u64,
            modules: Mutex::default(),
        })
    }

    fn module(&self, kernel: &Kernel) -> Result<Arc<Module>, DeviceError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&kernel.name) {
            return Ok(module.clone());
        }
        let refused = |log| DeviceError::Compile { kernel: kernel.name.clone(), log };
        let module = Arc::new(self.compiled(kernel).map_err(refused)?);
        modules.insert(kernel.name.clone(), module.clone());
        Ok(module)
    }

    /// The kernel as it is kept, unless the driver does not take that; else compiled.
    fn compiled(&self, kernel: &Kernel) -> Result<Module, String> {
        let source = c::print(kernel, self.dialect);
        let options = self.options.join(" ");
        let key = Kept::key(&[&source, &options, &self.compiler.version, &self.version]);
        if let Some(code) = self.kept.find(&key)
            && let Ok(module) = self.load(&code, &kernel.name)
        {
            return Ok(module);
        }
        let code = self.compiler.compile(&source, &self.options)?;
        let module = self.load(&code, &kernel.name)?;
        self.kept.keep(&key, &code);
        Ok(module)
    }

    fn load(&self, code: &[u8], name: &str) -> Result<Module, String> {
        let name = CString::new(name).map_err(|e| e.to_string())?;
        let (driver, null) = (Arc::clone(&self.driver), Handle::NULL);
        let mut loaded = Module { driver, module: null, function: null };
        let (module, function) = (&raw mut loaded.module, &raw mut loaded.function);
        // SAFETY: the code is a whole object with its lengths inside, the name ends in a zero, and
        // each call writes one handle.
        let load = |calls: &Calls| unsafe {
            match (calls.load)(module, code.as_ptr().cast()) {
                0 => (calls.function)(function, *module, name.as_ptr()),
                status => status,
            }
        };
        self.driver.ask(load).map_err(|refusal| refusal.to_string())?;
        Ok(loaded)
    }
}

/// The address of a view on the device.
fn address(View { buffer, at, .. }: View<'_, Buffer>) -> u64 {
    buffer.allocation.at + at as u64 * 4
}

impl Device for Gpu {
    type Buffer = Buffer;
    type Stream = Vec<Pending>;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn numerics(&self) -> Numerics {
        match self.dialect {
            Dialect::Cuda => Numerics::Cuda,
            Dialect::Hip => Numerics::Hip,
        }
    }

    fn memory(&self) -> Option<u64> {
        Some(self.memory)
    }

    fn buffer(&self, words: usize) -> Result<Buffer, DeviceError> {
        let count = words.max(1);
        let bytes = count as u64 * 4;
        let mut at = 0;
        // SAFETY: it writes one address.
        let given =
            self.driver.ask(|calls| unsafe { (calls.allocate)(&raw mut at, bytes as usize) });
        given.map_err(|refusal| match refusal.status {
            OUT_OF_MEMORY => DeviceError::OutOfMemory { bytes },
            _ => refusal.into(),
        })?;
        let allocation = Arc::new(Allocation { driver: Arc::clone(&self.driver), at });
        let stream = self.driver.stream;
        // SAFETY: so many words were just allocated.
        self.driver.ask(|calls| unsafe { (calls.fill)(at, 0, count, stream) })?;
        Ok(Buffer { allocation, words })
    }

    fn whole<'a>(&self, buffer: &'a Buffer) -> View<'a, Buffer> {
        View { buffer, at: 0, words: buffer.words }
    }

    fn write(&self, buffer: &mut Buffer, at: usize, words: &[u32]) -> Result<(), DeviceError> {
        within("write", at, words.len(), buffer.words)?;
        if words.is_empty() {
            return Ok(());
        }
        let to = address(View { buffer, at, words: words.len() });
        let (from, bytes, stream) = (words.as_ptr().cast(), size_of_val(words), self.driver.stream);
        // SAFETY: both are as long as checked, and stay until the copy is done.
        self.driver.ask(|calls| unsafe { (calls.upload)(to, from, bytes, stream) })?;
        Ok(self.driver.wait()?)
    }

    fn read(&self, view: View<'_, Buffer>) -> Result<Vec<u32>, DeviceError> {
        within("read", view.at, view.words, view.buffer.words)?;
        let mut words = vec![0u32; view.words];
        if words.is_empty() {
            return Ok(words);
        }
        let (to, bytes, stream) = (words.as_mut_ptr().cast(), view.words * 4, self.driver.stream);
        // SAFETY: as in `write`.
        self.driver.ask(|calls| unsafe { (calls.download)(to, address(view), bytes, stream) })?;
        self.driver.wait()?;
        Ok(words)
    }

    fn stream(&self) -> Vec<Pending> {
        Vec::new()
    }

    fn launch(
        &self,
        stream: &mut Vec<Pending>,
        kernel: &Kernel,
        launch: &Launch,
        buffers: &[(&str, View<'_, Buffer>)],
    ) -> Result<(), DeviceError> {
        let operands = operands(kernel, launch, buffers, |buffer| buffer.words)?;
        let groups = kernel.groups(launch)?;
        if groups.contains(&0) {
            return Ok(());
        }
        stream.push(Pending {
            module: self.module(kernel)?,
            groups,
            block: kernel.block(),
            parameters: kernel.parameters(launch),
            operands: operands
                .into_iter()
                .map(|(_, v)| (Arc::clone(&v.buffer.allocation), address(v)))
                .collect(),
        });
        Ok(())
    }

    fn finish(&self, mut stream: Vec<Pending>) -> Result<(), DeviceError> {
        let launched = stream.iter_mut().try_for_each(|pending| {
            let Pending { module, groups: [x, y, z], block: [i, j, k], parameters, operands } =
                pending;
            // The block of sizes and numbers by value, then an address each.
            let mut arguments: Vec<*mut c_void> = vec![parameters.as_mut_ptr().cast()];
            arguments.extend(operands.iter_mut().map(|(_, at)| (&raw mut *at).cast()));
            let (arguments, none) = (arguments.as_mut_ptr(), std::ptr::null_mut());
            let stream = self.driver.stream;
            // SAFETY: arguments are as the printed signature says, and were checked against the
            // kernel; what they point to stays until the wait below.
            self.driver.ask(|calls| unsafe {
                (calls.launch)(module.function, *x, *y, *z, *i, *j, *k, 0, stream, arguments, none)
            })
        });
        // Also when a launch was refused: those before it still use their operands.
        let waited = self.driver.wait();
        Ok(launched.and(waited)?)
    }
}
