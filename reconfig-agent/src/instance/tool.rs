//! Running initdb and pg_basebackup to their end.

use super::error::InstanceError;
use super::spawn;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// What is kept of a program's messages: the end says why it failed.
const MESSAGE_LIMIT_BYTES: usize = 2000;

/// Kills the program and its children when the caller goes away before its end.
struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            spawn::kill_group(child.id());
        }
    }
}

/// Runs a program until it ends, `deadline` passes, or the future is dropped. `on_message` sees its messages as
/// they come.
pub async fn run(
    program: &'static str,
    mut command: Command,
    deadline: Duration,
    mut on_message: impl FnMut(&str),
) -> Result<(), InstanceError> {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = Running(Some(spawn::spawn(command).await?));
    let Some(child) = running.0.as_mut() else { return Ok(()) };
    let messages = child.stderr.take();
    let finished = tokio::time::timeout(deadline, async {
        let text = match messages {
            Some(pipe) => collect(pipe, &mut on_message).await,
            None => String::new(),
        };
        (child.wait().await, text)
    })
    .await;
    let Ok((status, text)) = finished else {
        return Err(InstanceError::Timeout { what: program, after: deadline });
    };
    running.0 = None;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(InstanceError::Tool { program, status: status.to_string(), message: text }),
        Err(source) => Err(InstanceError::Spawn { program: program.to_owned(), source }),
    }
}

async fn collect(mut pipe: impl AsyncRead + Unpin, on_message: &mut impl FnMut(&str)) -> String {
    let mut kept = String::new();
    let mut buffer = [0u8; 1024];
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        let text = String::from_utf8_lossy(&buffer[..n]);
        on_message(&text);
        kept.push_str(&text);
        if kept.len() > 2 * MESSAGE_LIMIT_BYTES {
            kept = end_of(&kept);
        }
    }
    end_of(&kept).trim().to_owned()
}

fn end_of(text: &str) -> String {
    let from = text.len().saturating_sub(MESSAGE_LIMIT_BYTES);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[from..].to_owned()
}
