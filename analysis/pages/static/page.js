// What is drawn again when the state changes, the controls, and the start.

const DRAW = {
  table: drawTable,
  marks: () => {
    markRows($("table").querySelector("tbody"), chosenModules());
    $("status").textContent = status(matching(model, state.filter).length);
  },
  spectra: drawSpectra,
  signals: () => pictures.map.signal(mapSignals()),
  map: drawMap,
  phi: drawPhi,
  landing: drawLanding,
};

function change(values, parts = Object.keys(DRAW)) {
  state = { ...state, ...values };
  remember();
  schedule(parts);
}

// Each part is drawn in a task of its own, so that none keeps the page waiting for long.
function schedule(parts) {
  const idle = pending.size === 0;
  for (const part of parts) pending.add(part);
  if (idle) setTimeout(next);
}

function next() {
  const part = Object.keys(DRAW).find((name) => pending.has(name));
  if (!part) return;
  pending.delete(part);
  try {
    DRAW[part]();
  } finally {
    // one picture that fails does not keep the others from being drawn
    if (pending.size) setTimeout(next);
    else document.documentElement.dataset.ready = "yes";
  }
}

function choose(modules, more = false) {
  const before = chosenModules();
  const same = modules.every((j) => before.has(j));
  let after = new Set(modules);
  if (more)
    after = same
      ? new Set([...before].filter((j) => !modules.includes(j)))
      : new Set([...before, ...modules]);
  else if (same && before.size === modules.length) after = new Set();
  change({ chosen: [...after].join(".") }, ["marks", "spectra", "signals", "phi", "landing"]);
}

// The state in the address, without what is as by default.
function remember() {
  const changed = Object.entries(state).filter(
    ([name, value]) => String(value) !== String(initial[name]),
  );
  const text = new URLSearchParams(changed).toString();
  try {
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  } catch {
    // inside a notebook the page has no address of its own
  }
}

function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { ...initial };
  for (const name of Object.keys(DEFAULTS)) if (given.has(name)) state[name] = given.get(name);
  for (const name of ["values", "scale"]) {
    if (![...$(name).options].some((option) => option.value === state[name]))
      state[name] = initial[name];
  }
  state.measure = measureOf().column;
  showControls();
}

function showControls() {
  $("filter").value = state.filter;
  $("measure").value = state.measure;
  $("values").value = state.values;
  $("scale").value = state.scale;
  $("scale").disabled = state.values === "held";
  $("chance").checked = state.chance === "on";
  $("step").value = state.step;
  $("stepped").value = Number(state.step) ? String(steps[state.step - 1] ?? "") : "all";
  $("pair").value = state.pair;
  const hide = hidden();
  $("checkpoints")
    .querySelectorAll("input")
    .forEach((box, c) => {
      box.checked = !hide.has(c);
    });
}

function caption(id, text) {
  $(id).querySelector(".caption").textContent = text;
}

// Start

function fill() {
  $("measure").append(...model.measures.map((m) => new Option(m.label, m.column)));
  $("step").max = steps.length;
  $("stepping").hidden = !several;
  $("choosing").hidden = model.C < 2;
  $("checkpoints").append(
    ...model.checkpoints.map((checkpoint, c) => {
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        const hide = hidden();
        if (box.checked) hide.delete(c);
        else hide.add(c);
        change({ hide: [...hide].join(".") });
      });
      return element("label", {}, box, checkpoint.name);
    }),
  );
  $("phi").hidden = !model.phi;
  if (model.phi) {
    $("pair").append(...model.phi.pairs.map((pair, p) => new Option(namesOf(pair).join(" ~ "), p)));
  }
  $("landing").hidden = !model.landing;
  for (const id of ["spectra", "map", "table", "phi", "landing"]) addDownloads(id);
}

function listen() {
  let timer;
  $("filter").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      rowsShown = BATCH;
      change({ filter: $("filter").value, chosen: "" }, [
        "table",
        "spectra",
        "signals",
        "phi",
        "landing",
      ]);
    }, WAIT);
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("measure").addEventListener("change", () =>
    change({ measure: $("measure").value }, ["table", "map"]),
  );
  $("values").addEventListener("change", () => {
    change({ values: $("values").value }, ["spectra"]);
    showControls();
  });
  $("scale").addEventListener("change", () => change({ scale: $("scale").value }, ["spectra"]));
  $("chance").addEventListener("change", () =>
    change({ chance: $("chance").checked ? "on" : "off" }, ["spectra"]),
  );
  $("step").addEventListener("input", () => {
    change({ step: Number($("step").value) });
    showControls();
  });
  $("pair").addEventListener("change", () => change({ pair: Number($("pair").value) }, ["phi"]));
  $("reset").addEventListener("click", () => {
    rowsShown = BATCH;
    change({ ...initial });
    showControls();
  });
  $("more").addEventListener("click", () => {
    rowsShown += BATCH;
    schedule(["table"]);
  });
  addEventListener("hashchange", () => {
    recall();
    schedule(Object.keys(DRAW));
  });
  dark.addEventListener("change", () => schedule(["spectra", "map", "phi", "landing"]));
  addEventListener("beforeprint", () => {
    printing = true;
    for (const part of ["spectra", "map", "phi", "landing"]) DRAW[part]();
  });
  addEventListener("afterprint", () => {
    printing = false;
    schedule(["spectra", "map", "phi", "landing"]);
  });
  let width = $("app").clientWidth;
  let resizing;
  new ResizeObserver(() => {
    if ($("app").clientWidth === width) return;
    width = $("app").clientWidth;
    clearTimeout(resizing);
    resizing = setTimeout(() => schedule(["spectra", "map", "phi", "landing"]), WAIT);
  }).observe($("app"));
}

$("app").hidden = false;
fill();
recall();
listen();
schedule(Object.keys(DRAW));
