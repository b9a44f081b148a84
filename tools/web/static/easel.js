import { flood, polygon, rectangle, stamp, stroke } from "./raster.js";
import { drawScene, drawTrail } from "./view.js";

const FREEHAND = ["brush", "eraser"];

/** The canvas: turns pointers and keys into changes of a Painting, and shows it.
 *
 * `brush` = {tool, size, slot}: size in pixels of the painting, slot the id that is painted.
 * `labels()` gives [{slot, text}] and `colours` a colour for each slot.
 */
export class Easel {
  photo = null; // a canvas of the painting's size
  trail = []; // points of the stroke that is being made
  cursor = null; // where the brush hovers
  erasing = false;

  constructor(canvas, painting, brush, colours, labels) {
    Object.assign(this, { canvas, painting, brush, colours, labels });
    painting.addEventListener("change", () => this.redraw());
    addEventListener("themechange", () => this.redraw());
    new ResizeObserver(() => this.redraw()).observe(canvas);
    this.listen();
  }

  listen() {
    const on = (name, handle) => this.canvas.addEventListener(name, handle);
    on("contextmenu", (event) => event.preventDefault());
    on("pointerdown", (event) => this.pointerDown(event));
    on("pointermove", (event) => this.pointerMove(event));
    on("pointerup", (event) => this.pointerUp(event));
    on("pointercancel", () => this.abort());
    on("pointerleave", () => this.hover(null));
    on("keydown", (event) => this.key(event));
    on("blur", () => this.lift());
  }

  get tool() {
    return this.erasing ? "eraser" : this.brush.tool;
  }

  get value() {
    return this.tool === "eraser" ? 0 : this.brush.slot;
  }

  get active() {
    return this.trail.length > 0;
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.painting.width,
      ((event.clientY - box.top) / box.height) * this.painting.height,
    ];
  }

  pointerDown(event) {
    if (event.button > 2 && event.button !== 5) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.erasing = event.button === 2 || event.button === 5; // right button, eraser of a pen
    this.down(this.place(event));
  }

  pointerMove(event) {
    if (!this.active) return this.hover(this.place(event));
    const all = event.getCoalescedEvents?.() ?? [];
    for (const part of all.length ? all : [event]) this.move(this.place(part));
  }

  pointerUp(event) {
    this.lift();
    if (event.pointerType !== "mouse") this.hover(null);
  }

  hover(point) {
    this.cursor = point;
    this.redraw();
  }

  down(point) {
    if (this.active) return;
    this.painting.begin();
    this.trail = [point];
    this.cursor = point;
    if (this.tool === "fill") {
      flood(this.painting, point, this.value);
      this.lift();
    } else if (FREEHAND.includes(this.tool)) {
      stamp(this.painting, point, this.brush.size / 2, this.value);
      this.painting.changed();
    }
  }

  move(point) {
    const last = this.trail.at(-1);
    this.trail.push(point);
    this.cursor = point;
    if (FREEHAND.includes(this.tool)) {
      stroke(this.painting, last, point, this.brush.size / 2, this.value);
    }
    this.painting.changed();
  }

  lift() {
    if (!this.active) return;
    const { trail, value, painting } = this;
    if (this.tool === "rectangle") rectangle(painting, trail[0], trail.at(-1), value);
    if (this.tool === "blob" && !polygon(painting, trail, value)) {
      stamp(painting, trail[0], 0, value);
    }
    this.trail = [];
    this.erasing = false;
    painting.end();
  }

  abort() {
    if (!this.active) return;
    this.trail = [];
    this.erasing = false;
    this.painting.abort();
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) {
      const { width, height } = this.painting;
      const length = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 32));
      const [x, y] = this.cursor ?? [width / 2, height / 2];
      const [dx, dy] = steps[event.key];
      const limit = (value, most) => Math.min(Math.max(value, 0.5), most - 0.5);
      const point = [limit(x + dx * length, width), limit(y + dy * length, height)];
      this.active ? this.move(point) : this.hover(point);
    } else if (event.key === " " || event.key === "Enter") {
      const { width, height } = this.painting;
      this.active ? this.lift() : this.down(this.cursor ?? [width / 2, height / 2]);
    } else if (event.key === "Escape") {
      this.abort();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** At most once per frame. */
  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const { canvas, painting } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
    const view = { context, width, height, scale: width / painting.width, colours: this.colours };
    drawScene(view, painting, this.photo, this.active ? [] : this.labels());
    drawTrail(view, this);
  }
}
