//! The log's way out: a thread of its own writes to standard error, so that a pipe nobody reads holds up no request.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Lines that wait to be written; later ones are lost while the reader does not take them.
const WAITING: usize = 4096;

/// How long lines gather while others were just written.
const REST: Duration = Duration::from_millis(5);

/// Bytes of memory kept for gathering.
const KEPT: usize = 64 << 10;

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

static OUT: OnceLock<SyncSender<Message>> = OnceLock::new();

/// Lines lost since the last that was written.
static LOST: AtomicUsize = AtomicUsize::new(0);

/// Where lines are handed in; each `write` is one.
#[derive(Debug, Clone, Copy)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match out().try_send(Message::Line(line.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                LOST.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Waits until what was handed in is written, or `limit` has passed.
pub fn flush(limit: Duration) {
    let Some(out) = OUT.get() else { return };
    let (sender, written) = sync_channel(1);
    if out.try_send(Message::Flush(sender)).is_ok() {
        let _ = written.recv_timeout(limit);
    }
}

fn out() -> &'static SyncSender<Message> {
    OUT.get_or_init(|| {
        let (sender, receiver) = sync_channel(WAITING);
        // Without a thread the receiver is gone, and every line lost: no reason not to serve.
        let _ = std::thread::Builder::new().name("log".to_owned()).spawn(move || write(&receiver));
        sender
    })
}

/// Writes what has gathered, then lets more gather: under load a thread that is woken for every line costs the requests
/// more than the lines. A pipe whose reader is gone gives errors, which nobody could be told of.
fn write(messages: &Receiver<Message>) {
    let mut lines = Vec::new();
    while let Ok(first) = messages.recv() {
        let mut rest = REST;
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match message {
                Message::Line(line) => lines.extend_from_slice(&line),
                Message::Flush(written) => {
                    write_all(&mut lines);
                    let _ = written.try_send(());
                    rest = Duration::ZERO;
                }
            }
        }
        write_all(&mut lines);
        std::thread::sleep(rest);
    }
}

fn write_all(lines: &mut Vec<u8>) {
    let mut err = std::io::stderr();
    let lost = LOST.swap(0, Ordering::Relaxed);
    if lost > 0 {
        let _ = writeln!(err, "{lost} lines of the log were lost: its reader did not take them");
    }
    let _ = err.write_all(lines);
    lines.clear();
    lines.shrink_to(KEPT);
}
