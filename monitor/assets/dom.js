// The few things the page does to its document. Text only ever goes in as text, never as HTML: names of workers
// come from peers.

export const byId = (id) => document.getElementById(id);

/** Sets a node's text if it is another one: untouched nodes cost no layout and keep a reader's selection. */
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/** Makes an element: attributes by name (`class`, `title`, …), then children, which may be strings. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** A small inline drawing from the `d` of one path; `attributes` style it. */
export function glyph(d, size, attributes = {}) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ viewBox: `0 0 ${size[0]} ${size[1]}`, width: size[0], height: size[1], "aria-hidden": "true" })) {
    svg.setAttribute(name, value);
  }
  const path = document.createElementNS(SVG, "path");
  for (const [name, value] of Object.entries({ d, ...attributes })) path.setAttribute(name, value);
  svg.append(path);
  return svg;
}

/**
 * Makes `parent`'s children those of `items`, in their order: nodes are kept by key, made by `create(item)` where new,
 * and brought up to date by `update(node, item)`.
 */
export function reconcile(parent, items, key, create, update) {
  const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let place = parent.firstChild;
  for (const item of items) {
    const name = String(key(item));
    let node = old.get(name);
    if (node) old.delete(name);
    else {
      node = create(item);
      node.dataset.key = name;
    }
    update(node, item);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of old.values()) node.remove();
}

/** Sizes a canvas to its box in device pixels; gives its context, scaled to CSS pixels. */
export function fit(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}
