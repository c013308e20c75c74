//! The output of a working program. It is best effort: nothing waits for it, and its failure ends nothing.
//!
//! A caller puts a line into a bounded queue and continues. One thread writes. So a terminal that takes no output (a
//! pty that nobody reads, a stalled ssh, Ctrl-S), a reader that goes away, a full disk below a log file or a
//! descriptor that does not block cost lines and nothing else: lines for which there is no room are left out and
//! counted, and of the line that a terminal shows at its bottom only the newest state is written.
//!
//! The answer of a command that does nothing else goes through [`print()`] instead, which waits and reports errors.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Bytes of lines that may wait.
const ROOM: usize = 1 << 20;
/// How often the bottom line of a terminal is drawn at most.
const FRAME: Duration = Duration::from_millis(100);
/// How long a descriptor that does not block is left alone when it takes nothing.
const AGAIN: Duration = Duration::from_millis(20);
/// How long the end of a process may wait for what is still to be written.
const END: Duration = Duration::from_secs(2);
/// Back to the beginning of the line, with nothing on it.
const CLEAR: &str = "\r\x1b[2K";
/// Columns of a terminal that does not tell.
const WIDTH: usize = 80;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What goes on.
    Info,
    /// Something to look after.
    Warn,
    /// Why the program ends.
    Error,
}

impl Level {
    fn of_text(self) -> &'static str {
        match self {
            Self::Info => "",
            Self::Warn => "warning: ",
            Self::Error => "error: ",
        }
    }

    fn of_json(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// A line on standard error.
pub fn note(level: Level, text: &str) {
    output().line(Stream::Error, level, text);
}

/// A line on standard output, of a program whose work does not depend on whether it is read.
pub fn result(text: &str) {
    output().line(Stream::Output, Level::Info, text);
}

/// What the bottom line of a terminal shows from now on, if standard error [is one](is_terminal). Whoever calls
/// often need not spare: only the newest text is written, ten times a second.
pub fn status(text: Option<String>) {
    output().status(text);
}

/// Whether standard error is a terminal that people look at.
pub fn is_terminal() -> bool {
    let output = output();
    output.terminal && !output.json.load(Ordering::Relaxed)
}

/// Every line is a JSON object from now on, of the form that the log's lines have.
pub fn as_json() {
    output().json.store(true, Ordering::Relaxed);
}

/// Waits until everything is written, and no longer than two seconds: what a terminal has not taken
/// by then is lost.
pub fn flush() {
    if let Some(output) = OUTPUT.get() {
        output.flush(END);
    }
}

/// Writes a command's answer to standard output, and waits for it.
///
/// # Errors
/// If it can't be written.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush())
}

/// Standard error, for whoever writes whole lines in one go, as a log does. Writing never fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        output().push(Stream::Error, bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

static OUTPUT: OnceLock<Output> = OnceLock::new();

fn output() -> &'static Output {
    OUTPUT.get_or_init(|| {
        let terminal = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|it| it != "dumb");
        Output::start(descriptor(io::stdout().as_fd()), descriptor(io::stderr().as_fd()), terminal)
    })
}

type Sink = Box<dyn Write + Send>;

/// The descriptor itself: without Rust's lock around it, which a write that does not end would keep.
fn descriptor(of: BorrowedFd<'_>) -> Sink {
    of.try_clone_to_owned().map_or_else(|_| Box::new(io::sink()) as Sink, |fd| Box::new(File::from(fd)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Output,
    Error,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<(Stream, Vec<u8>)>,
    bytes: usize,
    left_out: u64,
    status: Option<String>,
    /// The status is not what was drawn last.
    redraw: bool,
    /// The thread is writing.
    busy: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write, or all is written.
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue, and what the thread behind it was started for.
struct Output {
    shared: Arc<Shared>,
    terminal: bool,
    json: AtomicBool,
}

impl Output {
    fn start(out: Sink, error: Sink, terminal: bool) -> Self {
        let shared = Arc::<Shared>::default();
        let writer = Writer { shared: shared.clone(), out, error, drawn: None };
        // Without a thread nothing is said; the work goes on.
        let _ = std::thread::Builder::new().name("output".into()).spawn(move || writer.run());
        Self { shared, terminal, json: AtomicBool::new(false) }
    }

    fn line(&self, stream: Stream, level: Level, text: &str) {
        self.push(stream, self.formatted(level, text));
    }

    fn formatted(&self, level: Level, text: &str) -> Vec<u8> {
        if !self.json.load(Ordering::Relaxed) {
            return format!("{}{text}\n", level.of_text()).into_bytes();
        }
        let line = serde_json::json!({
            "timestamp": humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            "level": level.of_json(),
            "fields": { "message": text },
            "target": "tally",
        });
        format!("{line}\n").into_bytes()
    }

    fn push(&self, stream: Stream, line: Vec<u8>) {
        let mut state = self.shared.state();
        if state.bytes + line.len() > ROOM {
            state.left_out += 1;
            return;
        }
        self.tell_left_out(&mut state);
        state.bytes += line.len();
        state.lines.push_back((stream, line));
        drop(state);
        self.shared.changed.notify_all();
    }

    fn tell_left_out(&self, state: &mut State) {
        let lines = std::mem::take(&mut state.left_out);
        if lines > 0 {
            let told =
                format!("{lines} lines are left out here, because the reader of this output was too slow");
            let line = self.formatted(Level::Warn, &told);
            state.bytes += line.len();
            state.lines.push_back((Stream::Error, line));
        }
    }

    fn status(&self, text: Option<String>) {
        if self.terminal {
            let mut state = self.shared.state();
            (state.status, state.redraw) = (text, true);
            drop(state);
            self.shared.changed.notify_all();
        }
    }

    fn flush(&self, most: Duration) {
        let end = Instant::now() + most;
        let mut state = self.shared.state();
        self.tell_left_out(&mut state);
        self.shared.changed.notify_all();
        while state.busy || !state.lines.is_empty() || state.redraw {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The thread that writes.
struct Writer {
    shared: Arc<Shared>,
    out: Sink,
    error: Sink,
    /// When the status was drawn that stands on the terminal.
    drawn: Option<Instant>,
}

enum Next {
    Line(Stream, Vec<u8>),
    Status(Option<String>),
}

impl Writer {
    fn run(mut self) {
        loop {
            match self.next() {
                Next::Line(stream, line) => {
                    let bottom = self.drawn.take().is_some();
                    if bottom {
                        deliver(&mut self.error, CLEAR.as_bytes());
                        self.shared.state().redraw = true;
                    }
                    deliver(if stream == Stream::Output { &mut self.out } else { &mut self.error }, &line);
                }
                Next::Status(Some(text)) => {
                    let columns = rustix::termios::tcgetwinsize(io::stderr().as_fd());
                    let width = columns.map_or(WIDTH, |size| usize::from(size.ws_col)).max(2);
                    deliver(&mut self.error, format!("{CLEAR}{}", cut(&text, width - 1)).as_bytes());
                    self.drawn = Some(Instant::now());
                }
                Next::Status(None) => {
                    if self.drawn.take().is_some() {
                        deliver(&mut self.error, CLEAR.as_bytes());
                    }
                }
            }
            self.shared.state().busy = false;
            self.shared.changed.notify_all();
        }
    }

    /// Lines come first, and the status when it is due.
    fn next(&self) -> Next {
        let mut state = self.shared.state();
        loop {
            if let Some((stream, line)) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.busy = true;
                return Next::Line(stream, line);
            }
            let due = self.drawn.map_or(Duration::ZERO, |drawn| FRAME.saturating_sub(drawn.elapsed()));
            if state.redraw && (due.is_zero() || state.status.is_none()) {
                (state.redraw, state.busy) = (false, true);
                return Next::Status(state.status.clone());
            }
            let wait = if state.redraw { due } else { Duration::from_secs(3600) };
            state = self.shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Writes as much as is taken.
fn deliver(to: &mut Sink, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return,
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(AGAIN),
            // Its reader has gone, or its disk is full: the next line may fare better.
            Err(_) => return,
        }
    }
}

/// As much of a line as there are columns; what sets colours takes none.
fn cut(text: &str, columns: usize) -> String {
    let (mut kept, mut left, mut escape, mut coloured) =
        (String::with_capacity(text.len()), columns, false, false);
    for char in text.chars() {
        if char == '\x1b' {
            (escape, coloured) = (true, true);
        } else if escape {
            escape = char != 'm';
        } else if left == 0 {
            break;
        } else {
            left -= 1;
        }
        kept.push(char);
    }
    if coloured {
        kept.push_str("\x1b[0m");
    }
    kept
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// An output whose standard error is the pipe that is returned.
    fn piped(terminal: bool) -> (Output, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        (Output::start(Box::new(io::sink()), Box::new(writer), terminal), reader)
    }

    fn say(output: &Output, lines: usize) {
        (0..lines).for_each(|n| output.line(Stream::Error, Level::Info, &format!("line {n} {:100}", "")));
    }

    #[test]
    fn whoever_speaks_waits_for_nobody_and_what_found_no_room_is_counted() {
        let (output, mut reader) = piped(true);
        let start = Instant::now();
        // Twice what there is room for, into a pipe that nobody reads.
        say(&output, 2 * ROOM / 100);
        output.status(Some("a bar".into()));
        output.flush(Duration::from_millis(50));
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(output.shared.state().bytes <= ROOM);
        let left_out = 2 * ROOM / 100 - {
            // Read what waits, up to the line that tells of the rest.
            let mut heard = String::new();
            let mut buffer = [0; 65536];
            while !heard.contains("left out here") {
                let read = reader.read(&mut buffer).unwrap();
                heard.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
            let lines = heard.lines().filter(|line| line.contains("line ")).count();
            assert!(heard.starts_with("line 0 "), "{:.100}", heard);
            lines
        };
        assert!(left_out > 0);
    }

    #[test]
    fn a_reader_that_goes_away_is_no_error_and_nobody_waits_for_it() {
        let (output, reader) = piped(false);
        drop(reader);
        say(&output, 3000);
        let start = Instant::now();
        output.flush(Duration::from_secs(60));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    /// As a shared terminal is that another program made so.
    #[test]
    fn a_descriptor_that_does_not_block_loses_nothing() {
        struct Stubborn(io::PipeWriter, bool);
        impl Write for Stubborn {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if self.1 { Err(io::ErrorKind::WouldBlock.into()) } else { self.0.write(&bytes[..1]) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::start(Box::new(io::sink()), Box::new(Stubborn(writer, false)), false);
        output.line(Stream::Error, Level::Warn, "x");
        let mut heard = [0; 11];
        reader.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"warning: x\n");
    }

    #[test]
    fn a_line_stands_above_the_status_and_old_states_are_dropped() {
        let (output, mut reader) = piped(true);
        for n in 0..1000 {
            output.status(Some(format!("bar {n}")));
        }
        output.flush(Duration::from_secs(60));
        output.line(Stream::Error, Level::Info, "a note");
        output.flush(Duration::from_secs(60));
        output.status(None);
        output.flush(Duration::from_secs(60));
        let mut heard = vec![0; 65536];
        let read = reader.read(&mut heard).unwrap();
        let heard = String::from_utf8_lossy(&heard[..read]).into_owned();
        assert!(heard.ends_with(&format!("{CLEAR}a note\n{CLEAR}bar 999{CLEAR}")), "{heard:?}");
        assert!(heard.matches("bar ").count() < 100, "{heard:?}");
    }

    #[test]
    fn in_json_every_line_is_an_object() {
        let (output, mut reader) = piped(false);
        output.json.store(true, Ordering::Relaxed);
        output.line(Stream::Error, Level::Warn, "two\nlines \"here\"");
        output.flush(Duration::from_secs(60));
        let mut heard = vec![0; 65536];
        let read = reader.read(&mut heard).unwrap();
        let object: serde_json::Value = serde_json::from_slice(&heard[..read]).unwrap();
        assert_eq!(
            (&object["level"], &object["fields"]["message"]),
            (&"WARN".into(), &"two\nlines \"here\"".into())
        );
        assert!(object["timestamp"].as_str().unwrap().ends_with('Z') && heard[read - 1] == b'\n');
    }

    #[test]
    fn a_bar_is_cut_by_its_columns_and_its_colour_ends_with_it() {
        assert_eq!(cut("plain text", 5), "plain");
        assert_eq!(cut("\x1b[36m━━━\x1b[0m more", 2), "\x1b[36m━━\x1b[0m");
    }
}
