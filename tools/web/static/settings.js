const $ = (id) => document.getElementById(id);
const NOTES = {
  fast: "One strength for the words and the regions together: two network calls a step.",
  full: "The words of the whole picture and the regions have a strength each: three calls a step.",
};

/** What the server's model decides of the page. */
export function prepare(model) {
  $("model-name").textContent = `${model.name} \u00b7 ${model.size[1]} \u00d7 ${model.size[0]}`;
  $("num-steps").max = model.max_steps;
  for (const id of ["width", "height"]) {
    Object.assign($(id), { min: model.multiple, max: model.max_side, step: model.multiple });
  }
  for (const id of ["prompt", "negative"]) $(id).maxLength = model.max_text;
  $("examples-field").hidden = !model.examples.length;
  $("examples").append(...model.examples.map((name, k) => new Option(name, k)));
  loadSettings(model);
}

/** Sliders say their value beside their name. */
export function showValues(root) {
  for (const label of root.querySelectorAll("label.slider")) {
    const value = +label.querySelector("input").value;
    label.querySelector("output").value = Number.isInteger(value) ? value : value.toFixed(2).replace(/0$/, "");
  }
}

const chosenForm = () => document.querySelector("input[name=form]:checked").value;

export function showForm() {
  const form = chosenForm();
  $("form-note").textContent = NOTES[form];
  for (const label of document.querySelectorAll("[data-form]")) {
    label.hidden = label.dataset.form !== form;
  }
}

/** Values of any part of an order; what it lacks stays. */
export function loadSettings(values) {
  const set = (id, value) => {
    if (value !== undefined && value !== null) $(id).value = value;
  };
  set("prompt", values.prompt);
  set("negative", values.negative_prompt);
  set("seed", values.seed);
  set("variation-seed", values.variation_seed);
  set("num-steps", values.num_steps);
  set("scale", values.scale);
  set("scale-text", values.scales?.text);
  set("scale-segments", values.scales?.segments);
  if (values.form) document.querySelector(`input[name=form][value=${values.form}]`).checked = true;
  showForm();
  showValues(document);
}

export function readSettings() {
  return {
    prompt: $("prompt").value,
    negative_prompt: $("negative").value,
    seed: Math.trunc(+$("seed").value),
    variation_seed: Math.trunc(+$("variation-seed").value),
    form: chosenForm(),
    scale: +$("scale").value,
    scales: { text: +$("scale-text").value, segments: +$("scale-segments").value },
    num_steps: +$("num-steps").value,
  };
}

export function drawSeed() {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
}
