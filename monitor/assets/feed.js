// The connection to the coordinator: server-sent events, opened again for as long as the page is.

const RETRY_FIRST = 500;
const RETRY_MOST = 5000;

/**
 * Follows the run. `onState` gets a whole State at the start and after every break, `onUpdate` what changed since,
 * `onConnection` one of "connecting", "live" and "lost".
 */
export function follow({ onState, onUpdate, onConnection }) {
  let source = null;
  let delay = RETRY_FIRST;
  let timer = null;

  const open = () => {
    clearTimeout(timer);
    source?.close();
    source = new EventSource("api/events");
    source.addEventListener("state", (event) => {
      delay = RETRY_FIRST;
      onConnection("live");
      onState(JSON.parse(event.data));
    });
    source.addEventListener("update", (event) => onUpdate(JSON.parse(event.data)));
    // The browser's own retries stop for good at an answer that is not 200, such as a proxy's 502, and are
    // slow otherwise; so each break closes this source and opens another.
    source.onerror = () => {
      source.close();
      onConnection("lost");
      timer = setTimeout(open, delay);
      delay = Math.min(RETRY_MOST, delay * 1.6);
    };
  };

  onConnection("connecting");
  open();
  // A laptop that wakes up should not sit out the delay.
  addEventListener("online", open);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && source.readyState === EventSource.CLOSED) open();
  });
  addEventListener("pagehide", () => {
    clearTimeout(timer);
    source.close();
  });
  addEventListener("pageshow", (event) => {
    if (event.persisted) open();
  });
}
