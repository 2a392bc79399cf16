//! AMD's driver, with hiprtc compiling for exactly the device's architecture. Both are looked for
//! when they are asked for; nothing of theirs is needed to build this.

use std::ffi::{c_char, c_int};

use petaflop_kernel::ir::print::c::Dialect;

use crate::device::DeviceError;
use crate::driver::code::Kept;
use crate::driver::compiler::Compiler;
use crate::driver::{Calls, Found, Gpu, Library, Status, text};

const DRIVER: &[&str] =
    &["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", "/opt/rocm/lib/libamdhip64.so"];

const HIPRTC: &[&str] =
    &["libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so", "/opt/rocm/lib/libhiprtc.so"];

/// The first device of AMD's driver. `architecture`: of the device at a PCI address (`0000:c1:00.0`), as
/// the system's kernel tells.
///
/// # Errors
/// [`DeviceError::None`]: no driver, no compiler, no device or one of unknown architecture, and which.
pub fn open(architecture: impl Fn(&str) -> Option<String>) -> Result<Gpu, DeviceError> {
    open_from(DRIVER, HIPRTC, Kept::by_user(), architecture)
}

/// The same of these libraries, best first, with compiled kernels kept there.
///
/// # Errors
/// As [`open`].
pub fn open_from(
    driver: &[&str],
    compiler: &[&str],
    kept: Kept,
    architecture: impl Fn(&str) -> Option<String>,
) -> Result<Gpu, DeviceError> {
    let found = found(driver, compiler, architecture).map_err(DeviceError::None)?;
    Gpu::new(found, kept)
}

type Set = unsafe extern "C" fn(c_int) -> Status;
type Address = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Status;
type Error = unsafe extern "C" fn(Status) -> *const c_char;

fn found(
    driver: &[&str],
    compiler: &[&str],
    architecture: impl Fn(&str) -> Option<String>,
) -> Result<Found, String> {
    let library = Library::open(driver)?;
    let calls = Calls::of(&library, Dialect::Hip)?;
    // SAFETY: the types are those of hip_runtime_api.h; texts have room for what is written, and the
    // rest writes one value each.
    unsafe {
        let error = library.function::<Error>("hipGetErrorString")?;
        let words = move |status| text(error(status));
        let said = |status: Status| match status {
            0 => Ok(()),
            _ => Err(format!("{} (error {status})", words(status))),
        };
        let set = library.function::<Set>("hipSetDevice")?;
        let address_of = library.function::<Address>("hipDeviceGetPCIBusId")?;

        said((calls.init)(0))?;
        said(set(0))?;
        let (mut version, mut name, mut address) = (0, [0; 256], [0; 64]);
        said((calls.version)(&raw mut version))?;
        said((calls.name)(name.as_mut_ptr(), 255, 0))?;
        said(address_of(address.as_mut_ptr(), 63, 0))?;
        let (name, address) = (text(name.as_ptr()), text(address.as_ptr()));
        let architecture = architecture(&address.to_lowercase())
            .ok_or_else(|| format!("{name} at {address}: its architecture is not known"))?;
        Ok(Found {
            calls,
            enter: Box::new(move || set(0)),
            words: Box::new(words),
            compiler: Compiler::open(Dialect::Hip, compiler)?,
            dialect: Dialect::Hip,
            options: vec![format!("--offload-arch={architecture}"), "-std=c++17".to_owned()],
            name,
            architecture,
            version: format!("HIP {version}"),
        })
    }
}
