// Works of clients on simulated time: a bar from begin to end, a row per client of a sample.

const WORK_STATES = ["ok", "alone", "left", "stale", "failed"].map((name) => STATES.find(([state]) => state === name)); // as in tracking/works.py
const MARK_ROOM = 8; // pixels between the ends of rounds; where there are less, every so many is drawn

function drawWorks(run) {
  const { clients, client, begin_s: begin, end_s: end, state, round, loss, staleness } = run.works, paint = isDark() ? 3 : 2;
  const last = Math.max(...end), [factor, unit] = timeScale(last), isSteps = run.config["schedule.name"] === "buffered";
  const word = isSteps ? "server step" : "round", ends = (run.rounds.sim_s ?? []).filter((at) => at <= last * 1.0001);
  const every = Math.max(1, Math.ceil((ends.length * MARK_ROOM) / Math.max(100, document.body.clientWidth - 160))), marks = ends.filter((_, i) => i % every === 0);
  const of = WORK_STATES.map((_, kind) => [...begin.keys()].filter((i) => Number(state[i]) === kind));
  const met = WORK_STATES.map((found, kind) => [found, of[kind]]).filter(([, own]) => own.length);
  const late = (i) => (isSteps ? `<br>staleness ${staleness?.[i] ?? 0} ${(staleness?.[i] ?? 0) === 1 ? "step" : "steps"}` : "");
  const hover = (i) => `client ${plain(clients[client[i]])}<br>${word} ${round[i]}: ${WORK_STATES[state[i]][1]}<br>` +
    `${seconds(begin[i])} to ${seconds(end[i])}, ${seconds(end[i] - begin[i])}${late(i)}${loss[i] === null ? "" : `<br>training loss ${number(loss[i])}`}`;
  const edge = begin.length > 1500 ? 0 : 0.6;
  const bars = met.map(([found, own]) => ({
    type: "bar", orientation: "h", name: found[1], base: own.map((i) => begin[i] / factor), x: own.map((i) => (end[i] - begin[i]) / factor), y: own.map((i) => client[i]),
    width: 0.76, marker: { color: found[paint], line: { color: css("--paper"), width: edge } }, hovertext: own.map(hover), hovertemplate: "%{hovertext}<extra></extra>", textposition: "none",
  }));
  const lines = marks.length ? [{
    type: "scatter", mode: "lines", name: `end of a ${word}`, x: marks.flatMap((at) => [at / factor, at / factor, null]), y: marks.flatMap(() => [-0.5, clients.length - 0.5, null]),
    line: { color: see_through(css("--ink"), 0.3), width: 0.6 }, hoverinfo: "skip",
  }] : [];
  const failed = of[WORK_STATES.findIndex(([name]) => name === "failed")];
  const crosses = failed.length ? [{
    type: "scatter", mode: "markers", name: "failed", x: failed.map((i) => end[i] / factor), y: failed.map((i) => client[i]), hoverinfo: "skip", cliponaxis: false,
    marker: { symbol: "x", size: 8, color: css("--bad"), line: { color: css("--paper"), width: 1 } },
  }] : [];
  draw("timeline-figure", [...bars, ...lines, ...crosses], {
    height: 84 + clients.length * 18 + (clients.length < 4 ? 40 : 0), barmode: "overlay",
    xaxis: axis("simulated time", unit, { range: [0, (last / factor) * 1.01], showgrid: false }),
    yaxis: axis("client", "", { tickmode: "array", tickvals: clients.map((_, i) => i), ticktext: clients.map((name) => plain(cut(name, 18))), range: [clients.length - 0.5, -0.5], showgrid: false, ticks: "" }),
  }, {
    title: `Clients of run ${run.job} over simulated time`, said: met.map(([found, own]) => `${found[1]}: ${own.length} times`).join(", "),
    legend: [...met.map(([found]) => ({ label: found[1], colour: found[paint], mark: "square" })), ...(lines.length ? [{ label: `end of a ${word}${every > 1 ? ` (every ${every})` : ""}`, colour: css("--quiet") }] : [])],
    rows: () => [["client", "begin (s)", "end (s)", "status", word, "loss", "staleness"],
      ...[...begin.keys()].map((i) => [clients[client[i]], begin[i], end[i], WORK_STATES[state[i]][0], round[i], loss[i], staleness?.[i] ?? 0])],
  });
  const { num_clients: all, num_idle: idle, num_works: works } = run.works;
  by("timeline-note").textContent = "A bar is one client's work; between bars it waits, or is absent. The slowest client is at the top." +
    (all > clients.length ? ` ${clients.length} of the ${all} clients that worked: the slowest third, the fastest third, and as many evenly between, by mean time of a work that was not left.` : "") +
    (idle ? ` ${idle} more never worked${run.timeline.states ? ": over rounds they are shown" : ""}.` : "") +
    (works > begin.length ? ` Only the ${begin.length} works that began first, of ${works}, are in this page: the time axis ends with them.` : "");
}
