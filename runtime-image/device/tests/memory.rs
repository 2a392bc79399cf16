//! Buffers are what the plan says, and mapped files are their bytes.

use petaflop_device::{HostBuffer, MappedFile, OutOfMemory, memory::ALIGNMENT};

#[test]
fn a_buffer_is_aligned_zeroed_and_exactly_as_long_as_planned() {
    for bytes in [0, 1, 3, 4, 63, 64, 65, 4096, 1 << 20] {
        let mut buffer = HostBuffer::zeroed(bytes).expect("a little memory");
        assert_eq!(buffer.bytes().len(), bytes);
        assert_eq!(buffer.bytes().as_ptr() as usize % ALIGNMENT, 0);
        assert!(buffer.bytes().iter().all(|b| *b == 0));
        assert_eq!(buffer.f32s().len(), bytes / 4);
        buffer.f32s_mut().fill(1.5);
        assert!(buffer.f32s().iter().all(|f| *f == 1.5));
        buffer.bytes_mut().fill(7);
        assert!(buffer.bytes().iter().all(|b| *b == 7));
    }
}

#[test]
fn more_memory_than_there_can_be_is_an_error() {
    for bytes in [usize::MAX, isize::MAX as usize, 1 << 60] {
        assert_eq!(HostBuffer::zeroed(bytes).err(), Some(OutOfMemory { bytes }));
    }
}

#[test]
fn a_buffer_may_be_shared_between_threads() {
    let mut buffer = HostBuffer::zeroed(1024).expect("a little memory");
    std::thread::scope(|scope| {
        for half in buffer.f32s_mut().chunks_mut(128) {
            scope.spawn(|| half.fill(2.0));
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(buffer.f32s()[255], 2.0));
        scope.spawn(|| assert_eq!(buffer.f32s()[0], 2.0));
    });
}

#[test]
fn a_mapped_file_is_its_bytes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    for content in [&b""[..], b"x", &[3; 10_000]] {
        let path = dir.path().join("file");
        std::fs::write(&path, content).expect("file");
        let mapped = MappedFile::open(&path).expect("a readable file");
        assert_eq!(&*mapped, content);
    }
    assert!(MappedFile::open(&dir.path().join("none")).is_err());
    assert!(MappedFile::open(dir.path()).is_err());
}
