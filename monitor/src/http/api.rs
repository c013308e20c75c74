//! The dashboard's data: the state of the run as JSON, and everything new as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::view::publisher::ViewPublisher;

/// Pages that may follow a run at once.
const READERS: usize = 64;
/// Updates of a page are at least so far apart.
const APART: Duration = Duration::from_millis(250);
/// A page that lost its connection tries again after so long.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Api {
    view: ViewPublisher,
    readers: Arc<Semaphore>,
}

pub(super) fn routes(view: ViewPublisher) -> Router {
    Router::new()
        .route("/api/state", get(state))
        .route("/api/events", get(events))
        .with_state(Api { view, readers: Arc::new(Semaphore::new(READERS)) })
}

async fn state(State(api): State<Api>) -> Response {
    match serde_json::to_vec(&api.view.state()) {
        Ok(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn events(State(api): State<Api>) -> Response {
    let Ok(permit) = api.readers.try_acquire_owned() else {
        let words = format!("{READERS} pages follow this run already; close one, or read /api/state\n");
        return (StatusCode::SERVICE_UNAVAILABLE, words).into_response();
    };
    let (events, stream) = mpsc::channel(1);
    tokio::spawn(follow(api.view, events, permit));
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(10));
    // A proxy that keeps answers back until they are large, as nginx does, is asked not to.
    let unbuffered = [("x-accel-buffering", "no")];
    (unbuffered, Sse::new(ReceiverStream::new(stream)).keep_alive(keep_alive)).into_response()
}

/// Sends what is new, as fast as the reader takes it: a slow reader gets what it missed in one piece. Ends with the
/// run or with the reader.
async fn follow(
    view: ViewPublisher,
    events: mpsc::Sender<Result<Event, Infallible>>,
    _permit: OwnedSemaphorePermit,
) {
    let (state, mut subscription) = view.subscribe();
    let first = event("state", &state).retry(RETRY);
    drop(state);
    if events.send(Ok(first)).await.is_err() {
        return;
    }
    loop {
        let update = tokio::select! {
            update = subscription.next() => update,
            () = events.closed() => return,
        };
        let Some(update) = update else { return };
        if events.send(Ok(event("update", &update))).await.is_err() {
            return;
        }
        subscription.throttle(APART).await;
    }
}

fn event(name: &str, content: &impl Serialize) -> Event {
    // Numbers and text alone: there is nothing in it that JSON does not know.
    Event::default().event(name).data(serde_json::to_string(content).unwrap_or_default())
}
