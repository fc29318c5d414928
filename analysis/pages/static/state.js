// The state of the view, which the address holds, and what it says about checkpoints and modules.

const FEW = 24; // up to this many curves are drawn one by one; more as median and range
const FEW_BANDS = 3; // checkpoints whose ranges can be told apart
const LOW = 0.1; // the range goes from this quantile to 1 minus it
const WAIT = 120; // ms after the last key before the filter acts
const DEFAULTS = {
  filter: "",
  measure: "",
  step: 0,
  hide: "",
  sort: "differs",
  direction: "down",
  chosen: "",
  values: "normalised",
  scale: "log",
  chance: "on",
  pair: 0,
};

const $ = (id) => document.getElementById(id);
const model = readModel(JSON.parse($("data").textContent));
const steps = [
  ...new Set(model.checkpoints.map((c) => c.step).filter((step) => step !== null)),
].sort((a, b) => a - b);
const several = new Set(model.checkpoints.map((c) => c.run)).size < model.C;
const layersOf = [...new Set(model.modules.map((m) => m.layer))].sort(
  (a, b) => (a === null) - (b === null) || a - b,
);
const kindsOf = [...new Set(model.modules.map((m) => m.kind))];
const pictures = Object.fromEntries(
  ["spectra", "map", "phi", "landing"].map((id) => [
    id,
    new Picture($(id).querySelector(".picture")),
  ]),
);
const dark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;
let rowsShown = BATCH;
let state = { ...DEFAULTS };
let pending = new Set();

const theme = () => (dark.matches && !printing ? "dark" : "light");
const measureOf = () =>
  model.measures.find((m) => m.column === state.measure) ??
  model.measures.find((m) => m.column === model.first) ??
  model.measures[0];
const hidden = () => new Set(state.hide.split(".").filter(Boolean).map(Number));
const chosenModules = () =>
  new Set(
    state.chosen
      .split(".")
      .filter(Boolean)
      .map(Number)
      .filter((j) => j >= 0 && j < model.J && Number.isInteger(j)),
  );
const visible = () => {
  const hide = hidden();
  const found = atStep(model, Number(state.step), steps).filter((c) => !hide.has(c));
  return found.length ? found : [0];
};
const namesOf = (checkpoints) => checkpoints.map((c) => model.checkpoints[c].name);
const widthOf = (id) => Math.max(260, $(id).clientWidth);

// The modules that the curves are of: those chosen, else those that the filter leaves.
function selection() {
  const chosen = [...chosenModules()];
  return chosen.length ? chosen : matching(model, state.filter);
}

function ofSelection() {
  const modules = selection();
  if (modules.length === 1) return model.modules[modules[0]].name;
  return modules.length === model.J ? `all ${model.J} modules` : `${modules.length} modules`;
}

// Of a single checkpoint the most dominated modules come first.
const initial = {
  ...DEFAULTS,
  measure: model.first,
  direction: model.C === 1 && model.first === "democracy" ? "up" : "down",
};
