// Per class: a value for each setting and class, and a setting's confusion matrix.

const MOST_ROWS = 30, MOST_WRITTEN = 24;
const CLASS_MEASURES = [...new Set(RUNS.flatMap((run) => Object.keys(run.classes.measures ?? {})))];

function scale() {
  return isDark() ? [[0, "#1c222a"], [0.5, "#2c5688"], [1, "#8ec0ff"]] : [[0, "#fbfcfd"], [0.5, "#8fb6de"], [1, "#1f5fa8"]];
}
function labelsOf(run, count) { return run.classes.labels?.length === count ? run.classes.labels : Array.from({ length: count }, (_, i) => String(i)); }

// A table of colours, with the numbers in it where there is room.
function heat(place, z, rows, columns, write, more, content) {
  const isWritten = columns.length <= MOST_WRITTEN && document.body.clientWidth > 640;
  const height = 84 + 12 + rows.length * Math.max(18, Math.min(30, 420 / rows.length)) + (more.deep ?? 0);
  draw(place, [{
    type: "heatmap", z, x: columns.map((_, i) => i), y: rows.map((_, i) => i), colorscale: scale(), xgap: 1, ygap: 1, showscale: false, zmin: more.zmin, zmax: more.zmax,
    text: z.map((line) => line.map((v) => (v === null ? "–" : write(v)))), customdata: rows.map((row) => columns.map((column) => `${plain(row)}<br>${more.column} ${plain(column)}`)),
    texttemplate: isWritten ? "%{text}" : "", textfont: { size: 11 }, hovertemplate: `%{customdata}<br>${more.name} %{text}<extra></extra>`, ...(more.text ? { text: more.text } : {}),
  }], {
    height, margin: { l: 60, r: 14, t: 8, b: 46 },
    xaxis: axis(more.title, "", { tickmode: "array", tickvals: columns.map((_, i) => i), ticktext: columns.map((c) => plain(cut(c, 14))), showgrid: false, ticks: "" }),
    yaxis: axis(more.rowTitle ?? "", "", { tickmode: "array", tickvals: rows.map((_, i) => i), ticktext: rows.map((r) => plain(cut(r, document.body.clientWidth > 640 ? 44 : 18))), autorange: "reversed", showgrid: false, ticks: "" }),
  }, content);
}

function drawClasses(sets, choice) {
  const measure = choice.measure;
  const all = ranked(sets).map((set) => {
    const runs = set.runs.filter((run) => run.classes.measures?.[measure]);
    if (!runs.length) return null;
    const count = Math.max(...runs.map((run) => run.classes.measures[measure].length));
    const values = Array.from({ length: count }, (_, i) => {
      const known = runs.map((run) => run.classes.measures[measure][i]).filter((v) => typeof v === "number");
      return known.length ? mean(known) : null;
    });
    return { set, values, run: runs[0] };
  }).filter(Boolean);
  const rows = all.slice(0, MOST_ROWS), longest = rows.reduce((a, b) => (b.values.length > (a?.values.length ?? 0) ? b : a), null);
  const columns = longest ? labelsOf(longest.run, longest.values.length) : [];
  const known = rows.flatMap((r) => r.values).filter((v) => v !== null), isShare = known.every((v) => v >= 0 && v <= 1);
  const worst = rows.map((r) => { const least = Math.min(...r.values.filter((v) => v !== null)); return `${r.set.name}: least ${number(least)} (class ${columns[r.values.indexOf(least)]})`; });
  heat(by("classes-figure"), rows.map((r) => r.values), rows.map((r) => r.set.name), columns, (v) => (isShare ? v.toFixed(2) : number(v)), {
    title: "class", column: "class", name: measure, zmin: isShare ? Math.min(0.5, ...known) : undefined, zmax: isShare ? 1 : undefined,
  }, {
    title: `${measure} per class`, said: worst.slice(0, 5).join("; "),
    rows: () => [["setting", ...columns], ...all.map((r) => [r.set.label, ...r.values])],
  });
  by("classes-note").textContent = "Of the last round's model, means over seeds." +
    (all.length > rows.length ? ` The best ${rows.length} of ${all.length}; the filter chooses others.` : "");
}

function drawMatrix(set) {
  const runs = set ? set.runs.filter((run) => run.classes.matrix) : [];
  if (!runs.length) { draw("matrix-figure", [], {}, { title: "Confusion matrix", rows: () => [] }); return; }
  const first = runs[0].classes.matrix, total = first.map((line, i) => line.map((_, j) => runs.reduce((sum, run) => sum + (run.classes.matrix[i]?.[j] ?? 0), 0)));
  const isSquare = first.every((line) => line.length === first.length);
  const labels = labelsOf(runs[0], first.length), columns = isSquare ? labels : ["true negative", "false negative", "false positive", "true positive"].slice(0, first[0].length);
  const shares = total.map((line) => { const sum = line.reduce((a, b) => a + b, 0); return line.map((v) => (sum ? v / sum : null)); });
  heat(by("matrix-figure"), shares, labels, columns, share, {
    title: "prediction", rowTitle: "class", column: "predicted", name: "samples", zmin: 0, zmax: 1, text: total.map((line) => line.map((v) => (v ? v.toLocaleString("en") : ""))),
  }, { title: `Confusion matrix of ${set.name}`, said: "", rows: () => [["class", ...columns], ...total.map((line, i) => [labels[i], ...line])] });
}
