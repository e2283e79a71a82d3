// What clients had: a box per setting, of the setting's colour, lighter and darker by device class.

const MOST_BOXES = 12;

function drawClients(sets, choice, style) {
  const measure = CLIENT_MEASURES.find((m) => m.key === choice.client);
  const all = ranked(sets), done = all.filter((set) => found(set, "final_accuracy").length);
  const having = (done.length ? done : all).filter((set) => set.runs.some((run) => Object.values(run.clients).some((device) => measure.key in device)));
  const shown = having.slice(0, MOST_BOXES), isNarrow = document.body.clientWidth < 640;
  const label = (set) => plain(isNarrow ? set.name.replaceAll(" ", "\n") : set.name).replaceAll("\n", "<br>");
  const devices = choice.byDevice
    ? [...new Set(shown.flatMap((set) => set.runs.flatMap((run) => Object.keys(run.clients))))].sort(byValue) : [""];
  const shade = (device) => 0.12 + 0.6 * (devices.length > 1 ? devices.indexOf(device) / (devices.length - 1) : 0.3);
  const told = (device) => device || "no class", traces = [], rows = [];
  for (const device of [...devices].reverse()) for (const set of shown) {
    const values = set.runs.flatMap((run) => Object.entries(run.clients)
      .filter(([name]) => !choice.byDevice || name === device).flatMap(([, found]) => found[measure.key] ?? []));
    if (!values.length) continue;
    rows.push(...values.map((v) => [set.label, choice.byDevice ? told(device) : "all", v]));
    const { colour } = style.of[set.group];
    traces.push({
      type: "box", orientation: "h", x: values, y: values.map(() => label(set)), name: plain(choice.byDevice ? told(device) : set.name),
      boxpoints: "outliers", line: { width: 1.2, color: colour }, fillcolor: see_through(colour, shade(device)), marker: { size: 3, opacity: 0.6 },
      offsetgroup: device, alignmentgroup: "all", legendgroup: device, hoverinfo: "x+name",
    });
  }
  const lines = Math.max(1, ...(isNarrow ? shown.map((set) => set.name.split(" ").length) : []));
  const height = 84 + shown.length * Math.max(12 + 14 * lines, choice.byDevice ? 10 + 15 * devices.length : 0, 30);
  const legend = choice.byDevice && devices.length > 1
    ? devices.map((device) => ({ label: told(device), group: device, colour: css("--quiet"), mark: "square", share: shade(device) })) : [];
  draw("clients-figure", traces, {
    height: Math.max(200, height), boxmode: "group", boxgap: 0.2, boxgroupgap: 0.1,
    xaxis: axis(isNarrow ? measure.name.split(",")[0] : measure.name, measure.unit), yaxis: axis("", "", { type: "category", categoryorder: "array", categoryarray: shown.map(label).reverse(), tickfont: { size: 11 } }),
  }, {
    title: `Clients: ${measure.name}`, said: `${shown.length} settings${legend.length ? `, device classes ${devices.map(told).join(", ")}` : ""}.`, legend,
    rows: () => [["setting", "device class", measure.unit ? `${measure.name} (${measure.unit})` : measure.name], ...rows],
  });
  by("clients-note").textContent = "A box holds the middle half of the clients, the whiskers the rest but for outliers." +
    (sets.some((s) => s.runs.length > 1) ? " Clients of all seeds together." : "") +
    (having.length > shown.length ? ` The best ${shown.length} of ${having.length}; the filter chooses others.` : "");
}

// Who did what in each round of one run. The names are those of clients.jsonl; the first is usual.
const STATES = [
  ["ok", "trained", "#7fa9d6", "#4a7fc0"], ["alone", "trained without network", "#b9cfe6", "#8aa5c4"], ["late", "late", "#d9a441", "#e0bf7a"],
  ["surplus", "not needed", "#b5a27c", "#8f7d58"], ["absent", "absent", "#a7aeb8", "#6b7480"], ["unfit", "memory too small", "#7b5ab5", "#b296ec"],
  ["failed", "failed", "#c0392b", "#ff6f61"], ["left", "left before its end", "#e07b00", "#f39a3d"], ["stale", "too late to be of use", "#9a8b00", "#c9c64a"],
];

function drawTimeline(run) {
  const { clients = [], states = [] } = run?.timeline ?? {}, paint = isDark() ? 3 : 2, num = states[0]?.length ?? 0;
  const z = states.map((line) => [...line].map((c) => (c === "." ? null : Number(c))));
  const met = new Set(z.flat().filter((v) => v !== null)), shown = STATES.map((state, i) => [state, i]).filter(([, i]) => met.has(i));
  const step = 1 / STATES.length, scale = STATES.flatMap((state, i) => [[i * step, state[paint]], [(i + 1) * step, state[paint]]]);
  const every = Math.ceil(clients.length / 40), rows = clients.map((name, i) => [name, i]).filter((_, i) => i % every === 0);
  draw("timeline-figure", clients.length ? [{
    type: "heatmap", z, x: Array.from({ length: num }, (_, i) => i + 1), y: clients.map((_, i) => i), colorscale: scale, zmin: -0.5, zmax: STATES.length - 0.5, showscale: false,
    xgap: num > 150 ? 0 : 1, ygap: clients.length > 100 ? 0 : 1, hovertemplate: "%{text}<extra></extra>",
    text: z.map((line, i) => line.map((v, round) => `client ${plain(clients[i])}<br>round ${round + 1}: ${v === null ? "not drawn" : STATES[v][1]}`)),
  }] : [], {
    height: 84 + Math.min(620, Math.max(80, clients.length * 18)), xaxis: axis(run?.config["schedule.name"] === "buffered" ? "server steps" : "rounds", "", { tickformat: "d", showgrid: false, ...(num < 8 ? { dtick: 1 } : {}) }),
    yaxis: axis("client", "", { tickmode: "array", tickvals: rows.map(([, i]) => i), ticktext: rows.map(([name]) => plain(cut(name, 18))), autorange: "reversed", showgrid: false, ticks: "" }),
  }, {
    title: `Clients of run ${run?.job ?? ""} over rounds`, said: shown.map(([state, i]) => `${state[1]}: ${z.flat().filter((v) => v === i).length} times`).join(", "),
    legend: shown.map(([state]) => ({ label: state[1], colour: state[paint], mark: "square" })),
    rows: () => [["client", ...Array.from({ length: num }, (_, i) => `round ${i + 1}`)], ...z.map((line, i) => [clients[i], ...line.map((v) => (v === null ? "" : STATES[v][0]))])],
  });
  by("timeline-note").textContent = "";
}
