// Course, accuracy against price, and effects. Each takes the sets of runs that the filter leaves.

const MOST_BANDS = 6; // more of them hide each other
const BAR = { thickness: 1, width: 3 };

// Course: one line per set; beyond FEW, sets of one colour share a trace, so that 200 runs stay quick.
function drawCurves(sets, choice, style) {
  const [y, x] = [choice.y, AXES.find((a) => a.key === choice.x)], title = courseName(y);
  const lines = ranked(sets).map((set) => ({ set, points: course(set.runs, x.key, y), ...style.of[set.group] })).filter((l) => l.points.length);
  const isFew = lines.length <= FEW, same = identical(lines), isTwice = new Set(same.values()); // a thin line on a wide one
  const [factor, unit] = x.unit === "s" ? timeScale(Math.max(0, ...lines.map((l) => l.points.at(-1).x))) : [1, x.unit];
  const traces = [], bands = [], legend = [];
  const shared = new Map(), met = new Map();
  for (const one of lines) {
    const twin = same.get(one), again = met.get(one.set.group) ?? 0;
    met.set(one.set.group, again + 1);
    const [xs, ys] = [one.points.map((p) => p.x / factor), one.points.map((p) => p.y)];
    const group = isFew ? one.set.label : one.name;
    let trace = isFew ? null : shared.get(one.name);
    if (!trace) {
      trace = {
        type: "scatter", mode: "lines", name: plain(isFew ? one.set.name : one.name), x: [], y: [], text: [], legendgroup: group,
        line: { color: one.colour, width: isFew ? (twin ? 1.4 : isTwice.has(one) ? 4.5 : 2) : 1.1, dash: isFew ? one.dash : "solid" },
        opacity: isFew ? 1 : lines.length > 60 ? 0.55 : 0.8,
        hovertemplate: `%{text}<br>${x.name} %{x}<br>${plain(title)} %{y:.5~g}<extra></extra>`,
      };
      shared.set(one.name, trace);
      traces.push(trace);
      if (isFew) legend.push({ group, label: one.set.name + (twin ? ` (same curve as ${twin.set.name})` : ""), colour: one.colour, dash: trace.line.dash });
    }
    trace.x.push(...xs, null);
    trace.y.push(...ys, null);
    trace.text.push(...ys.map(() => plain(one.set.name)), "");
    if (ys.length === 1) trace.mode = "lines+markers";
    if (one.set.runs.length < 2 || lines.length > MOST_BANDS || twin) continue;
    const back = [...one.points].reverse();
    bands.push({
      type: "scatter", mode: "lines", fill: "toself", fillcolor: see_through(one.colour, 0.13), legendgroup: group,
      x: [...xs, ...back.map((p) => p.x / factor)], y: [...one.points.map((p) => p.y + p.sd), ...back.map((p) => p.y - p.sd)],
      line: { width: 0 }, hoverinfo: "skip",
    });
  }
  const ends = lines.slice(0, 5).map((l) => `${l.set.name} ends at ${number(l.points.at(-1).y)}`).join("; ");
  const rounds = x.key === "round" ? { tickformat: "d", ...(Math.max(0, ...lines.map((l) => l.points.length)) < 8 ? { dtick: 1 } : {}) } : {};
  draw("curves-figure", [...bands, ...traces], {
    xaxis: axis(x.title ?? x.name, unit, { rangemode: "tozero", ...rounds }), yaxis: axis(title),
  }, {
    title: `${title} over ${x.name}`, said: `${lines.length} lines. ${ends}.`, legend: isFew ? (lines.length > 1 ? legend : []) : colourLegend(style, lines.map((l) => l.set)),
    rows: () => [["setting", x.unit ? `${x.name} (${x.unit})` : x.name, title, "sd"], ...lines.flatMap((l) => l.points.map((p) => [l.set.label, p.x, p.y, p.sd]))],
  });
  const twins = [...same].map(([one, first]) => `${one.set.name} = ${first.set.name}`);
  by("curves-note").textContent = [
    IS_MIXED && x.key === "round" ? mixedLine() : "",
    sets.some((s) => s.runs.length > 1) ? `Mean over seeds${x.key === "round" ? "" : `, round by round, at their mean ${x.name}`}${lines.length <= MOST_BANDS ? "; the band is one standard deviation" : ""}.` : "",
    isFew || !twins.length ? "" : `Identical curves: ${twins.slice(0, 6).join("; ")}${twins.length > 6 ? ` and ${twins.length - 6} more` : ""}.`,
  ].filter(Boolean).join(" ");
}

// Which lines lie on one before them, point by point.
function identical(lines) {
  const first = new Map(), same = new Map();
  for (const one of lines) {
    const shape = JSON.stringify(one.points.map((p) => [p.x, p.y].map((v) => Number(v.toPrecision(5)))));
    if (first.has(shape)) same.set(one, first.get(shape)); else first.set(shape, one);
  }
  return same;
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

// Few points at one price stand side by side, so that their bars can be seen; of many, those that are
// named have bars.
function drawFront(sets, choice, style) {
  const price = MEASURES.find((m) => m.key === choice.price);
  const points = sets.map((set) => {
    const runs = set.runs.filter((run) => run.status !== "failed" && of(run, price.key) !== null && of(run, "final_accuracy") !== null);
    if (!runs.length) return null;
    const accuracies = runs.map((run) => of(run, "final_accuracy"));
    return { set, x: mean(runs.map((run) => of(run, price.key))), y: mean(accuracies), sd: deviation(accuracies), n: runs.length, ...style.of[set.group] };
  }).filter(Boolean);
  const front = pareto(points), isOn = new Set(front);
  const xs = points.map((p) => p.x), [least, most] = [Math.min(...xs), Math.max(...xs)];
  const isLog = least > 0 && most > 10 * least;
  const wide = figure(by("front-figure")).chart.clientWidth - 80, step = 11 / Math.max(120, wide);
  const [from, to] = isLog ? [Math.log10(least), Math.log10(most)] : [least, most];
  const room = most < 1.01 * least ? 0.1 * (Math.abs(to) || 1) : 0.16 * (to - from); // no telescope on what is the same
  const across = to - from + 2 * room, place = (v) => (isLog ? Math.log10(v) : v);
  const isFew = points.length <= FEW, best = [...points].sort((a, b) => b.y - a.y);
  const told = new Set(points.length <= (wide > 420 ? FEW : 5) ? points : [...front, ...best].slice(0, wide > 420 ? 8 : 4));
  for (const near of isFew ? clusters(points, (p) => (place(p.x) - from + room) / across, 0.8 * step) : points.map((p) => [p])) {
    near.forEach((p, i) => { p.at = place(p.x) + (i - (near.length - 1) / 2) * step * across; });
  }
  const drawn = (p) => (isLog ? 10 ** p.at : p.at);
  const traces = front.length > 1 ? [{
    type: "scatter", mode: "lines", x: front.map(drawn), y: front.map((p) => p.y), name: "Pareto front",
    line: { shape: "hv", dash: "dot", color: css("--quiet"), width: 1.3 }, hoverinfo: "skip", legendgroup: "front",
  }] : [];
  for (const p of points) traces.push({
    type: "scatter", mode: "markers", name: plain(p.set.name), x: [drawn(p)], y: [p.y], legendgroup: `of ${p.name}`,
    error_y: { type: "data", array: [p.sd], visible: p.sd > 0 && (isFew || told.has(p)), color: see_through(p.colour, 0.55), ...BAR }, cliponaxis: false,
    hovertext: [`${plain(p.set.name)}<br>accuracy ${share(p.y)}${p.n > 1 ? ` ± ${share(p.sd)}, ${p.n} seeds` : ""}<br>${price.name} ${price.write(p.x)}`],
    hovertemplate: "%{hovertext}<extra></extra>",
    marker: { color: p.colour, size: 9, symbol: isOn.has(p) ? p.symbol : `${p.symbol}-open`, line: { width: 1.5, color: p.colour } },
  });
  const ys = points.flatMap((p) => (isFew || told.has(p) ? [p.y - p.sd, p.y + p.sd] : [p.y])), [low, high] = [Math.min(...ys), Math.max(...ys)];
  const pad = Math.max(high - low, 0.02) * 0.12;
  const range = { range: high - low < 0.005 ? [low - 0.05, high + 0.05] : [low - pad, high + pad] }; // nor on a whole unit
  const scale = { range: [from - room, to + room], ...(isLog ? logTicks(least, most, price.write) : { nticks: 6 }) };
  const list = front.map((p) => `${p.set.name} (${share(p.y)}, ${price.write(p.x)})`).join(" · ");
  const shown = { title: `Accuracy against ${price.title ?? price.name}`, said: `${points.length} points. On the Pareto front: ${list}`,
    legend: [...colourLegend(style, points.map((p) => p.set)), ...(front.length > 1 ? [{ label: "Pareto front", colour: css("--quiet"), dash: "dot" }] : [])],
    rows: () => [["setting", price.unit ? `${price.name} (${price.unit})` : price.name, "accuracy", "sd", "seeds", "on the front"],
      ...points.map((p) => [p.set.label, p.x, p.y, p.sd, p.n, isOn.has(p) ? "yes" : "no"])] };
  const chart = draw("front-figure", traces, { xaxis: axis(price.title ?? price.name, price.unit, scale), yaxis: axis("final accuracy", "", range) }, shown);
  if (points.length) labelled(chart, points.map((p) => ({ x: drawn(p), y: p.y, sd: isFew || told.has(p) ? p.sd : 0, text: told.has(p) ? cut(brief(p.set.runs[0]), wide > 420 ? LONGEST : 16) : "", colour: css("--ink") })));
  const isApart = points.some((p) => p.at !== place(p.x));
  by("front-list").textContent = (front.length ? `Filled, on the front: ${list}` : "") + (isApart ? ". Points at one price stand side by side." : "");
}

// Items whose places (0 to 1) are nearer than `least` to that of the first of them, together.
function clusters(items, place, least) {
  const all = [];
  for (const item of [...items].sort((a, b) => place(a) - place(b))) {
    const last = all.at(-1);
    if (last && place(item) - place(last[0]) < least) last.push(item); else all.push([item]);
  }
  return all;
}

// Points that none is both cheaper and better than, by rising price.
function pareto(points) {
  const byPrice = [...points].sort((a, b) => a.x - b.x || b.y - a.y);
  let best = -Infinity;
  return byPrice.filter((point) => point.y > best && ((best = point.y), true));
}

// Effects: a panel for each key, all of one height and on one scale.
function drawEffects(sets, choice, style) {
  const measure = MEASURES.find((m) => m.key === choice.effect), place = by("effects-charts");
  while (place.children.length < KEYS.length) place.append(Object.assign(element("figure", ""), { id: `effect-${place.children.length}-figure` }));
  const ends = sets.flatMap((set) => {
    const values = found(set, measure.key);
    return values.length ? [mean(values) - deviation(values), mean(values) + deviation(values)] : [];
  });
  const [low, high] = [Math.min(...ends), Math.max(...ends)], pad = (high - low || Math.abs(high) || 1) * 0.08;
  const legend = colourLegend(style, sets.filter((set) => found(set, measure.key).length));
  KEYS.forEach((key, i) => drawEffect(place.children[i], key, measure, sets, style, ends.length ? [low - pad, high + pad] : null, legend));
  fillLegend(by("effects-legend"), legend, new Set());
}

function drawEffect(place, key, measure, sets, style, range, legend) {
  const at = DATA.keys.indexOf(key), others = KEYS.filter((k) => k !== key);
  const rest = (run) => others.map((k) => [k, run.values[DATA.keys.indexOf(k)]]).filter(([, v]) => v !== null)
    .map(([k, v]) => (k === "strategy" ? text(v) : `${shortKey(k)}=${text(v)}`)).join(" ") || "all else equal";
  const lines = new Map(), values = new Set();
  for (const set of sets) {
    const all = found(set, measure.key);
    if (!all.length) continue;
    const run = set.runs[0], line = rest(run), value = text(run.values[at]);
    if (!lines.has(line)) lines.set(line, []);
    lines.get(line).push({ value, y: mean(all), sd: deviation(all), ...style.of[set.group] });
    values.add(value);
  }
  const inOrder = [...values].sort(byValue), read = inOrder.filter((v) => v !== "–"), ticks = read.length ? read : inOrder;
  const places = new Map(ticks.map((value, i) => [value, i]));
  const traces = [], table = [];
  for (const value of ticks) { // side by side at each value, so that their bars can be seen
    const there = [...lines.values()].flat().filter((p) => p.value === value), apart = Math.min(0.05, 0.6 / there.length);
    there.forEach((p, i) => { p.x = places.get(value) + (i - (there.length - 1) / 2) * apart; });
  }
  lines.forEach((points, line) => {
    const told = points.filter((p) => places.has(p.value)).sort((a, b) => places.get(a.value) - places.get(b.value));
    const one = new Set(points.map((p) => p.colour)).size === 1 ? points[0].colour : css("--edge");
    const hover = { text: told.map((p) => `${plain(line)}<br>${plain(key)} ${plain(p.value)}`), hovertemplate: `%{text}<br>${measure.name} %{y:.5~g}<extra></extra>` };
    table.push(...points.map((p) => [p.value, line, p.y, p.sd]));
    if (told.length) traces.push({
      type: "scatter", mode: "lines+markers", x: told.map((p) => p.x), y: told.map((p) => p.y), name: plain(line), ...hover,
      error_y: { type: "data", array: told.map((p) => p.sd), visible: told.some((p) => p.sd), color: see_through(one, 0.5), ...BAR },
      line: { color: one, width: 1.5, dash: one === points[0].colour ? points[0].dash : "solid" },
      marker: { size: ticks.length > 4 * FEW ? 4 : 7, color: told.map((p) => p.colour), symbol: told.map((p) => p.symbol) }, opacity: lines.size > 30 ? 0.5 : 1,
    });
    for (const p of points.filter((p) => !places.has(p.value))) traces.push({
      type: "scatter", mode: "lines", x: [-0.4, ticks.length - 0.6], y: [p.y, p.y], name: plain(line),
      text: Array(2).fill(`${plain(line)}<br>does not read ${plain(key)}`), hovertemplate: hover.hovertemplate, line: { color: p.colour, width: 1.5, dash: "dot" },
      opacity: lines.size > 4 * FEW ? 0.12 : lines.size > FEW ? 0.3 : 1,
    });
  });
  const longest = Math.max(1, ...ticks.map((v) => Math.min(18, v.length) + 2)), every = Math.ceil((ticks.length * longest) / 44);
  const told = ticks.map((v, i) => [v, i]).filter(([, i]) => i % every === 0); // as many as have room
  draw(place, traces, {
    margin: { l: 60, r: 10, t: 30, b: 34 }, title: { text: plain(key), font: { size: 13 }, x: 0, xref: "paper", y: 0.97 },
    xaxis: axis("", "", { tickmode: "array", tickangle: 0, tickvals: told.map(([, i]) => i), ticktext: told.map(([v]) => plain(cut(v, 18))), range: [-0.5, ticks.length - 0.5], showgrid: false }),
    yaxis: axis(measure.name, measure.unit, range ? { range, nticks: 6 } : {}),
  }, {
    title: `${measure.name} by ${key}`, said: `${lines.size} lines over ${ticks.join(", ")}.`, legend: [],
    rows: () => [[key, "other keys", measure.unit ? `${measure.name} (${measure.unit})` : measure.name, "sd"], ...table],
  });
  FIGURES.get(place).content.legend = legend; // in the file; on the page one stands for all panels
}
