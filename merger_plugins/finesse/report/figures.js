"use strict";

/* Leaderboard */

const board = { column: null, bestFirst: true };
const lowIsGood = (metric) => data.lowIsGood.includes(metric);

function boardRecords() {
  const axis = get("board-axis").value, task = get("board-task").value;
  return data.records.filter((record) => record.axis === axis && record.task === task);
}

function boardGroups(records) {
  const groups = [];
  if (records.some((record) => record.along === "")) groups.push(["", "all figures"]);
  for (const record of records) {
    const key = `${record.metric}\n${record.along}`;
    if (record.along !== "" && !groups.some(([known]) => known === key)) groups.push([key, `${label(record.metric)}, by ${record.along}`]);
  }
  return groups;
}

function boardColumns(records) {
  const chosen = get("board-figures").value;
  if (chosen === "") {
    const flat = records.filter((record) => record.along === "");
    return unique(flat.map((record) => record.metric)).map((metric) => ({
      key: metric, label: label(metric), metric, of: flat.filter((record) => record.metric === metric),
    }));
  }
  const [metric, along] = chosen.split("\n");
  const varied = records.filter((record) => record.metric === metric && record.along === along);
  return unique(varied.map((record) => record.at)).sort((a, b) => a - b).map((at) => ({
    key: `${metric} ${at}`, label: `${number(at)} ${along}`, metric, of: varied.filter((record) => record.at === at),
  }));
}

function whisker(record, low, high) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of [["width", 92], ["height", 10], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
  const place = (value) => (high > low ? 4 + (84 * (value - low)) / (high - low) : 46);
  const draw = (tag, attributes) => {
    const part = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
    svg.append(part);
  };
  draw("line", { x1: 2, x2: 90, y1: 5, y2: 5, stroke: "#e1e6ee" });
  if (record.low !== null) draw("line", { x1: place(record.low), x2: place(record.high), y1: 5, y2: 5, stroke: colour(record.rival), "stroke-width": 2 });
  draw("circle", { cx: place(record.value), cy: 5, r: 3.2, fill: colour(record.rival) });
  return svg;
}

function cell(record, column, sorted) {
  const made = element("td", sorted ? { class: "sorted" } : {});
  if (!record) {
    made.append("–");
    return made;
  }
  made.append(number(record.value));
  if (record.low !== null) made.append(element("small", {}, interval(record)));
  made.append(whisker(record, column.low, column.high));
  return made;
}

function heading(column) {
  const button = element("button", { type: "button" }, column.label);
  const sorted = board.column === column.key;
  const descending = board.bestFirst !== lowIsGood(column.metric);
  const made = element("th", { scope: "col", ...(sorted ? { "aria-sort": descending ? "descending" : "ascending" } : {}) }, button);
  button.addEventListener("click", () => {
    board.bestFirst = sorted ? !board.bestFirst : true;
    board.column = column.key;
    drawBoard();
    [...get("board").querySelectorAll("thead button")].find((other) => other.textContent === column.label).focus();
  });
  return made;
}

function drawBoard() {
  const records = boardRecords();
  const columns = boardColumns(records);
  for (const column of columns) {
    column.low = Math.min(...column.of.map((record) => record.low ?? record.value));
    column.high = Math.max(...column.of.map((record) => record.high ?? record.value));
    column.by = new Map(column.of.map((record) => [record.rival, record]));
  }
  if (!columns.some((column) => column.key === board.column)) {
    board.column = columns.length ? columns[0].key : null;
    board.bestFirst = true;
  }
  const sorting = columns.find((column) => column.key === board.column);
  const names = unique(columns.flatMap((column) => column.of.map((record) => record.rival)));
  if (sorting) {
    const sign = board.bestFirst !== lowIsGood(sorting.metric) ? -1 : 1;
    const key = (name) => (sorting.by.has(name) ? sign * sorting.by.get(name).value : Infinity);
    names.sort((a, b) => (key(a) === key(b) ? 0 : key(a) - key(b)));
  }
  const better = (name, other) => (board.bestFirst ? names.indexOf(other) < names.indexOf(name) : names.indexOf(other) > names.indexOf(name));
  const ranked = names.filter((name) => !isLimit(name) && sorting.by.has(name));
  const value = (name) => sorting.by.get(name).value;
  const rank = (name) => 1 + ranked.filter((other) => better(name, other) && value(other) !== value(name)).length;
  const rows = names.map((name) => {
    const title = element("th", { scope: "row" }, name);
    if (data.about[name]) title.append(element("small", {}, data.about[name]));
    if (isLimit(name)) title.append(element("small", {}, "no merger: the most that is possible"));
    return element("tr", isLimit(name) ? { class: "limit" } : {}, element("td", {}, ranked.includes(name) ? String(rank(name)) : ""), title,
      ...columns.map((column) => cell(column.by.get(name), column, column === sorting)));
  });
  const top = element("tr", {}, element("th", { scope: "col" }, "#"), element("th", { scope: "col" }, "merger or rival"), ...columns.map(heading));
  get("board").replaceChildren(element("thead", {}, top), element("tbody", {}, ...rows));
  const counts = unique(columns.flatMap((column) => column.of.filter((record) => record.n > 0).map((record) => record.n))).sort((a, b) => a - b);
  const ends = counts.length > 1 ? `${counts[0]} to ${counts[counts.length - 1]} items` : `${counts[0]} ${counts[0] === 1 ? "item" : "items"}`;
  get("board-note").textContent = counts.length ? `A figure is over ${ends}. A figure without interval has one item, or is no mean.` : "No figures.";
}

function boardChanged(level) {
  if (level < 1) fill(get("board-task"), unique(data.records.filter((record) => record.axis === get("board-axis").value).map((record) => record.task)).map((task) => [task, task]));
  if (level < 2) fill(get("board-figures"), boardGroups(boardRecords()));
  drawBoard();
}

/* Quality against cost */

const MOST_NAMED = 8; // points with their names beside them; of more, names would lie on each other

const figureKey = (record) => JSON.stringify([record.axis, record.task, record.metric, record.along, record.at]);
const figureLabel = (record) =>
  `${record.axis}: ${label(record.metric)}${record.along === "" ? "" : `, ${number(record.at)} ${record.along}`} (${record.task})`;
const isTime = (metric) => /(^| )ms /.test(metric);
const isSpace = (metric) => /^MB |^vectors a document/.test(metric);
const figures = (wanted) => [...new Map(data.records.filter(wanted).map((record) => [figureKey(record), figureLabel(record)]))];
const named = (key) => new Map(data.records.filter((record) => figureKey(record) === key && !isLimit(record.rival)).map((record) => [record.rival, record]));

function drawPrice(kind) {
  const quality = named(get("price-quality").value), cost = named(get(`price-${kind}`).value);
  const both = [...quality.keys()].filter((name) => cost.has(name) && cost.get(name).value > 0);
  const traces = both.map((name) => {
    const up = quality.get(name), along = cost.get(name);
    return {
      type: "scatter", mode: both.length > MOST_NAMED ? "markers" : "markers+text", name: plain(name), x: [along.value], y: [up.value], text: [plain(name)], textposition: "top center",
      error_y: bars([up]), error_x: bars([along]), cliponaxis: false,
      marker: { color: colour(name), symbol: symbol(name), size: 11 },
      hovertemplate: `<b>${plain(name)}</b><br>${plain(label(up.metric))} ${number(up.value)} (${interval(up)})<br>${plain(along.metric)} ${number(along.value)}<extra></extra>`,
    };
  });
  const axisTitle = (records) => (records.size ? plain(label([...records.values()][0].metric)) : "");
  const crowded = both.length > MOST_NAMED;
  Plotly.react(`price-${kind}-plot`, traces, withLegend(`price-${kind}-plot`, crowded ? both : [], {
    showlegend: crowded,
    xaxis: { ...grid, type: "log", title: { text: axisTitle(cost) }, dtick: "D2", ...span(both.map((name) => cost.get(name).value)) },
    yaxis: { ...grid, automargin: true, title: { text: axisTitle(quality), standoff: 12 } },
  }), CONFIG);
  const without = [...quality.keys()].filter((name) => !both.includes(name));
  get(`price-${kind}-note`).textContent = !cost.size
    ? "No figure of this kind among the results."
    : without.length ? `Not shown, as it was not measured for them: ${without.join(", ")}.` : "Everything measured is shown.";
}

/* Room for the names at both sides of a logarithmic axis. */
function span(values) {
  if (!values.length) return {};
  const logs = values.map(Math.log10), low = Math.min(...logs), high = Math.max(...logs);
  const room = Math.max(0.22 * (high - low), 0.25);
  return { range: [low - room, high + room] };
}

/* Over length */

const curveTask = (record) => JSON.stringify([record.axis, record.task, record.along]);

function drawCurves() {
  const [axis, task, along] = JSON.parse(get("curve-task").value || '["","",""]');
  const metric = get("curve-metric").value;
  const here = (record) => record.axis === axis && record.task === task && record.along === along && record.metric === metric;
  const sorted = (records) => records.sort((a, b) => a.at - b.at);
  const measured = data.records.filter(here), limit = sorted(data.limits.filter(here));
  const names = unique(measured.map((record) => record.rival)).filter((name) => !(limit.length && name === data.limitNames[0]));
  const traces = [...names.filter((name) => !isLimit(name)), ...names.filter(isLimit)].map((name) => {
    const records = sorted(measured.filter((record) => record.rival === name));
    return {
      type: "scatter", mode: "lines+markers", name: plain(name), x: records.map((record) => record.at), y: records.map((record) => record.value),
      error_y: bars(records), line: { color: colour(name), width: isLimit(name) ? 3 : 2, dash: isLimit(name) ? "dot" : "solid" },
      marker: { color: colour(name), symbol: isLimit(name) ? "circle" : symbol(name), size: isLimit(name) ? 3 : 8 },
      customdata: records.map(interval),
      hovertemplate: `<b>${plain(name)}</b><br>%{x} ${plain(along)}: %{y:.3f} (%{customdata})<extra></extra>`,
    };
  });
  const cosine = metric.includes("cosine");
  if (limit.length) traces.push({
    type: "scatter", mode: "lines", name: cosine ? "limit 1/√n" : "mean of orthogonal chunks, cosine 1/√n",
    x: limit.map((record) => record.at), y: limit.map((record) => record.value), line: { color: "#1c2430", width: 2, dash: "dash" },
    hovertemplate: "<b>limit</b><br>%{x} chunks: %{y:.3f}<extra></extra>",
  });
  const ticks = unique(measured.map((record) => record.at)).sort((a, b) => a - b);
  const wantsLog = document.querySelector("input[name=curve-scale]:checked").value === "log";
  const scale = wantsLog && ticks.every((at) => at > 0) ? "log" : "linear";
  Plotly.react("curve-plot", traces, withLegend("curve-plot", traces.map((trace) => trace.name), {
    xaxis: { ...grid, type: scale, title: { text: plain(along) }, tickvals: ticks, ticktext: ticks.map(number) },
    yaxis: { ...grid, automargin: true, title: { text: plain(label(metric)), standoff: 12 } },
  }), CONFIG);
  get("curve-note").textContent = !limit.length ? "This figure has no limit of that kind."
    : cosine ? "Chunks of one document are alike, so that their mean may be above 1/√n; chunks of independent texts are nearly orthogonal."
      : "The dashed line is what the mean of exactly orthogonal chunks would score, whose cosine with its n members is 1/√n. Chunks that are alike, or cosines below 0, move a merger off it, either way.";
}

function curveChanged() {
  const here = data.records.filter((record) => curveTask(record) === get("curve-task").value);
  fill(get("curve-metric"), unique(here.map((record) => record.metric)).map((metric) => [metric, label(metric)]));
  drawCurves();
}

/* The runs */

function drawRuns() {
  get("run-list").replaceChildren(...data.runs.map((run) => {
    const { run: name, ...facts } = run;
    const list = element("dl", {}, ...Object.entries(facts).flatMap(([word, fact]) => [element("dt", {}, word), element("dd", {}, fact)]));
    return element("details", {}, element("summary", {}, name), list);
  }));
  if (!data.runs.length) get("run-list").append("The results say nothing of their runs.");
}

fill(get("board-axis"), unique(data.records.map((record) => record.axis)).map((axis) => [axis, axis]));
get("board-axis").addEventListener("change", () => boardChanged(0));
get("board-task").addEventListener("change", () => boardChanged(1));
get("board-figures").addEventListener("change", () => boardChanged(2));
boardChanged(0);

fill(get("price-quality"), figures((record) => !isTime(record.metric) && !isSpace(record.metric)));
fill(get("price-time"), figures((record) => isTime(record.metric)));
fill(get("price-space"), figures((record) => isSpace(record.metric)));
get("price-quality").addEventListener("change", () => ["time", "space"].forEach(drawPrice));
get("price-time").addEventListener("change", () => drawPrice("time"));
get("price-space").addEventListener("change", () => drawPrice("space"));
["time", "space"].forEach(drawPrice);

fill(get("curve-task"), [...new Map(data.records.filter((record) => record.along !== "").map((record) => [curveTask(record), `${record.axis}, by ${record.along} (${record.task})`]))]);
get("curve-task").addEventListener("change", curveChanged);
get("curve-metric").addEventListener("change", drawCurves);
document.querySelectorAll("input[name=curve-scale]").forEach((input) => input.addEventListener("change", drawCurves));
curveChanged();

drawRuns();
