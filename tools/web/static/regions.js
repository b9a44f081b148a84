import { areas } from "./raster.js";

const DEFAULTS = { text: "", strength: 1, variation: 0, repaint: true };

/** The rows "colour: text". A region lives in a slot, which is its id in the painting.
 *
 * "change": texts, options or the choice of the region have changed. "remove": detail = slot.
 */
export class Regions extends EventTarget {
  rows = new Map(); // slot -> row
  active = 1;
  removed = new Map(); // slot -> text, for an undo that brings its pixels back

  constructor(list, template, colours) {
    super();
    Object.assign(this, { list, template, colours });
    this.add();
  }

  /** Into the first free slot, or the one asked for; returns it, or 0 where none is free. */
  add(values = {}, slot = this.colours.findIndex((_, k) => !this.rows.has(k + 1)) + 1) {
    if (!slot || this.rows.has(slot)) return 0;
    const row = this.makeRow(slot, { ...DEFAULTS, ...values });
    this.rows.set(slot, row);
    const later = [...this.rows].filter(([other]) => other > slot).map(([, { item }]) => item);
    const next = later.find((item) => item.parentNode) ?? null;
    this.list.insertBefore(row.item, next);
    this.choose(slot);
    return slot;
  }

  remove(slot) {
    const { item, text } = this.rows.get(slot);
    this.removed.set(slot, text.value);
    item.remove();
    this.rows.delete(slot);
    if (!this.rows.size) this.add();
    if (!this.rows.has(this.active)) this.choose([...this.rows.keys()].sort((a, b) => a - b)[0]);
    this.changed();
  }

  choose(slot) {
    if (!this.rows.has(slot)) return;
    this.active = slot;
    for (const [other, { item, swatch }] of this.rows) {
      item.classList.toggle("active", other === slot);
      swatch.checked = other === slot;
    }
    this.changed();
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  makeRow(slot, values) {
    const item = this.template.content.cloneNode(true).querySelector("li");
    const find = (query) => item.querySelector(query);
    const row = {
      item,
      swatch: find(".swatch input"),
      text: find(".text"),
      message: find(".message"),
      options: find(".options"),
      strength: find(".strength"),
      variation: find(".variation"),
      repaint: find(".repaint input"),
    };
    const name = `Region ${slot}`;
    item.style.setProperty("--colour", this.colours[slot - 1]);
    item.style.setProperty("--on-colour", inkOn(this.colours[slot - 1]));
    find(".swatch span").textContent = slot;
    row.swatch.value = slot;
    row.swatch.setAttribute("aria-label", `Paint with the colour of region ${slot}`);
    row.text.setAttribute("aria-label", `${name}: what belongs here`);
    row.message.id = `region-message-${slot}`;
    row.text.setAttribute("aria-describedby", row.message.id);
    find(".remove").setAttribute("aria-label", `Remove region ${slot}`);
    find(".more").setAttribute("aria-label", `Options of region ${slot}`);
    row.text.value = values.text;
    row.strength.value = values.strength;
    row.variation.value = values.variation;
    row.repaint.checked = values.repaint;
    row.options.hidden = values.strength === 1 && values.variation === 0;
    this.listen(slot, row, find);
    return row;
  }

  listen(slot, row, find) {
    const { item } = row;
    const more = find(".more");
    const show = () => more.setAttribute("aria-expanded", String(!row.options.hidden));
    show();
    more.addEventListener("click", () => {
      row.options.hidden = !row.options.hidden;
      show();
    });
    find(".remove").addEventListener("click", () => {
      this.dispatchEvent(new CustomEvent("remove", { detail: slot }));
    });
    row.swatch.addEventListener("change", () => this.choose(slot));
    row.text.addEventListener("focus", () => this.choose(slot));
    item.addEventListener("input", () => {
      if (row.text.value.trim()) this.tell(slot, "");
      this.changed();
    });
  }

  /** A message at the region; `wrong` where it is the user's to mend. */
  tell(slot, message, wrong = false) {
    const { message: place, text } = this.rows.get(slot);
    place.textContent = message;
    place.hidden = !message;
    place.classList.toggle("wrong", wrong);
    text.setAttribute("aria-invalid", String(wrong && Boolean(message)));
  }

  /** Slots that the painting has pixels of, in their order. Rows are made for those without. */
  painted(painting) {
    const counts = areas(painting.ids);
    const slots = this.colours.map((_, k) => k + 1).filter((slot) => counts[slot]);
    const active = this.active;
    for (const slot of slots) this.add({ text: this.removed.get(slot) ?? "" }, slot);
    this.choose(active);
    return slots;
  }

  /** The part of an order that is about regions, and the slots in the order's numbers. */
  form(painting) {
    const slots = this.painted(painting);
    const number = new Uint8Array(256);
    slots.forEach((slot, k) => (number[slot] = k + 1));
    const regions = slots.map((slot) => {
      const { text, strength, variation } = this.rows.get(slot);
      return { text: text.value, strength: +strength.value, variation: +variation.value };
    });
    const repaint = slots.flatMap((slot, k) => (this.rows.get(slot).repaint.checked ? k + 1 : []));
    return { slots, ids: painting.ids.map((id) => number[id]), regions, repaint };
  }

  /** Other regions, into the slots from 1 on; `repaint` as in an order. */
  load(regions, repaint) {
    for (const [slot, { item, text }] of this.rows) {
      this.removed.set(slot, text.value);
      item.remove();
    }
    this.rows.clear();
    regions.forEach((region, k) => {
      this.add({ ...region, repaint: !repaint || repaint.includes(k + 1) }, k + 1);
    });
    if (!regions.length) this.add();
    this.choose(1);
  }

  labels() {
    return [...this.rows].map(([slot, { text }]) => ({ slot, text: text.value.trim() || `${slot}` }));
  }
}

/** Black or white, whichever is read better on the colour. */
function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((k) => (parseInt(colour.slice(k, k + 2), 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000000" : "#ffffff";
}
