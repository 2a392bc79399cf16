//! Shared libraries of drivers and compilers, looked for when they are needed.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use petaflop_kernel::ir::print::c::Dialect;

/// What a call returns: 0 if it went well.
pub(crate) type Status = c_int;

/// A driver's own pointer: a stream, a module, a function, a program.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle(pub(crate) *mut c_void);

// SAFETY: drivers take their handles from any thread on which the context is current, which
// every use of one sees to first.
unsafe impl Send for Handle {}
// SAFETY: as above; drivers lock for themselves.
unsafe impl Sync for Handle {}

impl Handle {
    pub(crate) const NULL: Handle = Handle(std::ptr::null_mut());
}

/// A library that was found.
#[derive(Debug)]
pub(crate) struct Library {
    library: &'static libloading::Library,
    name: String,
}

impl Library {
    /// The first of `names` that is there. It stays loaded until the process ends: drivers have
    /// threads of their own, which nobody may unload.
    ///
    /// # Errors
    /// Why the first could not be loaded.
    pub(crate) fn open(names: &[&str]) -> Result<Library, String> {
        let mut first = None;
        for name in names {
            // SAFETY: whoever names a driver or a compiler trusts what it does when it is loaded.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => {
                    let library = Box::leak(Box::new(library));
                    return Ok(Library { library, name: (*name).to_owned() });
                }
                Err(problem) => first = first.or(Some(problem.to_string())),
            }
        }
        Err(first.unwrap_or_else(|| "no library was named".to_owned()))
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` is a pointer to a function of the type that its header declares.
    ///
    /// # Errors
    /// The library does not have it.
    pub(crate) unsafe fn function<F: Copy>(&self, symbol: &str) -> Result<F, String> {
        // SAFETY: the caller's.
        match unsafe { self.library.get::<F>(symbol.as_bytes()) } {
            Ok(found) => Ok(*found),
            Err(_) => Err(format!("{} has no {symbol}: install a newer one", self.name)),
        }
    }
}

/// A table of functions that CUDA and HIP have alike, each with its two names.
macro_rules! calls {
    ($table:ident { $($field:ident: fn($($arg:ty),*), $cuda:literal, $hip:literal;)* }) => {
        #[derive(Debug)]
        pub(crate) struct $table {
            $(pub(crate) $field: unsafe extern "C" fn($($arg),*) -> Status),*
        }

        impl $table {
            /// # Errors
            /// The first function that the library lacks.
            pub(crate) fn of(library: &Library, dialect: Dialect) -> Result<Self, String> {
                let name = |cuda, hip| if dialect == Dialect::Cuda { cuda } else { hip };
                // SAFETY: the types are those of cuda.h and hip_runtime_api.h, nvrtc.h and hiprtc.h;
                // device addresses are 64 bits wide, as HIP's pointers to them, and handles pointers.
                Ok(unsafe { Self { $($field: library.function(name($cuda, $hip))?),* } })
            }
        }
    };
}

type Words = *mut *mut c_void;
type Texts = *const *const c_char;

calls!(Calls {
    name: fn(*mut c_char, c_int, c_int), "cuDeviceGetName", "hipDeviceGetName";
    init: fn(c_uint), "cuInit", "hipInit";
    version: fn(*mut c_int), "cuDriverGetVersion", "hipRuntimeGetVersion";
    memory: fn(*mut usize, *mut usize), "cuMemGetInfo_v2", "hipMemGetInfo";
    allocate: fn(*mut u64, usize), "cuMemAlloc_v2", "hipMalloc";
    free: fn(u64), "cuMemFree_v2", "hipFree";
    fill: fn(u64, c_uint, usize, Handle), "cuMemsetD32Async", "hipMemsetD32Async";
    upload: fn(u64, *const c_void, usize, Handle), "cuMemcpyHtoDAsync_v2", "hipMemcpyHtoDAsync";
    download: fn(*mut c_void, u64, usize, Handle), "cuMemcpyDtoHAsync_v2", "hipMemcpyDtoHAsync";
    load: fn(*mut Handle, *const c_void), "cuModuleLoadData", "hipModuleLoadData";
    function: fn(*mut Handle, Handle, *const c_char), "cuModuleGetFunction", "hipModuleGetFunction";
    unload: fn(Handle), "cuModuleUnload", "hipModuleUnload";
    launch: fn(Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, Words, Words),
        "cuLaunchKernel", "hipModuleLaunchKernel";
    stream: fn(*mut Handle, c_uint), "cuStreamCreate", "hipStreamCreateWithFlags";
    destroy: fn(Handle), "cuStreamDestroy_v2", "hipStreamDestroy";
    wait: fn(Handle), "cuStreamSynchronize", "hipStreamSynchronize";
});

calls!(Compiling {
    version: fn(*mut c_int, *mut c_int), "nvrtcVersion", "hiprtcVersion";
    create: fn(*mut Handle, *const c_char, *const c_char, c_int, Texts, Texts),
        "nvrtcCreateProgram", "hiprtcCreateProgram";
    compile: fn(Handle, c_int, Texts), "nvrtcCompileProgram", "hiprtcCompileProgram";
    log_size: fn(Handle, *mut usize), "nvrtcGetProgramLogSize", "hiprtcGetProgramLogSize";
    log: fn(Handle, *mut c_char), "nvrtcGetProgramLog", "hiprtcGetProgramLog";
    code_size: fn(Handle, *mut usize), "nvrtcGetCUBINSize", "hiprtcGetCodeSize";
    code: fn(Handle, *mut c_char), "nvrtcGetCUBIN", "hiprtcGetCode";
    destroy: fn(*mut Handle), "nvrtcDestroyProgram", "hiprtcDestroyProgram";
});

/// A text of a library's; "unknown error" where there is none.
///
/// # Safety
/// It ends in a zero, or is null.
pub(crate) unsafe fn text(from: *const c_char) -> String {
    // SAFETY: the caller's.
    let text = if from.is_null() { c"unknown error" } else { unsafe { CStr::from_ptr(from) } };
    text.to_string_lossy().into_owned()
}
