// What the reader chose, and what is drawn anew when that changes.

const by = (id) => document.getElementById(id);
const COURSES = [...new Set(RUNS.flatMap((run) => Object.keys(run.rounds)))]
  .filter((name) => name !== "round" && !AXES.some((a) => a.key === name));

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, name]) => Object.assign(element("option", name), { value })));
  if (chosen !== undefined) select.value = chosen;
}
const named = (items) => items.map((item) => [item.key, item.name]);
fill(by("curve-y"), COURSES.map((name) => [name, name.replaceAll("_", " ")]));
by("curve-x").append(...AXES.map(({ key, name }, i) => {
  const label = element("label", name);
  label.prepend(Object.assign(element("input", ""), { type: "radio", name: "curve-x", value: key, checked: i === 0 }));
  return label;
}));
fill(by("front-x"), named(MEASURES.filter((m) => m.isPrice)));
fill(by("effect-y"), named(MEASURES));
fill(by("client-y"), named(CLIENT_MEASURES));
const runOptions = RUNS.map((run) => [String(run.index), `${run.job} ${own(run)}`.slice(0, 80)]);
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
const manyValues = (key) => new Set(RUNS.map((run) => text(run.values[DATA.keys.indexOf(key)]))).size;
const colourKeys = DATA.keys.filter((key) => key !== "seed");
const fewGroups = DATA.groups.length <= FEW;
fill(by("colour"), [["", "each line"], ...colourKeys.map((key) => [key, key])],
  fewGroups ? "" : colourKeys.find((key) => manyValues(key) <= FEW) ?? "");

const hasDevices = RUNS.some((run) => Object.keys(run.clients).some((device) => device !== ""));
by("devices-label").hidden = !hasDevices;
by("devices").checked = hasDevices;
by("seeds-label").hidden = !HAS_SEEDS;
by("effects").hidden = !EFFECTS.length || !MEASURES.length;
by("clients").hidden = !CLIENT_MEASURES.length;
by("curves").hidden = !COURSES.length;
by("front").hidden = RUNS.length < 2 || !MEASURES.some((m) => m.key === "final_accuracy") || !MEASURES.some((m) => m.isPrice);
for (const id of ["filters", "run-b-label", "differences-label"]) by(id).hidden = RUNS.length < 2;

const count = (test) => RUNS.filter(test).length;
const states = [
  [count((run) => run.status !== "failed" && run.status !== "unfinished"), "finished"],
  [count((run) => run.status === "failed"), "failed"], [count((run) => run.status === "unfinished"), "unfinished"],
].filter(([number]) => number);
by("counts").append(`${RUNS.length} ${RUNS.length === 1 ? "run" : "runs"}: `, ...states.flatMap(([number, state], i) => [
  i ? ", " : "", element("span", `${number} ${state}`, state === "failed" ? "bad" : "")]));
by("common").textContent = DATA.common.length ? `All with ${DATA.common.join(" ")}` : "";

function chosenRuns() {
  const words = by("filter").value.trim().split(/\s+/).filter(Boolean);
  return RUNS.filter((run) => matches(run, words) &&
    keyFilters.every((select, i) => !select.value || `=${text(run.values[i])}` === select.value));
}

// Charts are drawn when they come into view, and again only when what they show has changed.
const sections = {
  curves: (sets) => drawCurves(sets, { x: document.querySelector("#curve-x :checked").value, y: by("curve-y").value, colour: by("colour").value }),
  front: (sets) => drawFront(sets, { price: by("front-x").value, colour: by("colour").value }),
  effects: (sets) => drawEffects(sets, { effect: by("effect-y").value, colour: by("colour").value }),
  clients: (sets) => drawClients(sets, { client: by("client-y").value, byDevice: by("devices").checked }),
};
const visible = new Set(), stale = new Set(Object.keys(sections));
let runs = RUNS;

function refresh(...names) {
  names.forEach((name) => stale.add(name));
  // Effects are always over seeds: that is what their bars are.
  const sets = by("seeds").checked && HAS_SEEDS ? grouped(runs) : single(runs);
  for (const name of Object.keys(sections)) {
    if (!visible.has(name) || !stale.has(name) || by(name).hidden) continue;
    stale.delete(name);
    sections[name](name === "effects" ? grouped(runs) : sets);
  }
}
function refreshAll() {
  runs = chosenRuns();
  by("shown").textContent = runs.length === RUNS.length ? "" : `${runs.length} of ${RUNS.length}`;
  table();
  refresh(...Object.keys(sections));
}
function table() { drawTable(runs, choose, table); }
function compare() {
  const a = RUNS[by("run-a").value], b = by("run-b").value === "" ? a : RUNS[by("run-b").value];
  drawCompare(a, b, by("differences").checked);
}
function choose(run) {
  by("run-a").value = String(run.index);
  compare();
  by("compare").scrollIntoView({ behavior: "smooth" });
}

by("filter").addEventListener("input", refreshAll);
keyFilters.forEach((select) => select.addEventListener("change", refreshAll));
for (const [id, names] of Object.entries({
  "curve-y": ["curves"], "curve-x": ["curves"], colour: ["curves", "front", "effects"],
  seeds: ["curves", "front", "clients"], "front-x": ["front"], "effect-y": ["effects"], "client-y": ["clients"],
  devices: ["clients"],
})) by(id).addEventListener("change", () => refresh(...names));
for (const id of ["run-a", "run-b", "differences"]) by(id).addEventListener("change", compare);

refreshAll();
compare();
const watch = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting).forEach((entry) => visible.add(entry.target.id));
  refresh();
}, { rootMargin: "300px" });
Object.keys(sections).forEach((name) => watch.observe(by(name)));
