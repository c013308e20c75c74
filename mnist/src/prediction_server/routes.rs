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

use super::{PredictionError, PredictionServer};
use crate::digit_image::PictureError;
use crate::predict::PredictError;
use crate::sample_grid::GridError;

/// The largest picture that is accepted.
const MOST_BYTES: usize = 4 << 20;

#[derive(Deserialize)]
struct Parameters {
    number: u8,
}

impl PredictionServer {
    /// The server's routes, `/api/predict` and `/api/samples.png`.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/api/predict", post(predict).layer(DefaultBodyLimit::max(MOST_BYTES)))
            .route("/api/samples.png", get(samples))
            .with_state(self)
    }
}

async fn predict(
    State(server): State<PredictionServer>,
    headers: HeaderMap,
    parameters: Result<Query<Parameters>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let refused = |status: StatusCode, why: String| (status, Json(json!({ "error": why }))).into_response();
    let Ok(Query(Parameters { number: number @ 0..=9 })) = parameters else {
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
                format!("a picture may have at most {} MiB; scale it down", MOST_BYTES >> 20),
            );
        }
        Err(error) => return refused(error.status(), error.body_text()),
    };
    match server.predict(picture, number).await {
        Ok(response) => Json(response).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn samples(State(server): State<PredictionServer>, headers: HeaderMap) -> Response {
    let grid = match server.samples().await {
        Ok(grid) => grid,
        Err(error) => return error.into_response(),
    };
    let tag = format!("\"{}\"", grid.step.map_or_else(|| "none".to_owned(), |step| step.to_string()));
    let caching = [(CACHE_CONTROL, "no-cache".to_owned()), (ETAG, tag.clone())];
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (caching, [(CONTENT_TYPE, "image/png")], grid.png).into_response()
}

impl IntoResponse for PredictionError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NoCheckpoint
            | Self::Busy
            | Self::Ending
            | Self::Predict(PredictError::Synthetic { .. }) => StatusCode::SERVICE_UNAVAILABLE,
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
