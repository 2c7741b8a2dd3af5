"use strict";
const chart = document.querySelector(".chart");
const canvas = chart.querySelector(".canvas");
const details = document.getElementById("details");
const ticks = document.getElementById("ticks");
const start = Number(chart.dataset.start), seconds = Number(chart.dataset.seconds);
const items = [...chart.querySelectorAll(".item")];
const lanes = [...chart.querySelectorAll(".lane")].map((lane) => [...lane.querySelectorAll(".item")]
  .sort((one, other) => from(one) - from(other))).filter((lane) => lane.length);
const nearest = 0.00005;   // seconds: what the closest view shows
let zoom = 1, chosen = null;

function from(item) { return Number(item.dataset.from); }
function middle(item) { return (from(item) + Number(item.dataset.to)) / 2; }

function make(name, attributes, ...children) {
  const element = name.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// The width: of what is seen, and of all of it.

const track = () => canvas.querySelector(".track");
const labels = () => track().getBoundingClientRect().left - canvas.getBoundingClientRect().left;
const seen = () => chart.clientWidth - labels();
const whole = () => track().getBoundingClientRect().width;
const place = (at) => ((at - start) / seconds) * whole();
const centre = () => start + ((chart.scrollLeft + seen() / 2) / whole()) * seconds;

function setZoom(wanted, at = chosen ? middle(chosen) : centre()) {
  const most = Math.max(1, seconds / nearest);
  const before = place(at) - chart.scrollLeft;
  const inSight = before >= 0 && before <= seen() ? before : seen() / 2;
  zoom = Math.min(Math.max(wanted, 1), most);
  canvas.style.setProperty("--zoom", zoom);
  chart.scrollLeft = place(at) - inSight;
  refresh();
}

function show(first, last) {
  const wanted = last - first;
  setZoom((seconds / Math.max(wanted, nearest)) * 0.8, (first + last) / 2);
  chart.scrollLeft = place((first + last) / 2) - seen() / 2;
}

function refresh() {
  const width = whole();
  for (const item of items) {
    const text = item.querySelector("text");
    if (!text) continue;
    item.dataset.needs ||= measure(item.dataset.name);
    const wide = ((Number(item.dataset.to) - from(item)) / seconds) * width;
    item.classList.toggle("tight", wide < Number(item.dataset.needs));
  }
  follow();
}

// Ticks are drawn, and names moved, where they are seen.
function follow() {
  const width = whole();
  drawTicks(width);
  for (const item of items) {
    const text = item.querySelector("text");
    if (!text) continue;
    const left = place(from(item)), room = place(Number(item.dataset.to)) - left - Number(item.dataset.needs);
    text.setAttribute("x", 5 + Math.max(0, Math.min(chart.scrollLeft - left, room)));
  }
}

const pen = document.createElement("canvas").getContext("2d");
pen.font = "11.5px system-ui, sans-serif";
const measure = (text) => String(pen.measureText(text).width * 1.05 + 10);

function drawTicks(width) {
  const least = (seconds / width) * 90;   // a label has 90 pixels
  let step = 1e-6;
  for (let number = 0; step < least; number += 1) step = [1, 2, 5][number % 3] * 10 ** (Math.floor(number / 3) - 6);
  const drawn = [];
  const edge = start + seconds - (seconds / width) * 34;
  // Only near what is seen: there may be a million of them.
  const first = Math.max(start, start + ((chart.scrollLeft - seen()) / width) * seconds);
  const last = Math.min(edge, start + ((chart.scrollLeft + 2 * seen()) / width) * seconds);
  for (let number = Math.ceil(first / step); number * step <= last; number += 1) {
    const at = number * step, x = `${((at - start) / seconds) * 100}%`;
    const near = place(at) < 24 ? "first" : "";
    drawn.push(make("svg:line", { x1: x, x2: x, y1: 18, y2: 26 }),
      make("svg:text", { x, y: 13, class: near }, time(at, step)));
  }
  ticks.replaceChildren(...drawn);
}

function time(at, step) {
  const [unit, size] = Math.abs(at) >= 1 ? ["s", 1] : Math.abs(at) >= 1e-3 ? ["ms", 1e3] : ["µs", 1e6];
  const digits = Math.max(0, -Math.floor(Math.log10(step * size) + 1e-9));
  return Math.abs(at) < step / 2 ? "0" : `${(at * size).toFixed(digits)} ${unit}`;
}

// What is chosen.

function choose(item, { focus = true } = {}) {
  chosen?.classList.remove("chosen");
  for (const one of items) one.tabIndex = -1;
  chosen = item;
  item.tabIndex = 0;
  item.classList.add("chosen");
  if (focus && document.activeElement !== item) item.focus({ preventScroll: true });
  const list = make("dl", {});
  for (const [name, value] of JSON.parse(item.dataset.details)) list.append(make("dt", {}, name), make("dd", {}, value));
  const lane = item.closest(".lane").dataset.lane;
  details.replaceChildren(make("h3", {}, `${lane}: ${item.dataset.name}`), list);
  details.hidden = false;
}

function bring(item) {
  const left = place(from(item)), right = place(Number(item.dataset.to));
  const [first, last] = [chart.scrollLeft, chart.scrollLeft + seen()];
  if (right < first + 20 || left > last - 20) chart.scrollLeft = left - Math.max(20, (seen() - (right - left)) / 2);
}

function beside(item, by) {
  const lane = lanes.find((one) => one.includes(item));
  return lane[lane.indexOf(item) + by];
}

function across(item, by) {
  const lane = lanes[lanes.findIndex((one) => one.includes(item)) + by];
  const distance = (one) => Math.max(0, from(one) - middle(item), middle(item) - Number(one.dataset.to));
  const length = (one) => Number(one.dataset.to) - from(one);
  const closer = (one, other) => distance(one) - distance(other) || length(one) - length(other);
  return lane?.reduce((one, other) => (closer(other, one) < 0 ? other : one));
}

const keys = {
  ArrowRight: (item) => beside(item, 1),
  ArrowLeft: (item) => beside(item, -1),
  ArrowDown: (item) => across(item, 1),
  ArrowUp: (item) => across(item, -1),
  Home: (item) => lanes.find((one) => one.includes(item))[0],
  End: (item) => lanes.find((one) => one.includes(item)).at(-1),
  Enter: (item) => item,
  " ": (item) => item,
};

chart.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if ("+=-0".includes(event.key)) {
    event.preventDefault();
    if (event.key === "0") setZoom(1);
    else setZoom(zoom * (event.key === "-" ? 1 / 1.5 : 1.5));
    return;
  }
  const item = event.target.closest(".item");
  if (!item || !(event.key in keys)) return;
  event.preventDefault();
  const next = keys[event.key](item);
  if (!next) return;
  choose(next);
  bring(next);
});
chart.addEventListener("focusin", ({ target }) => {
  const item = target.closest(".item");
  if (item && item !== chosen) choose(item, { focus: false });
});
chart.addEventListener("click", ({ target }) => {
  const item = target.closest(".item");
  if (item) choose(item);
});
chart.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  const x = event.clientX - chart.getBoundingClientRect().left - labels() + chart.scrollLeft;
  setZoom(zoom * (event.deltaY > 0 ? 1 / 1.2 : 1.2), start + (x / whole()) * seconds);
}, { passive: false });
chart.addEventListener("scroll", follow, { passive: true });
document.getElementById("zoom-in").addEventListener("click", () => setZoom(zoom * 2));
document.getElementById("zoom-out").addEventListener("click", () => setZoom(zoom / 2));
document.getElementById("zoom-all").addEventListener("click", () => setZoom(1));
document.getElementById("zoom-downtime")?.addEventListener("click", ({ target }) =>
  show(Number(target.dataset.from), Number(target.dataset.to)));
addEventListener("resize", refresh);
for (const one of document.querySelectorAll(".tools, .keys")) one.hidden = false;
refresh();
