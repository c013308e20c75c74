//! `POST /api/predict` and `GET /api/samples.png`.

use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tally_worker::picture::PictureError;
use tally_worker::predict::PredictError;

use super::{Predictions, Refusal};
use crate::pictures::GridError;

/// The largest picture that is taken.
const MOST_BYTES: usize = 4 << 20;

#[derive(Deserialize)]
struct Asked {
    number: u8,
}

impl Predictions {
    /// The routes under `/api` that are answered here.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/api/predict", post(predict).layer(DefaultBodyLimit::max(MOST_BYTES)))
            .route("/api/samples.png", get(samples))
            .with_state(self)
    }
}

async fn predict(
    State(predictions): State<Predictions>,
    headers: HeaderMap,
    asked: Result<Query<Asked>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let refused = |status: StatusCode, why: String| (status, Json(json!({ "error": why }))).into_response();
    let Ok(Query(Asked { number: number @ 0..=9 })) = asked else {
        return refused(StatusCode::BAD_REQUEST, "say which number by ?number=0 to ?number=9".into());
    };
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !["image/png", "image/jpeg"].contains(&kind) {
        let why = "send the picture as image/png or image/jpeg".into();
        return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
    }
    let picture = match body {
        Ok(picture) => picture,
        Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return refused(
                error.status(),
                format!("a picture may have {} MiB; scale it down", MOST_BYTES >> 20),
            );
        }
        Err(error) => return refused(error.status(), error.body_text()),
    };
    match predictions.predict(picture, number).await {
        Ok(predicted) => Json(predicted).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn samples(State(predictions): State<Predictions>, headers: HeaderMap) -> Response {
    let pictured = match predictions.samples().await {
        Ok(pictured) => pictured,
        Err(refusal) => return refusal.into_response(),
    };
    let tag = format!("\"{}\"", pictured.step.map_or_else(|| "none".to_owned(), |step| step.to_string()));
    let caching = [(CACHE_CONTROL, "no-cache".to_owned()), (ETAG, tag.clone())];
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (caching, [(CONTENT_TYPE, "image/png")], pictured.png).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NoCheckpoint | Self::Busy | Self::Ending => StatusCode::SERVICE_UNAVAILABLE,
            Self::Picture(PictureError::Kind) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Picture(PictureError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Picture(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Predict(PredictError::Samples(_)) => StatusCode::BAD_REQUEST,
            Self::Predict(_) | Self::Grid(GridError::Predict(_)) | Self::Grid(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let body = Json(json!({ "error": self.to_string() }));
        match self {
            Self::Busy => (status, [(RETRY_AFTER, "1")], body).into_response(),
            _ => (status, body).into_response(),
        }
    }
}
