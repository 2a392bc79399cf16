//! The programs that tests drive are there, and of the version named.

use std::path::PathBuf;
use std::process::Command;

use petaflop_harness::{Error, Result, tools};

#[test]
fn each_tool_says_its_version() {
    type Tool = fn() -> Result<PathBuf>;
    let cases: [(Tool, &[&str], &str); 5] = [
        (tools::kubectl, &["version", "--client"], "v1.37.1"),
        (tools::helm, &["version"], "v4.3.1"),
        (tools::kwok, &["--version"], "kwok"),
        (tools::versitygw, &["--version"], "Version"),
        (tools::promtool, &["--version"], "promtool, version"),
    ];
    for (tool, arguments, expected) in cases {
        let path = match tool() {
            Ok(path) => path,
            // Only root can install what Debian's packages hold.
            Err(error @ Error::Missing { .. })
                if !tools::is_root() && std::env::var_os("CI").is_none() =>
            {
                eprintln!("not run here: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let output = Command::new(&path).args(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success() && said.contains(expected), "{}: {said}", path.display());
    }
}
