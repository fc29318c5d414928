// What the page knows: the numbers of its data block, by checkpoint c and module j.

function decode(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  if (new Uint8Array(new Uint16Array([1]).buffer)[0] === 1) return new Float32Array(bytes.buffer);
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

function readModel(data) {
  const C = data.checkpoints.length;
  const J = data.modules.length;
  const values = decode(data.values);
  const count = decode(data.spectra.count);
  const stored = { s: decode(data.spectra.s), held: decode(data.spectra.held) };
  const starts = new Int32Array(C * J);
  let start = 0;
  for (let place = 0; place < C * J; place++) {
    starts[place] = start;
    if (count[place] > 0) start += data.spectra.grids[count[place]].length;
  }
  const columns = [...data.measures.map((measure) => measure.column), ...data.shape];
  const index = new Map(columns.map((column, m) => [column, m]));
  const value = (column, c, j) =>
    index.has(column) ? values[(index.get(column) * C + c) * J + j] : NaN;
  return {
    ...data,
    C,
    J,
    value,
    // {at, s, held} of one update; null if this checkpoint does not have this module.
    spectrum(c, j) {
      const k = count[c * J + j];
      if (!(k > 0)) return null;
      const at = data.spectra.grids[k];
      const from = starts[c * J + j];
      const cut = (array) => array.subarray(from, from + at.length);
      return { at, s: cut(stored.s), held: cut(stored.held), k };
    },
    nullOf(c, j) {
      const r = value("r", c, j) || 0;
      const key = `${value("d_out", c, j)}×${value("d_in", c, j)}×${r}`;
      return data.null[key] ? { key, r, ...data.null[key] } : null;
    },
    hay: data.modules.map((module) => module.name.toLowerCase()),
    phiOf: data.phi && { left: decode(data.phi.left), right: decode(data.phi.right) },
    landingOf:
      data.landing &&
      Object.fromEntries(Object.entries(data.landing).map(([name, text]) => [name, decode(text)])),
  };
}

// The modules whose names contain every word of the filter.
function matching(model, filter) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (let j = 0; j < model.J; j++) {
    if (words.every((word) => model.hay[j].includes(word))) found.push(j);
  }
  return found;
}

function quantile(sorted, q) {
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

function median(numbers) {
  const known = Float64Array.from(numbers.filter((x) => !Number.isNaN(x))).sort();
  return known.length ? quantile(known, 0.5) : NaN;
}

// The checkpoints at a position of the slider: 0 is all of them; n is, of each run, the last one
// whose step is not beyond the n-th; a checkpoint without a step is always shown.
function atStep(model, position, steps) {
  const all = model.checkpoints.map((_, c) => c);
  if (!position) return all;
  const limit = steps[position - 1];
  const latest = new Map();
  for (const c of all) {
    const { run, step } = model.checkpoints[c];
    if (step !== null && step > limit) continue;
    const before = latest.get(run);
    if (before === undefined || step === null || step >= model.checkpoints[before].step) {
      latest.set(run, c);
    }
  }
  return all.filter((c) => [...latest.values()].includes(c));
}

// How far a measure of one module differs between checkpoints: largest minus smallest, or their
// ratio where the measure is a size.
function difference(model, measure, checkpoints, j) {
  let low = Infinity;
  let high = -Infinity;
  let known = 0;
  for (const c of checkpoints) {
    const x = model.value(measure.column, c, j);
    if (Number.isNaN(x)) continue;
    known += 1;
    low = Math.min(low, x);
    high = Math.max(high, x);
  }
  if (known < 2) return NaN;
  if (measure.log) return low > 0 ? high / low : NaN;
  return high - low;
}

// A number to read: four digits.
function shown(x) {
  if (x === undefined || Number.isNaN(x)) return "–";
  if (x === 0 || (Number.isInteger(x) && Math.abs(x) < 1e6)) return String(x).replace("-", "−");
  const size = Math.abs(x);
  const text = size >= 1e-3 && size < 1e5 ? x.toPrecision(4) : x.toExponential(3);
  return text.replace("-", "−");
}

// A number to compute with: the shortest text that float32 reads as the same; empty if undefined.
function exact(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "";
  const texts = [6, 7, 8, 9].map((digits) => String(Number(x.toPrecision(digits))));
  return texts.find((text) => Math.fround(Number(text)) === Math.fround(x)) ?? texts[3];
}

// CSV as store.csv_text writes it: what a spreadsheet takes for a formula gets an apostrophe.
function csvText(columns, rows) {
  const cell = (x) => {
    let text = typeof x === "number" ? exact(x) : String(x ?? "");
    if (typeof x === "string" && /^'*[=+\-@\t\r\n]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows.map((row) => columns.map((column) => row[column]))]
    .map((line) => `${line.map(cell).join(",")}\n`)
    .join("");
}
