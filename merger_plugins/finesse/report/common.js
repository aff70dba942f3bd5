"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const unique = (values) => [...new Set(values)];
const label = (metric) => data.labels[metric] ?? metric;
const isLimit = (name) => data.limitNames.includes(name);

/* Text inside plotly's labels is read as markup. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  const text = value.toFixed(digits).replace("-", "−");
  return /^−0\.?0*$/.test(text) ? text.slice(1) : text;
}

/* Choices of a <select>; keeps what was chosen where that is still there. */
function fill(select, choices) {
  const before = select.value;
  select.replaceChildren(...choices.map(([value, label]) => element("option", { value }, label)));
  if (choices.some(([value]) => value === before)) select.value = before;
  select.disabled = choices.length === 0;
}

function wrapped(text, width, most) {
  const lines = [];
  let line = "";
  for (const word of text.split(/\s+/)) {
    if (line && line.length + word.length >= width) {
      lines.push(line);
      line = "";
    }
    line += (line ? " " : "") + word;
  }
  lines.push(line);
  const shown = lines.slice(0, most).map(plain);
  return shown.join("<br>") + (lines.length > most ? " …" : "");
}

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5b3fa0", "#b22222", "#4d4d4d", "#6b8e23"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down", "hexagon", "pentagon"];
const rivals = unique(data.records.map((record) => record.rival).filter((name) => !isLimit(name)));
const colour = (name) => (rivals.includes(name) ? COLOURS[rivals.indexOf(name) % COLOURS.length] : "#566072");
const symbol = (name) => SYMBOLS[(rivals.indexOf(name) + Math.floor(rivals.indexOf(name) / COLOURS.length)) % SYMBOLS.length];

const FONT = { family: getComputedStyle(document.body).fontFamily, size: 13, color: "#1c2430" };
const CONFIG = { responsive: true, displayModeBar: false };

function layout(extra) {
  const base = { font: FONT, paper_bgcolor: "#fff", plot_bgcolor: "#fff", margin: { l: 60, r: 15, t: 15, b: 50 }, hoverlabel: { align: "left" } };
  return { ...base, ...extra };
}

const grid = { gridcolor: "#e6eaf0", zerolinecolor: "#b8c0cc", linecolor: "#8b95a5", showline: true, ticks: "outside", tickcolor: "#8b95a5" };

/* How far an interval reaches, for plotly's error bars; nothing where there is none. */
function bars(records) {
  if (!records.some((record) => record.low !== null)) return { visible: false };
  return {
    type: "data",
    symmetric: false,
    array: records.map((record) => (record.high === null ? 0 : record.high - record.value)),
    arrayminus: records.map((record) => (record.low === null ? 0 : record.value - record.low)),
    thickness: 1.2,
    width: 3,
  };
}

const interval = (record) =>
  record.low === null ? "no interval" : `${number(record.low)} to ${number(record.high)}`;

/* A legend below a plot, which grows by its rows. */
function withLegend(id, names, extra) {
  const plot = get(id), longest = Math.max(8, ...names.map((name) => name.length));
  const columns = Math.max(1, Math.floor((plot.clientWidth - 75) / (55 + 7.2 * longest)));
  const rows = 22 * Math.ceil(names.length / columns), height = 370 + rows;
  plot.style.height = `${height}px`;
  return layout({
    ...extra,
    height,
    legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" },
    margin: { l: 60, r: 15, t: 15, b: 70 + rows },
  });
}
