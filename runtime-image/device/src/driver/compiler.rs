//! NVRTC and hiprtc: the same calls under two names.

use std::ffi::{CString, c_char, c_int};

use petaflop_kernel::ir::print::c::Dialect;

use super::library::{Compiling, Handle, Library, Status, text};

/// A compiler from C++ to the code of one architecture. It needs no device.
#[derive(Debug)]
pub struct Compiler {
    /// Its name and version, part of what its code is kept under.
    pub(crate) version: String,
    calls: Compiling,
    error: unsafe extern "C" fn(Status) -> *const c_char,
}

type Take = (
    unsafe extern "C" fn(Handle, *mut usize) -> Status,
    unsafe extern "C" fn(Handle, *mut c_char) -> Status,
);

impl Compiler {
    /// The compiler of a dialect in the first of `libraries` that is there.
    ///
    /// # Errors
    /// None is, or it lacks a function.
    pub fn open(dialect: Dialect, libraries: &[&str]) -> Result<Compiler, String> {
        let library = Library::open(libraries)?;
        let calls = Compiling::of(&library, dialect)?;
        let name = if dialect == Dialect::Cuda { "nvrtc" } else { "hiprtc" };
        // SAFETY: it takes a status and answers a static text, in both headers.
        let error = unsafe { library.function(&format!("{name}GetErrorString"))? };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: it writes two numbers.
        let status = unsafe { (calls.version)(&raw mut major, &raw mut minor) };
        let compiler = Compiler { version: format!("{name} {major}.{minor}"), calls, error };
        compiler.said(status).map(|()| compiler)
    }

    /// Machine code of `source`.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn compile(&self, source: &str, options: &[String]) -> Result<Vec<u8>, String> {
        let text = |text: &str| CString::new(text).map_err(|e| e.to_string());
        let source = text(source)?;
        let options = options.iter().map(|o| text(o)).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        let (calls, none) = (&self.calls, std::ptr::null());
        let mut program = Program { calls, program: Handle::NULL };
        let (to, name) = (&raw mut program.program, c"kernel.cu".as_ptr());
        // SAFETY: all texts end in a zero and outlive the calls; the program is one it made.
        let status = unsafe {
            self.said((calls.create)(to, source.as_ptr(), name, 0, none, none))?;
            (calls.compile)(program.program, pointers.len() as c_int, pointers.as_ptr())
        };
        if let Err(problem) = self.said(status) {
            let log = self.take(&program, (calls.log_size, calls.log)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            return Err(format!("{problem}: {}", log.trim_end_matches(['\0', '\n'])));
        }
        self.take(&program, (calls.code_size, calls.code))
    }

    /// A result of the program: first how long it is, then its bytes.
    fn take(&self, program: &Program<'_>, (size, bytes): Take) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: the program lives, and the bytes are as many as it asked for.
        unsafe {
            self.said(size(program.program, &raw mut len))?;
            let mut taken = vec![0u8; len];
            self.said(bytes(program.program, taken.as_mut_ptr().cast()))?;
            Ok(taken)
        }
    }

    fn said(&self, status: Status) -> Result<(), String> {
        // SAFETY: it answers a static text, or nothing.
        let words = || unsafe { text((self.error)(status)) };
        if status == 0 { Ok(()) } else { Err(format!("{} ({})", words(), self.version)) }
    }
}

/// A program, destroyed with this.
struct Program<'c> {
    calls: &'c Compiling,
    program: Handle,
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if !self.program.0.is_null() {
            // SAFETY: it made the program, and nobody has it afterwards.
            unsafe { (self.calls.destroy)(&raw mut self.program) };
        }
    }
}
