"use strict";
// Ranks the chips after every click by logistic regression on their vectors, in this page alone.

const data = JSON.parse(document.getElementById("chips").textContent);
const N = data.ids.length, D = data.dimensions, SHOWN = 60;
const vectors = unitVectors();
const labels = new Map();  // position → {label, when}
const history = [];
let weights = null, scores = Float32Array.from(data.scores);
const sheets = [...document.querySelectorAll(".sheet")].map((tag) => { const image = new Image(); image.src = "data:image/jpeg;base64," + tag.textContent; tag.remove(); return image; });

function unitVectors() {
  const text = atob(document.getElementById("vectors").textContent), out = new Float32Array(N * D);
  for (let k = 0; k < N; k++) {
    let square = 0;
    for (let d = 0; d < D; d++) { const v = (text.charCodeAt(k * D + d) << 24) >> 24; out[k * D + d] = v; square += v * v; }
    const length = Math.sqrt(square) || 1;
    for (let d = 0; d < D; d++) out[k * D + d] /= length;
  }
  return out;
}

/** Logistic regression with an L2 penalty on what was labelled yes or no; of one kind only, the mean direction. */
function learn() {
  const rows = [...labels].filter(([, entry]) => entry.label !== "unsure").map(([k, entry]) => [k, entry.label === "yes" ? 1 : 0]);
  const kinds = new Set(rows.map(([, y]) => y));
  if (!rows.length) return null;
  const w = new Float64Array(D + 1);
  if (kinds.size === 1) {
    for (const [k, y] of rows) for (let d = 0; d < D; d++) w[d] += ((y ? 1 : -1) * vectors[k * D + d]) / rows.length;
    return w;
  }
  const strength = 10, counts = [0, 0], velocity = new Float64Array(D + 1);
  for (const [, y] of rows) counts[y]++;
  for (let step = 0; step < 400; step++) {
    const gradient = new Float64Array(D + 1);
    for (const [k, y] of rows) {
      let z = w[D];
      for (let d = 0; d < D; d++) z += w[d] * vectors[k * D + d];
      const error = (1 / (1 + Math.exp(-z)) - y) / counts[y];  // yes and no weigh the same, however many there are
      for (let d = 0; d < D; d++) gradient[d] += error * vectors[k * D + d];
      gradient[D] += error;
    }
    for (let d = 0; d <= D; d++) {
      velocity[d] = 0.9 * velocity[d] - 0.5 * (gradient[d] + (d < D ? w[d] / (strength * rows.length) : 0));
      w[d] += velocity[d];
    }
  }
  return w;
}

function rank() {
  const started = performance.now();
  weights = learn();
  if (weights) for (let k = 0; k < N; k++) {
    let z = weights[D];
    for (let d = 0; d < D; d++) z += weights[d] * vectors[k * D + d];
    scores[k] = z;
  } else scores = Float32Array.from(data.scores);
  const order = document.getElementById("order").value;
  const key = order === "uncertain" && weights ? (k) => -Math.abs(scores[k]) : (k) => scores[k];
  show(firstOf(key, order === "labelled"));
  const count = (kind) => [...labels.values()].filter((entry) => entry.label === kind).length;
  const seconds = (performance.now() - started) / 1000;
  document.body.dataset.seconds = seconds.toFixed(3);
  document.getElementById("status").textContent = `${count("yes")} yes, ${count("no")} no, ${count("unsure")} unsure; ${N} chips ranked in ${seconds.toFixed(2)} s`;
  document.getElementById("undo").disabled = !history.length;
  document.getElementById("save").disabled = !labels.size;
}

/** The chips that are shown, by falling key, equal ones in their order: one pass, as sorting all of them is felt after a click. */
function firstOf(key, labelled) {
  const kept = [], values = [];
  for (let k = 0; k < N; k++) {
    if (labels.has(k) !== labelled) continue;
    const value = key(k);
    if (kept.length === SHOWN && !(value > values[SHOWN - 1])) continue;
    let place = kept.length;
    while (place > 0 && value > values[place - 1]) place--;
    kept.splice(place, 0, k);
    values.splice(place, 0, value);
    if (kept.length > SHOWN) { kept.pop(); values.pop(); }
  }
  return kept;
}

// The boxes are made once: sixty new canvases a click would have the browser clear old ones away for seconds every now and then.
const boxes = [];

function show(positions) {
  while (boxes.length < positions.length) boxes.push(emptyBox());
  positions.forEach((k, place) => fill(boxes[place], k));
  const grid = document.getElementById("grid");
  if (grid.children.length !== positions.length) grid.replaceChildren(...boxes.slice(0, positions.length));
}

function emptyBox() {
  const box = document.createElement("article"), canvas = document.createElement("canvas"), words = document.createElement("p"), keys = document.createElement("div");
  box.tabIndex = 0;
  canvas.width = canvas.height = data.thumb_px;
  for (const kind of ["yes", "no", "unsure"]) {
    const button = document.createElement("button");
    button.textContent = kind === "unsure" ? "?" : kind;
    button.className = kind;
    button.addEventListener("click", () => mark(Number(box.dataset.position), kind));
    keys.append(button);
  }
  box.append(canvas, words, keys);
  return box;
}

function fill(box, k) {
  const [canvas, words, keys] = box.children;
  box.className = "chip " + (labels.get(k)?.label ?? "");
  box.title = `${data.ids[k]}\n${data.lat[k].toFixed(4)}, ${data.lon[k].toFixed(4)}\n${data.acquired[k] || "no date"}`;
  words.textContent = [data.land_cover[k].replaceAll("_", " "), data.acquired[k]].filter(Boolean).join(", ") || data.ids[k];
  for (const button of keys.children) button.setAttribute("aria-label", `${button.className}: ${data.ids[k]}`);
  if (box.dataset.position === String(k)) return;  // its picture is there
  box.dataset.position = k;
  const sheet = sheets[Math.floor(k / data.per_sheet)], place = k % data.per_sheet, column = place % data.columns, row = Math.floor(place / data.columns);
  const draw = () => {
    if (box.dataset.position === String(k)) canvas.getContext("2d").drawImage(sheet, column * data.thumb_px, row * data.thumb_px, data.thumb_px, data.thumb_px, 0, 0, data.thumb_px, data.thumb_px);
  };
  if (sheet.complete) draw(); else sheet.addEventListener("load", draw, { once: true });
}

function mark(k, label) {
  history.push([k, labels.get(k)]);
  if (labels.get(k)?.label === label) labels.delete(k); else labels.set(k, { label, when: new Date().toISOString() });
  rank();
}

function undo() {
  const last = history.pop();
  if (!last) return;
  if (last[1]) labels.set(last[0], last[1]); else labels.delete(last[0]);
  rank();
}

function labelFile() {
  const rows = [...labels].sort((a, b) => a[0] - b[0]), who = document.getElementById("who").value.trim(), what = document.getElementById("what").value.trim();
  const text = (name, of) => ({ name, type: BYTE_ARRAY, utf8: true, values: rows.map(of) });
  const columns = [
    text("chip_id", ([k]) => data.ids[k]), text("target", () => what), text("label", ([, entry]) => entry.label), text("who", () => who),
    text("when", ([, entry]) => entry.when), text("model", () => data.model), text("model_version", () => data.model_version),
    { name: "geometry", type: BYTE_ARRAY, values: rows.map(([k]) => wkbPoint(data.lon[k], data.lat[k])) },
  ];
  const geo = { version: "1.1.0", primary_column: "geometry", columns: { geometry: { encoding: "WKB", geometry_types: ["Point"] } } };
  return parquetFile(columns, { geo: JSON.stringify(geo) });
}

document.getElementById("save").addEventListener("click", () => {
  if (!document.getElementById("who").value.trim()) { document.getElementById("who").focus(); document.getElementById("status").textContent = "Say first who labels: the name is kept with each label."; return; }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(labelFile());
  link.download = "labels.parquet";
  link.click();
  URL.revokeObjectURL(link.href);
});
document.getElementById("undo").addEventListener("click", undo);
document.getElementById("order").addEventListener("change", rank);
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.target.tagName === "SELECT") return;
  if (event.key === "z" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); undo(); return; }
  const kind = { y: "yes", n: "no", u: "unsure" }[event.key];
  const box = document.querySelector(".chip:hover") ?? document.activeElement?.closest?.(".chip");
  if (kind && box && !event.ctrlKey && !event.metaKey) mark(Number(box.dataset.position), kind);
});
for (const [k, label, when] of data.labels) labels.set(k, { label, when });
document.getElementById("what").value = data.target;
document.getElementById("order").value = data.order;
rank();
