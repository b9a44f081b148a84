import * as api from "./api.js";

const ENDED = ["done", "failed", "cancelled", "gone"];
const KEPT = "spatext-pictures";

/** Pictures that were asked for, and what becomes of them; newest last.
 *
 * "change": detail = the run, whose state, step, position, preview... are those of the server.
 * They are remembered while the tab is open, also if the page is loaded again.
 */
export class Runs extends EventTarget {
  runs = new Map(); // id -> run
  stream = null;

  async restore() {
    for (const id of JSON.parse(sessionStorage.getItem(KEPT) ?? "[]")) {
      const run = await api.fetchJob(id).catch(() => null);
      if (run) this.update(run);
    }
    this.watch();
  }

  async submit(order) {
    const run = await api.submit(order);
    this.update(run);
    this.watch();
    return run;
  }

  /** The stream tells when it is cancelled; the answer here may come later than that. */
  async cancel(id) {
    await api.cancel(id);
  }

  get pending() {
    return [...this.runs.values()].filter((run) => !ENDED.includes(run.state));
  }

  update(news) {
    const run = Object.assign(this.runs.get(news.id) ?? {}, news);
    this.runs.set(run.id, run);
    sessionStorage.setItem(KEPT, JSON.stringify([...this.runs.keys()].slice(-60)));
    this.dispatchEvent(new CustomEvent("change", { detail: run }));
  }

  /** One stream for all that are pending: browsers open few connections to one server. */
  watch() {
    this.stream?.close();
    this.stream = null;
    const ids = this.pending.map((run) => run.id);
    if (!ids.length) return;
    this.stream = api.eventsOf(ids);
    this.stream.addEventListener("message", ({ data }) => {
      this.update(JSON.parse(data));
      if (!this.pending.length) this.watch();
    });
  }
}

/** One line for people. */
export function describe(run) {
  switch (run.state) {
    case "queued":
      return run.position === 1 ? "Next in the queue" : `In the queue, ${run.position} before it`;
    case "running":
      return run.step ? `Step ${run.step} of ${run.total_steps}` : "Beginning";
    case "failed":
      return `Failed: ${run.message}`;
    case "cancelled":
      return "Cancelled";
    case "gone":
      return "No longer kept by the server";
    default:
      return "";
  }
}

export function recipe({ form, scale, scales, num_steps: steps, seed }) {
  const strength = form === "fast" ? `Fast ${scale}` : `Full ${scales.text} and ${scales.segments}`;
  return [strength, `${steps} steps`, `seed ${seed}`].join(" \u00b7 ");
}
