// How a painting looks. A view = {context, width, height, scale, colours}: sizes in pixels of the
// page, `scale` of them to one pixel of the painting.

import { anchors } from "./raster.js";

const CELL = 12; // of the chequer that means: nothing painted here
const COARSE = 256; // pixels a side, below which they are shown as squares
const FONT = "600 13px system-ui, sans-serif";
const layer = document.createElement("canvas");

const probe = document.createElement("i");

/** A colour of base.css, as the present theme has it. */
function token(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.hidden = true;
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

export function drawScene(view, painting, photo, labels) {
  const { context, width, height } = view;
  context.imageSmoothingEnabled = Math.max(painting.width, painting.height) > COARSE;
  if (photo) context.drawImage(photo, 0, 0, width, height);
  else drawChequer(view);
  paintLayer(view.colours, painting);
  context.imageSmoothingEnabled = false;
  context.globalAlpha = photo ? 0.6 : 0.92;
  context.drawImage(layer, 0, 0, width, height);
  context.globalAlpha = 1;
  if (labels.length) drawLabels(view, anchors(painting), labels);
}

function drawChequer({ context, width, height }) {
  context.fillStyle = token("--chequer-1");
  context.fillRect(0, 0, width, height);
  context.fillStyle = token("--chequer-2");
  for (let y = 0; y < height; y += CELL) {
    for (let x = (y / CELL) % 2 ? CELL : 0; x < width; x += 2 * CELL) {
      context.fillRect(x, y, CELL, CELL);
    }
  }
}

function paintLayer(colours, { ids, width, height }) {
  layer.width = width;
  layer.height = height;
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer); // little endian: ABGR
  const table = ["#000000", ...colours].map((colour, k) => {
    const rgb = parseInt(colour.slice(1), 16);
    const bgr = ((rgb & 0xff) << 16) | (rgb & 0xff00) | (rgb >> 16);
    return k ? (0xff000000 | bgr) >>> 0 : 0;
  });
  for (let p = 0; p < ids.length; p++) pixels[p] = table[ids[p]];
  layer.getContext("2d").putImageData(image, 0, 0);
}

function drawLabels({ context, width, height, scale, colours }, places, labels) {
  context.font = FONT;
  context.textBaseline = "middle";
  for (const { slot, text } of labels) {
    if (!(slot in places)) continue;
    const line = shorten(context, text, width * 0.55);
    const [w, h] = [context.measureText(line).width + 16, 24];
    const x = Math.min(Math.max(places[slot][0] * scale - w / 2, 4), width - w - 4);
    const y = Math.min(Math.max(places[slot][1] * scale - h / 2, 4), height - h - 4);
    context.beginPath();
    context.roundRect(x, y, w, h, 6);
    context.fillStyle = token("--plate");
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = colours[slot - 1];
    context.stroke();
    context.fillStyle = token("--ink");
    context.fillText(line, x + 8, y + h / 2 + 1);
  }
}

function shorten(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const letters = [...text];
  while (letters.length && context.measureText(`${letters.join("")}...`).width > width) {
    letters.pop();
  }
  return `${letters.join("").trimEnd()}...`;
}

/** The outline of an unfinished shape, and the brush where it hovers. */
export function drawTrail({ context, scale, colours }, { tool, trail, cursor, brush, value }) {
  const path = new Path2D();
  const points = trail.map(([x, y]) => [x * scale, y * scale]);
  if (points.length && tool === "rectangle") {
    const [[xa, ya], [xb, yb]] = [points[0], points.at(-1)];
    path.rect(Math.min(xa, xb), Math.min(ya, yb), Math.abs(xb - xa), Math.abs(yb - ya));
  } else if (points.length && tool === "blob") {
    points.forEach(([x, y], k) => (k ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  } else if (cursor) {
    const round = tool === "brush" || tool === "eraser";
    const radius = round ? Math.max((brush.size / 2) * scale, 2) : 5;
    path.arc(cursor[0] * scale, cursor[1] * scale, radius, 0, 2 * Math.PI);
  }
  if (points.length && (tool === "rectangle" || tool === "blob") && value) {
    context.globalAlpha = 0.5;
    context.fillStyle = colours[value - 1];
    context.fill(path);
    context.globalAlpha = 1;
  }
  for (const [colour, thickness] of [["#000000", 3], ["#ffffff", 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.stroke(path);
  }
}
