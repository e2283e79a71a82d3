// The charts. Each takes the runs that the filter leaves and what the reader chose.

const INK = "#1c2430", GRID = "#e8ebef";
const FEW = 10; // so many lines can be told apart by a legend
const MOST_BANDS = 6; // more of them hide each other
const IS_TOUCH = matchMedia("(pointer: coarse)").matches;
const OPTIONS = {
  responsive: true, displaylogo: false, displayModeBar: IS_TOUCH ? false : "hover",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};

function axis(title, unit = "", more = {}) {
  const bytes = unit === "B" ? { exponentformat: "SI", ticksuffix: "B" } : {};
  return {
    title: { text: title, standoff: 8 }, gridcolor: GRID, zeroline: false, linecolor: "#aab2bd", ticks: "outside",
    tickcolor: "#aab2bd", automargin: true, ...bytes, ...more,
  };
}

function layout(more) {
  return {
    margin: { l: 56, r: 12, t: 10, b: 44 }, paper_bgcolor: "#fff", plot_bgcolor: "#fff", hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: INK },
    legend: { orientation: "h", y: -0.18, yanchor: "top", x: 0, xanchor: "left", font: { size: 12 } },
    dragmode: IS_TOUCH ? false : "zoom", hoverlabel: { align: "left", namelength: -1 }, ...more,
  };
}

function draw(id, traces, more) {
  const place = typeof id === "string" ? document.getElementById(id) : id;
  const empty = traces.length ? {} : {
    annotations: [{ text: "nothing to show", showarrow: false, font: { color: "#5b6675" } }],
    xaxis: { visible: false }, yaxis: { visible: false },
  };
  Plotly.react(place, traces, layout({ ...more, ...empty }), OPTIONS);
}

// What a group of runs is coloured by: a swept key's value, or "" for the group itself.
function colouring(sets, key) {
  const at = DATA.keys.indexOf(key);
  const name = (set) => (at < 0 ? set.label : text(set.runs[0].values[at]));
  const names = [...new Set(sets.map(name))];
  if (at >= 0) names.sort(byValue);
  return { name, names, colour: colours(names) };
}

// Course: one line per set; sets of one colour share a trace, so that 200 runs stay quick.
function drawCurves(sets, choice) {
  const { name, names, colour } = colouring(sets, choice.colour);
  const [y, x] = [choice.y, AXES.find((a) => a.key === choice.x)];
  const traces = [];
  for (const one of names) {
    const line = {
      type: "scatter", mode: "lines", name: plain(one), x: [], y: [], text: [], line: { color: colour.get(one), width: sets.length > FEW ? 1.2 : 1.8 },
      hovertemplate: `%{text}<br>${x.key} %{x}<br>${plain(y)} %{y:.5~g}<extra></extra>`, legendgroup: one,
    };
    const band = {
      type: "scatter", mode: "lines", fill: "toself", fillcolor: see_through(colour.get(one)), x: [], y: [],
      line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: one,
    };
    for (const set of sets.filter((s) => name(s) === one)) {
      const points = course(set.runs, x.key, y);
      if (!points.length) continue;
      line.x.push(...points.map((p) => p.x), null);
      line.y.push(...points.map((p) => p.y), null);
      line.text.push(...points.map(() => plain(set.label)), "");
      if (points.length === 1) line.mode = "lines+markers";
      if (set.runs.length < 2 || sets.length > MOST_BANDS) continue;
      const back = [...points].reverse();
      band.x.push(...points.map((p) => p.x), ...back.map((p) => p.x), null);
      band.y.push(...points.map((p) => p.y + p.sd), ...back.map((p) => p.y - p.sd), null);
    }
    if (band.x.length) traces.push(band);
    if (line.x.length) traces.push(line);
  }
  draw("curves-chart", traces, {
    xaxis: axis(x.title ?? x.name, x.unit, { rangemode: "tozero" }), yaxis: axis(y.replaceAll("_", " ")),
    showlegend: names.length > 1 && names.length <= 2 * FEW,
  });
}

// Mean and deviation over the runs at each round that all of them have evaluated.
function course(runs, x, y) {
  const usable = runs.filter((run) => x in run.rounds && y in run.rounds);
  const length = Math.min(...usable.map((run) => run.rounds.round.length));
  const points = [];
  for (let i = 0; usable.length && i < length; i++) {
    const values = usable.map((run) => run.rounds[y][i]);
    if (values.includes(null)) continue;
    points.push({ x: mean(usable.map((run) => run.rounds[x][i])), y: mean(values), sd: deviation(values) });
  }
  return points;
}

function drawFront(sets, choice) {
  const price = MEASURES.find((m) => m.key === choice.price);
  const { name, names, colour } = colouring(sets, choice.colour);
  const points = sets.map((set) => {
    const runs = set.runs.filter((run) => of(run, price.key) !== null && of(run, "final_accuracy") !== null);
    if (!runs.length) return null;
    const accuracies = runs.map((run) => of(run, "final_accuracy"));
    return {
      set, x: mean(runs.map((run) => of(run, price.key))), y: mean(accuracies), sd: deviation(accuracies), n: runs.length,
    };
  }).filter(Boolean);
  const front = pareto(points);
  const xs = points.map((p) => p.x), [least, most] = [Math.min(...xs), Math.max(...xs)];
  const isLog = least > 0 && most > 20 * least, middle = isLog ? Math.sqrt(least * most) : (least + most) / 2;
  const isLabelled = points.length <= FEW; // away from the nearer edge, where there is room
  const traces = front.length > 1 ? [{
    type: "scatter", mode: "lines", x: front.map((p) => p.x), y: front.map((p) => p.y), name: "Pareto front",
    line: { shape: "hv", dash: "dot", color: "#6d7581", width: 1.5 }, hoverinfo: "skip",
  }] : [];
  for (const one of names) {
    const mine = points.filter((p) => name(p.set) === one);
    if (!mine.length) continue;
    traces.push({
      type: "scatter", mode: isLabelled ? "markers+text" : "markers", name: plain(one), x: mine.map((p) => p.x), y: mine.map((p) => p.y),
      error_y: { type: "data", array: mine.map((p) => p.sd), visible: mine.some((p) => p.sd), thickness: 1, width: 3 },
      hovertext: mine.map((p) => `${plain(p.set.label)}<br>accuracy ${share(p.y)}${p.n > 1 ? ` ± ${share(p.sd)}` : ""}` +
        `<br>${price.name} ${price.write(p.x)}`),
      hovertemplate: "%{hovertext}<extra></extra>", cliponaxis: false, textfont: { size: 11 },
      text: mine.map((p) => plain(brief(p.set.runs[0]))),
      textposition: mine.map((p) => (p.x >= middle ? "top left" : "top right")),
      marker: {
        color: colour.get(one), size: 9,
        symbol: mine.map((p) => (front.includes(p) ? "circle" : "circle-open")),
      },
    });
  }
  const scale = isLog ? { type: "log" } : most < 1.01 * least ? { rangemode: "tozero" } : {}; // no telescope on what is the same
  const ys = points.map((p) => p.y), [low, high] = [Math.min(...ys), Math.max(...ys)];
  const level = high - low < 0.005 && points.every((p) => !(p.sd > 0.04)) ? { range: [low - 0.05, high + 0.05] } : {}; // nor a whole unit
  draw("front-chart", traces, {
    xaxis: axis(price.name, price.unit, scale), yaxis: axis("final accuracy", "", level),
    showlegend: traces.length > 1 && names.length <= 2 * FEW,
  });
  const list = front.map((p) => `${p.set.label} (${share(p.y)}, ${price.write(p.x)})`).join(" · ");
  document.getElementById("front-list").textContent = front.length ? `Filled, on the front: ${list}` : "";
}

// Points that none is both cheaper and better than, by rising price.
function pareto(points) {
  const byPrice = [...points].sort((a, b) => a.x - b.x || b.y - a.y);
  let best = -Infinity;
  return byPrice.filter((point) => point.y > best && ((best = point.y), true));
}

const EFFECTS = DATA.keys.filter((key) => key !== "seed");
function drawEffects(sets, choice) {
  const measure = MEASURES.find((m) => m.key === choice.effect);
  const place = document.getElementById("effects-charts");
  while (place.children.length < EFFECTS.length) place.append(element("div", "", "chart"));
  EFFECTS.forEach((key, i) => drawEffect(place.children[i], key, measure, sets, choice.colour));
}

function drawEffect(place, key, measure, sets, colourKey) {
  const at = DATA.keys.indexOf(key), others = DATA.keys.filter((k) => k !== key && k !== "seed");
  const rest = (run) => others.map((k) => [k, run.values[DATA.keys.indexOf(k)]]).filter(([, v]) => v !== null)
    .map(([k, v]) => `${k}=${text(v)}`).join(" ") || "all else equal";
  const lines = new Map(), values = new Set();
  for (const set of sets) {
    const found = set.runs.map((run) => of(run, measure.key)).filter((v) => v !== null);
    if (!found.length) continue;
    const run = set.runs[0], line = rest(run), value = text(run.values[at]);
    if (!lines.has(line)) lines.set(line, { run, points: [] });
    lines.get(line).points.push({ value, y: mean(found), sd: deviation(found) });
    values.add(value);
  }
  const inOrder = [...values].sort(byValue), read = inOrder.filter((v) => v !== "–");
  const names = [...lines.keys()], colour = colours(names), byKey = colouring(sets, colourKey);
  const isByKey = DATA.keys.includes(colourKey) && colourKey !== key;
  const paint = ([line, { run }]) => (isByKey ? byKey.colour.get(byKey.name({ runs: [run] }))
    : names.length > FEW ? "#8b949e" : colour.get(line));
  const traces = [];
  for (const entry of lines) {
    const [line, { points }] = entry;
    const unread = points.filter((p) => p.value === "–"), told = points.filter((p) => p.value !== "–");
    told.sort((a, b) => byValue(a.value, b.value));
    const shared = {
      type: "scatter", name: plain(line), legendgroup: line, text: points.map(() => plain(line)),
      hovertemplate: `%{text}<br>${measure.name} %{y:.5~g}<extra></extra>`,
    };
    if (told.length) traces.push({
      ...shared, mode: "lines+markers", x: told.map((p) => p.value), y: told.map((p) => p.y),
      error_y: { type: "data", array: told.map((p) => p.sd), visible: told.some((p) => p.sd), thickness: 1, width: 3 },
      line: { color: paint(entry), width: 1.5 }, marker: { size: 6 },
    });
    const across = read.length ? read : inOrder;
    for (const point of unread) traces.push({
      ...shared, mode: across.length > 1 ? "lines" : "markers", x: across, y: across.map(() => point.y),
      text: across.map(() => plain(line)), line: { color: paint(entry), width: 1.5, dash: "dot" }, marker: { color: paint(entry) },
      showlegend: !told.length,
    });
  }
  draw(place, traces, {
    margin: { l: 52, r: 8, t: 30, b: 30 }, title: { text: plain(key), font: { size: 13 }, x: 0, xref: "paper", y: 0.97 },
    xaxis: axis("", "", { type: "category", categoryorder: "array", categoryarray: read.length ? read : inOrder }),
    yaxis: axis(measure.short, measure.unit), showlegend: traces.length > 1 && names.length <= 5,
    legend: { orientation: "h", y: -0.14, yanchor: "top", x: 0, xanchor: "left", font: { size: 11 } },
  });
}

const MOST_BOXES = 12;
function drawClients(sets, choice) {
  const measure = CLIENT_MEASURES.find((m) => m.key === choice.client);
  const shown = sets.filter((set) => set.runs.some((run) => Object.keys(run.clients).length)).slice(0, MOST_BOXES);
  const isNarrow = document.body.clientWidth < 640;
  const label = (set) => plain(set.label).replaceAll(" ", isNarrow ? "<br>" : " ");
  const boxes = new Map(); // one trace per device class, or one for all
  for (const set of [...shown].reverse()) {
    for (const run of set.runs) for (const [device, found] of Object.entries(run.clients)) {
      const trace = choice.byDevice ? device || "no class" : "";
      if (!boxes.has(trace)) boxes.set(trace, { x: [], y: [] });
      const values = found[measure.key] ?? [];
      boxes.get(trace).x.push(...values);
      boxes.get(trace).y.push(...values.map(() => label(set)));
    }
  }
  const names = [...boxes.keys()].sort(byValue), colour = colours(names);
  const traces = names.filter((name) => boxes.get(name).x.length).map((name) => ({
    type: "box", orientation: "h", name: plain(name), ...boxes.get(name), boxpoints: "outliers",
    line: { width: 1.2, color: colour.get(name) }, marker: { size: 3, opacity: 0.6 }, hoverinfo: "x+y",
  }));
  const lines = Math.max(1, ...(isNarrow ? shown.map((set) => set.label.split(" ").length) : []));
  const height = 90 + shown.length * Math.max(12 + 14 * lines, choice.byDevice ? 12 + 13 * names.length : 0);
  const place = document.getElementById("clients-chart");
  place.style.height = `${Math.max(220, height)}px`;
  draw(place, traces, {
    xaxis: axis(measure.name, measure.unit), yaxis: axis("", "", { type: "category", tickfont: { size: 11 } }),
    boxmode: "group", boxgap: 0.25, showlegend: choice.byDevice && names.length > 1, height: Math.max(220, height),
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
  });
  const left = sets.length - shown.length;
  document.getElementById("clients-note").textContent =
    "A box holds the middle half of the clients, the whiskers the rest but for outliers." +
    (left > 0 ? ` The first ${shown.length} of ${sets.length}; the filter chooses others.` : "");
}
