//! Giving way where nothing has to be waited for.

use std::future::poll_fn;
use std::task::Poll;

/// Lets whatever else the executor has run once: for work that would not wait by itself, and for waits that look
/// again and again. Asks to be polled again at once.
pub async fn give_way() {
    let mut gave = false;
    poll_fn(|context| {
        if std::mem::replace(&mut gave, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
