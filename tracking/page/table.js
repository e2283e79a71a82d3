// The table: settings with their seeds below them, sorted by a heading, narrowed by the filter.

const RIVALS = new Map(DATA.answer.rivals.map((rival) => [rival.group, rival]));
const COLUMNS = [
  { name: "job", get: (run) => run.job, show: (run) => run.job },
  { name: "accuracy", ...measured(MEASURES.find((m) => m.key === "final_accuracy")) },
  ...DATA.keys.map((key, i) => ({ name: key, isKey: true, get: (run) => text(run.values[i]), show: (run) => keyText(key, run.values[i]) })),
  ...(DATA.keys.length || RUNS.length < 2 ? [] : [{ name: "overrides", isKey: true, get: (run) => run.overrides, show: (run) => run.overrides }]),
  ...MEASURES.filter((m) => m.key !== "final_accuracy").map((m) => ({ name: m.name, isMore: m.isMore, ...measured(m) })),
  { name: "status", get: (run) => run.status, show: (run) => run.status },
].filter((column) => column.name !== "accuracy" || column.measure);
function measured(measure) {
  return measure && {
    measure, isNumber: true, get: (run) => of(run, measure.key),
    show: (run) => (of(run, measure.key) === null ? "" : measure.write(of(run, measure.key))),
  };
}
function keyText(key, value) { return value === null ? "–" : typeof value === "number" ? withUnit(key, value) : text(value); }
const sorting = { column: COLUMNS.find((c) => c.name === "accuracy") ?? COLUMNS[0], isDescending: true };
const unfolded = new Set();

// By a number sets are in the order of their means, else of their first runs.
function sorted(items, runsOf, valueOf) {
  const { column, isDescending } = sorting, sign = isDescending ? -1 : 1;
  return [...items].sort((a, b) => {
    const [x, y] = [valueOf(a, column), valueOf(b, column)], [i, j] = [runsOf(a)[0].index, runsOf(b)[0].index];
    if (x === null || y === null) return (x === null) - (y === null) || i - j; // always last
    return sign * (column.isNumber ? x - y : byValue(x, y)) || i - j;
  });
}
function setValue(set, column) {
  if (!column.isNumber) return column.get(set.runs[0]);
  const values = found(set, column.measure.key);
  return values.length ? mean(values) : null;
}

// Every word must match: `key=value` a column, `key>number` a number, anything else a part of the row.
function matches(run, words) {
  return words.every((word) => {
    const parts = word.match(/^([^=<>]+)(>=|<=|=|>|<)(.+)$/);
    const column = parts && COLUMNS.find((c) => c.name === parts[1]);
    if (!column) return run.searched.includes(word.toLowerCase());
    const value = column.get(run), [, , sign, wanted] = parts;
    if (sign === "=") return String(value) === wanted || column.show(run) === wanted;
    if (value === null || value === "–" || isNaN(value)) return false;
    return { ">": value > +wanted, "<": value < +wanted, ">=": value >= +wanted, "<=": value <= +wanted }[sign];
  });
}
for (const run of RUNS) {
  const cells = COLUMNS.map((column) => column.show(run));
  run.searched = [...cells, run.overrides, run.error].join(" ").toLowerCase();
}

// Args: runs that the filter leaves; their style; whether every run has a row, and all columns are
// shown; what follows a click on a job and on a heading.
function drawTable(runs, style, { isUnfolded, hasAll, onChoose, onSort }) {
  const columns = COLUMNS.filter((column) => hasAll || !column.isMore);
  const head = element("tr", "");
  for (const column of columns) {
    const cell = element("th", "", column.isNumber ? "number" : column.isKey ? "of-key" : "");
    const button = element("button", column.name === "job" && HAS_SEEDS ? "setting" : column.name);
    button.type = "button";
    button.addEventListener("click", () => {
      sorting.isDescending = sorting.column === column ? !sorting.isDescending : Boolean(column.isNumber);
      sorting.column = column;
      onSort();
    });
    cell.scope = "col";
    if (sorting.column === column) cell.ariaSort = sorting.isDescending ? "descending" : "ascending";
    cell.append(button);
    head.append(cell);
  }
  document.querySelector("#table thead").replaceChildren(head);
  const rows = [];
  for (const set of sorted(grouped(runs), (s) => s.runs, setValue)) {
    if (set.all.length === 1) { rows.push(row(set.all[0], columns, style, onChoose)); continue; }
    const below = sorted(set.all, (run) => [run], (run, column) => column.get(run)).map((run) => row(run, columns, style, onChoose, true));
    rows.push(setRow(set, columns, style, below, isUnfolded || unfolded.has(set.group)), ...below);
  }
  document.querySelector("#table tbody").replaceChildren(...rows);
  document.querySelector("#table caption").textContent = HAS_SEEDS ? "Mean ± sd over seeds; a setting's runs are below it, folded." : "";
}

function setRow(set, columns, style, below, isOpen) {
  const line = element("tr", "", "set");
  const state = (name) => set.all.filter((run) => (name === "same" ? run.copy : run.status === name)).length;
  const states = ["finished", "same", "failed", "unfinished", "damaged"].map((name) => [state(name), name]).filter(([n]) => n);
  below.forEach((one) => { one.hidden = !isOpen; });
  for (const column of columns) {
    if (column.name === "job") {
      const cell = element("th", ""), button = element("button", "", "fold"), done = found(set, "final_accuracy").length;
      cell.scope = "row";
      button.type = "button";
      button.setAttribute("aria-expanded", String(isOpen));
      button.setAttribute("aria-label", `${set.name}: runs`);
      button.append(swatch({ ...style.of[set.group], mark: "square" }), done === 1 ? "1 seed" : `${done} seeds`);
      button.addEventListener("click", () => {
        const opens = below[0].hidden;
        below.forEach((one) => { one.hidden = !opens; });
        button.setAttribute("aria-expanded", String(opens));
        if (opens) unfolded.add(set.group); else unfolded.delete(set.group);
      });
      cell.append(button, element("span", set.name, "setting"));
      line.append(cell);
    } else if (column.isNumber) {
      const values = found(set, column.measure.key);
      line.append(element("td", values.length ? spread(column.measure, values) : "", "number"));
    } else if (column.isKey) {
      line.append(element("td", several([...new Set(set.runs.map((run) => column.show(run)))].sort(byValue)), "of-key"));
    } else {
      const cell = element("td", "", "status");
      states.forEach(([n, name], i) => cell.append(i ? ", " : "", element("span", `${n} ${name}`, name === "failed" ? "bad" : "")));
      line.append(cell);
    }
  }
  return line;
}

function row(run, columns, style, onChoose, isSeed = false) {
  const line = element("tr", "", [run.status === "failed" ? "failed" : "", isSeed ? "seed" : ""].filter(Boolean).join(" "));
  for (const column of columns) {
    const cell = element(column.name === "job" ? "th" : "td", "", column.isNumber ? "number" : column.name === "status" ? "status" : column.isKey ? "of-key" : "");
    if (column.name === "job") {
      const button = element("button", "");
      cell.scope = "row";
      button.type = "button";
      button.setAttribute("aria-label", `job ${run.job}: configuration`);
      if (!isSeed) button.append(swatch({ ...style.of[run.group], mark: "square" }));
      button.append(run.job);
      button.addEventListener("click", () => onChoose(run));
      cell.append(button, element("span", isSeed ? `seed ${run.config.seed ?? "–"}` : NAMES[run.group], "setting"));
    } else if (column.name === "status") {
      cell.append(element("span", run.status, run.status === "failed" ? "bad" : ""));
      if (run.error) cell.append(Object.assign(element("small", run.error, "bad"), { title: run.error }));
    } else cell.textContent = column.show(run);
    line.append(cell);
  }
  return line;
}
