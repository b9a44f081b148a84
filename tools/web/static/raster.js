// Pure functions on id maps: a Uint8Array of height * width, row by row, 0 = nothing.
// Points are [x, y] in pixels, (0, 0) the outer corner of the top left one.

/** Pixels whose centres lie within `radius` of the point, and always the one under it. */
export function stamp(map, [x, y], radius, value) {
  const { ids, width, height } = map;
  for (let j = Math.max(0, Math.floor(y - radius)); j <= Math.min(height - 1, y + radius); j++) {
    for (let i = Math.max(0, Math.floor(x - radius)); i <= Math.min(width - 1, x + radius); i++) {
      if ((i + 0.5 - x) ** 2 + (j + 0.5 - y) ** 2 <= radius * radius) ids[j * width + i] = value;
    }
  }
  if (x >= 0 && y >= 0 && x < width && y < height) {
    ids[Math.floor(y) * width + Math.floor(x)] = value;
  }
}

export function stroke(map, from, to, radius, value) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const count = Math.max(1, Math.ceil(length / Math.max(0.5, radius / 4)));
  for (let k = 0; k <= count; k++) {
    const s = k / count;
    stamp(map, [from[0] + s * (to[0] - from[0]), from[1] + s * (to[1] - from[1])], radius, value);
  }
}

/** Every pixel that the rectangle between two corners touches. */
export function rectangle(map, a, b, value) {
  const { ids, width, height } = map;
  const [left, right] = [a[0], b[0]].sort((p, q) => p - q);
  const [top, bottom] = [a[1], b[1]].sort((p, q) => p - q);
  const [first, last] = [Math.max(0, Math.floor(left)), Math.min(width, Math.floor(right) + 1)];
  for (let j = Math.max(0, Math.floor(top)); j < Math.min(height, Math.floor(bottom) + 1); j++) {
    if (first < last) ids.fill(value, j * width + first, j * width + last);
  }
}

/** Pixels whose centres the closed outline goes around, however it crosses itself. Returns how
 * many they are. */
export function polygon(map, points, value) {
  const { ids, width, height } = map;
  let count = 0;
  for (let j = 0; j < height; j++) {
    const y = j + 0.5;
    const crossings = [];
    points.forEach(([xa, ya], k) => {
      const [xb, yb] = points[(k + 1) % points.length];
      if ((ya <= y) !== (yb <= y)) {
        crossings.push([xa + ((y - ya) * (xb - xa)) / (yb - ya), yb > ya ? 1 : -1]);
      }
    });
    crossings.sort((p, q) => p[0] - q[0]);
    let winding = 0;
    crossings.forEach(([x, turn], k) => {
      winding += turn;
      if (!winding || k + 1 === crossings.length) return;
      const first = Math.max(0, Math.ceil(x - 0.5));
      const last = Math.min(width, Math.ceil(crossings[k + 1][0] - 0.5));
      if (first >= last) return;
      ids.fill(value, j * width + first, j * width + last);
      count += last - first;
    });
  }
  return count;
}

/** The connected pixels of one id around the point. */
export function flood(map, [x, y], value) {
  const { ids, width, height } = map;
  const start = Math.floor(y) * width + Math.floor(x);
  const old = ids[start];
  if (old === value || old === undefined) return;
  const open = [start];
  ids[start] = value;
  while (open.length) {
    const place = open.pop();
    const column = place % width;
    const next = [];
    if (column > 0) next.push(place - 1);
    if (column < width - 1) next.push(place + 1);
    if (place >= width) next.push(place - width);
    if (place < width * (height - 1)) next.push(place + width);
    for (const there of next) {
      if (ids[there] === old) {
        ids[there] = value;
        open.push(there);
      }
    }
  }
}

/** Nearest neighbour. */
export function resize({ ids, width, height }, toWidth, toHeight) {
  const out = new Uint8Array(toWidth * toHeight);
  for (let j = 0; j < toHeight; j++) {
    const row = Math.floor(((j + 0.5) * height) / toHeight) * width;
    for (let i = 0; i < toWidth; i++) {
      out[j * toWidth + i] = ids[row + Math.floor(((i + 0.5) * width) / toWidth)];
    }
  }
  return { ids: out, width: toWidth, height: toHeight };
}

/** How many pixels each id has: areas[id]. */
export function areas(ids) {
  const counts = new Uint32Array(256);
  for (const id of ids) counts[id]++;
  return counts;
}

/** A place for a label in each id: {id: [x, y]}, of the pixels farthest from the id's border the
 * one nearest to their middle. */
export function anchors({ ids, width, height }) {
  const depth = borderDistance({ ids, width, height });
  const best = {};
  for (let p = 0; p < ids.length; p++) {
    if (!ids[p] || depth[p] < (best[ids[p]]?.depth ?? 0)) continue;
    if (depth[p] > (best[ids[p]]?.depth ?? 0)) best[ids[p]] = { depth: depth[p], places: [] };
    best[ids[p]].places.push([(p % width) + 0.5, Math.floor(p / width) + 0.5]);
  }
  return Object.fromEntries(Object.entries(best).map(([id, { places }]) => [id, middle(places)]));
}

/** Steps to the nearest pixel of another id, or out of the picture. */
function borderDistance({ ids, width, height }) {
  const depth = new Uint16Array(ids.length);
  const at = (place, inside, id) => (inside && ids[place] === id ? depth[place] : 0);
  for (let p = 0; p < ids.length; p++) {
    const [left, up] = [at(p - 1, p % width > 0, ids[p]), at(p - width, p >= width, ids[p])];
    depth[p] = 1 + Math.min(left, up);
  }
  for (let p = ids.length - 1; p >= 0; p--) {
    const right = at(p + 1, p % width < width - 1, ids[p]);
    const down = at(p + width, p < width * (height - 1), ids[p]);
    depth[p] = Math.min(depth[p], 1 + right, 1 + down);
  }
  return depth;
}

function middle(places) {
  const mean = [0, 1].map((k) => places.reduce((sum, place) => sum + place[k], 0) / places.length);
  const distance = ([x, y]) => (x - mean[0]) ** 2 + (y - mean[1]) ** 2;
  return places.reduce((best, place) => (distance(place) < distance(best) ? place : best));
}

export function toBase64(bytes) {
  let text = "";
  for (let k = 0; k < bytes.length; k += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(k, k + 0x8000));
  }
  return btoa(text);
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
