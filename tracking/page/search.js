// A search: its best trial or its front, what mattered, and each value against each key;
// tracking/search.py says what DATA.search holds. The runs of no search have an empty one.

const SEARCH = DATA.search?.objectives ? DATA.search : null;
const OBJECTIVES = (SEARCH?.objectives ?? []).map(({ name, direction }) => ({
  key: name, name: name.replaceAll("_", " "), isUp: direction === "maximize", unit: name.includes("bytes") ? "B" : "",
  write: MEASURES.find((m) => m.key === name)?.write ?? ((value) => String(Number(value.toPrecision(4)))),
}));
const TRIALS = (SEARCH?.trials ?? []).map((trial, number) => ({ ...trial, number })).filter((trial) => trial.values.length);
const BEST = (SEARCH?.front ?? []).map((job) => TRIALS.find((trial) => trial.job === job)).filter(Boolean);
const short = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));

// What was found, in words and as a table.
function tellSearch() {
  const states = ["finished", "pruned", "failed", "unfinished"]
    .map((state) => [SEARCH.trials.filter((trial) => trial.state === state).length, state]).filter(([number]) => number);
  by("search-said").textContent = `${SEARCH.trials.length} trials by ${SEARCH.sampler}: ${states.map((s) => s.join(" ")).join(", ")}. ` +
    (OBJECTIVES.length > 1 ? `${BEST.length} on the front:` : "The best:");
  const row = (cells, kind) => {
    const tr = element("tr", "");
    tr.append(...cells.map((cell) => element(kind, cell)));
    return tr;
  };
  by("search-best").caption.textContent = OBJECTIVES.length > 1 ? "Trials on the front" : "The best trial";
  by("search-best").tHead.replaceChildren(row(["job", ...SEARCH.keys, ...OBJECTIVES.map((o) => o.name)], "th"));
  by("search-best").tBodies[0].replaceChildren(...BEST.map((trial) => row(
    [trial.job, ...SEARCH.keys.map((key) => short(trial.params[key] ?? "")), ...trial.values.map((v, i) => OBJECTIVES[i].write(v))], "td")));
}

function drawSearch(choice) {
  const at = choice.objective, goal = OBJECTIVES[at], accent = css("--accent");
  const good = (o) => `${o.name} (${o.isUp ? "high" : "low"} is good)`;
  const label = (trial) => plain([`job ${trial.job}`, ...Object.entries(trial.params).map(([k, v]) => `${k}=${short(v)}`),
    ...OBJECTIVES.map((o, i) => `${o.name} ${o.write(trial.values[i])}`)].join("\n")).replaceAll("\n", "<br>");
  const points = (trials, x, y) => ({
    type: "scatter", mode: "markers", x: trials.map(x), y: trials.map(y), text: trials.map(label),
    hovertemplate: "%{text}<extra></extra>", cliponaxis: false,
    marker: { color: accent, size: 8, symbol: trials.map((trial) => (BEST.includes(trial) ? "circle" : "circle-open")) },
  });
  const line = (x, y, shape) => ({
    type: "scatter", mode: "lines", x, y, hoverinfo: "skip", line: { color: accent, width: 1.2, dash: "dot", shape },
  });
  const rows = () => [["job", ...SEARCH.keys, ...OBJECTIVES.map((o) => o.name)],
    ...TRIALS.map((trial) => [trial.job, ...SEARCH.keys.map((key) => trial.params[key] ?? null), ...trial.values])];

  if (OBJECTIVES.length > 1) {
    const other = at === 0 ? 1 : 0;
    const front = BEST.map((trial) => [trial.values[other], trial.values[at]]).sort((a, b) => a[0] - b[0]);
    const isLine = OBJECTIVES.length === 2 && front.length > 1;
    draw("search-figure", [
      ...(isLine ? [line(front.map((p) => p[0]), front.map((p) => p[1]), goal.isUp ? "hv" : "vh")] : []),
      ...(TRIALS.length ? [points(TRIALS, (t) => t.values[other], (t) => t.values[at])] : []),
    ], { xaxis: axis(good(OBJECTIVES[other]), OBJECTIVES[other].unit), yaxis: axis(good(goal), goal.unit) },
    { title: `${goal.name} against ${OBJECTIVES[other].name}`, said: `${TRIALS.length} trials, ${BEST.length} on the front.`, rows });
  } else {
    let reached = null;
    const course = TRIALS.map((t) => (reached = reached === null ? t.values[0] : Math[goal.isUp ? "max" : "min"](reached, t.values[0])));
    draw("search-figure", TRIALS.length ? [
      line(TRIALS.map((t) => t.number + 1), course, "hv"), points(TRIALS, (t) => t.number + 1, (t) => t.values[0]),
    ] : [], { xaxis: axis("trial", "", { tickformat: "d" }), yaxis: axis(good(goal), goal.unit) },
    { title: `${goal.name} of each trial`, said: reached === null ? "" : `The best is ${goal.write(reached)}.`, rows });
  }

  const small = { margin: { l: 60, r: 10, t: 30, b: 34 } };
  const title = (words) => ({ text: plain(words), font: { size: 13 }, x: 0, xref: "paper", y: 0.97 });
  const shares = Object.entries(SEARCH.importances[goal.key] ?? {}).sort((a, b) => a[1] - b[1]);
  by("search-importances").hidden = !shares.length;
  if (shares.length) draw("search-importances", [{
    type: "bar", orientation: "h", x: shares.map((s) => s[1]), y: shares.map((s) => plain(s[0])),
    text: shares.map((s) => s[1].toFixed(2)), textposition: "auto", marker: { color: accent }, hoverinfo: "skip",
  }], { ...small, title: title("importance"), xaxis: axis("", "", { range: [0, 1] }), yaxis: axis("") }, {
    title: `importance of each key for ${goal.name}`, said: [...shares].reverse().map(([key, share]) => `${key} ${share.toFixed(2)}`).join("; "),
    rows: () => [["key", "importance"], ...[...shares].reverse()],
  });
  const slices = by("search-slices");
  SEARCH.keys.forEach((key, i) => {
    if (slices.children.length <= i) slices.append(Object.assign(element("figure", ""), { id: `slice-${i}-figure` }));
    const having = TRIALS.filter((trial) => trial.params[key] !== undefined), of = (trial) => trial.params[key];
    const isNumber = having.every((trial) => typeof of(trial) === "number");
    const values = [...new Set(having.map((trial) => String(of(trial))))].sort(byValue);
    const scale = isNumber ? { type: SEARCH.logs.includes(key) ? "log" : "linear" } : { type: "category", categoryorder: "array", categoryarray: values };
    draw(slices.children[i], having.length ? [points(having, (t) => (isNumber ? of(t) : String(of(t))), (t) => t.values[at])] : [],
      { ...small, title: title(key), xaxis: axis("", "", scale), yaxis: axis("", goal.unit) },
      { title: `${goal.name} against ${key}`, said: `${having.length} trials.`, rows: () => [[key, goal.name], ...having.map((t) => [of(t), t.values[at]])] });
  });
}
