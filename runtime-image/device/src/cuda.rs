//! NVIDIA's driver, with NVRTC compiling for exactly the device's architecture. Both are looked
//! for when they are asked for; nothing of theirs is needed to build this.

use std::ffi::{c_char, c_int};

use petaflop_kernel::ir::print::c::Dialect;

use crate::device::DeviceError;
use crate::driver::code::Kept;
use crate::driver::compiler::Compiler;
use crate::driver::{Calls, Found, Gpu, Handle, Library, Status, text};

const DRIVER: &[&str] = &["libcuda.so.1", "libcuda.so"];

/// An older one first: drivers take the code of compilers older than they are.
const NVRTC: &[&str] =
    &["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so", "/usr/local/cuda/lib64/libnvrtc.so"];

/// The first device of NVIDIA's driver.
///
/// # Errors
/// [`DeviceError::None`]: no driver, no compiler, no device, or one too old, and which.
pub fn open() -> Result<Gpu, DeviceError> {
    open_from(DRIVER, NVRTC, Kept::by_user())
}

/// The same of these libraries, best first, with compiled kernels kept there.
///
/// # Errors
/// As [`open`].
pub fn open_from(driver: &[&str], compiler: &[&str], kept: Kept) -> Result<Gpu, DeviceError> {
    let found = found(driver, compiler).map_err(DeviceError::None)?;
    Gpu::new(found, kept)
}

/// How kernels are compiled for an architecture such as `sm_90`: to CUBIN, which no driver reads otherwise
/// than it was compiled, and without contraction, which would give other bits.
pub fn options(architecture: &str) -> Vec<String> {
    let architecture = format!("--gpu-architecture={architecture}");
    [&architecture, "--fmad=false", "--std=c++17", "-default-device"].map(str::to_owned).into()
}

/// The primary context of a device, released with this.
struct Context {
    device: c_int,
    context: Handle,
    set: unsafe extern "C" fn(Handle) -> Status,
    release: unsafe extern "C" fn(c_int) -> Status,
}

impl Context {
    fn enter(&self) -> Status {
        // SAFETY: it was retained, and is released only with this.
        unsafe { (self.set)(self.context) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, released once.
        unsafe { (self.release)(self.device) };
    }
}

type Get = unsafe extern "C" fn(*mut c_int, c_int) -> Status;
type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status;
type Retain = unsafe extern "C" fn(*mut Handle, c_int) -> Status;
type Error = unsafe extern "C" fn(Status, *mut *const c_char) -> Status;

fn found(driver: &[&str], compiler: &[&str]) -> Result<Found, String> {
    let library = Library::open(driver)?;
    let calls = Calls::of(&library, Dialect::Cuda)?;
    // SAFETY: the types are those of cuda.h, in which CUdevice is an int; texts have room for what is
    // written, and the rest writes one value each.
    unsafe {
        let error = library.function::<Error>("cuGetErrorString")?;
        let words = move |status| {
            let mut words = std::ptr::null();
            error(status, &raw mut words);
            text(words)
        };
        let said = |status: Status| match status {
            0 => Ok(()),
            _ => Err(format!("{} (error {status})", words(status))),
        };
        let get = library.function::<Get>("cuDeviceGet")?;
        let attribute = library.function::<Attribute>("cuDeviceGetAttribute")?;
        let retain = library.function::<Retain>("cuDevicePrimaryCtxRetain")?;
        let release = library.function("cuDevicePrimaryCtxRelease_v2")?;
        let set = library.function("cuCtxSetCurrent")?;

        said((calls.init)(0))?;
        let (mut device, mut version, mut name) = (0, 0, [0; 256]);
        said(get(&raw mut device, 0))?;
        said((calls.version)(&raw mut version))?;
        said((calls.name)(name.as_mut_ptr(), 255, device))?;
        let of = |what: c_int| {
            let mut value = 0;
            said(attribute(&raw mut value, what, device)).map(|()| value)
        };
        // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and …_MINOR.
        let architecture = format!("sm_{}{}", of(75)?, of(76)?);
        let compiler = Compiler::open(Dialect::Cuda, compiler)?;
        let mut context = Handle::NULL;
        said(retain(&raw mut context, device))?;
        let context = Context { device, context, set, release };
        Ok(Found {
            calls,
            enter: Box::new(move || context.enter()),
            words: Box::new(words),
            compiler,
            dialect: Dialect::Cuda,
            options: options(&architecture),
            name: text(name.as_ptr()),
            architecture,
            version: format!("CUDA {}.{}", version / 1000, version % 1000 / 10),
        })
    }
}
