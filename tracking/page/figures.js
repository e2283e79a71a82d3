// How charts look, what colour a setting has everywhere, legends, and charts as SVG and CSV.

const FEW = 12; // so many lines can be told apart by a legend
const IS_TOUCH = matchMedia("(pointer: coarse)").matches;
const OPTIONS = { responsive: false, displaylogo: false, displayModeBar: false };
let isPrinting = false;
// Light colours, also where the reader's are dark: on paper and in files.
let isLight = false;
function setLight(wanted) {
  isLight = wanted;
  document.documentElement.classList.toggle("light", wanted);
}

// Colours that people with colour blindness can tell apart, on white and on black; more values than
// that go from dark to light in their order.
const PALETTE = {
  light: ["#1f5fa8", "#d96f00", "#2c8a4b", "#c23b55", "#7b5ab5", "#8a6a3a", "#0b8794", "#b94fa5", "#646c78", "#868400"],
  dark: ["#6fa8f0", "#f39a3d", "#5fc27f", "#f0738a", "#b296ec", "#c9a56d", "#4fc4d1", "#e58fd3", "#a5aebb", "#c9c64a"],
};
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [222, 200, 40]];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "star", "cross"];

function isDark() { return !isLight && matchMedia("(prefers-color-scheme: dark)").matches; }
function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function colours(names) {
  const palette = PALETTE[isDark() ? "dark" : "light"];
  const at = (index) => {
    if (names.length <= palette.length) return palette[index];
    const place = (index / (names.length - 1)) * (RAMP.length - 1);
    const low = Math.min(Math.floor(place), RAMP.length - 2);
    return `rgb(${RAMP[low].map((c, i) => Math.round(c + (RAMP[low + 1][i] - c) * (place - low)))})`;
  };
  return new Map(names.map((name, index) => [name, at(index)]));
}
function see_through(colour, share = 0.15) {
  if (colour.startsWith("rgb(")) return colour.replace("rgb(", "rgba(").replace(")", `,${share})`);
  return colour + Math.round(share * 255).toString(16).padStart(2, "0");
}

// Colour, dash and symbol of each setting, the same in every chart and whatever the filter leaves:
// the colour is that of a key's value, dash and symbol tell settings of one colour apart.
function styles(key) {
  const at = DATA.keys.indexOf(key);
  const first = DATA.groups.map((_, group) => RUNS.find((run) => run.group === group));
  const nameOf = (group) => (at < 0 ? NAMES[group] : text(first[group].values[at]));
  const names = [...new Set(DATA.groups.map((_, group) => nameOf(group)))];
  if (at >= 0) names.sort(byValue);
  const colour = colours(names), met = new Map();
  const of = DATA.groups.map((_, group) => {
    const name = nameOf(group), turn = met.get(name) ?? 0;
    met.set(name, turn + 1);
    return { name, colour: colour.get(name), dash: DASHES[turn % DASHES.length], symbol: SYMBOLS[turn % SYMBOLS.length] };
  });
  return { key: at < 0 ? "" : key, names, colour, of };
}
// A legend of the colours alone, for charts of more settings than a legend can name.
function colourLegend(style, sets) {
  const shown = new Set(sets.map((set) => style.of[set.group].name)), names = style.names.filter((name) => shown.has(name));
  if (names.length < 2 || names.length > 24) return [];
  return names.map((name) => ({ label: style.key ? `${shortKey(style.key)} ${name}` : name, colour: style.colour.get(name), mark: "square" }));
}

function axis(title, unit = "", more = {}) {
  const si = unit === "B" || unit === "J" ? { exponentformat: "SI", ticksuffix: unit } : {};
  const ticks = ["s", "min", "h"].includes(unit) ? { ticksuffix: ` ${unit}`, separatethousands: true } : si;
  return {
    title: { text: title, standoff: 8 }, gridcolor: css("--line"), zeroline: false, linecolor: css("--edge"), ticks: "outside",
    tickcolor: css("--edge"), automargin: true, ...ticks, ...more,
  };
}
// Every tick of a logarithmic axis with its unit.
function logTicks(least, most, write) {
  const values = [];
  const steps = most / least > 300 ? [1] : most / least > 30 ? [1, 3] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(least)); 10 ** power <= most * 2; power++) {
    for (const step of steps) if (step * 10 ** power >= least / 2 && step * 10 ** power <= most * 2) values.push(step * 10 ** power);
  }
  return { type: "log", tickmode: "array", tickvals: values, ticktext: values.map(write) };
}

function layout(more) {
  return {
    margin: { l: 60, r: 14, t: 10, b: 46 }, paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"), hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") }, showlegend: false,
    dragmode: IS_TOUCH ? false : "zoom",
    hoverlabel: { align: "left", namelength: -1, bgcolor: css("--faint"), bordercolor: css("--edge"), font: { color: css("--ink"), size: 12 } }, ...more,
  };
}

// A figure: the chart, its legend, and buttons. `content` is what a screen reader says of it, what
// the legend names, and its numbers as rows.
const FIGURES = new Map();
function figure(place) {
  if (FIGURES.has(place)) return FIGURES.get(place);
  const chart = element("div", "", "chart"), legend = element("ul", "", "legend"), tools = element("div", "", "tools");
  chart.id = place.id.replace("-figure", "-chart");
  chart.setAttribute("role", "img");
  const made = { chart, legend, hidden: new Set() };
  for (const [name, click] of [["SVG", () => saveSvg(made)], ["CSV", () => saveCsv(made)]]) {
    const button = element("button", name);
    button.type = "button";
    button.title = `Save this figure as ${name}`;
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", click);
    tools.append(button);
  }
  const foot = element("div", "", "foot");
  foot.append(legend, tools);
  place.replaceChildren(chart, foot);
  FIGURES.set(place, made);
  return made;
}

function draw(place, traces, more, content) {
  const made = figure(typeof place === "string" ? document.getElementById(place) : place);
  const shown = traces.filter((trace) => !made.hidden.has(trace.legendgroup));
  const empty = traces.length ? {} : {
    annotations: [{ text: "nothing to show", showarrow: false, font: { color: css("--quiet") } }],
    xaxis: { visible: false }, yaxis: { visible: false },
  };
  if (more.height) made.chart.style.height = `${more.height}px`;
  Object.assign(made, { content, layout: layout({ ...more, ...empty }) });
  made.chart.setAttribute("aria-label", `${content.title}. ${content.said ?? ""}`);
  Plotly.react(made.chart, shown, { ...made.layout, width: made.chart.clientWidth, height: made.chart.clientHeight }, OPTIONS);
  fillLegend(made.legend, content.legend ?? [], made.hidden, () => draw(place, traces, more, content));
  return made.chart;
}

function swatch({ colour, dash, symbol, mark, share }) {
  const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "0 0 22 12");
  svg.setAttribute("aria-hidden", "true");
  const add = (tag, attributes) => {
    const made = document.createElementNS(space, tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    svg.append(made);
  };
  const lengths = { dash: "6 3", dot: "1.5 2.5", dashdot: "6 2 1.5 2", longdash: "9 3", longdashdot: "9 2 1.5 2" }[dash];
  if (mark === "square") add("rect", { x: 5, y: 0, width: 12, height: 12, rx: 2, fill: see_through(colour, share ?? 1), stroke: colour });
  else add("line", { x1: 0, x2: 22, y1: 6, y2: 6, stroke: colour, "stroke-width": 2, ...(lengths ? { "stroke-dasharray": lengths } : {}) });
  const shapes = {
    circle: "M7 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0", square: "M7.500 2.500h7v7h-7z", diamond: "M11 1l5 5l-5 5l-5-5z", "triangle-up": "M11 1.500l4.500 8h-9z",
    "triangle-down": "M11 10.500l4.500-8h-9z", pentagon: "M11 1.500l4.500 3.300l-1.700 5.200h-5.600l-1.700-5.200z",
    star: "M11 .5l1.500 3.600l3.900.3l-3 2.500l1 3.800l-3.400-2.100l-3.400 2.100l1-3.800l-3-2.500l3.900-.3z", cross: "M9.500 1.500h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
  };
  if (symbol && mark !== "line") add("path", { d: shapes[symbol], fill: colour });
  return svg;
}

function fillLegend(list, entries, hidden, again) {
  list.replaceChildren(...entries.map((entry) => {
    const item = element("li", ""), isSwitch = entry.group !== undefined && again;
    const label = element(isSwitch ? "button" : "span", "");
    label.append(swatch(entry), entry.label);
    if (isSwitch) {
      label.type = "button";
      label.title = "show or hide";
      label.setAttribute("aria-pressed", String(!hidden.has(entry.group)));
      label.addEventListener("click", () => {
        if (!hidden.delete(entry.group)) hidden.add(entry.group);
        again();
        list.children[entries.indexOf(entry)].firstChild.focus();
      });
    }
    item.append(label);
    return item;
  }));
}

// Labels beside points, each where it touches neither a point nor a bar nor another label; further
// away with a line. `points` are {x, y, sd, text, colour}; those without text are not written on.
function labelled(chart, points) {
  const { xaxis, yaxis } = chart._fullLayout;
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const at = points.map((p) => ({ ...p, px: xaxis.d2p(p.x), py: yaxis.d2p(p.y), w: pen.measureText(p.text).width + 6, h: 14 }));
  const taken = at.map((p) => ({ l: p.px - 6, r: p.px + 6, t: p.py - 6, b: p.py + 6 }));
  for (const p of at) if (p.sd) taken.push({ l: p.px - 2, r: p.px + 2, t: yaxis.d2p(p.y + p.sd), b: yaxis.d2p(p.y - p.sd) });
  const overlap = (a, b) => Math.max(0, Math.min(a.r, b.r) - Math.max(a.l, b.l)) * Math.max(0, Math.min(a.b, b.b) - Math.max(a.t, b.t));
  // How much a line to a label runs over other points.
  const crossed = (p, cx, cy) => at.filter((q) => q !== p && [0.35, 0.6, 0.85].some((t) => Math.hypot(p.px + t * (cx - p.px) - q.px, p.py + t * (cy - p.py) - q.py) < 10)).length;
  const annotations = [];
  for (const p of at.filter((one) => one.text).sort((a, b) => a.py - b.py)) {
    let best = null;
    for (const far of [0, 16, 34, 56, 82, 112]) {
      for (const [sx, sy] of [[1, 0], [-1, 0], [1, -1], [-1, -1], [1, 1], [-1, 1], [0, -1], [0, 1]]) {
        const cx = p.px + sx * (p.w / 2 + 9 + far * (sy ? 0.7 : 1)), cy = p.py + sy * (14 + far * (sx ? 0.7 : 1));
        const box = { l: cx - p.w / 2, r: cx + p.w / 2, t: cy - p.h / 2, b: cy + p.h / 2 };
        const outside = Math.max(0, 2 - box.l) + Math.max(0, box.r - xaxis._length) + Math.max(0, -box.t) + Math.max(0, box.b - yaxis._length);
        const cost = taken.reduce((sum, other) => sum + overlap(box, other), 0) + 40 * outside + far * 0.6 + (far ? 60 * crossed(p, cx, cy) : 0);
        if (!best || cost < best.cost) best = { cost, box, cx, cy, far };
      }
      if (best.cost < far * 0.6 + 0.01) break;
    }
    taken.push(best.box);
    annotations.push({
      x: xaxis.type === "log" ? Math.log10(p.x) : p.x, y: p.y, ax: best.cx - p.px, ay: best.cy - p.py, text: plain(p.text), showarrow: true,
      arrowhead: 0, arrowwidth: best.far ? 0.8 : 0.01, arrowcolor: best.far ? css("--edge") : "rgba(0,0,0,0)", standoff: 6, font: { size: 11, color: p.colour },
      borderpad: 1,
    });
  }
  Plotly.relayout(chart, { annotations });
}

// A figure as a file, legend included, light whatever the page is.
function save(name, type, content) {
  const link = element("a", "");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function fileName(made, ending) {
  return `${made.content.title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60)}.${ending}`;
}
async function saveSvg(made) {
  const wasDark = isDark();
  if (wasDark) { setLight(true); restyle(); }
  const { chart, content } = made, entries = content.legend ?? [];
  const width = Math.max(640, chart.clientWidth), height = chart.clientHeight, perRow = Math.max(1, Math.floor(width / 240));
  const rows = Math.ceil(entries.length / perRow), extra = rows * 18 + 8;
  const url = await Plotly.toImage({ data: chart.data, layout: { ...chart.layout, width, height }, config: {} }, { format: "svg", width, height });
  const svg = new DOMParser().parseFromString(decodeURIComponent(url.slice(url.indexOf(",") + 1)), "image/svg+xml").documentElement;
  svg.setAttribute("height", height + extra);
  svg.setAttribute("viewBox", `0 0 ${width} ${height + extra}`);
  const add = (parent, tag, attributes, inner = "") => {
    const one = svg.ownerDocument.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => one.setAttribute(name, value));
    one.textContent = inner;
    parent.append(one);
    return one;
  };
  add(svg, "rect", { x: 0, y: height, width, height: extra, fill: css("--paper") });
  entries.forEach((entry, i) => {
    const x = 20 + (i % perRow) * (width - 30) / perRow, y = height + 4 + Math.floor(i / perRow) * 18;
    const mark = svg.ownerDocument.importNode(swatch(entry), true);
    for (const [name, value] of Object.entries({ x, y, width: 22, height: 12 })) mark.setAttribute(name, value);
    svg.append(mark);
    add(svg, "text", { x: x + 28, y: y + 10, "font-size": 11, "font-family": "sans-serif", fill: css("--ink") }, entry.label);
  });
  save(fileName(made, "svg"), "image/svg+xml", new XMLSerializer().serializeToString(svg));
  if (wasDark) { setLight(false); restyle(); }
}
// What a spreadsheet would compute is marked as text, as in summary.csv.
function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const safe = /^ *[=+\-@\t\r\n＝＋－＠]/.test(value) && isNaN(value) ? `'${value}` : value;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
function saveCsv(made) {
  const rows = made.content.rows();
  save(fileName(made, "csv"), "text/csv", rows.map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n");
}

function element(tag, content, className = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  if (className) made.className = className;
  return made;
}
