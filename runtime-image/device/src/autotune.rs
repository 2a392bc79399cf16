//! What autotuning found, kept on disk: a file for each processor, instruction set, number of
//! threads and version of the kernels, named by their digest.
//!
//! ```text
//! petaflop autotune 1
//! kernels 3f1c…        the sources that were measured
//! device Intel(R) Xeon(R) Processor, avx512, 2 threads
//! driver none
//! 1 512 576 1536 rows q8_0 = 4
//! end
//! ```
//!
//! A file is replaced as a whole, after what others have written to it meanwhile was taken over.
//! One that is cut short, of another machine, or says what no version of ours writes, counts as
//! none: one line says so, and the next result writes it anew.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use petaflop_kernel::{
    Cpu,
    tune::{TILES, Table, Tuner, digest, sources},
};

/// What all tries of a process may lose over the usual tiles.
const BUDGET: Duration = Duration::from_secs(2);
const END: &str = "end";

/// Where the caches of this user are: `petaflop/autotune` in `$XDG_CACHE_HOME` or `~/.cache`.
pub fn folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(caches.join("petaflop/autotune"))
}

/// `cpu`, on a processor of this model, whose products take the tiles that were the fastest: of
/// earlier processes, where `folder` has their results, and of this one's first calls.
pub fn autotuned(cpu: Cpu, model: &str, folder: Option<&Path>) -> Cpu {
    // A folder that cannot be is no reason to measure nothing, nor to say so with each result.
    let folder = folder.filter(|folder| {
        let made = fs::create_dir_all(folder);
        if let Err(error) = &made {
            tracing::info!(%error, "{}: what autotuning finds is not kept", folder.display());
        }
        made.is_ok()
    });
    let Some(folder) = folder else {
        return cpu.autotuned(Tuner::new(Table::new(), BUDGET, |_| {}));
    };
    let file = Kept::of(&cpu, model, folder);
    let known = file.read().unwrap_or_else(|why| {
        tracing::warn!("{}: {why}; tiles are measured anew", file.path.display());
        Table::new()
    });
    let tuner = Tuner::new(known, BUDGET, move |table| {
        if let Err(error) = file.add(table) {
            tracing::warn!(%error, "{}: what autotuning found is not kept", file.path.display());
        }
    });
    cpu.autotuned(tuner)
}

/// The file of one device.
struct Kept {
    path: PathBuf,
    /// Its first lines.
    head: String,
}

impl Kept {
    fn of(cpu: &Cpu, model: &str, folder: &Path) -> Self {
        let (isa, threads, kernels) = (cpu.isa(), cpu.threads(), sources());
        let head = format!(
            "petaflop autotune 1\nkernels {kernels:016x}\ndevice {model}, {isa}, {threads} threads\ndriver none\n"
        );
        let name = format!("{:016x}.txt", digest(&[head.as_bytes()]));
        Self { path: folder.join(name), head }
    }

    /// What it holds; nothing where it is not there.
    fn read(&self) -> Result<Table, String> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Table::new()),
            text => text.map_err(|error| error.to_string())?,
        };
        let lines = text.strip_prefix(&self.head).ok_or("is of another device or version")?;
        let lines = lines.strip_suffix(END).ok_or("is cut short")?;
        let pair = |line: &str| {
            let (product, tiles) = line.split_once(" = ")?;
            let tiles = tiles.parse().ok().filter(|tiles| *tiles < TILES.len())?;
            Some((product.to_owned(), tiles))
        };
        lines.lines().map(|line| pair(line).ok_or_else(|| format!("holds {line:?}"))).collect()
    }

    /// Adds to what it holds by now.
    fn add(&self, table: &Table) -> io::Result<()> {
        let mut all = self.read().unwrap_or_default();
        all.extend(table.clone());
        let mut text = self.head.clone();
        for (product, tiles) in &all {
            let _ = writeln!(text, "{product} = {tiles}"); // To a string: it cannot fail.
        }
        text.push_str(END);
        // A name of this process alone; readers see the old file or the new one.
        let fresh = self.path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &self.path).inspect_err(|_| drop(fs::remove_file(&fresh)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "1 512 576 1536 rows q8_0 = 0";
    const OTHER: &str = "2 64 576 1536 rows f32 = 4";

    fn kept(folder: &Path) -> Kept {
        Kept::of(&Cpu::new(None, 1).unwrap(), "some processor", folder)
    }

    fn table(line: &str) -> Table {
        let (product, tiles) = line.split_once(" = ").unwrap();
        [(product.to_owned(), tiles.parse().unwrap())].into()
    }

    #[test]
    fn results_of_two_processes_are_both_kept() {
        let folder = tempfile::tempdir().unwrap();
        // Each began before the other had found anything.
        let [one, two] = [kept(folder.path()), kept(folder.path())];
        one.add(&table(FIRST)).unwrap();
        two.add(&table(OTHER)).unwrap();
        let text = fs::read_to_string(&one.path).unwrap();
        assert_eq!(text, format!("{}{FIRST}\n{OTHER}\nend", one.head));
        assert_eq!(one.read().unwrap().len(), 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
    }

    #[test]
    fn a_damaged_or_foreign_file_counts_as_none_and_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let kept = kept(folder.path());
        let head = &kept.head;
        for (text, why) in [
            (String::new(), "another device"),
            (head.replace("some", "another") + END, "another device"),
            (head.replace("autotune 1", "autotune 2") + END, "another device"),
            (format!("{head}{FIRST}\n1 512"), "cut short"),
            (format!("{head}{FIRST}\nend and more"), "cut short"),
            (format!("{head}1 512 576 1536 rows q8_0 = 99\n{END}"), "= 99"),
            (format!("{head}nonsense\n{END}"), "nonsense"),
        ] {
            fs::write(&kept.path, &text).unwrap();
            let said = kept.read().unwrap_err();
            assert!(said.contains(why), "{text:?}: {said}");
            kept.add(&table(FIRST)).unwrap();
            assert_eq!(kept.read().unwrap(), table(FIRST));
        }
    }

    #[test]
    fn another_processor_another_number_of_threads_have_files_of_their_own() {
        let folder = Path::new("caches");
        let of =
            |threads, model: &str| Kept::of(&Cpu::new(None, threads).unwrap(), model, folder).path;
        assert_ne!(of(1, "a"), of(1, "b"));
        assert_ne!(of(1, "a"), of(2, "a"));
        assert_eq!(of(2, "a"), of(2, "a"));
    }
}
