//! Messages as server-sent events. Each has its number; a browser that lost the connection says the last one that it
//! heard, and hears the rest.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Sse};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::hub::{Hub, Message};
use super::live::Watched;

/// Events that wait for a slow browser; the hub keeps what does not fit.
const N_WAITING: usize = 16;
/// How soon a browser tries again after it has lost the connection.
const RETRY: Duration = Duration::from_secs(1);

/// The number of a message, with the name of its hub.
pub fn id_of(hub: &Hub, number: u64) -> String {
    format!("{:08x}-{number}", hub.epoch())
}

/// What a browser has heard: the number of a message of this hub.
fn heard(hub: &Hub, id: &str) -> Option<u64> {
    let (epoch, number) = id.split_once('-')?;
    (epoch == format!("{:08x}", hub.epoch())).then(|| number.parse().ok())?
}

/// Everything after what the browser has heard: by `Last-Event-ID` where it comes again, by `after` where it comes first.
/// It ends with the connection, and gives back its permit then.
pub fn events(
    watched: Arc<Watched>,
    headers: &HeaderMap,
    after: Option<&str>,
    permit: OwnedSemaphorePermit,
) -> impl IntoResponse + use<> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).or(after);
    let number = last.and_then(|id| heard(&watched.hub, id));
    let (sender, receiver) = mpsc::channel(N_WAITING);
    tokio::spawn(async move {
        let _permit = permit;
        pump(&watched.hub, number, &sender).await;
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default())
}

/// Sends until the browser is gone.
async fn pump(hub: &Hub, heard: Option<u64>, sender: &mpsc::Sender<Result<Event, Infallible>>) {
    let mut changes = hub.changes();
    // Of no message: everything is to be read anew.
    let (mut last, mut status_seen) = (heard.unwrap_or(u64::MAX), None);
    loop {
        changes.mark_unchanged();
        let (messages, status) = hub.read(|known| {
            let messages = known.since(last).unwrap_or_else(|| vec![(known.last_id(), Message::Reset)]);
            let is_new = status_seen != Some(known.status_serial);
            status_seen = Some(known.status_serial);
            (messages, is_new.then(|| json!({"kind": "status", "status": known.status, "is_live": known.is_live})))
        });
        for (number, message) in messages {
            last = number;
            let event = Event::default().id(id_of(hub, number)).retry(RETRY).json_data(message);
            // What can't be written as JSON is nothing that a browser could read.
            let Ok(event) = event else { continue };
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
        if let Some(status) = status
            && let Ok(event) = Event::default().retry(RETRY).json_data(status)
            && sender.send(Ok(event)).await.is_err()
        {
            return;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_for_the_hub_that_gave_it_alone() {
        let hub = Hub::default();
        assert_eq!(heard(&hub, &id_of(&hub, 7)), Some(7));
        assert_eq!(heard(&hub, &format!("{:08x}-7", hub.epoch().wrapping_add(1))), None);
        for id in ["", "7", "-", "x-y"] {
            assert_eq!(heard(&hub, id), None);
        }
    }
}
