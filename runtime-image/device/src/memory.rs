//! Memory that kernels work in: owned buffers of exactly the planned length, and
//! files mapped for reading.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    fmt,
    fs::File,
    io,
    ops::Deref,
    path::Path,
    ptr::NonNull,
};

/// Alignment of every buffer: one cache line, one AVX-512 vector.
pub const ALIGNMENT: usize = 64;

/// Zeroed host memory, aligned to 64 bytes, of exactly the length asked for.
pub struct HostBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

/// The system would not give this much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no memory for a buffer of {bytes} bytes: use a smaller batch or sequence, or a machine with more memory"
)]
pub struct OutOfMemory {
    /// Bytes that were asked for.
    pub bytes: usize,
}

impl HostBuffer {
    /// `bytes` zero bytes.
    ///
    /// # Errors
    /// [`OutOfMemory`]. Systems that overcommit may grant more than they have, so
    /// ask the plan whether it fits first.
    pub fn zeroed(bytes: usize) -> Result<Self, OutOfMemory> {
        let layout =
            Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| OutOfMemory { bytes })?;
        let start = if bytes == 0 {
            // Nothing is read or written through it; it only has to be aligned.
            NonNull::<Line>::dangling().cast()
        } else {
            // SAFETY: the layout has a size that is not zero.
            NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(OutOfMemory { bytes })?
        };
        Ok(Self { start, layout })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points to `size` initialised bytes that this value owns
        // (or is dangling, aligned, and of length 0), borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    /// Its bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow of `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }

    /// As 32-bit floats; up to three bytes at the end are left out.
    pub fn f32s(&self) -> &[f32] {
        let bytes = self.bytes();
        bytemuck::cast_slice(&bytes[..bytes.len() / 4 * 4])
    }

    /// As 32-bit floats, to write; up to three bytes at the end are left out.
    pub fn f32s_mut(&mut self) -> &mut [f32] {
        let bytes = self.bytes_mut();
        let whole = bytes.len() / 4 * 4;
        bytemuck::cast_slice_mut(&mut bytes[..whole])
    }
}

/// A type of the alignment of every buffer.
#[repr(align(64))]
struct Line;

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: `start` came from `alloc_zeroed` with this very layout.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}

// SAFETY: it owns plain bytes, reached only through `&self` and `&mut self`.
unsafe impl Send for HostBuffer {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for HostBuffer {}

impl fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBuffer({} bytes)", self.layout.size())
    }
}

/// A file mapped for reading: weights are paged in as they are used.
///
/// The file must not change while it is mapped: bytes would change under a
/// reader's feet, and a file made shorter kills the process that reads past its
/// end. So only map what is ours: a folder that
/// was materialised from the store (every byte was hashed as it was
/// written), or an import that is hashed from this mapping before use and again
/// when the job ends.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// Why it cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private and read-only. That nobody alters the file
        // meanwhile is the caller's promise, stated on the type; breaking it gives
        // other bytes or ends the process, and every consumer checks hashes first.
        unsafe { memmap2::Mmap::map(&file) }.map(Self)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
