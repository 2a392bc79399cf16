//! What every device does: own memory, and run kernels of the catalogue in order.

use petaflop_kernel::ir::{Kernel, Launch, WrongLaunch};
use petaflop_plan::Numerics;

/// Why a device did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no such device here.
    #[error("no device: {0}")]
    None(String),
    /// It has too little memory for all that is planned. Nothing was allocated.
    #[error(
        "{needed} bytes of device memory are needed and {device} has {available}; use a smaller \
         model, batch or context, or a device with more memory"
    )]
    DoesNotFit {
        /// The device.
        device: String,
        /// Bytes that the plan takes.
        needed: u64,
        /// Bytes it has.
        available: u64,
    },
    /// It has not that much memory left.
    #[error("out of device memory: {bytes} bytes asked for")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
    },
    /// A kernel cannot reach that much at once on this device.
    #[error(
        "a buffer of {bytes} bytes, where kernels of this device reach {most}: split it by rows"
    )]
    TooLarge {
        /// Bytes asked for.
        bytes: u64,
        /// Most bytes of one buffer.
        most: u64,
    },
    /// The launch does not fit its kernel. Nothing ran.
    #[error(transparent)]
    Launch(#[from] WrongLaunch),
    /// The driver does not take the kernel.
    #[error("kernel {kernel} does not compile on this driver: {log}")]
    Compile {
        /// The kernel.
        kernel: String,
        /// What the driver says.
        log: String,
    },
    /// It is gone, or does not answer.
    #[error("the device was lost: {0}")]
    Lost(String),
}

/// Some words of a buffer, as a launch or a reader takes them.
#[derive(Debug)]
pub struct View<'a, B> {
    /// The buffer.
    pub buffer: &'a B,
    /// Its first word: a multiple of 64, which is what drivers ask of an offset at most.
    pub at: usize,
    /// How many.
    pub words: usize,
}

impl<B> Clone for View<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for View<'_, B> {}

/// A device that runs kernels. Buffers are owned: dropping one frees its memory.
pub trait Device {
    /// Memory on the device, in words of 32 bits.
    type Buffer;
    /// Launches in order, which start when the stream is finished.
    type Stream;

    /// Backend and name, for logs.
    fn name(&self) -> String;

    /// Whose bits its results have.
    fn numerics(&self) -> Numerics;

    /// Bytes of memory that it has for a plan; `None` where nobody told.
    fn memory(&self) -> Option<u64>;

    /// `words` zeros.
    ///
    /// # Errors
    /// Too little memory, or too much for one buffer.
    fn buffer(&self, words: usize) -> Result<Self::Buffer, DeviceError>;

    /// All of a buffer.
    fn whole<'a>(&self, buffer: &'a Self::Buffer) -> View<'a, Self::Buffer>;

    /// Overwrites words of the buffer from word `at` on, after everything that was finished.
    ///
    /// # Errors
    /// More words than it holds there, or a device that is gone.
    fn write(&self, buffer: &mut Self::Buffer, at: usize, words: &[u32])
    -> Result<(), DeviceError>;

    /// What is there after everything that was finished.
    ///
    /// # Errors
    /// Words that the buffer does not have, or a device that is gone.
    fn read(&self, view: View<'_, Self::Buffer>) -> Result<Vec<u32>, DeviceError>;

    /// An empty stream.
    fn stream(&self) -> Self::Stream;

    /// Adds a launch to `stream`; `buffers` by the kernel's names.
    ///
    /// # Errors
    /// Sizes, numbers or buffers that do not fit; a kernel that does not compile here.
    /// Nothing was added then.
    fn launch(
        &self,
        stream: &mut Self::Stream,
        kernel: &Kernel,
        launch: &Launch,
        buffers: &[(&str, View<'_, Self::Buffer>)],
    ) -> Result<(), DeviceError>;

    /// Runs the stream to its end.
    ///
    /// # Errors
    /// A device that is gone, or that refused a launch.
    fn finish(&self, stream: Self::Stream) -> Result<(), DeviceError>;
}

/// Refuses words `at` to `at + words` of a buffer that has only `of`.
pub(crate) fn within(what: &str, at: usize, words: usize, of: usize) -> Result<(), DeviceError> {
    if at.checked_add(words).is_some_and(|end| end <= of) {
        return Ok(());
    }
    let problem = format!("{words} words from word {at} on, of a buffer of {of}");
    Err(WrongLaunch { kernel: what.into(), problem }.into())
}

/// A launch's views in the order of the kernel's buffers, if all of it fits the kernel. `words`: of a buffer.
pub(crate) fn operands<'b, B>(
    kernel: &Kernel,
    launch: &Launch,
    buffers: &[(&str, View<'b, B>)],
    words: impl Fn(&B) -> usize,
) -> Result<Vec<(&'static str, View<'b, B>)>, DeviceError> {
    for (name, view) in buffers {
        within(name, view.at, view.words, words(view.buffer))?;
    }
    let of = |name: &str| buffers.iter().find(|(n, _)| *n == name).map(|(_, view)| *view);
    kernel.check(launch, &|name| of(name).map(|view| view.words))?;
    Ok(kernel.buffers().into_iter().filter_map(|(name, ..)| Some((name, of(name)?))).collect())
}

/// A product on `device`, for its canary: `y[t, n] = x[t, k] · w[n, k]ᵀ`.
///
/// # Errors
/// Anything that goes wrong on the device.
pub(crate) fn product<D: Device>(
    device: &D,
    (x, w, y): (&[f32], &[f32], &mut [f32]),
    (t, k, n): (u32, u32, u32),
) -> Result<(), DeviceError> {
    let missing = || DeviceError::None("linear_f32 is not in the catalogue".into());
    let kernel = petaflop_kernel::ir::catalogue::kernel("linear_f32").ok_or_else(missing)?;
    let put = |values: &[f32]| {
        let mut buffer = device.buffer(values.len())?;
        device.write(&mut buffer, 0, bytemuck::cast_slice(values))?;
        Ok::<_, DeviceError>(buffer)
    };
    let (x, w, result) = (put(x)?, put(w)?, put(y)?);
    let launch = Launch { dims: vec![("m", t), ("n", n), ("depth", k)], numbers: vec![] };
    let mut stream = device.stream();
    let [x, w, result] = [&x, &w, &result].map(|buffer| device.whole(buffer));
    device.launch(&mut stream, &kernel, &launch, &[("x", x), ("w", w), ("y", result)])?;
    device.finish(stream)?;
    for (y, bits) in y.iter_mut().zip(device.read(result)?) {
        *y = f32::from_bits(bits);
    }
    Ok(())
}
