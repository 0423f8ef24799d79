//! The program itself, serving in a process of its own.

use std::io::{BufRead, BufReader, Lines};
use std::iter::MapWhile;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use super::root;

/// What the program logs from here on, line by line, until it ends.
pub type Log = MapWhile<Lines<BufReader<ChildStderr>>, fn(std::io::Result<String>) -> Option<String>>;

/// The program, run in the repository.
pub fn latentd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_latentd"));
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// A serving program, killed when dropped.
pub struct Program {
    /// Where it serves.
    pub url: String,
    child: Child,
}

impl Program {
    /// Serves a data folder on a free port, and waits until it is ready.
    pub fn serve(data: &Path, change: impl FnOnce(&mut Command)) -> Self {
        let (program, log) = Self::logging(data, change);
        // Somebody reads on, or lines would be lost and the loss be logged.
        std::thread::spawn(move || log.for_each(drop));
        program
    }

    /// The same, with its log for the caller to read or not.
    pub fn logging(data: &Path, change: impl FnOnce(&mut Command)) -> (Self, Log) {
        let mut command = latentd();
        command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(data).stderr(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log: Log = lines.map_while(Result::ok as fn(_) -> _);
        let line = log.find(|line| line.contains("serving on http://")).expect("it did not start");
        let url = line.split("serving on ").nth(1).unwrap();
        let url = url.split([' ', '"']).next().unwrap().to_owned();
        log.find(|line| line.contains("golden check passed")).expect("it was not ready");
        (Self { url, child }, log)
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits until it did.
    pub fn terminate(mut self) -> ExitStatus {
        let killed = Command::new("kill").args(["-TERM", &self.id().to_string()]).status().unwrap();
        assert!(killed.success());
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
