// The table of runs: sorted by a heading, narrowed by the filter.

const COLUMNS = [
  { name: "job", get: (run) => run.job, show: (run) => run.job },
  ...DATA.keys.map((key, i) => ({ name: key, get: (run) => text(run.values[i]), show: (run) => text(run.values[i]) })),
  ...(DATA.keys.length ? [] : [{ name: "overrides", get: (run) => run.overrides, show: (run) => run.overrides }]),
  ...MEASURES.map(({ key, short, write }) => ({
    name: short, isNumber: true, get: (run) => of(run, key),
    show: (run) => (of(run, key) === null ? "" : write(of(run, key))),
  })),
  { name: "status", get: (run) => run.status, show: (run) => run.status },
];
const sorting = { column: COLUMNS[0], isDescending: false };

function sorted(runs) {
  const { column, isDescending } = sorting;
  const sign = isDescending ? -1 : 1;
  const compare = (a, b) => {
    const [x, y] = [column.get(a), column.get(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index; // always last
    return sign * (column.isNumber ? x - y : byValue(x, y)) || a.index - b.index;
  };
  return [...runs].sort(compare);
}

// Every word must match: `key=value` a column, `key>number` a number, anything else a part of the row.
function matches(run, words) {
  return words.every((word) => {
    const found = word.match(/^([^=<>]+)(>=|<=|=|>|<)(.+)$/);
    const column = found && COLUMNS.find((c) => c.name === found[1]);
    if (!column) return run.searched.includes(word.toLowerCase());
    const value = column.get(run), [, , sign, wanted] = found;
    if (sign === "=") return String(value) === wanted || column.show(run) === wanted;
    if (value === null || value === "–" || isNaN(value)) return false;
    return { ">": value > +wanted, "<": value < +wanted, ">=": value >= +wanted, "<=": value <= +wanted }[sign];
  });
}
for (const run of RUNS) {
  const cells = COLUMNS.map((column) => column.show(run));
  run.searched = [...cells, run.overrides, run.error].join(" ").toLowerCase();
}

function drawTable(runs, onChoose, onSort) {
  const head = document.createElement("tr");
  for (const column of COLUMNS) {
    const cell = element("th", "", column.isNumber ? "number" : "");
    const button = element("button", column.name);
    button.addEventListener("click", () => {
      sorting.isDescending = sorting.column === column ? !sorting.isDescending : Boolean(column.isNumber);
      sorting.column = column;
      onSort();
    });
    if (sorting.column === column) cell.ariaSort = sorting.isDescending ? "descending" : "ascending";
    cell.append(button);
    head.append(cell);
  }
  document.querySelector("#table thead").replaceChildren(head);
  document.querySelector("#table tbody").replaceChildren(...sorted(runs).map((run) => row(run, onChoose)));
}

function row(run, onChoose) {
  const line = element("tr", "", run.status === "failed" ? "failed" : "");
  for (const column of COLUMNS) {
    const cell = element("td", "", column.isNumber ? "number" : column.name === "status" ? "status" : "");
    if (column.name === "job") {
      const button = element("button", run.job);
      button.addEventListener("click", () => onChoose(run));
      cell.append(button);
    } else if (column.name === "status") {
      cell.append(element("span", run.status, run.status === "failed" ? "bad" : ""));
      if (run.error) cell.append(element("small", run.error, "bad"));
    } else cell.textContent = column.show(run);
    line.append(cell);
  }
  return line;
}

function element(tag, content, className = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  if (className) made.className = className;
  return made;
}
