// Runs a campaign's page: as much of a browser as its script asks for. On stdin as JSON: `index` and
// `blocks` (the texts of those scripts), `script`, and `hash`, that of the address. On stdout: the
// body as HTML, once nothing is left to be done.
"use strict";

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

class Element {
  constructor(name) {
    Object.assign(this, { name, given: new Map(), nodes: [], parent: null, open: false, style: {}, heard: new Map() });
  }
  get dataset() {
    return { v: this.given.get("data-v"), at: this.given.get("data-at") };
  }
  get hidden() { return this.given.has("hidden"); }
  set hidden(value) { value ? this.given.set("hidden", "") : this.given.delete("hidden"); }
  get tabIndex() { return Number(this.given.get("tabindex")); }
  set tabIndex(value) { this.given.set("tabindex", String(value)); }
  get value() { return this.given.get("value") ?? ""; }
  get checked() { return this.given.has("checked"); }
  get classList() { return { contains: (name) => (this.given.get("class") ?? "").split(" ").includes(name) }; }
  get offsetParent() { return this.closest("[hidden]") ? null : this.parent; }
  get rows() { return this.querySelectorAll("tr"); }
  get cells() { return this.nodes; }
  get textContent() { return this.nodes.map((node) => node.textContent ?? node).join(""); }
  setAttribute(name, value) { this.given.set(name, String(value)); }
  getAttribute(name) { return this.given.get(name) ?? null; }
  adopt(nodes) {
    return nodes.map((node) => {
      if (!(node instanceof Element)) return String(node);
      node.parent = this;
      return node;
    });
  }
  append(...nodes) { this.nodes.push(...this.adopt(nodes)); }
  prepend(...nodes) { this.nodes.unshift(...this.adopt(nodes)); }
  replaceChildren(...nodes) { this.nodes = this.adopt(nodes); }
  addEventListener(kind, listener) { this.heard.set(kind, listener); }
  showModal() { this.open = true; this.given.set("open", ""); }
  focus() {}
  *all() {
    for (const node of this.nodes) if (node instanceof Element) { yield node; yield* node.all(); }
  }
  matches(selector) {
    const parts = selector.split(/ (?![^[]*\])/), last = parts.pop();
    const [, name, rest] = /^([a-z]*)(.*)$/.exec(last);
    const fits = (test) => {
      if (test.startsWith(":not(")) return !this.matches(test.slice(5, -1));
      if (test.startsWith(".")) return this.classList.contains(test.slice(1));
      const [, key, , value] = /^\[([a-z-]+)(=(.*))?\]$/.exec(test);
      return this.given.has(key) && (value === undefined || this.given.get(key) === value.replaceAll(/['"]/g, ""));
    };
    return (!name || name === this.name) && (rest.match(/:not\([^)]*\)|\.[\w-]+|\[[^\]]*\]/g) ?? []).every(fits) &&
      (!parts.length || Boolean(this.parent?.closest(parts.join(" "))));
  }
  closest(selector) { return this.matches(selector) ? this : this.parent?.closest(selector) ?? null; }
  querySelectorAll(selector) { return [...this.all()].filter((element) => element.matches(selector)); }
  querySelector(selector) { return this.querySelectorAll(selector)[0] ?? null; }
  get html() {
    const given = [...this.given].map(([name, value]) => ` ${name}="${escaped(value)}"`).join("");
    const inside = this.nodes.map((node) => node.html ?? escaped(node)).join("");
    return ["input", "br"].includes(this.name) ? `<${this.name}${given}>` : `<${this.name}${given}>${inside}</${this.name}>`;
  }
}

const given = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const body = new Element("body");
const script = (attributes, text) => {
  const element = new Element("script");
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(text);
  return element;
};
body.append(script({ id: "index" }, given.index), ...given.blocks.map((block) => script({ class: "block" }, block)));
Object.assign(globalThis, {
  document: {
    body,
    createElement: (name) => new Element(name),
    createElementNS: (_space, name) => new Element(name),
    getElementById: (id) => body.querySelector(`[id=${id}]`),
    querySelector: (selector) => body.querySelector(selector),
    querySelectorAll: (selector) => body.querySelectorAll(selector),
    addEventListener() {},
  },
  addEventListener() {},
  history: { replaceState() {} },
  location: { hash: given.hash },
  innerWidth: 1200,
});
require("node:vm").runInThisContext(given.script);
process.on("exit", () => {
  body.nodes = body.nodes.filter((node) => node.name !== "script");
  require("node:fs").writeFileSync(1, body.html);   // all of it, before the end
});
