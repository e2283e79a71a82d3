// A search: its best trial or its front, what mattered, and each value against each key. Nothing
// where the runs are not those of one; tracking/search.py says what DATA.search holds.

function searched() {
  const found = DATA.search, place = (id) => document.getElementById(id);
  if (!found || !found.objectives) return;
  const accent = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
  const front = new Set(found.front);
  const done = found.trials.map((trial, number) => ({ ...trial, number })).filter((trial) => trial.values.length);
  const names = found.objectives.map((o) => o.name), isUp = found.objectives.map((o) => o.direction === "maximize");
  const several = names.length > 1;
  const short = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));
  const write = (i, value) => (MEASURES.find((m) => m.key === names[i])?.write ?? short)(value);
  const unit = (i) => (names[i].includes("bytes") ? "B" : "");
  const label = (trial) => plain([`job ${trial.job}`, ...Object.entries(trial.params).map(([k, v]) => `${k}=${short(v)}`),
    ...names.map((n, i) => `${n.replaceAll("_", " ")} ${write(i, trial.values[i])}`)].join("\n")).replaceAll("\n", "<br>");
  const points = (trials, x, y) => ({
    type: "scatter", mode: "markers", x: trials.map(x), y: trials.map(y), text: trials.map(label),
    hovertemplate: "%{text}<extra></extra>", cliponaxis: false,
    marker: { color: accent, size: 8, symbol: trials.map((t) => (front.has(t.job) ? "circle" : "circle-open")) },
  });
  const line = (x, y, more = {}) => ({
    type: "scatter", mode: "lines", x, y, hoverinfo: "skip", line: { color: accent, width: 1.2, dash: "dot", ...more },
  });
  const title = (text) => ({ text: plain(text), font: { size: 13 }, x: 0, xref: "paper", y: 0.97 });
  const named = (i) => `${names[i].replaceAll("_", " ")} (${isUp[i] ? "high" : "low"} is good)`;

  place("search").hidden = false;
  place("search-y").replaceChildren(...names.map((name, i) =>
    Object.assign(element("option", name.replaceAll("_", " ")), { value: String(i) })));
  place("search-y").closest("label").hidden = !several;
  const states = ["finished", "pruned", "failed", "unfinished"]
    .map((state) => [found.trials.filter((t) => t.state === state).length, state]).filter(([number]) => number);
  place("search-said").textContent = `${found.trials.length} trials by ${found.sampler}: ` +
    `${states.map((s) => s.join(" ")).join(", ")}. ${several ? `${found.front.length} on the front:` : "The best:"}`;
  const row = (cells, kind) => { const tr = element("tr", ""); tr.append(...cells.map((c) => element(kind, c))); return tr; };
  place("search-best").tHead.replaceChildren(row(["job", ...found.keys, ...names.map((n) => n.replaceAll("_", " "))], "th"));
  const best = found.front.map((job) => done.find((trial) => trial.job === job)).filter(Boolean);
  place("search-best").tBodies[0].replaceChildren(...best.map((trial) =>
    row([trial.job, ...found.keys.map((key) => short(trial.params[key] ?? "")), ...trial.values.map((v, i) => write(i, v))], "td")));

  function overall(at) {
    if (several) {
      const other = at === 0 ? 1 : 0, on = best.map((t) => [t.values[other], t.values[at]]).sort((a, b) => a[0] - b[0]);
      const isFlat = names.length === 2 && on.length > 1;
      return [[...(isFlat ? [line(on.map((p) => p[0]), on.map((p) => p[1]), { shape: isUp[at] ? "hv" : "vh" })] : []),
        points(done, (t) => t.values[other], (t) => t.values[at])], named(other), unit(other)];
    }
    let reached = null;
    const course = done.map((t) => (reached = reached === null ? t.values[0] :
      isUp[0] ? Math.max(reached, t.values[0]) : Math.min(reached, t.values[0])));
    return [[line(done.map((t) => t.number + 1), course, { shape: "hv" }), points(done, (t) => t.number + 1, (t) => t.values[0])], "trial", ""];
  }

  function refreshSearch() {
    const at = Number(place("search-y").value);
    const [traces, x, xUnit] = overall(at);
    draw("search-chart", done.length ? traces : [], { xaxis: axis(x, xUnit), yaxis: axis(named(at), unit(at)), showlegend: false });
    const shares = Object.entries(found.importances[names[at]] ?? {}).sort((a, b) => a[1] - b[1]);
    place("search-importances").hidden = !shares.length;
    if (shares.length) draw("search-importances", [{
      type: "bar", orientation: "h", x: shares.map((s) => s[1]), y: shares.map((s) => plain(s[0])),
      text: shares.map((s) => s[1].toFixed(2)), textposition: "auto", marker: { color: accent }, hoverinfo: "skip",
    }], { margin: { l: 52, r: 8, t: 30, b: 30 }, title: title("importance"), xaxis: axis("", "", { range: [0, 1] }), yaxis: axis(""), showlegend: false });
    found.keys.forEach((key, i) => {
      const slices = place("search-slices");
      while (slices.children.length <= i) slices.append(element("div", "", "chart"));
      const with_key = done.filter((t) => t.params[key] !== undefined);
      const isNumber = with_key.every((t) => typeof t.params[key] === "number");
      const values = [...new Set(with_key.map((t) => String(t.params[key])))].sort(byValue);
      const scale = isNumber ? { type: found.logs.includes(key) ? "log" : "linear" } : { type: "category", categoryorder: "array", categoryarray: values };
      draw(slices.children[i], with_key.length ? [points(with_key, (t) => (isNumber ? t.params[key] : String(t.params[key])), (t) => t.values[at])] : [], {
        margin: { l: 52, r: 8, t: 30, b: 30 }, title: title(key), xaxis: axis("", "", scale), yaxis: axis("", unit(at)), showlegend: false,
      });
    });
  }
  place("search-y").addEventListener("change", refreshSearch);
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    refreshSearch();
  }, { rootMargin: "300px" });
  watch.observe(place("search"));
}
searched();
