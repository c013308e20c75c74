//! A child process whose output is read as it comes.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take before it counts as hanging. Far over what it takes on a
/// loaded machine, so that reaching it means a fault and never a slow day.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// How a process ended and what it printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The promise about bad input: an exit code that is not 0 and no signal; one line that
    /// begins with `error:`, the last, which has all of `words` (the thing and the remedy);
    /// no panic and no backtrace.
    ///
    /// # Panics
    /// If that is not so.
    pub fn is_refused(&self, words: &[&str]) {
        let stderr = &self.stderr;
        assert!(self.status.code().is_some_and(|code| code != 0), "{}:\n{stderr}", self.status);
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        let last = stderr.lines().last();
        assert!(errors.len() == 1 && last == Some(errors[0]), "not one line of error at the end:\n{stderr}");
        for word in words {
            assert!(errors[0].contains(word), "no {word:?} in {:?}", errors[0]);
        }
        let lower = stderr.to_lowercase();
        assert!(!lower.contains("panicked") && !lower.contains("backtrace"), "{stderr}");
    }
}

/// What a stream of the child has said so far, and whether it has ended.
#[derive(Debug, Default)]
struct Heard {
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

impl Heard {
    fn state(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.state().0).into_owned()
    }

    fn listen(self: Arc<Self>, mut stream: impl Read + Send + 'static) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let read = stream.read(&mut buffer).unwrap_or(0);
                let mut state = self.state();
                state.0.extend_from_slice(&buffer[..read]);
                state.1 = read == 0;
                self.changed.notify_all();
                if read == 0 {
                    return;
                }
            }
        })
    }
}

/// A child process in a temporary working directory. Killed when dropped.
pub struct Process {
    name: String,
    child: Mutex<Child>,
    pid: Pid,
    stdout: Arc<Heard>,
    stderr: Arc<Heard>,
    readers: Mutex<Vec<JoinHandle<()>>>,
    _directory: TempDir,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid())
    }
}

/// Takes the caller's variables of Tally from a child's environment: any of them would be an option. The
/// instructions that kernels use stay, for whole test runs are made with one path.
pub fn without_options(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("TALLY_") && name != "TALLY_SIMD") {
            command.env_remove(name);
        }
    }
    command
}

impl Process {
    /// Starts a program.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(program: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self::start_with(program, &[], args)
    }

    /// Starts a program with variables in its environment.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start_with(
        program: &Path,
        variables: &[(&str, &str)],
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut command = Command::new(program);
        without_options(&mut command)
            .args(args)
            .envs(variables.iter().copied())
            .current_dir(directory.path())
            // An error must be one line even for those who have this set.
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let (stdout, stderr) = (Arc::<Heard>::default(), Arc::<Heard>::default());
        let out = child.stdout.take().expect("standard output is piped");
        let err = child.stderr.take().expect("standard error is piped");
        let readers = vec![stdout.clone().listen(out), stderr.clone().listen(err)];
        Self {
            name: program.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            pid: Pid::from_child(&child),
            child: Mutex::new(child),
            stdout,
            stderr,
            readers: Mutex::new(readers),
            _directory: directory,
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// What it has printed on standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has printed on standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until `text` is on its standard error.
    ///
    /// # Panics
    /// If the deadline passes, or the process ends, without it.
    pub fn wait_for(&self, text: &str, deadline: Duration) {
        self.wait_until(text, deadline, |heard| heard.contains(text).then_some(()));
    }

    /// Waits until a whole line with `text` is on its standard error, and returns it.
    ///
    /// # Panics
    /// If the [`DEADLINE`] passes, or the process ends, without it.
    pub fn wait_for_line(&self, text: &str) -> String {
        self.wait_until(text, DEADLINE, |heard| {
            let whole = heard.rfind('\n').map_or("", |end| &heard[..end]);
            whole.lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    fn wait_until<T>(&self, what: &str, deadline: Duration, found: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + deadline;
        let mut state = self.stderr.state();
        loop {
            if let Some(found) = found(&String::from_utf8_lossy(&state.0)) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                let why = if state.1 { "ended" } else { "is silent" };
                let heard = String::from_utf8_lossy(&state.0).into_owned();
                drop(state);
                panic!("{self:?} {why} without {what:?}; its standard error:\n{heard}");
            }
            state = self.stderr.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        self.try_wait().is_none()
    }

    fn try_wait(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end; all that it printed is there then.
    ///
    /// # Panics
    /// If the [`DEADLINE`] passes first.
    pub fn wait(&self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.try_wait() {
                for reader in self.readers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                    let _ = reader.join();
                }
                return status;
            }
            assert!(Instant::now() < end, "{self:?} does not end; its standard error:\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end and returns all that it printed.
    ///
    /// # Panics
    /// If the [`DEADLINE`] passes first.
    pub fn output(&self) -> Output {
        Output { status: self.wait(), stdout: self.stdout(), stderr: self.stderr() }
    }

    /// Waits for its end, which must be a good one.
    ///
    /// # Panics
    /// If the [`DEADLINE`] passes first, or it exits with another code than 0.
    pub fn succeed(&self) {
        let status = self.wait();
        assert!(status.success(), "{self:?}: {status}; its standard error:\n{}", self.stderr());
    }

    /// Sends it a signal; one that has ended gets none.
    pub fn signal(&self, signal: Signal) {
        // Under the lock nobody reaps the child, so its number is still its own.
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(child.try_wait(), Ok(None)) {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    ///
    /// # Panics
    /// If it does not go.
    pub fn kill9(&self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}
