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
    xaxis: axis(measure.name, measure.unit), yaxis: axis("", "", { type: "category", categoryorder: "array", categoryarray: shown.map(label).reverse(), tickfont: { size: 11 } }),
  }, {
    title: `Clients: ${measure.name}`, said: `${shown.length} settings${legend.length ? `, device classes ${devices.map(told).join(", ")}` : ""}.`, legend,
    rows: () => [["setting", "device class", measure.unit ? `${measure.name} (${measure.unit})` : measure.name], ...rows],
  });
  by("clients-note").textContent = "A box holds the middle half of the clients, the whiskers the rest but for outliers." +
    (sets.some((s) => s.runs.length > 1) ? " Clients of all seeds together." : "") +
    (having.length > shown.length ? ` The best ${shown.length} of ${having.length}; the filter chooses others.` : "");
}
