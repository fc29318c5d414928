// Each view: the state and the numbers → rows of data, a caption and a picture.

// Spectra

function curve(c, j) {
  const spectrum = model.spectrum(c, j);
  if (!spectrum) return null;
  if (state.values === "held") return { at: spectrum.at, y: spectrum.held };
  const rank = model.value("rank", c, j);
  const end = spectrum.at.filter((i) => !(i > rank)).length; // beyond it there is only rounding
  const norm = state.values === "normalised" ? model.value("frobenius_norm", c, j) : 1;
  if (!(norm > 0)) return null;
  return { at: spectrum.at.slice(0, end), y: spectrum.s.subarray(0, end).map((s) => s / norm) };
}

function curvesOf(checkpoints, modules) {
  const rows = [];
  const single = checkpoints.length * modules.length <= FEW;
  const bands = checkpoints.length <= FEW_BANDS;
  for (const c of checkpoints) {
    const of = { c: `c${c}`, checkpoint: model.checkpoints[c].name };
    const points = new Map();
    for (const j of modules) {
      const found = curve(c, j);
      if (!found) continue;
      found.at.forEach((i, n) => {
        const y = found.y[n];
        if (Number.isNaN(y)) return;
        if (single) rows.push({ ...of, m: model.modules[j].name, i, y });
        else if (points.has(i)) points.get(i).push(y);
        else points.set(i, [y]);
      });
    }
    for (const [i, values] of [...points].sort((a, b) => a[0] - b[0])) {
      const ordered = Float64Array.from(values).sort();
      const [lo, y, hi] = [LOW, 0.5, 1 - LOW].map((q) => quantile(ordered, q));
      rows.push({ ...of, m: `median of ${values.length} modules`, i, y, ...(bands && { lo, hi }) });
    }
  }
  // A curve is the median of all of its modules: an index that few of them have is left out.
  const kept = single ? rows : longEnough(rows, checkpoints);
  const positive = (row) => (row.lo ?? row.y) > 0;
  return {
    single,
    rows: state.scale === "log" && state.values !== "held" ? kept.filter(positive) : kept,
  };
}

function longEnough(rows, checkpoints) {
  const most = new Map();
  const number = (row) => parseInt(row.m.slice(10), 10);
  for (const row of rows) most.set(row.c, Math.max(most.get(row.c) ?? 0, number(row)));
  return rows
    .filter((row) => 2 * number(row) >= most.get(row.c))
    .map((row) => ({ ...row, m: "median over modules" }));
}

// The band of random updates of the commonest shape of each rank among what is drawn.
function chanceOf(checkpoints, modules) {
  if (state.chance !== "on") return { rows: [], shapes: [] };
  const found = new Map();
  for (const c of checkpoints) {
    for (const j of modules) {
      const random = model.nullOf(c, j);
      if (!random) continue;
      const known = found.get(random.key) ?? { ...random, times: 0, norms: [] };
      known.times += 1;
      if (state.values === "absolute") known.norms.push(model.value("frobenius_norm", c, j));
      found.set(random.key, known);
    }
  }
  const byRank = new Map();
  for (const one of found.values()) {
    if (!(byRank.get(one.r)?.times >= one.times)) byRank.set(one.r, one);
  }
  const rows = [];
  for (const one of byRank.values()) {
    const prefix = state.values === "held" ? "held_" : "";
    const norm = state.values === "absolute" ? median(one.norms) : 1;
    one.at.forEach((i, n) => {
      const [lo, y, hi] = ["low", "median", "high"].map((q) => one[prefix + q][n] * norm);
      if (lo > 0) rows.push({ key: one.key, i, lo, y, hi });
    });
  }
  return {
    rows,
    shapes: [...byRank.values()].map((one) =>
      one.key.replace(/×0$/, " dense").replace(/×(\d+)$/, " of rank $1"),
    ),
  };
}

function drawSpectra() {
  const checkpoints = visible();
  const modules = selection();
  const { single, rows } = curvesOf(checkpoints, modules);
  const chance = chanceOf(checkpoints, modules);
  const drawn = new Set(rows.map((row) => row.c));
  const title = `Singular values of ${ofSelection()}, ${checkpoints.length} checkpoints`;
  const wide = rows.some((row) => row.i > 64);
  const spec = spectraSpec({
    model,
    theme: theme(),
    width: widthOf("spectra"),
    checkpoints: checkpoints.filter((c) => drawn.has(`c${c}`)),
    values: state.values,
    scale: state.scale,
    wide,
    bands: rows.some((row) => row.hi !== undefined),
    random: chance.rows.length > 0,
    title,
  });
  $("spectra").querySelector(".picture").hidden = !rows.length;
  if (rows.length) {
    const data = { curves: rows, ...(chance.rows.length && { chance: chance.rows }) };
    pictures.spectra.draw(spec, data, { theme: theme() });
  }
  const shaded = checkpoints.length <= FEW_BANDS ? "; shaded: 10 to 90 % of them" : "";
  const lines = single ? "one line per module and checkpoint" : `median over modules${shaded}`;
  const scaled = state.values === "absolute" ? ", scaled to the median ‖ΔW‖_F" : "";
  const random = chance.shapes.length
    ? ` Grey: 5 to 95 % of random updates, ${chance.shapes.slice(0, 4).join("; ")}${scaled}.`
    : "";
  const cut = wide
    ? " Of more than 64 values the page holds those at even steps of the logarithmic axis."
    : "";
  caption(
    "spectra",
    rows.length
      ? `${ofSelection()}: ${lines}.${random}${cut}`
      : `${ofSelection()}: nothing to draw, ΔW = 0 or no module.`,
  );
}

const explained = (measure) => measure.label + (measure.about ? ` (${measure.about})` : "");

// Map

const cellId = (layer, kind) => `${layer ?? "–"}/${kindsOf.indexOf(kind)}`;

function cellsOf(checkpoints, measure) {
  const rows = [];
  for (const c of checkpoints) {
    const cells = new Map();
    for (let j = 0; j < model.J; j++) {
      const v = model.value(measure.column, c, j);
      if (Number.isNaN(v) || (measure.log && !(v > 0))) continue;
      const { layer, kind } = model.modules[j];
      const id = cellId(layer, kind);
      const cell = cells.get(id) ?? {
        layer: layer ?? "–",
        kind,
        column: `k${kindsOf.indexOf(kind)}`,
        id,
        members: [],
        all: [],
      };
      cell.members.push(j);
      cell.all.push(v);
      cells.set(id, cell);
    }
    for (const { all, ...cell } of cells.values()) {
      const module =
        all.length > 1 ? `median of ${all.length} modules` : model.modules[cell.members[0]].name;
      rows.push({
        ...cell,
        c: `c${c}`,
        checkpoint: model.checkpoints[c].name,
        module,
        v: all.length > 1 ? median(all) : all[0],
      });
    }
  }
  return rows;
}

function mapSignals() {
  const mark = (modules) =>
    Object.fromEntries(
      modules.map((j) => [cellId(model.modules[j].layer, model.modules[j].kind), true]),
    );
  const kept = matching(model, state.filter);
  return { chosen: mark([...chosenModules()]), kept: kept.length === model.J ? null : mark(kept) };
}

function drawMap() {
  const checkpoints = visible();
  const measure = measureOf();
  const rows = cellsOf(checkpoints, measure);
  const drawn = new Set(rows.map((row) => row.c));
  const shownOnes = checkpoints.filter((c) => drawn.has(`c${c}`));
  const title = `${measure.label} by layer and projection, ${shownOnes.length} checkpoints`;
  caption(
    "map",
    rows.length
      ? `${explained(measure)}; one colour scale for all panels. A click on a cell shows its ` +
          "spectra; the table does the same from the keyboard."
      : `${measure.label} is defined in none of the modules.`,
  );
  $("map").querySelector(".picture").hidden = !rows.length;
  if (!rows.length) return;
  const spec = mapSpec({
    model,
    width: widthOf("map"),
    checkpoints: shownOnes,
    measure,
    layers: layersOf.map((layer) => layer ?? "–"),
    kinds: kindsOf,
    title,
  });
  pictures.map.draw(
    spec,
    { cells: rows },
    {
      theme: theme(),
      signals: mapSignals(),
      renderer: rows.length > MANY_CELLS ? "canvas" : "svg",
      onClick: (cell) => cell.members && choose(cell.members),
    },
  );
}

// Table

function drawTable() {
  const checkpoints = visible();
  const measure = measureOf();
  const modules = sorted(
    model,
    matching(model, state.filter),
    measure,
    checkpoints,
    sortOf(checkpoints),
  );
  const part = modules.slice(0, rowsShown);
  const table = $("table");
  drawHead(
    table.querySelector("thead"),
    tableColumns(model, measure, checkpoints),
    sortOf(checkpoints),
    sortBy,
  );
  drawRows(
    table.querySelector("tbody"),
    model,
    part,
    measure,
    checkpoints,
    chosenModules(),
    (j, more) => choose([j], more),
  );
  $("more").hidden = part.length === modules.length;
  const what =
    checkpoints.length > 1
      ? "; the modules that differ most come first unless another column is chosen"
      : "";
  caption("table", `${explained(measure)}${what}. ${part.length} of ${modules.length} shown.`);
  $("status").textContent = status(modules.length);
}

function status(matched) {
  const chosen = chosenModules().size;
  const text = `${matched} of ${model.J} modules`;
  return chosen ? `${text}; the spectra are of ${ofSelection()}` : text;
}

function sortOf(checkpoints) {
  const known = ["module", "layer", "kind", ...namesOf(checkpoints)];
  if (checkpoints.length > 1) known.push("differs");
  return known.includes(state.sort) ? [state.sort, state.direction] : [known[3], state.direction];
}

function sortBy(column) {
  const same = sortOf(visible())[0] === column;
  const first = ["module", "layer", "kind"].includes(column) ? "up" : "down";
  const direction = same ? (sortOf(visible())[1] === "up" ? "down" : "up") : first;
  change({ sort: column, direction }, ["table"]);
}

// φ(i, j) minus chance

function gridOf(pair, modules) {
  const { k, pairs } = model.phi;
  const [a] = pairs[pair];
  const rows = [];
  for (const [side, label, size] of [
    ["left", "left (output)", "d_out"],
    ["right", "right (input)", "d_in"],
  ]) {
    for (let i = 0; i < k; i++) {
      for (let j = 0; j < k; j++) {
        const found = [];
        const chances = [];
        for (const m of modules) {
          const phi = model.phiOf[side][((pair * model.J + m) * k + i) * k + j];
          if (Number.isNaN(phi)) continue;
          const d = model.value(size, a, m) || model.value(size, pairs[pair][1], m);
          found.push(phi);
          chances.push((Math.max(i, j) + 1) / d);
        }
        if (!found.length) continue;
        const mean = (all) => all.reduce((sum, x) => sum + x, 0) / all.length;
        const [phi, chance] = [mean(found), mean(chances)];
        rows.push({ side: label, i: i + 1, j: j + 1, phi, chance, v: phi - chance });
      }
    }
  }
  return rows;
}

function drawPhi() {
  if (!model.phi) return;
  const pair = Math.min(Number(state.pair) || 0, model.phi.pairs.length - 1);
  const [a, b] = namesOf(model.phi.pairs[pair]);
  const rows = gridOf(pair, selection());
  const most = Math.max(0.05, ...rows.map((row) => Math.abs(row.v)));
  const scale = [0.05, 0.1, 0.2, 0.5, 1].find((limit) => most <= limit) ?? 1;
  const left =
    model.phi.of > model.phi.pairs.length
      ? ` The page holds ${model.phi.pairs.length} of ${model.phi.of} pairs.`
      : "";
  const mean = selection().length > 1 ? "mean over " : "";
  caption(
    "phi",
    rows.length
      ? `φ(i, j) minus chance, ${mean}${ofSelection()}: how much of the top i directions of ${a} ` +
          `(first) lies in the top j of ${b} (second), beyond random ones; i, j up to ` +
          `${model.phi.k}. Left: what the update writes; right: what it reads.${left}`
      : `${ofSelection()}: not in both of ${a} and ${b}, or undetermined.${left}`,
  );
  $("phi").querySelector(".picture").hidden = !rows.length;
  if (!rows.length) return;
  const spec = phiSpec({
    theme: theme(),
    width: widthOf("phi"),
    k: Math.max(...rows.map((row) => row.i)),
    most: scale,
    title: `φ(i, j) minus chance between ${a} and ${b}`,
  });
  pictures.phi.draw(spec, { grid: rows }, { theme: theme() });
}

// Landing

function drawLanding() {
  if (!model.landingOf) return;
  const checkpoints = visible();
  const rows = [];
  for (const c of checkpoints) {
    for (const [side, label] of [
      ["left", "left (output)"],
      ["right", "right (input)"],
    ]) {
      for (let decile = 0; decile < 10; decile++) {
        const at = (name) =>
          selection().map((j) => model.landingOf[name][(c * model.J + j) * 10 + decile]);
        const v = median(at(side));
        if (!Number.isNaN(v))
          rows.push({
            c: `c${c}`,
            checkpoint: model.checkpoints[c].name,
            side: label,
            decile: decile + 1,
            v,
            chance: median(at(`${side}_chance`)),
          });
      }
    }
  }
  caption("landing", `Median over ${ofSelection()}. Dotted: random directions.`);
  $("landing").querySelector(".picture").hidden = !rows.length;
  if (!rows.length) return;
  const spec = landingSpec({
    model,
    theme: theme(),
    width: widthOf("landing"),
    checkpoints,
    title: "Landing of the update in the base",
  });
  pictures.landing.draw(spec, { shares: rows }, { theme: theme() });
}
