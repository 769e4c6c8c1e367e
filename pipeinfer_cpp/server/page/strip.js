// The live strip: what the pipeline does now.

import { get } from "./api.js";
import { node } from "./markdown.js";

const CALM = 2000;
const BUSY = 500;
const $ = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)}%`;
const bytes = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB/s` : `${(n / 1e3).toFixed(1)} kB/s`);

function run(now) {
  if (now === null) return "–";
  const rows = now.kind === "end" ? "" : `, ${now.rows} row${now.rows === 1 ? "" : "s"}`;
  return `#${now.id} ${now.speculative ? "guess" : now.kind}${rows}`;
}

export class Strip {
  constructor(key) {
    this.key = key;
    this.busy = false;
    this.timer = 0;
    this.open = false;
    $("strip").addEventListener("click", () => this.toggle());
    document.addEventListener("visibilitychange", () => this.look());
    this.look();
  }

  /** An answer of this page is under way: look more often. */
  hurry(busy) {
    this.busy = busy;
    this.look();
  }

  toggle() {
    this.open = !this.open;
    $("strip").setAttribute("aria-expanded", String(this.open));
    $("panel").hidden = !this.open;
    if (this.last) this.show(this.last);
  }

  async look() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    const mine = (this.turn = (this.turn ?? 0) + 1);
    try {
      this.last = await get("pipeline", this.key());
      if (mine === this.turn) this.show(this.last);
    } catch (error) {
      if (mine === this.turn) $("strip").classList.add("stale");
      if (error.status === 404 || error.status === 401) $("strip").hidden = true;
    }
    if (mine === this.turn) this.timer = setTimeout(() => this.look(), this.busy ? BUSY : CALM);
  }

  show(now) {
    $("strip").hidden = false;
    $("strip").classList.remove("stale");
    const bars = now.stages.map((stage) => {
      const bar = node("i", { className: stage.state === "ok" ? "" : "quiet" });
      bar.style.setProperty("--load", stage.load);
      return bar;
    });
    $("strip-stages").replaceChildren(...bars);
    $("strip-runs").textContent = now.runs_in_flight;
    $("strip-acceptance-figure").hidden = now.draft === null;
    $("strip-acceptance").textContent = now.acceptance === null ? "–" : percent(now.acceptance);
    $("strip-speed").textContent = now.tokens_per_s.toFixed(1);
    const known = now.history.acceptance.filter((share) => share !== null);
    const step = 60 / Math.max(known.length - 1, 1);
    const points = known.map((share, i) => `${(i * step).toFixed(1)},${(15 - 14 * share).toFixed(1)}`);
    $("strip-chart").toggleAttribute("hidden", known.length < 2);
    $("strip-chart").firstElementChild.setAttribute("points", points.join(" "));
    if (this.open) this.details(now);
  }

  details(now) {
    const row = (tag, ...cells) => node("tr", {}, ...cells.map((cell) => node(tag, {}, cell)));
    const stages = now.stages.map((stage) => {
      const meter = node("span", { className: "load" });
      meter.style.setProperty("--load", stage.load);
      const where = stage.address ? node("small", { textContent: stage.address }) : "";
      const name = node("span", {}, `${stage.index} `, where);
      const layers = `${stage.layers[0]}–${stage.layers[1] - 1}`;
      const load = node("span", { className: "load-cell" }, meter, percent(stage.load));
      return row("td", name, layers, load, String(stage.queue), run(stage.run), bytes(stage.bytes_out_per_s));
    });
    const head = node("thead", {}, row("th", "Stage", "Layers", "Load", "Queue", "Run", "Sends"));
    const table = node("div", { className: "table" }, node("table", {}, head, node("tbody", {}, ...stages)));
    const talks = now.slots.map((s) => {
      const doing = { idle: "idle", prefill: `reads ${s.read} of ${s.prompt_tokens}`, decode: `${s.generated} tokens`, drain: "ends" }[s.phase];
      return node("li", { className: s.phase }, `Slot ${s.slot}: ${doing ?? s.phase}`);
    });
    const events = now.events.slice(-4).reverse().map((e) => node("li", {}, `${new Date(1000 * e.at).toLocaleTimeString()} ${e.text}`));
    const about = [now.model, now.draft ? `draft ${now.draft}` : "no draft", now.mode, now.exact ? "exact" : "not exact", `context ${now.context}`];
    const parts = [node("p", { className: "about" }, about.join(" · ")), table, node("ul", { className: "slots" }, ...talks)];
    if (events.length) parts.push(node("ul", { className: "events" }, ...events));
    $("panel").replaceChildren(...parts);
  }
}
