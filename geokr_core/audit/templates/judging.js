"use strict";
// Shows the chips of a sample, takes a class for each, and writes the judgements as GeoParquet, in this page alone.

const data = JSON.parse(document.getElementById("chips").textContent);
const N = data.ids.length, SHOWN = 24, UNSURE = "unsure";
const judged = new Map();  // position → {label, when}
let first = 0;
const sheets = [...document.querySelectorAll(".sheet")].map((tag) => { const image = new Image(); image.src = "data:image/jpeg;base64," + tag.textContent; tag.remove(); return image; });

function show() {
  const end = Math.min(first + SHOWN, N), boxes = [];
  for (let k = first; k < end; k++) boxes.push(tile(k));
  document.getElementById("grid").replaceChildren(...boxes);
  document.getElementById("back").disabled = first === 0;
  document.getElementById("next").disabled = end === N;
  tell();
}

function tell(words) {
  document.getElementById("status").textContent = words ?? `${judged.size} of ${N} judged; chips ${first + 1} to ${Math.min(first + SHOWN, N)}`;
  document.getElementById("save").disabled = judged.size < N;
}

function tile(k) {
  const box = document.createElement("article"), canvas = document.createElement("canvas"), words = document.createElement("p"), keys = document.createElement("div");
  box.className = "chip" + (judged.has(k) ? " judged" : "");
  box.tabIndex = 0;
  box.dataset.position = k;
  canvas.width = canvas.height = data.thumb_px;
  const sheet = sheets[Math.floor(k / data.per_sheet)], place = k % data.per_sheet, column = place % data.columns, row = Math.floor(place / data.columns);
  const draw = () => canvas.getContext("2d").drawImage(sheet, column * data.thumb_px, row * data.thumb_px, data.thumb_px, data.thumb_px, 0, 0, data.thumb_px, data.thumb_px);
  if (sheet.complete) draw(); else sheet.addEventListener("load", draw);
  words.textContent = `${data.lat[k].toFixed(4)}, ${data.lon[k].toFixed(4)}`;
  [...data.classes, UNSURE].forEach((name, number) => {
    const button = document.createElement("button");
    button.textContent = name === UNSURE ? "cannot tell" : name.replaceAll("_", " ");
    button.style.borderLeftColor = data.colours[number] ?? "#aab3bd";
    button.setAttribute("aria-pressed", String(judged.get(k)?.label === name));
    button.addEventListener("click", () => judge(k, name));
    keys.append(button);
  });
  box.append(canvas, words, keys);
  return box;
}

function judge(k, label) {
  if (judged.get(k)?.label === label) judged.delete(k); else judged.set(k, { label, when: new Date().toISOString() });
  const old = document.querySelector(`.chip[data-position="${k}"]`), focused = old === document.activeElement;
  if (old) { const fresh = tile(k); old.replaceWith(fresh); if (focused) fresh.focus(); }
  tell();
}

function judgementFile() {
  const rows = [...judged].sort((a, b) => a[0] - b[0]), who = document.getElementById("who").value.trim();
  const text = (name, of) => ({ name, type: BYTE_ARRAY, utf8: true, values: rows.map(of) });
  const columns = [
    text("chip_id", ([k]) => data.ids[k]), text("label", ([, entry]) => entry.label), text("who", () => who), text("when", ([, entry]) => entry.when),
    text("sample_id", () => data.sample_id),
    { name: "geometry", type: BYTE_ARRAY, values: rows.map(([k]) => wkbPoint(data.lon[k], data.lat[k])) },
  ];
  const geo = { version: "1.1.0", primary_column: "geometry", columns: { geometry: { encoding: "WKB", geometry_types: ["Point"] } } };
  return parquetFile(columns, { geo: JSON.stringify(geo) });
}

document.getElementById("save").addEventListener("click", () => {
  if (!document.getElementById("who").value.trim()) { document.getElementById("who").focus(); tell("Say first who judges: the name is kept with each judgement."); return; }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(judgementFile());
  link.download = "judgements.parquet";
  link.click();
  URL.revokeObjectURL(link.href);
});
document.getElementById("back").addEventListener("click", () => { first = Math.max(0, first - SHOWN); show(); });
document.getElementById("next").addEventListener("click", () => { first = Math.min(first + SHOWN, N - 1); show(); });
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey) return;
  const box = document.querySelector(".chip:hover") ?? document.activeElement?.closest?.(".chip");
  const number = "1234567890".indexOf(event.key), label = event.key === "u" ? UNSURE : data.classes[number];
  if (box && label !== undefined) judge(Number(box.dataset.position), label);
});
show();
