// Pictures as SVG and numbers as CSV.

function save(name, type, text) {
  const link = element("a", {
    href: URL.createObjectURL(new Blob([text], { type })),
    download: name,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const COLUMNS = {
  spectra: ["checkpoint", "module", "index", "value", "low", "high"],
  map: ["checkpoint", "module", "layer", "projection", "value"],
  phi: ["side", "i", "j", "phi", "chance"],
  landing: ["checkpoint", "side", "decile", "share", "chance"],
};

function csvOf(id) {
  if (id === "table") return tableCsv();
  const rows = Object.entries(pictures[id].data).flatMap(([name, data]) =>
    data.map((row) => ({
      ...row,
      checkpoint: name === "chance" ? `random updates ${row.key}` : row.checkpoint,
      module: row.module ?? row.m,
      index: row.i,
      value: row.v ?? row.y,
      low: row.lo,
      high: row.hi,
      projection: row.kind,
      share: row.v,
    })),
  );
  return csvText(COLUMNS[id], rows);
}

function tableCsv() {
  const rows = [];
  for (const c of visible()) {
    for (const j of matching(model, state.filter)) {
      if (!model.spectrum(c, j)) continue;
      const { name, layer, kind } = model.modules[j];
      const row = { checkpoint: model.checkpoints[c].name, module: name, layer, projection: kind };
      for (const { column } of model.measures) row[column] = model.value(column, c, j);
      rows.push(row);
    }
  }
  return csvText(
    ["checkpoint", "module", "layer", "projection", ...model.measures.map((m) => m.column)],
    rows,
  );
}

function addDownloads(id) {
  const heading = $(id).querySelector("h2").textContent;
  const button = (text, what, work) => {
    const made = element("button", { type: "button", textContent: text });
    made.setAttribute("aria-label", `${what} of ${heading}`);
    made.addEventListener("click", work);
    return made;
  };
  const group = element("div", { className: "downloads" });
  if (pictures[id]) {
    group.append(
      button("SVG", "Picture as SVG", async () => {
        save(`${id}.svg`, "image/svg+xml", await pictures[id].svg(pictures[id].spec));
      }),
    );
  }
  group.append(button("CSV", "Numbers as CSV", () => save(`${id}.csv`, "text/csv", csvOf(id))));
  $(id).append(group);
}
