// Numbers as people read them. Pure; anything missing or not finite becomes a dash.

const NONE = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

/** A whole number with narrow spaces between its thousands: `12 340`. */
export function count(value) {
  if (!known(value)) return NONE;
  return Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** A number to about `digits` significant places, without an exponent where one can do without. */
export function number(value, digits = 3) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e9 || size < 1e-4) return value.toExponential(digits - 1);
  if (size >= 10 ** (digits - 1)) return count(value);
  const places = Math.min(10, digits - 1 - Math.floor(Math.log10(size)));
  return value.toFixed(places);
}

/** A fraction as per cent: `98.6 %`. */
export function percent(fraction, places = 1) {
  return known(fraction) ? `${(fraction * 100).toFixed(places)}\u202f%` : NONE;
}

/** A metric that is one number: a share as per cent. */
export function ratio(v) {
  return v >= 0 && v <= 1 ? percent(v, 2) : number(v, 4);
}

/** Seconds as a length of time, in the two units that matter: `3 min 20 s`. */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  const s = Math.max(0, seconds);
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 59.5) return `${Math.round(s)} s`;
  const whole = Math.round(s);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
  const minutes = Math.round(s / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} min`;
  const hours = Math.round(s / 3600);
  return `${Math.floor(hours / 24)} d ${pad(hours % 24)} h`;
}

/** A short length of time: `142 ms`, `1.93 s`, `85 µs`. */
export function brief(seconds) {
  if (!known(seconds)) return NONE;
  const s = Math.abs(seconds);
  if (s >= 60) return duration(seconds);
  if (s >= 1) return `${seconds.toFixed(2)} s`;
  if (s >= 0.01 || s === 0) return `${Math.round(seconds * 1000)} ms`;
  if (s >= 0.001) return `${(seconds * 1000).toFixed(1)} ms`;
  return `${Math.round(seconds * 1e6)} µs`;
}

/** The time of day of a moment in seconds since 1970, in the reader's own zone. */
export function clock(unix) {
  if (!known(unix)) return NONE;
  const at = new Date(unix * 1000);
  return `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
}

/** `1 worker`, `2 workers`. */
export function plural(value, word) {
  return `${count(value)} ${word}${value === 1 ? "" : "s"}`;
}

function pad(value) {
  return String(value).padStart(2, "0");
}
