//! The HTTP side: the dashboard and what it is fed with, and metrics for Prometheus.

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

use crate::metrics::Exporter;
use crate::view::feed::Feed;

/// Nothing from elsewhere, and nothing within the page's text: a picture or a name that says it
/// is a script stays what it is.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; \
                      form-action 'self'; frame-ancestors 'none'";

/// All that is served; `more` are the routes of others, which get the same headers.
pub fn router(feed: Feed, metrics: Exporter, more: Router) -> Router {
    Router::new()
        .route("/metrics", get(render).with_state((metrics, feed.clone())))
        .merge(api::routes(feed))
        .merge(assets::routes())
        .merge(more)
        .layer(axum::middleware::map_response(with_headers))
}

async fn render(State((metrics, feed)): State<(Exporter, Feed)>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render(&feed.seconds()))
}

async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
