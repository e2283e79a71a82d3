// The configuration and the summary of one run, beside another's.

function drawCompare(a, b, isOnlyDifferent) {
  const one = a === b;
  const head = element("tr", "");
  for (const name of ["key", a.job, ...(one ? [] : [b.job])]) head.append(Object.assign(element("th", name), { scope: "col" }));
  document.querySelector("#config thead").replaceChildren(head);
  document.querySelector("#config caption").textContent = one ? `Run ${a.job}` : `Run ${a.job} beside ${b.job}`;
  const lines = [];
  for (const [name, of] of [["configuration", (run) => run.config], ["results", (run) => results(run)]]) {
    const keys = [...new Set([...Object.keys(of(a)), ...Object.keys(of(b))])];
    const rows = keys.map((key) => {
      const [x, y] = [a, b].map((run) => (key in of(run) ? withUnit(key, of(run)[key]) : "–"));
      const isSame = key in of(a) === key in of(b) && text(of(a)[key]) === text(of(b)[key]);
      if (isOnlyDifferent && !one && isSame) return null;
      const line = element("tr", "");
      line.append(Object.assign(element("th", key), { scope: "row" }), exactly(x, of(a)[key]), ...(one ? [] : [exactly(y, of(b)[key])]));
      if (!isSame) line.className = "different";
      return line;
    }).filter(Boolean);
    const part = element("tr", "", "part");
    part.append(Object.assign(element("th", name), { colSpan: 3, scope: "rowgroup" }));
    if (rows.length) lines.push(part, ...rows);
  }
  document.querySelector("#config tbody").replaceChildren(...lines);
  const errors = [...new Set([a, b])].filter((run) => run.error).map((run) => `${run.job} ${run.status}: ${run.error}`);
  by("compare-error").textContent = errors.join("\n");
}

// A cell that shows a rounded number, and says all its digits to whoever points at it.
function exactly(shown, value) {
  const cell = element("td", shown);
  if (typeof value === "number" && String(value) !== shown) cell.title = String(value);
  return cell;
}

function results(run) {
  const { versions = {}, ...rest } = run.summary;
  const named = Object.entries(versions).map(([name, version]) => [`version of ${name}`, version]);
  return { ...rest, ...Object.fromEntries(named) };
}
