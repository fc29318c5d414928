// The table of modules: one row each, one column per checkpoint, sorted by any of them.

const BATCH = 50; // rows that are made at a time

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// A dotted name that may be broken after each dot.
function breakable(name) {
  return name.split(/(?<=\.)/).flatMap((part, n) => (n ? [element("wbr"), part] : [part]));
}

// The modules in the order of the table; undefined numbers last.
function sorted(model, modules, measure, checkpoints, sort) {
  const [column, direction] = sort;
  const keys = new Map(modules.map((j) => [j, sortKey(model, measure, checkpoints, column, j)]));
  const sign = direction === "up" ? 1 : -1;
  const missing = (x) => x === null || Number.isNaN(x);
  return [...modules].sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y) || a - b;
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return sign * order || a - b;
  });
}

function sortKey(model, measure, checkpoints, column, j) {
  const module = model.modules[j];
  if (column === "module") return module.name;
  if (column === "layer" || column === "kind") return module[column];
  if (column === "differs") return difference(model, measure, checkpoints, j);
  const c = model.checkpoints.findIndex((checkpoint) => checkpoint.name === column);
  return c < 0 ? NaN : model.value(measure.column, c, j);
}

function tableColumns(model, measure, checkpoints) {
  const columns = [
    ["module", "module"],
    ["layer", "layer"],
    ["kind", "projection"],
  ];
  for (const c of checkpoints) columns.push([model.checkpoints[c].name, model.checkpoints[c].name]);
  if (checkpoints.length > 1)
    columns.push(["differs", measure.log ? "differs, ratio" : "differs by"]);
  return columns;
}

function drawHead(head, columns, sort, onSort) {
  const line = element("tr");
  for (const [column, label] of columns) {
    const chosen = sort[0] === column;
    const arrow = chosen ? (sort[1] === "up" ? " ▲" : " ▼") : "";
    const button = element("button", { type: "button", textContent: label + arrow });
    button.dataset.column = column;
    button.addEventListener("click", () => onSort(column));
    const cell = element("th", { scope: "col" }, button);
    if (chosen) cell.setAttribute("aria-sort", sort[1] === "up" ? "ascending" : "descending");
    line.append(cell);
  }
  const focused = document.activeElement?.dataset?.column;
  head.replaceChildren(line);
  if (focused !== undefined)
    [...head.querySelectorAll("button")].find((b) => b.dataset.column === focused)?.focus();
}

function drawRows(body, model, modules, measure, checkpoints, chosen, onChoose) {
  const lines = modules.map((j) => {
    const module = model.modules[j];
    const button = element("button", { type: "button" }, ...breakable(module.name));
    button.setAttribute("aria-pressed", String(chosen.has(j)));
    button.dataset.module = j;
    button.addEventListener("click", (event) =>
      onChoose(j, event.ctrlKey || event.metaKey || event.shiftKey),
    );
    const line = element(
      "tr",
      { className: chosen.has(j) ? "chosen" : "" },
      element("th", { scope: "row" }, button),
      element("td", { textContent: module.layer ?? "–" }),
      element("td", { textContent: module.kind }),
      ...checkpoints.map((c) =>
        element("td", { textContent: shown(model.value(measure.column, c, j)) }),
      ),
    );
    if (checkpoints.length > 1) {
      line.append(
        element("td", { textContent: shown(difference(model, measure, checkpoints, j)) }),
      );
    }
    return line;
  });
  const focused = document.activeElement?.dataset?.module;
  body.replaceChildren(...lines);
  if (focused !== undefined)
    body.querySelector(`button[data-module="${Number(focused)}"]`)?.focus();
}

// Mark the chosen rows without making the table again.
function markRows(body, chosen) {
  for (const button of body.querySelectorAll("button[data-module]")) {
    const is = chosen.has(Number(button.dataset.module));
    button.setAttribute("aria-pressed", String(is));
    button.closest("tr").className = is ? "chosen" : "";
  }
}
