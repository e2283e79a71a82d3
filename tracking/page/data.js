// What the page knows: the runs, their columns, how numbers are written, which colour is whose.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
RUNS.forEach((run, index) => { run.index = index; });

// Everything a run can be measured by: name in the summary, how it is called, how it is written.
const MEASURES = [
  { key: "final_accuracy", name: "accuracy", short: "accuracy", write: share },
  { key: "best_accuracy", name: "best accuracy", short: "best", write: share },
  { key: "total_bytes", name: "bytes, up and down", short: "bytes", write: bytes, unit: "B", isPrice: true },
  { key: "total_bytes_up", name: "bytes up", short: "up", write: bytes, unit: "B", isPrice: true },
  { key: "total_bytes_down", name: "bytes down", short: "down", write: bytes, unit: "B", isPrice: true },
  { key: "total_sim_s", name: "simulated seconds", short: "sim s", write: number, isPrice: true },
  { key: "total_energy_j", name: "joules", short: "joules", write: number, isPrice: true },
  { key: "total_wall_s", name: "real seconds", short: "seconds", write: (v) => v.toFixed(1), isPrice: true },
  ...ownMeasures(),
].filter((measure) => RUNS.some((run) => of(run, measure.key) !== null));

// What methods add to their records, as it was at the end. Leakage has its price like bytes do.
function ownMeasures() {
  const names = RUNS.flatMap((run) => Object.keys(run.summary)).filter((key) => /^final_(?!accuracy$)/.test(key));
  return [...new Set(names)].map((key) => {
    const name = key.slice("final_".length).replaceAll("_", " ");
    return { key, name, short: name, write: number, isPrice: /^(dcor|attack ssim)/.test(name) };
  });
}

// Axes of the course and of the clients; only those that some run has data for are offered.
const AXES = [
  { key: "round", name: "rounds" },
  { key: "bytes", name: "bytes", title: "bytes, up and down", unit: "B" },
  { key: "sim_s", name: "simulated s", title: "simulated seconds" },
  { key: "energy_j", name: "joules" },
  { key: "wall_s", name: "real s", title: "real seconds" },
].filter((axis) => RUNS.some((run) => axis.key in run.rounds));
const CLIENT_MEASURES = [
  { key: "loss", name: "training loss, last round" },
  { key: "accuracy", name: "accuracy on its own samples, last round" },
  { key: "sim_s", name: "simulated seconds a round" },
  { key: "energy_j", name: "joules a round" },
  { key: "bytes", name: "bytes a round, up and down", unit: "B" },
].filter((m) => RUNS.some((run) => Object.values(run.clients).some((device) => m.key in device)));

function of(run, key) {
  if (key === "total_bytes") {
    const { total_bytes_up: up, total_bytes_down: down } = run.summary;
    return up == null || down == null ? null : up + down;
  }
  return run.summary[key] ?? null;
}

function share(value) { return value.toFixed(4); }
function number(value) { return Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 }); }
function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  while (value >= 999.5 && units.length > 1) { value /= 1000; units.shift(); }
  return `${Number(value.toPrecision(3))} ${units[0]}`;
}

// What tells a run from the others: all that it was given where nothing is swept.
function own(run) {
  return DATA.keys.map((key, i) => [key, run.values[i]]).filter(([, value]) => value !== null)
    .map(([key, value]) => `${key}=${text(value)}`).join(" ") || run.overrides;
}

// The same beside a point of a chart: the values alone.
const LONGEST = 24;
function brief(run) {
  const values = DATA.keys.map((key, i) => [key, run.values[i]]).filter(([key, value]) => key !== "seed" && value !== null);
  const whole = values.map(([, value]) => text(value)).join(" ");
  return whole.length > LONGEST ? `${whole.slice(0, LONGEST - 1)}…` : whole;
}

// A value of a swept key as text; null is a key that the run's method does not read.
function text(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "string" ? value : JSON.stringify(value);
}
function byValue(a, b) {
  if (a === b) return 0;
  if (a === "–" || b === "–") return a === "–" ? -1 : 1;
  return isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
}

// Plotly reads a few tags in its labels; other people's text must not be any.
function plain(value) { return value.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); }

function mean(values) { return values.reduce((sum, value) => sum + value, 0) / values.length; }
function deviation(values) {
  if (values.length < 2) return 0;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

// Runs as charts take them: by group, each seed once, a copy only where the run itself is not there.
function grouped(runs) {
  const found = new Map();
  for (const run of runs) {
    if (!found.has(run.group)) found.set(run.group, new Map());
    const seeds = found.get(run.group), seed = run.config.seed ?? run.job;
    if (!seeds.has(seed) || seeds.get(seed).copy) seeds.set(seed, run);
  }
  return [...found].map(([group, seeds]) => ({ label: DATA.groups[group], runs: [...seeds.values()] }));
}
function single(runs) {
  const found = grouped(runs).flatMap((group) => group.runs).sort((a, b) => a.index - b.index);
  return found.map((run) => ({ label: `${run.job} ${own(run)}`, runs: [run] }));
}
const HAS_SEEDS = grouped(RUNS).some((group) => group.runs.length > 1);

// Ten colours that people with colour blindness can tell apart; more values than that go from dark
// to light in their order.
const PALETTE = ["#1f5fa8", "#e07b00", "#2c8a4b", "#c23b55", "#7b5ab5", "#8a6a3a", "#0d98a6", "#c45fb0", "#6d7581", "#a3a200"];
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [222, 200, 40]];
function colours(names) {
  const at = (index) => {
    if (names.length <= PALETTE.length) return PALETTE[index];
    const place = (index / (names.length - 1)) * (RAMP.length - 1);
    const low = Math.min(Math.floor(place), RAMP.length - 2);
    return `rgb(${RAMP[low].map((c, i) => Math.round(c + (RAMP[low + 1][i] - c) * (place - low)))})`;
  };
  return new Map(names.map((name, index) => [name, at(index)]));
}
function see_through(colour) {
  if (colour.startsWith("rgb(")) return colour.replace("rgb(", "rgba(").replace(")", ",0.15)");
  return `${colour}26`;
}
