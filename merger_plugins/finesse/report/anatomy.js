"use strict";

const MEMBER = "#0b57a4", OTHER = "#8a5a2b";
const COLD_WARM = [[0, "#8a5a2b"], [0.25, "#d9b48a"], [0.5, "#ffffff"], [0.75, "#6fa8dc"], [1, "#063a75"]];

const anatomy = {
  get way() { return document.querySelector("input[name=anatomy-way]:checked").value; },
  get gap() { return get("anatomy-gap").value; },
  get step() { return Number(get("anatomy-step").value); },
  get sample() {
    return data.samples.find((one) => one.merger === get("anatomy-merger").value
      && String(one.length) === get("anatomy-length").value && String(one.sample) === get("anatomy-sample").value);
  },
};

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/* Linear between neighbours, as the scores have it. */
function quantile(values, share) {
  const ordered = [...values].sort((a, b) => a - b), place = share * (ordered.length - 1);
  const below = Math.floor(place), above = Math.min(below + 1, ordered.length - 1);
  return ordered[below] + (place - below) * (ordered[above] - ordered[below]);
}

const chunkText = (sample, index) => data.texts[String(sample.chunks[index])];

function cellText(sample, i, j) {
  const text = chunkText(sample, j);
  const about = `merge of ${i ? `chunks 1 to ${i + 1}` : "chunk 1"}, chunk ${j + 1} alone: <b>${j <= i ? "member" : "other"}</b>`;
  return `${about}<br>cosine ${sample.similarity[i][j].toFixed(3)}<br>${text === undefined ? `probe ${sample.chunks[j]}` : `“${wrapped(text, 48, 5)}”`}`;
}

/* The border between members and others. */
function stairs(n) {
  const x = [], y = [];
  for (let i = 0; i < n; i++) {
    x.push(i + 1.5, i + 1.5);
    y.push(i + 0.5, i + 1.5);
  }
  return { type: "scatter", mode: "lines", x, y, line: { color: "#1c2430", width: n > 32 ? 1.5 : 2.5 }, hoverinfo: "skip", showlegend: false };
}

function frame(n) {
  const at = anatomy.step, row = anatomy.way === "td";
  const box = row ? { x0: 0.5, x1: n + 0.5, y0: at - 0.5, y1: at + 0.5 } : { x0: at - 0.5, x1: at + 0.5, y0: 0.5, y1: n + 0.5 };
  return { type: "rect", xref: "x", yref: "y", ...box, line: { color: "#f0a202", width: 3 } };
}

function drawMatrix() {
  const sample = anatomy.sample, n = sample.length, numbers = sample.chunks.map((_, index) => index + 1);
  const td = sample.td[anatomy.gap], bu = sample.bu[anatomy.gap];
  const top = Math.max(...sample.similarity.slice(1).flat().map(Math.abs)); // chunk 1 alone is itself
  const every = Math.ceil(n / 16);
  const ticks = numbers.filter((value) => value === 1 || value % every === 0);
  const lit = (count, first, way) => Array.from({ length: count }, (_, index) => (anatomy.way === way && index + first === anatomy.step ? "#f0a202" : "#6b7788"));
  const side = { ...grid, tickfont: { size: 11 } };
  Plotly.react("anatomy-plot", [
    {
      type: "heatmap", x: numbers, y: numbers, z: sample.similarity, zmin: -top, zmax: top, colorscale: COLD_WARM, xgap: n > 32 ? 0 : 1, ygap: n > 32 ? 0 : 1,
      text: sample.similarity.map((row, i) => row.map((_, j) => cellText(sample, i, j))), hovertemplate: "%{text}<extra></extra>",
      colorbar: { orientation: "h", thickness: 10, len: 0.5, x: 0, xanchor: "left", y: 1.01, yanchor: "bottom", title: { text: "cosine", side: "top" }, tickfont: { size: 11 } },
    },
    stairs(n),
    {
      type: "bar", orientation: "h", xaxis: "x2", y: td.map((_, index) => index + 2), x: td, marker: { color: lit(td.length, 2, "td") }, showlegend: false,
      hovertemplate: "Top-Down of synthesis %{y}: %{x:.3f}<extra></extra>",
    },
    {
      type: "bar", yaxis: "y2", x: bu.map((_, index) => index + 2), y: bu, marker: { color: lit(bu.length, 2, "bu") }, showlegend: false,
      hovertemplate: "Bottom-Up of chunk %{x}: %{y:.3f}<extra></extra>",
    },
  ], layout({
    bargap: 0.25,
    margin: { l: 60, r: 10, t: 70, b: 50 },
    xaxis: { ...side, domain: [0, 0.76], range: [0.5, n + 0.5], tickvals: ticks, title: { text: "chunk alone", standoff: 6 }, showgrid: false, zeroline: false, anchor: "y2" },
    yaxis: { ...side, domain: [0.25, 1], range: [n + 0.5, 0.5], tickvals: ticks, title: { text: "merge of chunks 1 to …" }, showgrid: false, zeroline: false },
    xaxis2: { ...side, domain: [0.8, 1], anchor: "y", title: { text: "Top-Down gap" }, nticks: 4, rangemode: "tozero" },
    yaxis2: { ...side, domain: [0, 0.2], anchor: "x", title: { text: "Bottom-Up gap" }, nticks: 4, rangemode: "tozero" },
    shapes: [frame(n)],
    annotations: [
      { text: "members", x: 0.02, y: 0.27, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 13, color: MEMBER }, bgcolor: "rgba(255,255,255,.8)" },
      { text: "others", x: 0.74, y: 0.98, xref: "paper", yref: "paper", xanchor: "right", yanchor: "top", showarrow: false, font: { size: 13, color: OTHER }, bgcolor: "rgba(255,255,255,.8)" },
    ],
  }), CONFIG);
}

function drawStep() {
  const sample = anatomy.sample, at = anatomy.step, row = anatomy.way === "td";
  const line = row ? sample.similarity[at - 1] : sample.similarity.map((values) => values[at - 1]);
  const members = line.map((value, index) => [index + 1, value]).filter(([index]) => (row ? index <= at : index >= at));
  const others = line.map((value, index) => [index + 1, value]).filter(([index]) => (row ? index > at : index < at));
  const strict = anatomy.gap === "q1q3";
  const low = quantile(members.map(([, value]) => value), strict ? 0.25 : 0.5);
  const high = quantile(others.map(([, value]) => value), strict ? 0.75 : 0.5);
  const gaps = sample[anatomy.way][anatomy.gap], gap = gaps[at - 2];
  const [mine, theirs] = strict ? ["the members' Q1", "the others' Q3"] : ["the members' median", "the others' median"];
  const what = row ? `Merge of chunks 1 to ${at}: ${members.length} members against ${others.length} ${others.length === 1 ? "other" : "others"}.`
    : `Chunk ${at}: the ${members.length} ${members.length === 1 ? "merge that holds" : "merges that hold"} it against ${others.length} made before.`;
  const bold = element("b", {}, number3(gap));
  get("anatomy-words").replaceChildren(what, element("br"), `Gap ${at - 1} of ${gaps.length}: ${mine} ${number3(low)} less ${theirs} ${number3(high)} = `, bold,
    element("br"), `Mean of the first ${at - 1}: ${number3(mean(gaps.slice(0, at - 1)))}; of all: ${anatomy.way} = ${number3(mean(gaps))}`);
  const dots = (points, name, y, tint) => ({
    type: "scatter", mode: "markers", name, x: points.map(([, value]) => value), y: points.map(() => y),
    marker: { color: tint, size: 9, opacity: 0.65 }, text: points.map(([index]) => (row ? `chunk ${index}` : `merge of chunks 1 to ${index}`)),
    hovertemplate: "%{text}: %{x:.3f}<extra></extra>",
  });
  const bar = (x, y, tint) => ({ type: "line", x0: x, x1: x, y0: y - 0.35, y1: y + 0.35, line: { color: tint, width: 3 } });
  Plotly.react("anatomy-strip", [dots(members, "members", 1, MEMBER), dots(others, "others", 0, OTHER)], layout({
    showlegend: false,
    margin: { l: 75, r: 15, t: 10, b: 45 },
    xaxis: { ...grid, title: { text: row ? "cosine with each chunk" : "cosine with each merge" }, nticks: 6 },
    yaxis: { range: [-0.6, 1.6], tickvals: [0, 1], ticktext: ["others", "members"], showgrid: false, zeroline: false, fixedrange: true },
    shapes: [
      { type: "rect", x0: high, x1: low, y0: -0.6, y1: 1.6, fillcolor: low >= high ? "#0b57a4" : "#c0392b", opacity: 0.1, line: { width: 0 } },
      bar(low, 1, MEMBER), bar(high, 0, OTHER),
    ],
  }), CONFIG);
  const marks = new Set(row ? members.map(([index]) => index) : [at]);
  get("anatomy-texts").replaceChildren(...sample.chunks.map((probe, index) =>
    element("li", marks.has(index + 1) ? {} : { class: "other" }, chunkText(sample, index) ?? `probe ${probe}`)));
}

const number3 = (value) => value.toFixed(3).replace("-", "−");

function drawScore() {
  const sample = anatomy.sample;
  const td = mean(sample.td[anatomy.gap]), bu = mean(sample.bu[anatomy.gap]);
  const balanced = ((td + bu) / 2 - Math.abs(td - bu)) * 500;
  get("anatomy-score").replaceChildren("td ", element("b", {}, number3(td)), ", bu ", element("b", {}, number3(bu)),
    `: FINESSE ((td + bu)/2 − |td − bu|) × 500 = `, element("b", {}, balanced.toFixed(1).replace("-", "−")));
}

function anatomyChanged(level) {
  const merger = data.samples.filter((one) => one.merger === get("anatomy-merger").value);
  if (level < 1) fill(get("anatomy-length"), unique(merger.map((one) => one.length)).map((length) => [String(length), String(length)]));
  const same = merger.filter((one) => String(one.length) === get("anatomy-length").value);
  if (level < 2) fill(get("anatomy-sample"), same.map((one) => [String(one.sample), String(one.sample + 1)]));
  const slider = get("anatomy-step"), n = anatomy.sample.length;
  slider.max = anatomy.way === "td" ? n - 1 : n;
  if (level < 2) slider.value = Math.min(anatomy.step, Number(slider.max));
  drawScore();
  drawMatrix();
  drawStep();
}

if (data.samples.length) {
  fill(get("anatomy-merger"), unique(data.samples.map((one) => one.merger)).map((name) => [name, name]));
  const longest = Math.max(...data.samples.filter((one) => one.merger === data.samples[0].merger).map((one) => one.length));
  anatomyChanged(0);
  get("anatomy-length").value = String(longest);
  anatomyChanged(1);
  get("anatomy-step").value = Math.ceil(longest / 2);
  anatomyChanged(3);
  get("anatomy-merger").addEventListener("change", () => anatomyChanged(0));
  get("anatomy-length").addEventListener("change", () => anatomyChanged(1));
  for (const id of ["anatomy-sample", "anatomy-gap"]) get(id).addEventListener("change", () => anatomyChanged(3));
  get("anatomy-step").addEventListener("input", () => anatomyChanged(3));
  document.querySelectorAll("input[name=anatomy-way]").forEach((input) => input.addEventListener("change", () => anatomyChanged(3)));
} else {
  document.querySelectorAll("#anatomy .controls, #anatomy .anatomy").forEach((part) => { part.hidden = true; });
  get("anatomy-score").textContent = "No sample was taken apart for this page: that needs the mergers and the vectors, not the results alone.";
}
