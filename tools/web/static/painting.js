import { resize } from "./raster.js";

const MAX_PAST = 60;

/** An id map with undo. "change": at every change of its pixels; "settle": when one is complete. */
export class Painting extends EventTarget {
  past = [];
  future = [];

  constructor(width, height) {
    super();
    this.set({ width, height, ids: new Uint8Array(width * height) });
  }

  set({ width, height, ids }) {
    this.width = width;
    this.height = height;
    this.ids = ids;
  }

  copy() {
    return { width: this.width, height: this.height, ids: this.ids.slice() };
  }

  /** Call before a change... */
  begin() {
    this.past.push(this.copy());
    if (this.past.length > MAX_PAST) this.past.shift();
    this.future = [];
  }

  /** ... during it ... */
  changed() {
    this.dispatchEvent(new Event("change"));
  }

  /** ... and after it. What changed nothing is not remembered. */
  end() {
    const before = this.past.at(-1);
    if (before?.width === this.width && before.ids.length === this.ids.length) {
      if (before.ids.every((id, k) => id === this.ids[k])) this.past.pop();
    }
    this.settle();
  }

  /** Give up a change that has begun. */
  abort() {
    this.set(this.past.pop());
    this.settle();
  }

  undo() {
    this.travel(this.past, this.future);
  }

  redo() {
    this.travel(this.future, this.past);
  }

  travel(from, to) {
    if (!from.length) return;
    to.push(this.copy());
    this.set(from.pop());
    this.settle();
  }

  clear() {
    this.replace({ ...this.copy(), ids: new Uint8Array(this.ids.length) });
  }

  erase(id) {
    this.replace({ ...this.copy(), ids: this.ids.map((found) => (found === id ? 0 : found)) });
  }

  resize(width, height) {
    this.replace(resize(this, width, height));
  }

  replace(map) {
    this.begin();
    this.set(map);
    this.end();
  }

  settle() {
    this.changed();
    this.dispatchEvent(new Event("settle"));
  }
}
