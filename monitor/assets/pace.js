// How often a part of the page is brought up to date. The coordinator speaks up to four times a second; a table of
// hundreds of rows need not follow each word, and a drawing nobody sees need not be drawn.

/**
 * Gives a function that passes the newest of what it is given on to `show`, at most once in `pause` milliseconds. With
 * `seen`, an element, only while that is on the screen or close to it; what came meanwhile is shown when it gets there.
 */
export function paced(show, pause, seen = null) {
  let waiting = null;
  let timer = null;
  let last = -Infinity;
  let visible = !seen;

  const flush = () => {
    timer = null;
    if (waiting === null || !visible) return;
    last = performance.now();
    const value = waiting;
    waiting = null;
    show(value);
  };
  const plan = () => {
    if (timer !== null || waiting === null || !visible) return;
    const due = last + pause - performance.now();
    if (due <= 0) flush();
    else timer = setTimeout(flush, due);
  };
  if (seen) {
    new IntersectionObserver((entries) => {
      visible = entries.at(-1).isIntersecting;
      plan();
    }, { rootMargin: "200px" }).observe(seen);
  }
  return (value) => {
    waiting = value;
    plan();
  };
}
