// Rows of data → Vega-Lite specifications. Checkpoints and projections are told apart by ids of our
// own, c0 or k0, which labels and tooltips replace: names come from files of strangers, and one such
// as __proto__ would confuse a library that groups by it.

const COLORS = {
  light: ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#B07800", "#2D93CC"],
  dark: ["#FFFFFF", "#F0803C", "#4B9FE0", "#27C498", "#E09CC4", "#E69F00", "#8AD2F7"],
};
const DASHES = [
  [1, 0],
  [6, 3],
  [8, 3, 2, 3],
  [2, 2],
  [4, 2, 1, 2, 1, 2],
  [10, 3],
  [6, 2, 1, 2],
];
const THEMES = {
  light: { ground: "#ffffff", ink: "#1b1f24", soft: "#57606a", line: "#dfe3e8", band: "#8c959f" },
  dark: { ground: "#15181c", ink: "#e8eaed", soft: "#a9b1ba", line: "#2c333b", band: "#8c959f" },
};
const PANEL = 130; // least width of a panel of the map, for its heading
const MANY_CELLS = 1500; // more are drawn on a canvas

function config(theme) {
  const { ground, ink, soft, line } = THEMES[theme];
  const font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";
  return {
    background: ground,
    font,
    view: { stroke: line },
    axis: {
      labelColor: ink,
      titleColor: ink,
      gridColor: line,
      domainColor: soft,
      tickColor: soft,
      labelFontSize: 11,
      titleFontSize: 12,
      titleFontWeight: "normal",
      labelLimit: 130,
    },
    legend: {
      labelColor: ink,
      titleColor: ink,
      labelLimit: 260,
      titleFontWeight: "normal",
      labelFontSize: 12,
    },
    header: { labelColor: ink, labelFontSize: 12, labelLimit: 200 },
  };
}

// One look per checkpoint, the same in every picture; a legend lists those that are drawn.
function looks(checkpoints, theme) {
  const domain = checkpoints.map((c) => `c${c}`);
  return {
    color: { domain, range: checkpoints.map((c) => COLORS[theme][c % 7]) },
    dash: { domain, range: checkpoints.map((c) => DASHES[(c + Math.floor(c / 7)) % 7]) },
  };
}

// A parameter that holds the labels of ids, for expressions such as runs[datum.value].
function labels(name, letter, texts) {
  return { name, value: Object.fromEntries(texts.map((text, n) => [`${letter}${n}`, text])) };
}

function runLabels(model, longest) {
  return labels(
    "runs",
    "c",
    model.checkpoints.map(({ name }) => shortened(name, longest)),
  );
}

function spectraSpec({
  model,
  theme,
  width,
  checkpoints,
  values,
  scale,
  wide,
  bands,
  random,
  title,
}) {
  const look = looks(checkpoints, theme);
  const held = values === "held";
  const label = { normalised: "s / ‖s‖", absolute: "s", held: "share of the energy" }[values];
  const x = {
    field: "i",
    type: "quantitative",
    title: "index of the singular value",
    scale: wide ? { type: "log", nice: false } : { type: "linear", zero: false, nice: false },
    axis: { grid: false, format: "d", tickMinStep: 1 },
  };
  const y = (field) => ({
    field,
    type: "quantitative",
    title: label,
    scale: held
      ? { domain: [0, 1] }
      : scale === "linear"
        ? { type: scale, zero: true, nice: false }
        : { type: scale, nice: false },
  });
  const legend =
    checkpoints.length < 2
      ? null
      : {
          title: null,
          labelExpr: "runs[datum.value]",
          orient: width < 700 ? "bottom" : "right",
          columns: 1,
          symbolType: "stroke",
          symbolOpacity: 1,
          symbolSize: 300,
          symbolStrokeWidth: 2,
          labelLimit: Math.min(260, width - 60),
        };
  const color = { field: "c", type: "nominal", scale: look.color, legend };
  const strokeDash = { field: "c", type: "nominal", scale: look.dash, legend };
  const band = THEMES[theme].band;
  const tooltip = [
    { field: "checkpoint" },
    { field: "m", title: "module" },
    { field: "i", title: "index" },
    { field: "y", title: label, format: ".4g" },
  ];
  return {
    description: title,
    width: width - 4,
    height: Math.min(360, Math.max(240, width * 0.5)),
    autosize: { type: "fit-x", contains: "padding" },
    params: [runLabels(model, 44)],
    datasets: { curves: [], ...(random && { chance: [] }) },
    encoding: { x },
    layer: [
      ...(random
        ? [
            {
              data: { name: "chance" },
              mark: { type: "area", color: band, opacity: 0.3, aria: false },
              encoding: { y: y("lo"), y2: { field: "hi" }, detail: { field: "key" } },
            },
            {
              data: { name: "chance" },
              mark: { type: "line", color: band, strokeDash: [2, 3], aria: false },
              encoding: { y: y("y"), detail: { field: "key" } },
            },
          ]
        : []),
      ...(bands
        ? [
            {
              data: { name: "curves" },
              mark: { type: "area", opacity: 0.18, aria: false },
              encoding: { y: y("lo"), y2: { field: "hi" }, color, detail: { field: "m" } },
            },
          ]
        : []),
      {
        data: { name: "curves" },
        mark: { type: "line", strokeWidth: 1.8, clip: true, aria: false },
        encoding: { y: y("y"), color, strokeDash, detail: { field: "m" } },
      },
      {
        data: { name: "curves" },
        mark: { type: "point", filled: true, size: 22, aria: false },
        encoding: { y: y("y"), color, tooltip },
      },
    ],
  };
}

function mapSpec({ model, width, checkpoints, measure, layers, kinds, title }) {
  const across = Math.min(checkpoints.length, 4);
  const room = Math.floor(((width - 50) / across - 16) / kinds.length);
  const cell = {
    x: Math.max(12, Math.min(44, room), Math.floor(PANEL / kinds.length)),
    y: Math.max(5, Math.min(20, Math.floor(520 / layers.length))),
  };
  const panel = cell.x * kinds.length + 16;
  const columns = kinds.map((_, k) => `k${k}`);
  const most = Math.max(1, Math.floor((width - 50) / panel));
  const rows = Math.ceil(checkpoints.length / most);
  const perRow = Math.ceil(checkpoints.length / rows);
  const every = Math.ceil(layers.length / 26);
  return {
    description: title,
    data: { name: "cells", values: [] },
    params: [
      { name: "chosen", value: {} },
      { name: "kept", value: null },
      runLabels(model, Math.floor(panel / 7.6)),
      labels("kinds", "k", kinds),
    ],
    facet: {
      field: "c",
      type: "nominal",
      title: null,
      sort: checkpoints.map((c) => `c${c}`),
      header: { labelLimit: panel + 8, labelExpr: "runs[datum.value]" },
    },
    columns: perRow,
    // Where the last row is not full, shared axes would be drawn under no panel.
    resolve: { axis: { x: perRow * rows === checkpoints.length ? "shared" : "independent" } },
    spacing: 14,
    config: { facet: { spacing: 14 } },
    spec: {
      width: cell.x * kinds.length,
      height: cell.y * layers.length,
      mark: { type: "rect", aria: false, cursor: "pointer", strokeWidth: 2 },
      encoding: {
        x: {
          field: "column",
          type: "nominal",
          title: null,
          sort: columns,
          scale: { domain: columns, padding: 0.04 },
          axis: {
            labelExpr: "kinds[datum.value]",
            labelAngle: -90,
            labelOverlap: false,
            labelLimit: 110,
          },
        },
        y: {
          field: "layer",
          type: "ordinal",
          title: "layer",
          sort: layers,
          scale: { domain: layers, padding: 0.04 },
          axis: { values: layers.filter((_, n) => n % every === 0) },
        },
        color: {
          field: "v",
          type: "quantitative",
          title: measure.label,
          scale: {
            scheme: "viridis",
            nice: false,
            ...(measure.log ? { type: "log" } : { type: "linear", zero: false }),
          },
          legend: {
            orient: "top",
            gradientLength: Math.min(260, width - 60),
            format: ".3~g",
            titleLimit: 260,
          },
        },
        opacity: { condition: { test: "kept === null || kept[datum.id]", value: 1 }, value: 0.15 },
        stroke: { condition: { test: "chosen[datum.id]", value: "#E8336D" }, value: null },
        tooltip: [
          { field: "checkpoint" },
          { field: "module" },
          { field: "v", title: measure.label, format: ".4g" },
        ],
      },
    },
  };
}

function phiSpec({ theme, width, k, most, title }) {
  const size = Math.max(18, Math.min(38, Math.floor((Math.min(width, 900) - 130) / 2 / k)));
  const axis = { labelAngle: 0, ticks: false };
  return {
    description: title,
    data: { name: "grid", values: [] },
    facet: {
      column: {
        field: "side",
        type: "nominal",
        title: null,
        sort: ["left (output)", "right (input)"],
      },
    },
    spec: {
      width: size * k,
      height: size * k,
      encoding: {
        x: { field: "j", type: "ordinal", title: "j, of the second", axis },
        y: { field: "i", type: "ordinal", title: "i, of the first", axis },
      },
      layer: [
        {
          mark: { type: "rect", aria: false },
          encoding: {
            color: {
              field: "v",
              type: "quantitative",
              title: "φ − chance",
              scale: { scheme: "purpleorange", domain: [-most, most], domainMid: 0, reverse: true },
              legend: { orient: "top", format: ".2~f", values: [-most, 0, most] },
            },
            tooltip: [
              { field: "i" },
              { field: "j" },
              { field: "phi", title: "φ", format: ".3f" },
              { field: "chance", format: ".3f" },
            ],
          },
        },
        ...(size >= 26
          ? [
              {
                mark: { type: "text", fontSize: 10, aria: false },
                encoding: {
                  text: { field: "v", type: "quantitative", format: ".2f" },
                  color: {
                    condition: { test: `abs(datum.v) > ${0.6 * most}`, value: "#ffffff" },
                    value: "#111111",
                  },
                },
              },
            ]
          : []),
      ],
    },
  };
}

function landingSpec({ model, theme, width, checkpoints, title }) {
  const look = looks(checkpoints, theme);
  const x = {
    field: "decile",
    type: "ordinal",
    title: "tenth of W0's singular vectors, largest first",
    axis: { labelAngle: 0 },
  };
  const y = (field) => ({ field, type: "quantitative", title: "share of ΔW's energy" });
  const legend =
    checkpoints.length < 2
      ? null
      : {
          title: null,
          labelExpr: "runs[datum.value]",
          orient: "top",
          columns: 1,
          symbolType: "stroke",
        };
  const color = { field: "c", type: "nominal", scale: look.color, legend };
  return {
    description: title,
    data: { name: "shares", values: [] },
    params: [runLabels(model, 44)],
    facet: {
      field: "side",
      type: "nominal",
      title: null,
      sort: ["left (output)", "right (input)"],
    },
    columns: width < 700 ? 1 : 2,
    spec: {
      width: Math.min(360, (width < 700 ? width : width / 2) - 80),
      height: 220,
      encoding: { x },
      layer: [
        {
          mark: { type: "line", color: THEMES[theme].band, strokeDash: [2, 3], aria: false },
          encoding: { y: y("chance"), detail: { field: "c" } },
        },
        {
          mark: { type: "line", point: { size: 30 }, aria: false },
          encoding: {
            y: y("v"),
            color,
            strokeDash: { field: "c", type: "nominal", scale: look.dash, legend },
          },
        },
      ],
    },
  };
}

// A name of at most n characters, shortened in the middle: names often differ at the end.
function shortened(name, n) {
  const letters = [...name];
  if (letters.length <= n) return name;
  const end = Math.ceil((n - 1) * 0.6);
  return `${letters.slice(0, n - 1 - end).join("")}…${letters.slice(-end).join("")}`;
}

// Compile and draw; later calls with the same specification only exchange the data.
class Picture {
  constructor(place) {
    this.place = place;
    this.made = null;
    this.view = null;
  }

  draw(spec, data, { theme, signals = {}, onClick = null, renderer = "svg" }) {
    this.spec = spec;
    this.data = data;
    const made = JSON.stringify([spec, theme, renderer]);
    if (made !== this.made) {
      this.view?.finalize();
      this.view = viewOf(spec, theme, { renderer, container: this.place, hover: true });
      if (onClick)
        this.view.addEventListener("click", (_, item) => item?.datum && onClick(item.datum));
      this.made = made;
    }
    for (const [name, rows] of Object.entries(data)) this.view.data(name, rows);
    for (const [name, value] of Object.entries(signals)) this.view.signal(name, value);
    this.view.run();
  }

  signal(values) {
    if (!this.view) return;
    for (const [name, value] of Object.entries(values)) this.view.signal(name, value);
    this.view.run();
  }

  // The picture in light colours, whatever the screen has.
  async svg(spec) {
    const view = viewOf(spec, "light", { renderer: "none" });
    for (const [name, rows] of Object.entries(this.data))
      view.data(
        name,
        rows.map((row) => ({ ...row })),
      );
    await view.runAsync();
    return view.toSVG();
  }
}

function viewOf(spec, theme, options) {
  const compiled = vegaLite.compile({ ...spec, config: { ...config(theme), ...spec.config } }).spec;
  return new vega.View(vega.parse(compiled, null, { ast: true }), {
    expr: vegaInterpreter.expressionInterpreter,
    loader: refuse,
    logLevel: vega.Warn,
    ...options,
  });
}

// A loader that loads nothing.
const refuse = {
  load: () => Promise.reject(new Error("this page fetches nothing")),
  sanitize: () => Promise.reject(new Error("this page fetches nothing")),
  http: () => Promise.reject(new Error("this page fetches nothing")),
  file: () => Promise.reject(new Error("this page fetches nothing")),
};
