// The ten digits as strokes of a pen: what is written for those who would rather not draw. Each digit is a list of strokes,
// each stroke a list of points, in hundredths of the square.

/** Points on a part of an ellipse, from one angle to another, in degrees; 0 is to the right, 90 is down. */
function arc(x, y, rx, ry, from, to) {
  const points = [];
  const n = Math.max(6, Math.round(Math.abs(to - from) / 12));
  for (let i = 0; i <= n; i += 1) {
    const angle = ((from + ((to - from) * i) / n) * Math.PI) / 180;
    points.push([x + rx * Math.cos(angle), y + ry * Math.sin(angle)]);
  }
  return points;
}

export const DIGITS = [
  [arc(50, 50, 19, 29, -90, 270)],
  [[[40, 32], [52, 21], [50, 79]]],
  [[...arc(50, 37, 18, 16, -165, 20), [32, 76], [70, 76]]],
  [[...arc(48, 35, 17, 14, -150, 80), ...arc(48, 63, 20, 15, -80, 150)]],
  [[[38, 22], [32, 54], [68, 54]], [[62, 24], [60, 79]]],
  [[[67, 23], [40, 23], [37, 47], ...arc(48, 61, 19, 17, -110, 140)]],
  [[[60, 20], ...arc(50, 60, 19, 18, 200, 180), ...arc(50, 62, 18, 16, 180, -180)]],
  [[[31, 24], [69, 24], [46, 80]]],
  [[...arc(50, 36, 15, 14, 90, 450), ...arc(50, 65, 18, 15, -90, 270)]],
  [[...arc(49, 38, 17, 16, 0, -360), [66, 38], [62, 80]]],
];
