//! The HTTP side: the page and its data, and metrics for Prometheus.

mod api;
mod assets;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

pub use assets::{Asset, Panels};

use crate::metrics::Exporter;
use crate::view::publisher::ViewPublisher;

/// Nothing from elsewhere, and no script within the page's text: so neither a picture nor a worker's name can become
/// a script.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; \
                      form-action 'self'; frame-ancestors 'none'";

/// All that is served; a program's routes get the same headers.
pub fn router(view: ViewPublisher, metrics: Exporter, panels: Panels) -> Router {
    Router::new()
        .route("/metrics", get(render).with_state((metrics, view.clone())))
        .merge(api::routes(view))
        .merge(assets::routes(&panels))
        .merge(panels.routes)
        .layer(axum::middleware::map_response(with_headers))
}

async fn render(State((metrics, view)): State<(Exporter, ViewPublisher)>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render(&view.seconds()))
}

async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
