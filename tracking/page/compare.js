// The configuration and the summary of one run, beside another's.

function drawCompare(a, b, isOnlyDifferent) {
  const one = a === b;
  const head = document.createElement("tr");
  head.append(element("th", ""), element("th", a.job), ...(one ? [] : [element("th", b.job)]));
  document.querySelector("#config thead").replaceChildren(head);
  const lines = [];
  for (const [name, of] of [["configuration", (run) => run.config], ["results", (run) => results(run)]]) {
    const keys = [...new Set([...Object.keys(of(a)), ...Object.keys(of(b))])];
    const rows = keys.map((key) => {
      const [x, y] = [a, b].map((run) => (key in of(run) ? cell(of(run)[key]) : "–"));
      if (isOnlyDifferent && !one && x === y) return null;
      const line = document.createElement("tr");
      line.append(element("td", key), element("td", x), ...(one ? [] : [element("td", y)]));
      if (x !== y) line.className = "different";
      return line;
    }).filter(Boolean);
    const part = element("tr", "", "part");
    part.append(element("td", name));
    part.firstChild.colSpan = 3;
    if (rows.length) lines.push(part, ...rows);
  }
  document.querySelector("#config tbody").replaceChildren(...lines);
  const errors = [...new Set([a, b])].filter((run) => run.error).map((run) => `${run.job} failed: ${run.error}`);
  document.getElementById("compare-error").textContent = errors.join("\n");
}

function cell(value) { return value === null ? "null" : text(value); }

function results(run) {
  const { versions = {}, ...rest } = run.summary;
  const named = Object.entries(versions).map(([name, version]) => [`version of ${name}`, version]);
  return { ...rest, ...Object.fromEntries(named) };
}
