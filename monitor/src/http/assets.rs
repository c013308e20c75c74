//! The page's files, which are embedded in the binary, with those that a program adds.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rust_embed::RustEmbed;
use sha2::{Digest as _, Sha256};

#[derive(RustEmbed)]
#[folder = "assets"]
struct Embedded;

/// The page itself, among the files.
const PAGE: &str = "index.html";

/// A file that a program adds to the page.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Its name: it is served as `/assets/NAME`, beside the page's own files, which it can import.
    pub name: &'static str,
    /// Its media type: `text/javascript`.
    pub content_type: &'static str,
    /// What it holds.
    pub content: &'static [u8],
}

/// What a program adds to the page; nothing by default.
///
/// The module is loaded after the page's own. It imports `addPanel` from `./panels.js` and calls it with a function
/// `(state, changed) => …`, which shows the state; `changed` is the set of names that an update has, or `null` if
/// everything is new.
#[derive(Clone, Debug, Default)]
pub struct Panels {
    /// Sections of the page, as HTML; they stand before the configuration.
    pub html: &'static str,
    /// Links to them in the page's head: an element's id, and the words.
    pub links: &'static [(&'static str, &'static str)],
    /// The style sheets among the assets that the page is to load.
    pub stylesheets: &'static [&'static str],
    /// The modules among the assets that the page is to load.
    pub modules: &'static [&'static str],
    /// Files that these need.
    pub assets: &'static [Asset],
    /// Routes that the panels ask, under `/api`.
    pub routes: Router,
}

/// A file as it is served.
struct Served {
    content_type: String,
    tag: String,
    content: Bytes,
}

impl Served {
    fn new(content_type: impl Into<String>, content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let hash = Sha256::digest(&content);
        let tag = hash[..8].iter().fold(String::from("\""), |tag, byte| format!("{tag}{byte:02x}")) + "\"";
        Self { content_type: content_type.into(), tag, content }
    }
}

type Files = Arc<HashMap<String, Served>>;

pub(super) fn routes(panels: &Panels) -> Router {
    let files: Files = Arc::new(files(panels));
    let page = |State(files): State<Files>, headers: HeaderMap| async move { answer(&files, PAGE, &headers) };
    let file = |State(files): State<Files>, Path(name): Path<String>, headers: HeaderMap| async move {
        answer(&files, &name, &headers)
    };
    Router::new().route("/", get(page)).route("/assets/{*name}", get(file)).with_state(files)
}

/// All files by name. A program's file does not take the place of one of the page's own.
fn files(panels: &Panels) -> HashMap<String, Served> {
    let extra = panels.assets.iter().map(|asset| {
        (asset.name.to_owned(), Served::new(asset.content_type, Bytes::from_static(asset.content)))
    });
    let own = Embedded::iter().filter_map(|name| {
        let file = Embedded::get(&name)?;
        let kind = file.metadata.mimetype().to_owned();
        let served = match &*name {
            PAGE => Served::new(kind, page(&String::from_utf8_lossy(&file.data), panels)),
            _ => Served::new(kind, file.data.into_owned()),
        };
        Some((name.into_owned(), served))
    });
    extra.chain(own).collect()
}

/// The page with a program's panels in their places, which are comments in it.
fn page(template: &str, panels: &Panels) -> String {
    // Writing to a string does not fail.
    let (mut head, mut links) = (String::new(), String::new());
    for name in panels.stylesheets {
        let _ = write!(head, "<link rel=\"stylesheet\" href=\"assets/{name}\">");
    }
    for name in panels.modules {
        let _ = write!(head, "<script src=\"assets/{name}\" type=\"module\"></script>");
    }
    for (id, words) in panels.links {
        let _ = write!(links, "<a href=\"#{id}\">{words}</a>");
    }
    template
        .replace("<!-- program: head -->", &head)
        .replace("<!-- program: links -->", &links)
        .replace("<!-- program: panels -->", panels.html)
}

/// A file, or word that the reader has it already. Browsers ask each time, since another build
/// may answer under the same names.
fn answer(files: &Files, name: &str, headers: &HeaderMap) -> Response {
    let Some(file) = files.get(name) else {
        return (StatusCode::NOT_FOUND, "there is no such file\n").into_response();
    };
    let tag = file.tag.clone();
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response();
    }
    let headers =
        [(CONTENT_TYPE, file.content_type.clone()), (ETAG, tag), (CACHE_CONTROL, "no-cache".into())];
    (headers, file.content.clone()).into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn panels() -> Panels {
        Panels {
            html: "<section id=\"draw\"></section>",
            links: &[("draw", "Draw")],
            stylesheets: &["draw.css"],
            modules: &["draw.js"],
            assets: &[
                Asset { name: "draw.js", content_type: "text/javascript", content: b"import './panels.js';" },
                Asset { name: "dom.js", content_type: "text/javascript", content: b"not the page's own" },
            ],
            routes: Router::new(),
        }
    }

    fn text(files: &HashMap<String, Served>, name: &str) -> String {
        String::from_utf8(files[name].content.to_vec()).unwrap()
    }

    #[test]
    fn a_programs_panels_have_their_places_in_the_page() {
        let files = files(&panels());
        let page = text(&files, PAGE);
        for part in [
            "<link rel=\"stylesheet\" href=\"assets/draw.css\">",
            "<script src=\"assets/draw.js\" type=\"module\"></script>",
            "<a href=\"#draw\">Draw</a>",
            panels().html,
        ] {
            assert_eq!(page.matches(part).count(), 1, "{part}");
        }
        assert_eq!(
            (text(&files, "draw.js"), &*files["draw.js"].content_type),
            ("import './panels.js';".into(), "text/javascript")
        );
        assert!(text(&files, "dom.js").contains("byId"), "a program cannot replace a file of the page");
    }

    #[test]
    fn a_page_without_a_program_has_no_panels_and_every_file_that_it_names() {
        let files = files(&Panels::default());
        let page = text(&files, PAGE);
        assert!(!page.contains("<!-- program"), "a place is left empty, not as it is");
        let named: Vec<&str> =
            page.split("assets/").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(named.contains(&"app.js"));
        for name in named {
            assert!(files.contains_key(name), "{name}");
        }
        for (name, file) in files.iter().filter(|(name, _)| name.ends_with(".js")) {
            let text = String::from_utf8_lossy(&file.content);
            for import in text.split("from \"./").skip(1).map(|rest| rest.split('"').next().unwrap()) {
                assert!(files.contains_key(import), "{name} imports {import}");
            }
        }
    }
}
