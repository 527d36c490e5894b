//! Starting programs as the instance's user.
//!
//! PostgreSQL gets SIGQUIT when the daemon dies, through the kernel (`PR_SET_PDEATHSIG`), so that no primary
//! outlives the daemon that fences it. The kernel ties that signal to the *thread* that forked: so one thread,
//! which lives as long as the process, forks them all.

use super::error::InstanceError;
use super::user::OsUser;
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Of the daemon's environment, what a program is given.
const ENVIRONMENT: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "TZ"];

/// Requests that wait for the thread; a fork takes about a millisecond.
const QUEUE_LIMIT: usize = 64;

struct Request {
    command: Command,
    runtime: Handle,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// A command as `user`, in its own process group, without the daemon's descriptors and environment, that gets
/// `on_daemon_death` when the daemon dies.
pub fn command(program: &Path, user: &OsUser, on_daemon_death: Signal) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).process_group(0).current_dir("/");
    for name in ENVIRONMENT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("LC_ALL", "C");
    if let Some((uid, gid)) = user.switch() {
        command.uid(uid).gid(gid);
    }
    let daemon = rustix::process::getpid();
    // SAFETY: between fork and exec the closure makes system calls only and touches no lock and no heap. It runs
    // after the change of user, which would have cleared the death signal.
    unsafe {
        command.pre_exec(move || {
            // Whoever started the daemon may have had them ignored, as a shell does for what it puts in the background. That
            // is inherited, and until the program installs its handlers the death signal would be lost.
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            rustix::process::set_parent_process_death_signal(Some(on_daemon_death))?;
            if rustix::process::getppid() != Some(daemon) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            // Best effort: descriptors of the daemon are close-on-exec anyway.
            libc::syscall(
                libc::SYS_close_range,
                3 as libc::c_uint,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            Ok(())
        });
    }
    command
}

/// Sends both outputs to a file.
pub fn output_to(command: &mut Command, log: &File) -> io::Result<()> {
    command.stdout(log.try_clone()?).stderr(log.try_clone()?);
    Ok(())
}

/// Forks on the thread that never ends. A caller that is gone by then leaves nothing behind.
pub async fn spawn(command: Command) -> Result<Child, InstanceError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let failed = |source| InstanceError::Spawn { program: program.clone(), source };
    let gone = || failed(io::Error::other("the thread that starts programs is gone"));
    let (reply, answer) = oneshot::channel();
    let request = Request { command, runtime: Handle::current(), reply };
    spawner().map_err(failed)?.send(request).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?.map_err(failed)
}

fn spawner() -> io::Result<mpsc::Sender<Request>> {
    static SPAWNER: OnceLock<io::Result<mpsc::Sender<Request>>> = OnceLock::new();
    let made = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>(QUEUE_LIMIT);
        std::thread::Builder::new().name("spawner".into()).spawn(move || serve(requests))?;
        Ok(sender)
    });
    match made {
        Ok(sender) => Ok(sender.clone()),
        Err(e) => Err(io::Error::new(e.kind(), "the thread that starts programs did not start")),
    }
}

fn serve(mut requests: mpsc::Receiver<Request>) {
    while let Some(mut request) = requests.blocking_recv() {
        let _runtime = request.runtime.enter();
        let spawned = request.command.spawn();
        if let Err(Ok(orphan)) = request.reply.send(spawned) {
            kill_group(orphan.id());
        }
    }
}

/// Ends a program and what it forked.
pub fn kill_group(pid: Option<u32>) {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may be gone already.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn what_the_daemon_was_started_with_does_not_make_its_instances_deaf() {
        // SAFETY: a disposition of this process, which no test needs to end by the signal.
        unsafe { libc::signal(libc::SIGQUIT, libc::SIG_IGN) };
        let user = OsUser::for_instances().unwrap();
        let mut command = command(Path::new("/bin/cat"), &user, Signal::QUIT);
        let said = command.arg("/proc/self/status").output().await.unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let ignored = said.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        assert_eq!(ignored & (1 << (libc::SIGQUIT - 1)), 0, "{ignored:x}");
    }
}
