// Settings at equal simulated time, and what their target accuracy took: where rounds do not compare.

const IS_MIXED = DATA.simulated.schedules.length > 1;
const SPENT = [
  { key: "sim_s", name: "simulated time", write: seconds, unit: "s" }, { key: "energy_j", name: "energy", write: joules, unit: "J" },
  { key: "bytes", name: "bytes, up and down", write: bytes, unit: "B" },
];
function mixedLine() {
  const step = DATA.simulated.schedules.includes("buffered") ? "; one of buffered is a server step" : "";
  return `Rounds of different schedules (${DATA.simulated.schedules.join(", ")}) are not comparable${step}.`;
}

function drawSimulated(place, style) {
  const { at_s: at, settings } = DATA.simulated, isAt = IS_MIXED && at !== null;
  const targets = [...new Set(settings.map((s) => s.target).filter((t) => t !== null))];
  const spent = SPENT.filter(({ key }) => settings.some((s) => key in s.costs));
  const columns = [
    ...(isAt ? [["accuracy", (s) => (s.accuracy ? written({ write: share }, s.accuracy) + of(s.accuracy.n, s.seeds) : "none evaluated yet")]] : []),
    ...(targets.length > 1 ? [["target", (s) => (s.target === null ? "–" : number(s.target))]] : []),
    ...(targets.length ? [["reached by", (s) => (s.target === null ? "–" : `${s.reached} of ${s.seeds} ${s.seeds > 1 ? "seeds" : "seed"}`)]] : []),
    ...spent.map((measure) => [measure.name, (s) => (s.costs[measure.key] ? written(measure, s.costs[measure.key]) : "–")]),
  ];
  function of(n, seeds) { return n < seeds ? ` (${n} of ${seeds} seeds)` : ""; }
  const title = [isAt ? "At equal simulated time" : "", targets.length ? `Time to accuracy${targets.length === 1 ? ` ${number(targets[0])}` : ""}` : ""].filter(Boolean).join(" · ");
  by("simulated-name").textContent = title || "Simulated time";
  const said = IS_MIXED ? [mixedLine(), at === null ? "Not all runs have a simulated clock, so there is no time to compare them at."
    : `Accuracy here is the last evaluated by ${seconds(at)} of simulated time, when the shortest run ends.`].join(" ") : "";
  by("simulated-note").textContent = targets.length ? "Time, energy and bytes until the target was first reached: mean ± sd over the seeds that reached it." : "";
  const head = element("tr", ""), body = settings.map((s) => {
    const line = element("tr", ""), name = element("th", ""), named = element("span", "", "named");
    name.scope = "row";
    named.append(swatch({ ...style.of[s.group], mark: "square" }), element("span", NAMES[s.group]));
    name.append(named);
    line.append(name, ...columns.map(([, show]) => element("td", show(s), "number")));
    return line;
  });
  for (const [i, name] of ["setting", ...columns.map(([name]) => name)].entries()) {
    head.append(Object.assign(element("th", isAt && name === "accuracy" ? `accuracy at ${seconds(at)}` : name, i ? "number" : ""), { scope: "col" }));
  }
  by("simulated-said").textContent = said;
  place.querySelector("thead").replaceChildren(head);
  place.querySelector("tbody").replaceChildren(...body);
}
function written(measure, { mean: middle, sd, n }) { return spreadOf(measure, middle, sd ?? 0, n); }
