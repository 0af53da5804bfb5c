//! Kills programs that hang. One thread for all of them: a program around each costs a fifth of what most of them take.

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

/// How long any program may take before it counts as hanging. Long, because the machine may be busy: what
/// is measured is CPU time.
const HANGS_AFTER: Duration = Duration::from_secs(120);

/// The processes that are running, and when they began.
static RUNNING: Mutex<Option<HashMap<u32, Instant>>> = Mutex::new(None);

/// A process that is killed when it takes too long, until this is dropped.
pub(crate) struct Watched(u32);

/// Watches the process of this number.
pub(crate) fn watch(process: u32) -> Watched {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| drop(std::thread::spawn(look_after)));
    let began = Instant::now();
    running().get_or_insert_default().insert(process, began);
    Watched(process)
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(all) = running().as_mut() {
            all.remove(&self.0);
        }
    }
}

fn running() -> MutexGuard<'static, Option<HashMap<u32, Instant>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look_after() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let overdue = running().as_ref().map(|all| overdue(all, HANGS_AFTER));
        overdue.into_iter().flatten().for_each(kill);
    }
}

fn overdue(all: &HashMap<u32, Instant>, most: Duration) -> Vec<u32> {
    let hanging = all.iter().filter(|(_, began)| began.elapsed() > most);
    hanging.map(|(&process, _)| process).collect()
}

fn kill(process: u32) {
    let _ = Command::new("kill")
        .args(["-KILL", &process.to_string()])
        .status();
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn what_takes_too_long_is_killed() {
        let hour = Duration::from_secs(3600);
        let long_ago = Instant::now().checked_sub(hour).unwrap();
        let all = HashMap::from([(1, long_ago), (2, Instant::now())]);
        assert_eq!(overdue(&all, HANGS_AFTER), [1]);
        assert!(overdue(&all, 2 * hour).is_empty());
        let mut sleeps = Command::new("sleep").arg("60").spawn().unwrap();
        kill(sleeps.id());
        assert_eq!(sleeps.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn what_has_ended_is_watched_no_more() {
        let watched = watch(u32::MAX);
        assert!(running().as_ref().unwrap().contains_key(&u32::MAX));
        drop(watched);
        assert!(!running().as_ref().unwrap().contains_key(&u32::MAX));
    }
}
