//! How drivers are called and what becomes of those that fail, held against a strict one whose
//! device is this processor (`driver/fake.c`, compiled here with both families' names). That a GPU gives the right answers is
//! shown by none of this: its own canary does, where there is one.

#![allow(unsafe_code)] // asks the fake for its counts

use std::path::Path;
use std::process::Command;

use petaflop_device::backend::proven;
use petaflop_device::device::{Device, DeviceError};
use petaflop_device::driver::{Gpu, code::Kept};
use petaflop_device::{cuda, hip};
use petaflop_kernel::ir::{Kernel, Launch};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Cuda,
    Hip,
}

const BOTH: [Family; 2] = [Family::Cuda, Family::Hip];

/// A driver in a folder of its own, so that each test has its own counts.
struct Fake {
    family: Family,
    folder: tempfile::TempDir,
    library: String,
}

impl Fake {
    fn new(family: Family, flags: &[&str]) -> Fake {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let library = folder.path().join("libfake.so").display().to_string();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver/fake.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o", &library]).arg(source).args(flags);
        if family == Family::Hip {
            cc.arg("-DHIP");
        }
        assert!(cc.status().expect("the C compiler that Rust links with").success());
        Fake { family, folder, library }
    }

    fn kept(&self) -> Kept {
        Kept::at(&self.folder.path().join("kernels"))
    }

    fn open(&self) -> Result<Gpu, DeviceError> {
        let libraries = [self.library.as_str()];
        match self.family {
            Family::Cuda => cuda::open_from(&libraries, &libraries, self.kept()),
            Family::Hip => hip::open_from(&libraries, &libraries, self.kept(), |address| {
                (address == "0000:c1:00.0").then(|| "gfx942".to_owned())
            }),
        }
    }

    /// What one of its counters says.
    fn count(&self, name: &str) -> i32 {
        // SAFETY: the fake's own functions, of this type.
        unsafe {
            let library = libloading::Library::new(&self.library).expect("it is there");
            let count =
                library.get::<unsafe extern "C" fn() -> i32>(name.as_bytes()).expect("it has it");
            count()
        }
    }
}

fn kernel(name: &str) -> Kernel {
    petaflop_kernel::ir::catalogue::kernel(name).expect("it is in the catalogue")
}

#[test]
fn a_driver_is_called_as_its_header_says_and_gets_everything_back() {
    for family in BOTH {
        let fake = Fake::new(family, &[]);
        let gpu = fake.open().expect("it is all there");
        let name = gpu.name();
        let architecture = if family == Family::Cuda { "sm_90" } else { "gfx942" };
        assert!(name.starts_with("Fake 0 (") && name.contains(architecture), "{name}");
        assert_eq!(gpu.memory(), Some(1 << 20));
        let gpu = proven(gpu).expect("its product is right");
        // Models run on a thread of their own.
        std::thread::spawn(move || {
            let mut buffer = gpu.buffer(70).expect("a small buffer");
            gpu.write(&mut buffer, 64, &[1, 2, 3]).expect("it holds them");
            let words = gpu.read(gpu.whole(&buffer)).expect("the device is there");
            assert_eq!(words[60..], [0, 0, 0, 0, 1, 2, 3, 0, 0, 0]);
        })
        .join()
        .expect("it ends well");
        assert_eq!(fake.count("fake_left"), 0, "{family:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_before_it_starts() {
    for family in BOTH {
        let gpu = Fake::new(family, &[]).open().expect("it is all there");
        let mut small = gpu.buffer(2).expect("a small buffer");
        assert!(matches!(gpu.write(&mut small, 0, &[1, 2, 3]), Err(DeviceError::Launch(_))));
        let too_much = gpu.buffer(1 << 20);
        assert!(matches!(too_much, Err(DeviceError::OutOfMemory { bytes: 4_194_304 })));
        let launch = Launch { dims: vec![("m", 1), ("n", 2), ("depth", 2)], numbers: vec![] };
        let whole = gpu.whole(&small);
        let mut stream = gpu.stream();
        let operands = [("x", whole), ("w", whole), ("y", whole)];
        let refused = gpu.launch(&mut stream, &kernel("linear_f32"), &launch, &operands);
        let Err(DeviceError::Launch(e)) = refused else { panic!("w is too short") };
        assert!(e.problem.contains("2 words of 4"), "{e}");
        assert!(stream.is_empty());
    }
}

#[test]
fn a_kernel_is_compiled_once_and_again_when_what_was_kept_is_poisoned() {
    for family in BOTH {
        let fake = Fake::new(family, &[]);
        let run = || drop(proven(fake.open().expect("it is all there")).expect("it is right"));
        run();
        run();
        assert_eq!(fake.count("fake_compiled"), 1, "{family:?}");
        let kept: Vec<_> = std::fs::read_dir(fake.folder.path().join("kernels"))
            .expect("it was made")
            .map(|entry| entry.expect("it can be read").path())
            .collect();
        let [file] = kept.as_slice() else { panic!("one kernel, one file: {kept:?}") };
        let whole = std::fs::read(file).expect("it can be read");
        // Cut short; and whole as such, but of a format that this driver does not take.
        let foreign = [blake3::hash(b"other").as_bytes(), b"other".as_slice()].concat();
        for (poison, compiled) in [(&whole[..whole.len() - 3], 2), (&foreign, 3)] {
            std::fs::write(file, poison).expect("it can be written");
            run();
            run();
            assert_eq!(fake.count("fake_compiled"), compiled, "{family:?}");
            assert_eq!(std::fs::read(file).expect("it can be read"), whole);
        }
    }
}

#[test]
fn each_way_to_have_no_device_says_which() {
    let problem = |fake: &Fake| match fake.open() {
        Err(DeviceError::None(problem)) => problem,
        Err(other) => panic!("{other}"),
        Ok(gpu) => proven(gpu).err().expect("something is wrong with it"),
    };
    for family in BOTH {
        let lacks = if family == Family::Cuda { "cuLaunchKernel" } else { "hipModuleLaunchKernel" };
        for (flags, why) in [
            ("-DNO_LAUNCH", format!("libfake.so has no {lacks}: install a newer one")),
            ("-DFAILS=100", "no device detected (error 100)".to_owned()),
            ("-DWRONG", "canary gave".to_owned()),
        ] {
            let problem = problem(&Fake::new(family, &[flags]));
            assert!(problem.contains(&why), "{problem}");
        }
        let mut absent = Fake::new(family, &[]);
        absent.library = "libnothere.so".to_owned();
        let problem = problem(&absent);
        assert!(problem.contains("libnothere.so: "), "{problem}");
    }
    let fake = Fake::new(Family::Cuda, &[]);
    let no_compiler = cuda::open_from(&[&fake.library], &["libnothere.so"], fake.kept());
    assert!(matches!(no_compiler, Err(DeviceError::None(p)) if p.contains("libnothere.so: ")));
    let hip = Fake::new(Family::Hip, &[]);
    let unknown = hip::open_from(&[&hip.library], &[&hip.library], hip.kept(), |_| None);
    assert!(matches!(unknown, Err(DeviceError::None(p)) if p.contains("0000:C1:00.0")));
}

#[test]
fn a_kernel_that_the_compiler_refuses_is_named_with_its_log() {
    for family in BOTH {
        let gpu = Fake::new(family, &[]).open().expect("it is all there");
        let (x, y) = (gpu.buffer(4).expect("small"), gpu.buffer(4).expect("small"));
        let launch = Launch { dims: vec![("count", 4)], numbers: vec![] };
        let operands = [("x", gpu.whole(&x)), ("y", gpu.whole(&y))];
        let refused = gpu.launch(&mut gpu.stream(), &kernel("add"), &launch, &operands);
        let Err(DeviceError::Compile { kernel, log }) = refused else { panic!("it knows one") };
        assert_eq!(kernel, "add");
        assert!(log.contains("compilation") && log.ends_with("knows one kernel"), "{log}");
    }
}
