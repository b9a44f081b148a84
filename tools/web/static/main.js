import * as api from "./api.js";
import { Easel } from "./easel.js";
import { Painting } from "./painting.js";
import { cover, fromUrl, readPhoto, toDataUrl } from "./photo.js";
import { areas, fromBase64, toBase64 } from "./raster.js";
import { Regions } from "./regions.js";
import { Result } from "./result.js";
import { Runs } from "./runs.js";
import { drawSeed, loadSettings, prepare, readSettings, showForm, showValues } from "./settings.js";
import { listenToKeys } from "./shortcuts.js";

const $ = (id) => document.getElementById(id);
const DRAFT = "spatext-draft";
const model = await api.fetchModel();
const brush = { tool: "brush", size: 8, slot: 1 };
const painting = new Painting(model.size[1], model.size[0]);
const regions = new Regions($("regions"), $("region-row"), model.palette);
const easel = new Easel($("canvas"), painting, brush, model.palette, () => regions.labels());
const runs = new Runs();
const result = new Result(runs);
let photoSource = null; // the image behind easel.photo, in its own size

function sayError(message = "") {
  $("error").textContent = message;
  $("error").hidden = !message;
}

/** Runs a handler; what goes wrong is one line in the page. */
const guarded = (handle) => async (...args) => {
  sayError();
  try {
    await handle(...args);
  } catch (error) {
    sayError(error.message);
  }
};

const on = (id, name, handle) => $(id).addEventListener(name, guarded(handle));

// --- the painting --------------------------------------------------------------------------------

function setTool(tool) {
  brush.tool = tool;
  document.querySelector(`input[name=tool][value=${tool}]`).checked = true;
  easel.redraw();
}

function setBrushSize(percent) {
  $("brush-size").value = percent;
  const share = (Number($("brush-size").value) / 100) ** 2 / 2; // fine steps for small brushes
  brush.size = Math.max(1, share * Math.max(painting.width, painting.height));
  easel.redraw();
}

function setPhoto(image) {
  photoSource = image;
  easel.photo = image && cover(image, painting.width, painting.height);
  $("photo-options").hidden = !image;
  document.body.classList.toggle("has-photo", Boolean(image));
  $("photo").value = "";
  easel.redraw();
}

function resizeCanvas() {
  const side = (id) => {
    const steps = Math.round(Number($(id).value) / model.multiple) || 1;
    return Math.min(Math.max(steps, 1), Math.floor(model.max_side / model.multiple)) * model.multiple;
  };
  painting.resize(side("width"), side("height"));
}

/** After a stroke, an undo, a new size: what else of the page depends on the painting. */
function settle() {
  const { width, height } = painting;
  regions.painted(painting);
  $("frame").style.setProperty("--ratio", width / height);
  [$("width").value, $("height").value] = [width, height];
  $("canvas").setAttribute("aria-label", `Canvas, ${width} by ${height} pixels`);
  $("canvas-hint").hidden = painting.ids.some(Boolean) || Boolean(easel.photo);
  [$("undo").disabled, $("redo").disabled] = [!painting.past.length, !painting.future.length];
  if (photoSource) setPhoto(photoSource);
  setBrushSize($("brush-size").value);
}

function regionsChanged() {
  brush.slot = regions.active;
  const counts = areas(painting.ids);
  for (const [slot, { text, message }] of regions.rows) {
    const wrong = message.classList.contains("wrong") && counts[slot];
    if (!wrong) regions.tell(slot, text.value.trim() && !counts[slot] ? "Not painted yet" : "");
  }
  const varied = [...regions.rows.values()].some(({ variation }) => Number(variation.value));
  $("variation-field").hidden = !varied;
  easel.redraw();
}

painting.addEventListener("settle", settle);
painting.addEventListener("settle", saveDraft);
regions.addEventListener("change", regionsChanged);
regions.addEventListener("remove", ({ detail: slot }) => {
  regions.remove(slot);
  painting.erase(slot);
});
$("tools").addEventListener("change", ({ target }) => setTool(target.value));
$("brush-size").addEventListener("input", ({ target }) => setBrushSize(target.value));
on("undo", "click", () => painting.undo());
on("redo", "click", () => painting.redo());
on("clear", "click", () => painting.clear());
on("width", "change", resizeCanvas);
on("height", "change", resizeCanvas);
on("add-region", "click", () => {
  const slot = regions.add();
  if (!slot) throw new Error(`There are colours for ${model.palette.length} regions, no more.`);
  regions.rows.get(slot).text.focus();
});
on("photo", "change", async ({ target }) => {
  if (target.files.length) setPhoto(await readPhoto(target.files[0]));
  settle();
});
on("drop-photo", "click", () => {
  setPhoto(null);
  settle();
});

// --- scenes --------------------------------------------------------------------------------------

async function applyScene(scene) {
  const [height, width] = scene.size;
  const photo = scene.background ? await fromUrl(scene.background) : null;
  regions.load(scene.regions, scene.repaint);
  loadSettings({ ...scene, form: scene.scales ? "full" : undefined });
  setPhoto(photo);
  painting.replace({ width, height, ids: fromBase64(scene.ids) });
}

/** What the server is asked for. An Error, with a message at the region, where words are missing. */
function makeOrder() {
  const { slots, ids, regions: entries, repaint } = regions.form(painting);
  const silent = slots.filter((_, k) => !entries[k].text.trim());
  for (const slot of silent) regions.tell(slot, "Say what belongs here", true);
  if (silent.length) {
    regions.rows.get(silent[0]).text.focus();
    throw new Error(`Region ${silent[0]} is painted but has no words yet.`);
  }
  const order = { ...readSettings(), size: [painting.height, painting.width], ids: toBase64(ids), regions: entries };
  if (!entries.some(({ variation }) => variation)) delete order.variation_seed;
  if (easel.photo && $("keep").checked) {
    if (!repaint.length) throw new Error("Paint a region that is to be painted over the image.");
    order.background = toDataUrl(easel.photo);
    if (repaint.length < slots.length) order.repaint = repaint;
  }
  return { order, slots };
}

/** `ask` the server; a refusal that is about a region is shown there too. */
async function asked(ask) {
  const { order, slots } = makeOrder();
  try {
    return await ask(order);
  } catch (error) {
    if (error.region) regions.tell(slots[error.region - 1], error.message, true);
    throw error;
  }
}

function saveDraft() {
  clearTimeout(saveDraft.timer);
  saveDraft.timer = setTimeout(() => {
    const { ids, regions: entries } = regions.form(painting);
    const size = [painting.height, painting.width];
    const draft = { ...readSettings(), size, ids: toBase64(ids), regions: entries };
    sessionStorage.setItem(DRAFT, JSON.stringify(draft));
  }, 300);
}

on("examples", "change", async ({ target }) => {
  if (target.value) await applyScene(await api.fetchExample(target.value));
  target.value = "";
});
on("open", "change", async ({ target }) => {
  const [file] = target.files;
  if (!file) return;
  if (file.size > model.max_body) throw new Error(`${file.name} is too large for a scene.`);
  try {
    await applyScene(await api.readScene(file));
  } finally {
    target.value = "";
  }
});
on("save", "click", async () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await asked(api.packScene));
  link.download = "scene.zip";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
});

// --- pictures ------------------------------------------------------------------------------------

on("words", "submit", async (event) => {
  event.preventDefault();
  if ($("reseed").checked) drawSeed();
  const run = await asked((order) => runs.submit(order));
  result.show(run.id);
});
on("cancel", "click", () => runs.cancel(result.shown));
on("edit", "click", async () => {
  await applyScene(await api.fetchScene(result.shown));
  loadSettings(runs.runs.get(result.shown));
});
on("paint-over", "click", async () => {
  const { id, size } = runs.runs.get(result.shown);
  const photo = await fromUrl(api.pictureOf(id));
  regions.load([]);
  painting.replace({ width: size[1], height: size[0], ids: new Uint8Array(size[0] * size[1]) });
  setPhoto(photo);
  $("keep").checked = true;
  settle();
});

// --- settings ------------------------------------------------------------------------------------

$("words").addEventListener("input", ({ currentTarget }) => {
  showValues(currentTarget);
  showForm();
  saveDraft();
});
on("dice", "click", drawSeed);
listenToKeys({
  tool: setTool,
  region: (slot) => regions.choose(slot),
  brushSize: (change) => setBrushSize(Number($("brush-size").value) + change),
  undo: () => painting.undo(),
  redo: () => painting.redo(),
  generate: () => $("words").requestSubmit(),
});

// --- the beginning -------------------------------------------------------------------------------

prepare(model);
const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
if (draft) {
  await applyScene({ ...draft, repaint: null, background: null });
  loadSettings(draft);
  painting.past = [];
}
settle();
await runs.restore();
document.body.classList.add("ready");
