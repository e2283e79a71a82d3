// What the reader chose, and what is drawn anew when that changes.

function by(id) { return document.getElementById(id); }
const COURSES = [...new Set(RUNS.flatMap((run) => Object.keys(run.rounds)))]
  .filter((name) => name !== "round" && !AXES.some((a) => a.key === name));

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, name]) => Object.assign(element("option", name), { value })));
  if (chosen !== undefined) select.value = chosen;
}
const choices = (items) => items.map((item) => [item.key, item.title ?? item.name]);
fill(by("curve-y"), COURSES.map((name) => [name, courseName(name)]));
by("curve-x").append(...AXES.map(({ key, name }, i) => {
  const label = element("label", name);
  label.prepend(Object.assign(element("input", ""), { type: "radio", name: "curve-x", value: key, checked: i === 0 }));
  return label;
}));
fill(by("front-x"), choices(MEASURES.filter((m) => m.isPrice)));
fill(by("effect-y"), choices(MEASURES));
fill(by("class-y"), CLASS_MEASURES.map((name) => [name, name === "support" ? "samples" : name]));
fill(by("client-y"), choices(CLIENT_MEASURES));
fill(by("search-y"), OBJECTIVES.map((objective, i) => [String(i), objective.name]));
const runOptions = RUNS.map((run) => [String(run.index), cut(`${run.job} ${own(run)}`, 80)]);
fill(by("run-a"), runOptions);
fill(by("run-b"), [["", "nothing"], ...runOptions]);

const keyFilters = DATA.keys.map((key, i) => {
  const values = [...new Set(RUNS.map((run) => text(run.values[i])))].sort(byValue);
  const label = element("label", key), select = element("select", "");
  select.dataset.key = key;
  fill(select, [["", "all"], ...values.map((value) => [`=${value}`, value])]);
  label.append(select);
  by("filters").append(label);
  return select;
});
const numValues = (key) => new Set(RUNS.map((run) => text(run.values[DATA.keys.indexOf(key)]))).size;
fill(by("colour"), [["", "each setting"], ...KEYS.map((key) => [key, key])],
  KEYS.includes("strategy") ? "strategy" : DATA.groups.length <= FEW ? "" : KEYS.find((key) => numValues(key) <= FEW) ?? "");

const hasDevices = RUNS.some((run) => Object.keys(run.clients).some((device) => device !== ""));
const withMatrix = grouped(RUNS).filter((set) => set.runs.some((run) => run.classes.matrix));
fill(by("matrix-of"), ranked(withMatrix).map((set) => [String(set.group), set.name]));
const withTimeline = ranked(single(RUNS)).map((set) => set.runs[0]).filter((run) => run.timeline.states || run.works.clients);
fill(by("timeline-of"), withTimeline.map((run) => [String(run.index), cut(`${run.job} ${own(run)}`, 80)]));
by("timeline").hidden = !withTimeline.length;
fill(by("timeline-x"), [["time", "simulated time"], ["rounds", "rounds"]]);
by("timeline-x-label").hidden = !withTimeline.some((run) => run.works.clients && run.timeline.states);
by("simulated").hidden = !DATA.simulated.settings.length;
by("devices-label").hidden = !hasDevices;
by("devices").checked = hasDevices;
by("seeds-label").hidden = by("unfold-label").hidden = !HAS_SEEDS;
by("columns-label").hidden = !COLUMNS.some((column) => column.isMore);
by("effects").hidden = !KEYS.length || !MEASURES.length;
by("clients").hidden = !CLIENT_MEASURES.length;
by("curves").hidden = !COURSES.length;
by("classes").hidden = !CLASS_MEASURES.length && !withMatrix.length;
by("matrix").hidden = !withMatrix.length;
by("search").hidden = !SEARCH;
by("search-y").closest("label").hidden = OBJECTIVES.length < 2;
if (SEARCH) tellSearch();
by("front").hidden = RUNS.length < 2 || !MEASURES.some((m) => m.key === "final_accuracy") || !MEASURES.some((m) => m.isPrice);
for (const id of ["filters", "run-b-label", "differences-label"]) by(id).hidden = RUNS.length < 2;
if (!HAS_SEEDS) by("runs-name").textContent = "Runs";

const count = (test) => RUNS.filter(test).length;
const states = ["failed", "unfinished", "damaged"].map((state) => [count((run) => run.status === state), state]);
const numDone = RUNS.length - states.reduce((sum, [n]) => sum + n, 0);
by("counts").append(`${RUNS.length} ${RUNS.length === 1 ? "run" : "runs"}: `, ...[[numDone, "finished"], ...states].filter(([n]) => n).flatMap(([n, state], i) => [
  i ? ", " : "", element("span", `${n} ${state}`, state === "failed" || state === "damaged" ? "bad" : "")]));
const numCopies = count((run) => run.copy);
if (numCopies) by("counts").append(element("span", ` (${numCopies} the same as others, run once)`, "quiet"));
const origin = RUNS.map((run) => run.summary).find((s) => s["provenance: commit"] || s["provenance: version"]);
by("origin").textContent = origin ? [`CutBit ${origin["provenance: version"] ?? ""}`.trim(),
  origin["provenance: commit"] ? `commit ${String(origin["provenance: commit"]).slice(0, 10)}${origin["provenance: dirty"] ? " with changes" : ""}` : "",
  origin["provenance: machine cpu"] ?? ""].filter(Boolean).join(" · ") : "";
by("notes").textContent = DATA.notes.join(" · ");
drawCompared(by("compared"));
drawFailures(by("failures"));

function chosenRuns() {
  const words = by("filter").value.trim().split(/\s+/).filter(Boolean);
  return RUNS.filter((run) => matches(run, words) &&
    keyFilters.every((select, i) => !select.value || `=${text(run.values[i])}` === select.value));
}

// Plotly takes a second to read, so the words are on the screen before.
let hasPlotly = false;
function readPlotly() {
  if (hasPlotly) return;
  hasPlotly = true;
  const script = by("plotly");
  document.head.append(Object.assign(document.createElement("script"), { textContent: script.textContent }));
  script.remove();
}

// Charts are drawn when they come into view, and again only when what they show has changed.
let style = styles(by("colour").value);
const sections = {
  search: () => drawSearch({ objective: Number(by("search-y").value) }),
  curves: (sets) => drawCurves(sets, { x: document.querySelector("#curve-x :checked").value, y: by("curve-y").value }, style),
  front: (sets) => drawFront(sets, { price: by("front-x").value }, style),
  effects: (sets) => drawEffects(sets, { effect: by("effect-y").value }, style),
  classes: (sets) => {
    if (CLASS_MEASURES.length) drawClasses(sets, { measure: by("class-y").value });
    if (withMatrix.length) drawMatrix(withMatrix.find((set) => String(set.group) === by("matrix-of").value));
  },
  clients: (sets) => {
    drawClients(sets, { client: by("client-y").value, byDevice: by("devices").checked }, style);
    if (!withTimeline.length) return;
    const run = RUNS[by("timeline-of").value], isTimed = run.works.clients && (by("timeline-x").value === "time" || !run.timeline.states);
    (isTimed ? drawWorks : drawTimeline)(run);
  },
};
const visible = new Set(), stale = new Set(Object.keys(sections));
let runs = RUNS;

function refresh(...names) {
  names.forEach((name) => stale.add(name));
  // Effects and classes are always over seeds: that is what their bars are.
  const sets = by("seeds").checked && HAS_SEEDS ? grouped(runs) : single(runs);
  for (const name of hasPlotly ? Object.keys(sections) : []) {
    if (!visible.has(name) || !stale.has(name) || by(name).hidden) continue;
    stale.delete(name);
    sections[name](name === "effects" || name === "classes" ? grouped(runs) : sets);
  }
}
function refreshAll() {
  runs = chosenRuns();
  by("shown").textContent = runs.length === RUNS.length ? "" : `${runs.length} of ${RUNS.length} runs`;
  table();
  refresh(...Object.keys(sections));
}
function table() {
  drawTable(runs, style, { isUnfolded: by("unfold").checked, hasAll: by("columns").checked, onChoose: choose, onSort: table });
}
function compare() {
  const a = RUNS[by("run-a").value], b = by("run-b").value === "" ? a : RUNS[by("run-b").value];
  drawCompare(a, b, by("differences").checked);
}
function choose(run) {
  by("run-a").value = String(run.index);
  compare();
  by("compare").scrollIntoView({ behavior: "smooth" });
}
// Anew from the colours on: another key, another theme.
function restyle() {
  style = styles(by("colour").value);
  drawVerdict(by("verdict"), grouped(RUNS), style);
  if (!by("simulated").hidden) drawSimulated(by("simulated"), style);
  refreshAll();
}

by("filter").addEventListener("input", refreshAll);
keyFilters.forEach((select) => select.addEventListener("change", refreshAll));
by("colour").addEventListener("change", restyle);
for (const [id, names] of Object.entries({
  "search-y": ["search"], "curve-y": ["curves"], "curve-x": ["curves"], seeds: ["curves", "front", "clients"], "front-x": ["front"], "effect-y": ["effects"],
  "class-y": ["classes"], "matrix-of": ["classes"], "client-y": ["clients"], devices: ["clients"], "timeline-of": ["clients"], "timeline-x": ["clients"],
})) by(id).addEventListener("change", () => refresh(...names));
for (const id of ["unfold", "columns"]) by(id).addEventListener("change", table);
for (const id of ["run-a", "run-b", "differences"]) by(id).addEventListener("change", compare);

restyle();
compare();
const watch = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting).forEach((entry) => visible.add(entry.target.id));
  refresh();
}, { rootMargin: "300px" });
requestAnimationFrame(() => setTimeout(() => {
  readPlotly();
  Object.keys(sections).forEach((name) => watch.observe(by(name)));
}));

let width = document.body.clientWidth, waiting = 0;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    if (document.body.clientWidth === width || isPrinting) return;
    width = document.body.clientWidth;
    refresh(...Object.keys(sections));
  }, 150);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);

// On paper: light, as wide as the paper, everything drawn that was not yet in view.
addEventListener("beforeprint", () => {
  readPlotly();
  isPrinting = true;
  setLight(true);
  document.documentElement.classList.add("printing");
  Object.keys(sections).forEach((name) => visible.add(name));
  restyle();
  document.querySelectorAll("details").forEach((one) => { one.dataset.was = one.open; one.open = true; });
});
addEventListener("afterprint", () => {
  isPrinting = false;
  setLight(false);
  document.documentElement.classList.remove("printing");
  restyle();
  document.querySelectorAll("details[data-was]").forEach((one) => { one.open = one.dataset.was === "true"; });
});
