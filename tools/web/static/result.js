import { archiveOf, pictureOf } from "./api.js";
import { describe, recipe } from "./runs.js";

const $ = (id) => document.getElementById(id);
const sourceOf = (run) => (run.state === "done" ? pictureOf(run.id) : run.preview);

/** The stage, which shows one run, and the history, which holds them all. */
export class Result {
  shown = null;
  tiles = new Map(); // id -> <li>

  constructor(runs) {
    this.runs = runs;
    runs.addEventListener("change", ({ detail: run }) => this.update(run));
  }

  update(run) {
    this.updateTile(run);
    if (!this.shown) this.shown = run.id;
    if (this.shown === run.id) this.show(run.id);
  }

  show(id) {
    this.shown = id;
    const run = this.runs.runs.get(id);
    const [pending, done] = [["queued", "running"].includes(run.state), run.state === "done"];
    const source = sourceOf(run);
    $("picture").hidden = !source;
    $("empty").hidden = Boolean(source);
    if (source && $("picture").getAttribute("src") !== source) $("picture").src = source;
    $("picture").alt = [run.prompt, ...run.texts].filter(Boolean).join("; ");
    $("stage").dataset.state = run.state;
    $("stage").style.setProperty("--ratio", run.size[1] / run.size[0]);
    $("picture").classList.toggle("coarse", Math.max(...run.size) <= 256);
    $("progress").hidden = !pending;
    $("bar").value = run.step / run.total_steps;
    $("status").textContent = describe(run) || recipe(run);
    $("status").ariaLive = run.state === "running" ? "off" : "polite"; // not every step is news
    $("status").classList.toggle("wrong", run.state === "failed");
    $("cancel").hidden = !pending;
    $("actions").hidden = !done;
    $("download").href = pictureOf(id);
    $("download").download = `spatext-${run.seed}.png`;
    $("download-scene").href = archiveOf(id);
    $("download-scene").download = `spatext-${run.seed}.zip`;
    this.warn(run.warnings);
    for (const [other, tile] of this.tiles) {
      tile.querySelector("button").setAttribute("aria-pressed", String(other === id));
    }
  }

  warn(lines) {
    $("warnings").hidden = !lines.length;
    $("warnings").replaceChildren(
      ...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })),
    );
  }

  updateTile(run) {
    const tile = this.tiles.get(run.id) ?? this.makeTile(run);
    const image = tile.querySelector("img");
    const source = sourceOf(run);
    image.hidden = !source;
    if (source && image.getAttribute("src") !== source) image.src = source;
    tile.dataset.state = run.state;
    tile.querySelector("span").textContent =
      run.state === "queued" ? run.position : run.state === "running" ? `${Math.round((100 * run.step) / run.total_steps)}%` : "";
    const words = run.prompt || run.texts.join(", ");
    tile.querySelector("button").setAttribute("aria-label", `${words}, seed ${run.seed} ${describe(run)}`.trim());
    tile.querySelector("button").title = words;
  }

  makeTile(run) {
    const tile = document.createElement("li");
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const image = Object.assign(document.createElement("img"), { alt: "", hidden: true });
    button.classList.toggle("coarse", Math.max(...run.size) <= 256);
    button.append(image, document.createElement("span"));
    button.addEventListener("click", () => this.show(run.id));
    tile.append(button);
    this.tiles.set(run.id, tile);
    $("history").prepend(tile);
    $("history-title").hidden = false;
    return tile;
  }
}
