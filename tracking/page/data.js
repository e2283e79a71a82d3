// What the page knows: the runs, their settings, how numbers are written, which colour is whose.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
RUNS.forEach((run, index) => { run.index = index; });

// What schedules add to the records of a round, in words; a count of the last round is no result of a run.
const OF_SCHEDULES = {
  staleness_mean: "mean staleness of updates (server steps)", staleness_max: "largest staleness of updates (server steps)",
  in_flight: "clients at work after the step", left: "clients that left before their end", stale: "updates too late to be of use",
  cut_short: "clients cut short by the deadline",
};
function courseName(key) { return OF_SCHEDULES[key] ?? key.replaceAll("_", " "); }

// Everything a run can be measured by: name in the summary, how it is called, how it is written.
const MEASURES = [
  { key: "final_accuracy", name: "accuracy", write: share },
  { key: "best_accuracy", name: "best accuracy", write: share, isMore: true },
  { key: "total_bytes", name: "bytes", write: bytes, unit: "B", title: "bytes, up and down", isPrice: true },
  { key: "total_bytes_up", name: "bytes up", write: bytes, unit: "B", isPrice: true, isMore: true },
  { key: "total_bytes_down", name: "bytes down", write: bytes, unit: "B", isPrice: true, isMore: true },
  { key: "total_sim_s", name: "simulated time", write: seconds, unit: "s", isPrice: true },
  { key: "total_energy_j", name: "energy", write: joules, unit: "J", isPrice: true },
  { key: "total_wall_s", name: "real time", write: seconds, unit: "s", isPrice: true },
  ...ownMeasures(),
].filter((measure) => RUNS.some((run) => of(run, measure.key) !== null));

// What methods add to their records, as it was at the end. Leakage has its price like bytes do.
function ownMeasures() {
  const names = RUNS.flatMap((run) => Object.keys(run.summary)).filter((key) => /^final_(?!accuracy$)/.test(key));
  const isOfRound = (key) => key.slice("final_".length) in OF_SCHEDULES;
  const keys = [...new Set(names)].filter((key) => !isOfRound(key)).filter((key) => !/_(undefined|untested)$/.test(key) || RUNS.some((run) => run.summary[key]));
  return keys.map((key) => {
    const name = key.slice("final_".length).replaceAll("_", " ");
    return { key, name, write: /accuracy/.test(key) ? share : number, isPrice: /^(dcor|attack ssim)/.test(name), isMore: keys.length > 3 };
  });
}

// Axes of the course and of the clients; only those that some run has data for are offered.
const AXES = [
  { key: "round", name: "rounds", write: number },
  { key: "bytes", name: "bytes", title: "bytes, up and down", unit: "B", write: bytes },
  { key: "sim_s", name: "simulated time", unit: "s", write: seconds },
  { key: "energy_j", name: "energy", unit: "J", write: joules },
  { key: "wall_s", name: "real time", unit: "s", write: seconds },
].filter((axis) => RUNS.some((run) => axis.key in run.rounds))
  .sort((a, b) => (DATA.simulated.first ? (b.key === "sim_s") - (a.key === "sim_s") : 0)); // where rounds take unequal time
const CLIENT_MEASURES = [
  { key: "accuracy", name: "accuracy on its own samples, at the end", write: share },
  { key: "loss", name: "training loss, last round", write: number },
  { key: "sim_s", name: "simulated time a round", unit: "s", write: seconds },
  { key: "energy_j", name: "energy a round", unit: "J", write: joules },
  { key: "bytes", name: "bytes a round, up and down", unit: "B", write: bytes },
].filter((m) => RUNS.some((run) => Object.values(run.clients).some((device) => m.key in device)));

function of(run, key) {
  if (key === "total_bytes") {
    const { total_bytes_up: up, total_bytes_down: down } = run.summary;
    return up == null || down == null ? null : up + down;
  }
  return run.summary[key] ?? null;
}

// Numbers as they are read: four digits, with their unit.

function share(value) { return value.toFixed(4); }
function number(value) {
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e9)) return value.toExponential(2);
  return Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
}
function scaled(value, units) {
  while (Math.abs(value) >= 999.5 && units.length > 1) { value /= 1000; units = units.slice(1); }
  return `${Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 })} ${units[0]}`;
}
function bytes(value) { return scaled(value, ["B", "kB", "MB", "GB", "TB"]); }
function joules(value) { return scaled(value, ["J", "kJ", "MJ", "GJ"]); }
function seconds(value) { return `${Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 })} s`; }

// Mean ± deviation: as many digits as the deviation gives meaning to, of the mean three at most.
function spread(measure, values) { return spreadOf(measure, mean(values), deviation(values), values.length); }
function spreadOf(measure, middle, sd, n) {
  if (n < 2 || measure.write === share) return measure.write(middle) + (n > 1 ? ` ± ${share(sd)}` : "");
  const [factor, unit] = measure.unit ? scaleOf(measure.unit, middle) : [1, ""];
  const digit = (v) => (v ? Math.floor(Math.log10(Math.abs(v) / factor)) : 0);
  const digits = Math.min(8, Math.max(0, Math.min(1 - digit(sd), 2 - digit(middle))));
  if (!(sd / factor >= 0.5 * 10 ** -digits)) return measure.write(middle);
  const write = (v) => (v / factor).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${write(middle)} ± ${write(sd)}${unit && ` ${unit}`}`;
}
// Seconds as the axis of a chart counts them, by the largest: how many are one, of what.
function timeScale(most) { return most >= 3 * 3600 ? [3600, "h"] : most >= 180 ? [60, "min"] : [1, "s"]; }
function scaleOf(unit, value) {
  const prefixes = unit === "s" ? [""] : ["", "k", "M", "G", "T"];
  const power = Math.min(prefixes.length - 1, Math.max(0, Math.floor(Math.log10(Math.abs(value) || 1) / 3)));
  return [1000 ** power, prefixes[power] + unit];
}

// A value of a configuration or a summary, rounded, with the unit that its key ends with.
function withUnit(key, value) {
  if (typeof value !== "number") return value === null ? "null" : text(value);
  if (/(^|_)bytes(_|$)/.test(key)) return bytes(value);
  if (/(^|_)(flops|bops)(_|$)/.test(key)) return scaled(value, ["", "k", "M", "G", "T"]).trim();
  if (/accuracy/.test(key) && Math.abs(value) <= 1 && !Number.isInteger(value)) return share(value);
  const unit = { s: "s", j: "J", h: "h", ms: "ms", mbps: "Mbit/s", w: "W", gb: "GB", mb: "MB" }[key.match(/_([a-z]+)(?:_to_target)?$/)?.[1]];
  if (key === "seed" || Number.isInteger(value) && Math.abs(value) < 1e5 && !unit) return String(value);
  const plainly = Number.isInteger(value) ? value.toLocaleString("en") : number(value);
  return unit ? `${unit === "J" ? joules(value) : `${plainly} ${unit}`}` : plainly;
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

// Values in their order, in few words.
const MOST_VALUES = 12;
function several(values) {
  const numbers = values.map(Number);
  if (values.length > 3 && numbers.every((n, at) => Number.isInteger(n) && n === numbers[0] + at)) return `${values[0]} to ${values.at(-1)}`;
  return values.length > MOST_VALUES ? `${values.slice(0, MOST_VALUES).join(", ")} … (${values.length})` : values.join(", ");
}

// What tells a run from the others: all that it was given where nothing is swept.
function own(run) {
  return DATA.keys.map((key, i) => [key, run.values[i]]).filter(([, value]) => value !== null)
    .map(([key, value]) => `${key}=${text(value)}`).join(" ") || run.overrides;
}

// Settings by a short name: the method by itself, of other keys the last word where it is enough.
const KEYS = (() => {
  const keys = DATA.keys.filter((key) => key !== "seed"), done = RUNS.filter((run) => Object.keys(run.summary).length);
  const told = keys.filter((key) => new Set(done.map((run) => text(run.values[DATA.keys.indexOf(key)]))).size > 1);
  return told.length ? told : keys; // not what tells failed runs from the others alone
})();
function shortKey(key) {
  const last = key.split(".").at(-1);
  return KEYS.filter((other) => other.split(".").at(-1) === last).length > 1 ? key : last;
}
function named(run) {
  const parts = KEYS.map((key) => [key, run.values[DATA.keys.indexOf(key)]]).filter(([, value]) => value !== null);
  return parts.map(([key, value]) => (key === "strategy" || key === "model" ? text(value) : `${shortKey(key)}=${text(value)}`)).join(" ");
}
const NAMES = (() => {
  const sets = DATA.groups.map((_, group) => RUNS.filter((run) => run.group === group));
  const short = sets.map((those, group) => named(those[0]) || DATA.groups[group]);
  const isDone = sets.map((those) => those.some((run) => Object.keys(run.summary).length));
  const clash = (group) => short.some((name, other) => name === short[group] && other !== group && (isDone[other] || !isDone[group]));
  return short.map((name, group) => (clash(group) ? DATA.groups[group] : name));
})();

// The same beside a point of a chart: the values alone.
const LONGEST = 26;
function brief(run) {
  const values = KEYS.map((key) => run.values[DATA.keys.indexOf(key)]).filter((value) => value !== null);
  return cut(values.map(text).join(" ") || NAMES[run.group], LONGEST);
}
function cut(whole, most) { return whole.length > most ? `${whole.slice(0, most - 1)}…` : whole; }

// Plotly reads a few tags in its labels; other people's text must not be any.
function plain(value) { return value.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); }

function mean(values) { return values.reduce((sum, value) => sum + value, 0) / values.length; }
function deviation(values) {
  if (values.length < 2) return 0;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}
// What the finished runs of a set have of a measure.
function found(set, key) {
  return set.runs.filter((run) => run.status !== "failed").map((run) => of(run, key)).filter((value) => value !== null);
}

// Runs as charts take them: by group, each seed once, a copy only where the run itself is not there.
function grouped(runs) {
  const sets = new Map();
  for (const run of runs) {
    if (!sets.has(run.group)) sets.set(run.group, { seeds: new Map(), all: [] });
    const { seeds, all } = sets.get(run.group), seed = run.config.seed ?? run.job;
    all.push(run);
    const before = seeds.get(seed);
    if (!before || (before.copy && !run.copy) || (before.status === "failed" && run.status !== "failed")) seeds.set(seed, run);
  }
  return [...sets].map(([group, { seeds, all }]) => ({ group, label: DATA.groups[group], name: NAMES[group], runs: [...seeds.values()], all }));
}
function single(runs) {
  const each = grouped(runs).flatMap((set) => set.runs.map((run) => [run, set.runs.length > 1]));
  return each.sort(([a], [b]) => a.index - b.index).map(([run, isOneOfSeveral]) => ({
    group: run.group, label: `${run.job} ${own(run)}`, name: NAMES[run.group] + (isOneOfSeveral ? ` seed=${text(run.config.seed)}` : ""), runs: [run], all: [run],
  }));
}
const HAS_SEEDS = grouped(RUNS).some((set) => set.runs.length > 1);
// The best first; without a result last.
function ranked(sets) {
  const worth = (set) => { const values = found(set, "final_accuracy"); return values.length ? mean(values) : -Infinity; };
  return sets.map((set) => [worth(set), set]).sort(([a, x], [b, y]) => b - a || x.runs[0].index - y.runs[0].index).map(([, set]) => set);
}
