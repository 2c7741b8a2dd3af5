"use strict";
const index = JSON.parse(document.getElementById("index").textContent);
const blocks = document.querySelectorAll("script.block");
const glyphs = { holds: "✓", fails: "✗", idle: "○" };
const kinds = { holds: "holds", fails: "fails", idle: "did not fire" };
const worstFirst = ["fails", "idle", "holds"];
const opened = new Map();
let current = null;   // the button whose verdicts are shown
let asked = 0;        // so that a slow block does not overwrite a later one

function make(name, attributes = {}, ...children) {
  const element = name.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function grouped(all, keyOf) {
  const groups = new Map();
  for (const one of all) {
    const key = keyOf(one);
    groups.has(key) ? groups.get(key).push(one) : groups.set(key, [one]);
  }
  return groups;
}

// The page: its head, a tab for each mode, and the dialog for a cell.

const figure = (number) => number.toLocaleString("en");

function hours(seconds) {
  const all = Math.round(seconds), minutes = Math.floor(all / 60), rest = String(all % 60).padStart(2, "0");
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return minutes ? `${minutes} min ${rest} s` : `${all} s`;
}

function heading() {
  const { figures } = index;
  const shown = [["hold", figures.holds, "holds"], ["fail", figures.fails, "fails"], ["did not fire", figures.idle, "idle"]];
  if (figures.missing) shown.push(["not run", figures.missing, "missing"]);
  return make("header", {},
    make("p", { class: "eyebrow" }, `Xen save helper ${index.version} · fault injection`),
    make("h1", {}, index.title),
    make("p", { class: `headline ${index.allHold ? "holds" : "fails"}` }, index.headline),
    make("ul", { class: "figures" }, ...shown.map(([name, number, kind]) =>
      make("li", { class: number ? kind : "none" }, make("b", {}, figure(number)), " ", name))),
    make("p", { class: "note" }, `${figure(figures.runs)} runs of real processes on two simulated hosts, in ` +
      `${figure(figures.whole)} of which every fault of the plan fired; ${hours(figures.seconds)} of running time; ` +
      "each judged from the outside: exit codes, trace, process table, and the guest's memory."));
}

function panels() {
  const all = index.verdicts.map((verdict, number) => [number, ...verdict]);
  const tabs = [];
  if (index.wrong.length) tabs.push(["wrong", "What does not hold", [list(index.wrong.map((number) => all[number]))], index.wrong.length]);
  for (const mode of index.modes) {
    const here = all.filter(([, , , of]) => of === mode);
    const single = here.filter((entry) => entry[7]), several = here.filter((entry) => !entry[7]);
    const parts = [...(single.length ? [matrix(mode, single)] : []), ...(several.length ? [list(several)] : [])];
    tabs.push([mode, (mode[0].toUpperCase() + mode.slice(1)).replaceAll("-", " "), parts, here.length]);
  }
  return make("main", { id: "main" },
    make("div", { role: "tablist", "aria-label": "Modes" }, ...tabs.map(([name, title, , number], place) =>
      make("button", {
        role: "tab", type: "button", id: `tab-${name}`, "aria-controls": `panel-${name}`,
        "aria-selected": String(place === 0), tabindex: place === 0 ? "0" : "-1", class: name === "wrong" ? "wrong" : null,
      }, title, " ", make("span", { class: "count" }, figure(number))))),
    toolbar(),
    make("p", { id: "nothing", class: "nothing", role: "status", hidden: true },
      "Nothing here is like that: the filter, or the box beside it, leaves nothing to show."),
    ...tabs.map(([name, , parts], place) => make("section", {
      role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, hidden: place > 0,
    }, ...parts)),
    make("details", { class: "left-out" },
      make("summary", {}, `${index.unreached.length} points that none of these runs passes`),
      make("ul", {}, ...index.unreached.map(([point, reason]) => make("li", {}, make("code", {}, point), ` ${reason}`)))));
}

function toolbar() {
  return make("div", { class: "toolbar" },
    make("label", {}, "Filter ", make("input", { type: "search", id: "filter", placeholder: "suspend, record.libxc, kill …" })),
    make("label", {}, make("input", { type: "checkbox", id: "only-wrong" }), " only what does not hold"),
    make("p", { class: "legend", "aria-label": "Legend" }, ...Object.keys(kinds).map((kind) =>
      make("span", {}, make("i", { class: kind, "aria-hidden": "true" }, glyphs[kind]), " ", kinds[kind]))));
}

function details() {
  const button = (id, text, label) => make("button", { type: "button", id, "aria-label": label, title: label }, text);
  return make("dialog", { id: "details", "aria-labelledby": "plan" },
    make("div", { class: "title" }, make("h2", { id: "plan" }), make("div", { class: "buttons" },
      button("previous", "←", "The cell before (←)"), button("next", "→", "The next cell (→)"), button("close", "✕", "Close (Esc)"))),
    make("div", { class: "content", id: "content", tabindex: "0" }));
}

// The matrix of points and actions, and the list of plans that have no place in it.

function matrix(mode, entries) {
  const cells = grouped(entries, ([, , , , , , , [point, action]]) => `${point} ${action}`);
  const used = new Set(entries.map((entry) => entry[7][1]));
  const groups = index.actions.map(([name, actions]) => [name, actions.filter(([action]) => used.has(action))])
    .filter(([, actions]) => actions.length);
  const columns = groups.flatMap(([, actions]) => actions.map(([action, doc], place) => ({ action, doc, edge: place ? null : "first" })));
  const passed = new Set(entries.map((entry) => entry[7][0]));
  const sections = grouped([...index.points.keys()].filter((point) => passed.has(point)), (point) => index.points[point][2]);
  const row = (point) => {
    const [name, doc] = index.points[point];
    return make("tr", {}, make("th", { scope: "row", title: doc }, make("code", {}, name)), ...columns.map(({ action, edge }) => {
      const here = cells.get(`${point} ${action}`);
      return make("td", { class: edge }, ...(here ? [cell(name, action, here)] : []));
    }));
  };
  return make("div", { class: "scroll", tabindex: "-1" }, make("table", { class: "matrix" },
    make("caption", { class: "unseen" }, `Points and actions in the mode ${mode}`),
    make("thead", {},
      make("tr", { class: "groups" }, make("td"), ...groups.map(([name, actions]) =>
        make("th", { scope: "colgroup", colspan: actions.length, class: "first" }, name))),
      make("tr", { class: "actions" }, make("th", { scope: "col" }, "Point"), ...columns.map(({ action, doc, edge }) =>
        make("th", { scope: "col", title: doc, class: edge }, make("span", {}, action))))),
    ...[...sections].map(([title, points]) => make("tbody", {},
      make("tr", {}, make("th", { scope: "rowgroup", colspan: columns.length + 1 }, make("span", {}, title))),
      ...points.map(row)))));
}

function cell(point, action, entries) {
  const found = entries.map((entry) => entry[2]);
  const [worst] = worstFirst.filter((kind) => found.includes(kind));
  const said = worstFirst.filter((kind) => found.includes(kind))
    .map((kind) => `${found.filter((one) => one === kind).length} ${kinds[kind]}`).join(", ");
  // As it is typed, and looked for.
  const done = new Set(entries.map((entry) => entry[7][2]));
  const deaths = index.deaths.filter((name) => done.has(name));
  const name = deaths.length ? `${action} (${deaths.join(", ")})` : action;
  return make("button", {
    type: "button", class: `cell ${worst}`, tabindex: "-1", "data-v": entries.map(([number]) => number).join(","),
    "aria-label": `${point} ${name}: ${said}`, title: `${point} = ${name}\n${said}`,
  }, glyphs[worst]);
}

function list(entries) {
  const columns = ["Verdict", "Mode", "Plan", "What is wrong", "Took"];
  return make("div", { class: "scroll", tabindex: "-1" }, make("table", { class: "list" },
    make("thead", {}, make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...entries.map(([number, , kind, mode, plan, seconds, why]) => make("tr", {},
      make("td", {}, make("span", { class: `badge ${kind}` }, `${glyphs[kind]} ${kinds[kind]}`)),
      make("td", {}, mode),
      make("td", {}, make("button", { type: "button", class: `open ${kind}`, tabindex: "-1", "data-v": number }, make("code", {}, plan))),
      make("td", {}, why),
      make("td", { class: "number" }, `${seconds.toFixed(1)} s`))))));
}

document.body.prepend(heading(), panels(), details());
const dialog = document.getElementById("details");
const content = document.getElementById("content");

// What was found, unpacked when it is looked at.

async function unpack(number) {
  const block = index.verdicts[number][0];
  if (!opened.has(block)) {
    const octets = Uint8Array.from(atob(blocks[block].textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([octets]).stream().pipeThrough(new DecompressionStream("gzip"));
    opened.set(block, await new Response(stream).json());
  }
  return opened.get(block).find((one) => one.number === number);
}

// The details of a cell.

const numbersOf = (button) => button.dataset.v.split(",").map(Number);

async function show(button, number) {
  current = button;
  const turn = ++asked;
  const numbers = numbersOf(button);
  const worst = numbers.find((one) => index.verdicts[one][1] !== "holds");
  const chosen = number ?? worst ?? numbers[0];
  const [, kind, mode, plan] = index.verdicts[chosen];
  document.getElementById("plan").replaceChildren(
    make("span", { class: `badge ${kind}` }, `${glyphs[kind]} ${kinds[kind]}`), " ",
    make("code", {}, plan), " ", make("span", { class: "mode" }, `in ${mode}`));
  if (!dialog.open) dialog.showModal();
  setAddress(chosen);
  let found;
  try {
    found = await unpack(chosen);
  } catch (error) {
    if (turn === asked) content.replaceChildren(make("p", { class: "note" },
      `This browser cannot unpack the trace (${error}); one that knows DecompressionStream can.`));
    return;
  }
  if (turn !== asked) return;
  content.replaceChildren(...variants(numbers, chosen), facts(found), ...timeline(found));
  content.scrollTop = 0;
  content.focus();
}

function variants(numbers, chosen) {
  if (numbers.length < 2) return [];
  const short = (plan) => plan.split("; ").filter((part) => !part.startsWith("seed=")).pop();
  return [make("div", { class: "variants", role: "group", "aria-label": "Runs of this cell" },
    ...numbers.map((one) => {
      const [, kind, , plan] = index.verdicts[one];
      return make("button", {
        type: "button", "aria-pressed": String(one === chosen), onclick: () => show(current, one),
      }, make("span", { class: `badge ${kind}`, title: kinds[kind] }, glyphs[kind]), make("code", {}, short(plan)));
    }))];
}

function facts(found) {
  const list = make("dl", { class: "facts" });
  const row = (name, value, kind) => list.append(make("dt", {}, name), make("dd", kind ? { class: kind } : {}, value));
  for (const problem of found.problems) row("wrong", problem, "problem");
  row("expected", found.expected);
  for (const [name, value] of found.seen) row(name, value);
  row("fired", found.fired.length ? make("code", {}, found.fired.join("; ")) : "nothing");
  row("took", `${found.seconds.toFixed(1)} s`);
  const copy = make("button", { type: "button", class: "copy" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(found.again);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(copy.previousElementSibling);
      copy.textContent = "Selected";
    }
  });
  row("timeline", found.timeline
    ? make("a", { href: found.timeline, target: "_blank", rel: "noopener" }, "the run as a picture")
    : make("span", {}, "none was kept: ", make("code", {}, "--timeline FILE.html"), " draws one, again"));
  row("again", make("span", { class: "command" }, make("code", {}, found.again), copy));
  return list;
}

// The timeline: an overview of the lanes, and each event in its side's column.

const laneClass = (lane) => (lane === 2 ? "l" : lane === 0 || lane === 4 ? "c" : "h");
const isNoise = ([, , name, fields]) => name === "callback" &&
  fields.some(([key, value]) => key === "name" && (value === "log" || value === "progress"));
const isBad = ([, , name, fields]) => /fail|stranger|violation|lost/.test(name) ||
  fields.some(([key, value]) => (key === "result" && value === "failed") || (key === "rc" && Number(value) < 0));

function time(milliseconds) {
  const sign = milliseconds < 0 ? "−" : "+";
  const size = Math.abs(milliseconds);
  return size < 1000 ? `${sign}${size.toFixed(1)} ms` : `${sign}${(size / 1000).toFixed(3)} s`;
}

function timeline(found) {
  if (!found.events.length) return [make("p", { class: "note" }, "There is no trace.")];
  const noise = found.events.filter(isNoise).length;
  const table = make("table", { class: "timeline" });
  const all = make("input", { type: "checkbox" });
  const fill = () => table.replaceChildren(...rows(found.events, all.checked));
  all.addEventListener("change", fill);
  fill();
  const struck = found.events.some(([, , name]) => name === "fault");
  const seek = (at) => {
    const near = (row) => Math.abs(Number(row.dataset.at) - at);
    const row = [...table.querySelectorAll("[data-at]")].reduce((one, other) => (near(other) < near(one) ? other : one));
    for (const old of table.querySelectorAll(".sought")) old.classList.remove("sought");
    row.classList.add("sought");
    row.scrollIntoView({ block: "center" });
  };
  const toFault = make("button", { type: "button", class: "to-fault", onclick: () => seek(0) }, "Go to the fault");
  return [
    make("div", { class: "overview" }, overview(found.events, seek)),
    make("div", { class: "timeline-bar" },
      make("h3", {}, `${found.events.length} events, time from the first ${struck ? "fault" : "event"}`,
        ...(struck ? [toFault] : [])),
      make("label", {}, all, ` log and progress lines (${noise})`)),
    table];
}

function rows(events, all) {
  const key = (kind, text) => make("span", { class: `who ${kind}` }, text);
  const head = make("thead", {}, make("tr", {},
    make("th", { scope: "col" }, "Time"),
    make("th", { scope: "col" }, "Source", key("c", "controller"), key("h", "helper"), key("l", "link")),
    make("th", { scope: "col" }, "Destination", key("c", "controller"), key("h", "helper"))));
  const body = make("tbody");
  let before = null;
  for (const event of events) {
    const [at, lane, name, fields] = event;
    if (!all && isNoise(event)) continue;
    if (before !== null && at - before >= 500) {
      body.append(make("tr", { class: "pause" },
        make("td", { colspan: 3 }, `${((at - before) / 1000).toFixed(1)} s in which nothing is told`)));
    }
    before = at;
    const text = fields.filter(([field]) => field !== "pid").map(([field, value]) => `${field} ${value}`).join(" · ");
    const cell = make("span", {
      class: `event ${laneClass(lane)}${isBad(event) ? " bad" : ""}`,
      title: `${index.lanes[lane]}, ${fields.filter(([field]) => field === "pid").map((one) => one.join(" "))}`,
    }, make("b", {}, name === "fault" ? "⚡ fault" : name), " ", make("span", { class: "fields" }, text));
    const sides = lane < 3 ? [cell, ""] : ["", cell];
    body.append(make("tr", { class: name === "fault" ? "fault" : null, "data-at": at },
      make("td", {}, time(at)), ...sides.map((side) => make("td", {}, side))));
  }
  return [head, body];
}

function overview(events, seek) {
  const left = 150, width = Math.max(700, Math.min(1400, innerWidth * .9)), right = 24, laneHeight = 26, top = 20;
  const used = index.lanes.map((_, lane) => lane).filter((lane) => lane !== 2 || events.some((event) => event[1] === 2));
  const y = new Map(used.map((lane, position) => [lane, top + (position + .5) * laneHeight]));
  const bottom = top + used.length * laneHeight;
  const first = events[0][0], last = events.at(-1)[0], span = Math.max(1, last - first);
  const x = (at) => left + ((at - first) / span) * (width - left - right);
  const svg = make("svg:svg", { viewBox: `0 0 ${width} ${bottom + 22}`, role: "img", "aria-label": "The lanes over time; the list below has the same events" });
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 60000, 120000].find((one) => span / one <= 10) ?? 300000;
  for (let at = Math.ceil(first / step) * step; at <= last; at += step) {
    svg.append(make("svg:line", { class: "grid", x1: x(at), x2: x(at), y1: top, y2: bottom }));
    const label = at === 0 ? "0" : step < 1000 ? `${at} ms` : `${at / 1000} s`;
    svg.append(make("svg:text", { x: x(at), y: bottom + 15, "text-anchor": "middle" }, label.replace("-", "−")));
  }
  for (const lane of used) {
    svg.append(make("svg:line", { class: "lane", x1: left, x2: width - right, y1: y.get(lane), y2: y.get(lane) }));
    svg.append(make("svg:text", { x: 12, y: y.get(lane) + 4 }, index.lanes[lane]));
  }
  const begun = new Map();
  const bar = (lane, name, from, to) => {
    const wide = Math.max(1.5, x(to) - x(from));
    svg.append(make("svg:rect", { class: `phase ${laneClass(lane)}`, x: x(from), y: y.get(lane) - 9, width: wide, height: 18, rx: 2 }, make("svg:title", {}, `${name}: ${(to - from).toFixed(1)} ms`)));
    if (wide > name.length * 6 + 6) svg.append(make("svg:text", { class: "phase-name", x: x(from) + 4, y: y.get(lane) + 3.5 }, name));
  };
  for (const [at, lane, name, fields] of events) {
    if (name !== "phase") continue;
    const { name: phase, state } = Object.fromEntries(fields);
    if (state === "begin") begun.set(`${lane}/${phase}`, [lane, phase, at]);
    else if (begun.has(`${lane}/${phase}`)) {
      bar(...begun.get(`${lane}/${phase}`), at);
      begun.delete(`${lane}/${phase}`);
    }
  }
  for (const [lane, phase, from] of begun.values()) {
    bar(lane, phase, from, events.filter((event) => event[1] === lane).at(-1)[0]);
  }
  for (const event of events) {
    const [at, lane, name] = event;
    if (isNoise(event) || name === "phase" || name === "fault") continue;
    const title = make("svg:title", {}, `${name} ${time(at)}`);
    svg.append(isBad(event)
      ? make("svg:path", { class: "bad", d: `M${x(at) - 4} ${y.get(lane) - 4}l8 8m0-8l-8 8` }, title)
      : make("svg:line", { class: `tick ${laneClass(lane)}`, x1: x(at), x2: x(at), y1: y.get(lane) - 5, y2: y.get(lane) + 5 }, title));
  }
  for (const [at, lane, name, fields] of events) {
    if (name !== "fault") continue;
    const title = make("svg:title", {}, `fault: ${Object.fromEntries(fields).fault}`);
    svg.append(make("svg:line", { class: "fault", x1: x(at), x2: x(at), y1: top - 4, y2: bottom }, title));
    svg.append(make("svg:path", { class: "fault", d: `M${x(at) - 5} ${top - 12}h10l-5 8z` }));
    svg.append(make("svg:circle", { class: "fault", cx: x(at), cy: y.get(lane), r: 4 }));
  }
  svg.addEventListener("click", ({ clientX }) => {
    const box = svg.getBoundingClientRect();
    seek(first + (((clientX - box.left) / box.width) * width - left) / (width - left - right) * span);
  });
  return svg;
}

// Moving about.

// What the filter leaves out keeps its place in the table, so that it has a parent and is not seen.
const isSeen = (element) => element.offsetParent !== null && element.style.visibility !== "hidden";
const openers = () => [...document.querySelectorAll("[role=tabpanel]:not([hidden]) [data-v]")].filter(isSeen);

function step(by) {
  const all = openers();
  const next = all[all.indexOf(current) + by];
  if (next) show(next);
}

function focusOn(button) {
  for (const one of document.querySelectorAll("[data-v][tabindex='0']")) one.tabIndex = -1;
  button.tabIndex = 0;
}

function firstInReach() {
  const [first] = openers();
  if (first) focusOn(first);
}

function neighbour(button, key) {
  const row = button.closest("tr"), cell = button.closest("td");
  if (key === "ArrowLeft" || key === "ArrowRight" || key === "Home" || key === "End") {
    const inRow = [...row.querySelectorAll("[data-v]")].filter(isSeen), here = inRow.indexOf(button);
    if (key === "Home") return inRow[0];
    if (key === "End") return inRow.at(-1);
    return inRow[here + (key === "ArrowLeft" ? -1 : 1)];
  }
  const rows = [...row.closest("table").querySelectorAll("tbody tr")].filter(isSeen);
  const by = key === "ArrowUp" ? -1 : 1;
  for (let at = rows.indexOf(row) + by; rows[at]; at += by) {
    const below = rows[at].cells[cell.cellIndex]?.querySelector("[data-v]");
    if (below && isSeen(below)) return below;
  }
  return undefined;
}

// The address names the tab or the run that is open; to be bookmarked, and sent to others.
function setAddress(what) {
  history.replaceState(null, "", `#${what}`);
}

function select(tab) {
  for (const one of document.querySelectorAll("[role=tab]")) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", String(chosen));
    one.tabIndex = chosen ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  filter();
}

function filter() {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const onlyWrong = document.getElementById("only-wrong").checked;
  const panel = document.querySelector("[role=tabpanel]:not([hidden])");
  if (!panel) return;
  const fits = (button) => words.every((word) => button.textContent.toLowerCase().includes(word) ||
    (button.getAttribute("aria-label") ?? "").toLowerCase().includes(word) ||
    button.closest("tr").textContent.toLowerCase().includes(word)) &&
    !(onlyWrong && button.classList.contains("holds"));
  let all = 0;
  for (const body of panel.querySelectorAll("tbody")) {
    let shown = 0;
    for (const row of body.rows) {
      const buttons = [...row.querySelectorAll("[data-v]")];
      if (!buttons.length) continue;
      let some = 0;
      for (const button of buttons) {
        const yes = fits(button);
        button.style.visibility = yes ? "" : "hidden";
        some += yes;
      }
      row.hidden = !some;
      shown += some;
    }
    body.hidden = !shown;
    all += shown;
  }
  for (const list of panel.querySelectorAll(".scroll")) {
    list.hidden = ![...list.querySelectorAll("tbody")].some((body) => !body.hidden);
  }
  document.getElementById("nothing").hidden = all > 0;
  firstInReach();
}

document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-v]");
  if (button) { focusOn(button); show(button); }
  const tab = target.closest("[role=tab]");
  if (tab) { select(tab); setAddress(tab.id.replace("tab-", "")); }
  if (target === dialog) dialog.close();
});
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const { key, target } = event;
  let next;
  if (dialog.open) {
    if (target.closest("input") || (key !== "ArrowLeft" && key !== "ArrowRight")) return;
    event.preventDefault();
    step(key === "ArrowLeft" ? -1 : 1);
    return;
  }
  if (target.matches("[role=tab]") && (key === "ArrowLeft" || key === "ArrowRight")) {
    const tabs = [...document.querySelectorAll("[role=tab]")];
    next = tabs[(tabs.indexOf(target) + (key === "ArrowLeft" ? -1 : 1) + tabs.length) % tabs.length];
    select(next);
  } else if (target.matches("[data-v]") && /^(Arrow|Home$|End$)/.test(key)) {
    next = neighbour(target, key);
    if (next) focusOn(next);
    event.preventDefault();
  }
  next?.focus();
});
document.getElementById("previous").addEventListener("click", () => step(-1));
document.getElementById("next").addEventListener("click", () => step(1));
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  setAddress(current.closest("[role=tabpanel]").id.replace("panel-", ""));
  current.focus();
});
document.getElementById("filter").addEventListener("input", filter);
document.getElementById("only-wrong").addEventListener("change", filter);

function openFromAddress() {
  const asked = decodeURIComponent(location.hash.slice(1));
  const tab = [...document.querySelectorAll("[role=tab]")].find((one) => one.id === `tab-${asked}`);
  if (tab) select(tab);
  if (!/^\d+$/.test(asked)) return;
  const button = [...document.querySelectorAll("[data-v]")].findLast((one) => numbersOf(one).includes(Number(asked)));
  if (!button) return;
  select(document.getElementById(button.closest("[role=tabpanel]").getAttribute("aria-labelledby")));
  focusOn(button);
  show(button, Number(asked));
}
firstInReach();
openFromAddress();
addEventListener("hashchange", openFromAddress);
