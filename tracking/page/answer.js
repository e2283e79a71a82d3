// The first screen: what was compared, what failed, the best setting, and what equals it.

const MOST_RIVALS = 6, MOST_WORSE = 3;
// What of the configuration is said first of all runs, where it is the same.
const TOLD = [
  ["data.name", "data"], ["model._target_", "model"], ["strategy.name", "method"], ["clients.total", "clients"],
  ["clients.per_round", "a round"], ["rounds", "rounds"], ["train.epochs", "local epochs"], ["train.lr", "learning rate"],
  ["train.batch_size", "batch size"], ["data.partition", "partition"], ["fleet.population", "fleet"], ["quant.bits", "bits"],
];

function drawCompared(place) {
  const line = (name, ...content) => {
    const said = element("dd", "");
    said.append(...content);
    place.append(element("dt", name), said);
  };
  const pair = (key, value) => {
    const said = element("span", `${key} `, "key");
    said.append(element("b", value));
    return said;
  };
  if (DATA.keys.length) {
    line("Varies", ...DATA.keys.map((key, i) => {
      const values = [...new Set(RUNS.map((run) => text(run.values[i])))].filter((v) => v !== "–").sort(byValue);
      return pair(key, several(values));
    }));
  }
  const configs = RUNS.map((run) => run.config).filter((config) => Object.keys(config).length);
  const same = configs.length ? Object.keys(configs[0]).filter((key) => configs.every((c) => text(c[key]) === text(configs[0][key]))) : [];
  const told = TOLD.filter(([key]) => same.includes(key) && configs[0][key] !== null);
  if (told.length) {
    line(RUNS.length > 1 ? "Same for all" : "Setting", ...told.map(([key, name]) => {
      const value = configs[0][key];
      const said = key === "model._target_" ? String(value).split(/[.:]/).at(-1)
        : key === "clients.per_round" ? (Number.isInteger(value) && value > 1 ? String(value) : `${value * 100}%`) : text(value);
      return pair(name, said);
    }));
  }
  const said = RUNS.length > 1 ? DATA.common.join(" ") : RUNS[0].overrides;
  if (said) line("Command", said);
}

function drawFailures(place) {
  for (const { status, reason, jobs, traceback } of DATA.failures) {
    const box = element("div", ""), said = element("p", "");
    const which = jobs.length > 8 ? `${jobs.slice(0, 8).join(", ")} … (${jobs.length})` : jobs.join(", ");
    said.append(element("b", `${jobs.length > 1 ? "Jobs" : "Job"} ${which} ${status}: `, "bad"), reason);
    box.append(said);
    if (traceback) {
      const more = element("details", "");
      more.append(element("summary", jobs.length > 1 ? `Traceback of job ${jobs[0]}` : "Traceback"), element("pre", traceback));
      box.append(more);
    }
    place.append(box);
  }
}

// The page says it in words, so that it can be read without the charts.
function drawVerdict(place, sets, style) {
  const { best, rivals, short, measure } = DATA.answer;
  const set = sets.find((s) => s.group === best) ?? sets[0];
  place.replaceChildren();
  if (best === null || !set) {
    place.append(element("p", "No run has a result yet.", "quiet"));
    return;
  }
  const setOf = (group) => sets.find((s) => s.group === group);
  const accuracy = (s) => spread(MEASURES[0], found(s, "final_accuracy"));
  const isAlone = RUNS.length === 1 || sets.length === 1, isValidated = measure === "final_validation_accuracy";

  const card = element("div", ""), name = element("div", "", "name"), value = element("div", "", "figure");
  card.id = "best";
  if (!isAlone) card.append(element("div", "Best setting", "quiet"));
  if (!isAlone) name.append(swatch({ ...style.of[set.group], mark: "square" }));
  name.append(set.name);
  const on = set.runs[0].summary.evaluated_on === "clients" ? "accuracy on clients' own samples" : "accuracy";
  value.append(found(set, "final_accuracy").length ? accuracy(set) : "–",
    element("small", ` ${on}, ${set.runs.length > 1 ? `mean ± sd of ${found(set, "final_accuracy").length} seeds` : set.runs[0].config.seed === undefined ? "one run" : `seed ${text(set.runs[0].config.seed)}`}`));
  const prices = MEASURES.filter((m) => m.isPrice && !m.isMore && found(set, m.key).length);
  card.append(name, value, element("div", prices.map((m) => `${spread(m, found(set, m.key))} ${{ total_bytes: "up and down", total_sim_s: "simulated", total_wall_s: "real" }[m.key] ?? ""}`.trim()).join(" · "), "quiet"));
  const run = set.runs[0], round = run.summary.best_round;
  if (RUNS.length === 1 && round) card.append(element("div", `best in round ${round} of ${run.summary.rounds}: ${share(run.summary.best_accuracy)}`, "quiet"));
  place.append(card);
  if (IS_MIXED) place.append(element("p", `${mixedLine()} Here runs are compared at their ends${by("simulated").hidden ? "." : ", below at equal simulated time."}`));
  if (isAlone && !rivals.length) return;

  const seeds = Math.max(...sets.map((s) => s.runs.length)), few = rivals.filter((r) => r.verdict === "few");
  const open = rivals.filter((r) => r.verdict === "open" || r.verdict === "same"), worse = rivals.filter((r) => r.verdict === "worse");
  const list = (title, those, most = MOST_RIVALS) => {
    if (!those.length) return;
    place.append(element("h3", title));
    const shown = rivalTable(those.slice(0, most), setOf, accuracy, style);
    place.append(shown);
    if (those.length > most) {
      const more = element("details", "");
      more.append(element("summary", `and ${those.length - most} more`), rivalTable(those.slice(most), setOf, accuracy, style));
      place.append(more);
    }
  };
  if (few.length === rivals.length) {
    place.append(element("p", `${seeds === 1 ? "One seed" : `${seeds} seeds`} a setting: too few to say whether a difference is one. A paired test takes 3 or more, as in seed=0,1,2.`));
    list("Behind it", few);
  } else {
    list("Cannot be told apart from it", open);
    list("Worse (p < 0.05)", worse, MOST_WORSE);
    list("Too few seeds in common to say", few);
    if (!open.length && !few.length) place.append(element("p", "Every other setting is worse by more than the seeds differ."));
    const least = Math.min(...rivals.filter((r) => r.p !== null).map((r) => r.n));
    place.append(element("p", `Δ: ${isValidated ? "validation accuracy" : "accuracy"} less that of the best, mean over the seeds that both have, with its 95 % interval. p: paired t-test, ` +
      "corrected for the number of settings (Holm)." + (least < 5 ? ` With ${least} seeds only large differences show.` : ""), "quiet"));
  }
  if (short.length) place.append(element("p", `Higher, but of fewer seeds: ${short.map((g) => `${NAMES[g]} (${accuracy(setOf(g))}, ${found(setOf(g), "final_accuracy").length})`).join("; ")}.`, "quiet"));
  place.append(element("p", isValidated ? "Chosen by accuracy on the validation samples; shown is that on the test set."
    : "Chosen on the test samples themselves: on new data the best of many does a little worse.", "quiet"));
}

function rivalTable(rivals, setOf, accuracy, style) {
  const table = element("table", ""), head = element("thead", ""), body = element("tbody", ""), titles = element("tr", "");
  const isTested = rivals.some((rival) => rival.p !== null);
  for (const [title, kind] of [["setting", ""], ["accuracy", "number"], ["Δ", "number delta"], ...(isTested ? [["p", "number"]] : [])]) {
    const cell = element("th", title, kind);
    cell.scope = "col";
    titles.append(cell);
  }
  head.append(titles);
  const points = (v, digits) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(digits);
  for (const { group, difference, low, high, p, verdict } of rivals) {
    const line = element("tr", ""), name = element("th", "");
    name.scope = "row";
    const named = element("span", "", "named");
    named.append(swatch({ ...style.of[group], mark: "square" }), element("span", NAMES[group]));
    name.append(named);
    const delta = verdict === "same" ? "equal, seed by seed" : difference === null ? "–"
      : points(difference, 4) + (low === null ? "" : ` [${points(low, 3)}, ${points(high, 3)}]`);
    line.append(name, element("td", accuracy(setOf(group)), "number"), element("td", delta, "number delta"),
      ...(isTested ? [element("td", p === null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(p < 0.1 ? 3 : 2), "number")] : []));
    body.append(line);
  }
  table.append(head, body);
  return table;
}
