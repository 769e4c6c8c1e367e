// The chat page: what the user does, and what becomes of it.

import { answer, get, Refused } from "./api.js";
import { node } from "./markdown.js";
import { Answer, question } from "./message.js";
import * as store from "./store.js";
import { Strip } from "./strip.js";

const $ = (id) => document.getElementById(id);
const phone = matchMedia("(max-width: 820px)");
const THEMES = { system: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

let settings = store.settings();
let chat = store.chat(location.hash.slice(1)) ?? store.fresh();
let running = null;
let model = "";
let follows = true;
let leaving = false; // the browser cuts the connection when a page goes
const strip = new Strip(() => settings.key);

// ---------------------------------------------------------------------------------------- showing

function draw() {
  $("title").textContent = chat.title || "New chat";
  document.title = chat.title ? `${chat.title} · pipeinfer` : "pipeinfer";
  $("empty").hidden = chat.messages.length > 0;
  const last = chat.messages.findLastIndex((m) => m.role === "user");
  const shown = chat.messages.map((message, i) => {
    if (message.role === "user") return question(message, i === last && !running ? (text) => ask(text, i) : null);
    const view = new Answer(message, i > last && !running ? () => ask(chat.messages[last].content, last, true) : null);
    view.update(false);
    return view.article;
  });
  $("talk").replaceChildren(...shown);
  drawList();
}

function drawList() {
  const entries = store.chats().map((saved) => {
    const title = saved.title || "New chat";
    const open = node("button", { type: "button", className: "open", textContent: title, title });
    if (saved.id === chat.id) open.setAttribute("aria-current", "page");
    open.addEventListener("click", () => go(saved.id));
    const tools = [
      ["Rename", () => rename(saved.id)],
      ["Export", () => download(saved.id)],
      ["Delete", () => remove(saved.id)],
    ].map(([label, act]) => {
      const button = node("button", { type: "button", textContent: label, "aria-label": `${label}: ${title}` });
      button.addEventListener("click", act);
      return button;
    });
    const more = node("details", { className: "more" }, node("summary", { "aria-label": `More for: ${title}` }, "⋯"), node("div", {}, ...tools));
    return node("li", {}, open, more);
  });
  $("list").replaceChildren(...entries);
}

function scroll(force = false) {
  if (force || follows) $("scroll").scrollTop = $("scroll").scrollHeight;
}

let reached = 0;
$("scroll").addEventListener("scroll", () => {
  const box = $("scroll");
  const far = box.scrollHeight - box.scrollTop - box.clientHeight;
  // Only who goes up leaves the end: it also moves away when the box becomes smaller.
  if (far < 60) follows = true;
  else if (box.scrollTop < reached) follows = false;
  reached = box.scrollTop;
  $("down").hidden = follows;
});
new ResizeObserver(() => scroll()).observe($("scroll"));
$("down").addEventListener("click", () => scroll(true));

// ---------------------------------------------------------------------------------------- asking

function number(value) {
  return value === "" || value === null ? undefined : Number(value);
}

function request(again) {
  const answered = (m, i, all) => (m.role === "user" ? i === all.length - 1 || all[i + 1].content : m.content);
  const messages = chat.messages.filter(answered).map(({ role, content }) => ({ role, content }));
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  return {
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    temperature: number(settings.temperature),
    top_p: number(settings.top_p),
    max_tokens: number(settings.max_tokens),
    seed: again ? undefined : number(settings.seed), // the same seed would give the same answer
  };
}

/** Asks the question; `at`: in place of the message there and of all behind it. */
async function ask(text, at = chat.messages.length, again = false) {
  if (running) return;
  const mine = chat;
  const stopping = new AbortController();
  let over;
  running = { chat: mine, stopping, over: new Promise((done) => (over = done)) };
  mine.messages.splice(at, Infinity, { role: "user", content: text });
  if (!mine.named && at === 0) mine.title = text.trim().split("\n")[0].slice(0, 60);
  keep(mine);
  location.hash = mine.id;
  const body = request(again);
  const message = { role: "assistant", content: "" };
  mine.messages.push(message);
  draw();
  const view = new Answer(message, null);
  $("talk").lastElementChild.replaceWith(view.article);
  busy(true);
  follows = true;
  let waiting = false;
  const refresh = () => {
    waiting = false;
    if (chat !== mine || !running) return;
    view.update(true);
    scroll();
  };
  view.update(true);
  scroll(true);
  try {
    await read(body, stopping.signal, message, () => {
      if (!waiting) requestAnimationFrame(refresh);
      waiting = true;
    });
  } catch (error) {
    if (error.name === "AbortError" || leaving) message.note = "Stopped.";
    else {
      message.note = error.message;
      message.failed = true;
      if (!(error instanceof Refused)) console.error(error);
      if (error.status === 401) openSettings("key");
    }
  }
  running = null;
  mine.changed = Date.now();
  keep(mine);
  busy(false);
  if (chat === mine) {
    draw();
    scroll();
  }
  $("said").textContent = message.failed ? "" : "The answer is there.";
  over();
}

async function read(body, signal, message, changed) {
  const began = performance.now();
  let first = 0;
  let timings = null;
  let usage = null;
  let pieces = 0;
  for await (const chunk of answer(body, settings.key, signal)) {
    const choice = chunk.choices?.[0];
    const { content, reasoning_content: thought } = choice?.delta ?? {};
    if (content || thought) {
      first ||= performance.now();
      pieces++;
      message.content += content ?? "";
      if (thought) message.thoughts = (message.thoughts ?? "") + thought;
      changed();
    }
    if (choice?.finish_reason === "length") message.note = "Cut here: the limit of tokens or the context is reached.";
    timings = chunk.timings ?? timings;
    usage = chunk.usage ?? usage;
  }
  message.figures = figures(timings, usage?.completion_tokens ?? pieces, first - began, performance.now() - first);
  if (!message.content && !message.thoughts) message.note ??= "The answer is empty.";
}

function figures(timings, n, before, during) {
  const parts = [`${n} token${n === 1 ? "" : "s"}`];
  const speed = timings?.predicted_per_second ?? (n > 1 && during > 0 ? (1000 * (n - 1)) / during : null);
  if (speed) parts.push(`${speed.toFixed(1)} tokens/s`);
  if (before > 0) parts.push(`first after ${(before / 1000).toFixed(1)} s`);
  if (timings?.draft_n) parts.push(`${Math.round((100 * timings.draft_n_accepted) / timings.draft_n)}% of drafts accepted`);
  return parts.join(" · ");
}

function busy(yes) {
  $("send").hidden = yes;
  $("stop").hidden = !yes;
  $("main").classList.toggle("answering", yes);
  strip.hurry(yes);
  if (yes) $("said").textContent = "";
}

function keep(which) {
  if (!store.save(which) && !keep.told) {
    keep.told = true;
    alertOnce("This browser keeps nothing more of this page: delete or export chats, or allow it storage.");
  }
}

function alertOnce(text) {
  const note = node("p", { className: "note failed", role: "alert", textContent: text });
  $("form").before(note);
  setTimeout(() => note.remove(), 8000);
}

function stop() {
  running?.stopping.abort();
}

// ---------------------------------------------------------------------------------------- chats

function go(id) {
  if (id === chat.id) return openSide(false);
  if (running) stop();
  location.hash = id;
  openSide(false);
}

addEventListener("hashchange", () => {
  const id = location.hash.slice(1);
  if (id === chat.id) return;
  if (running) stop();
  chat = store.chat(id) ?? store.fresh();
  draw();
  scroll(true);
});

function begin() {
  if (running) stop();
  chat = store.fresh();
  history.pushState(null, "", location.pathname + location.search);
  draw();
  openSide(false);
  $("question").focus();
}

addEventListener("popstate", () => {
  if (location.hash || !chat.messages.length) return;
  if (running) stop();
  chat = store.fresh();
  draw();
});

addEventListener("storage", (event) => {
  if (!store.isChat(event.key)) {
    settings = store.settings();
    theme(store.theme());
    return;
  }
  const mine = event.key === store.keyOf(chat.id);
  if (mine && !running) {
    chat = store.chat(chat.id) ?? store.fresh();
    draw();
  } else drawList();
});

/** A small question; gives the text typed, "" for none where none was asked for, null where it was cancelled. */
function dialog({ title, text = "", name = null, act }) {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-text").hidden = !text;
  $("ask-name").hidden = name === null;
  $("ask-name").value = name ?? "";
  $("ask-do").textContent = act;
  $("ask").returnValue = "";
  $("ask").showModal();
  if (name !== null) $("ask-name").select();
  return new Promise((done) => {
    $("ask").addEventListener("close", () => done($("ask").returnValue === "do" ? $("ask-name").value : null), { once: true });
  });
}

/** Enter in the field means the last button, not the first. */
$("ask-name").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  $("ask").close("do");
});

const stored = (id) => (id === chat.id ? chat : store.chat(id));

async function rename(id) {
  const title = await dialog({ title: "Rename the chat", name: stored(id)?.title ?? "", act: "Rename" });
  const which = stored(id);
  if (!title?.trim() || !which) return;
  which.title = title.trim();
  which.named = true;
  keep(which);
  $("title").textContent = chat.title || "New chat";
  drawList();
}

async function remove(id) {
  const title = stored(id)?.title || "this chat";
  if ((await dialog({ title: "Delete the chat?", text: `“${title}” is gone for good then.`, act: "Delete" })) === null) return;
  if (running?.chat.id === id) {
    stop();
    await running.over; // what there is of the answer is kept once more
  }
  store.remove(id);
  if (id === chat.id) begin();
  else drawList();
}

function download(id) {
  const which = stored(id);
  if (!which) return;
  const url = URL.createObjectURL(new Blob([store.exported(which)], { type: "text/markdown" }));
  const name = (which.title || "chat").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "chat";
  node("a", { href: url, download: `${name}.md` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// ---------------------------------------------------------------------------------------- around it

function openSide(open) {
  document.body.classList.toggle("side-open", open);
  $("side-open").setAttribute("aria-expanded", String(open));
  $("side").inert = phone.matches && !open;
  if (open) $("new").focus();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").setAttribute("aria-label", THEMES[name]);
  $("theme").title = THEMES[name];
}

function openSettings(focus = "system") {
  const form = $("settings").querySelector("form");
  for (const [name, value] of Object.entries(settings)) if (form.elements[name]) form.elements[name].value = value;
  if (!$("settings").open) $("settings").showModal();
  form.elements[focus].focus();
}

$("settings").addEventListener("close", () => {
  if ($("settings").returnValue !== "save") return;
  const form = $("settings").querySelector("form");
  for (const name of Object.keys(settings)) if (form.elements[name]) settings[name] = form.elements[name].value;
  store.saveSettings(settings);
  about();
  strip.look();
});
$("settings-cancel").addEventListener("click", () => $("settings").close("cancel"));
$("settings-open").addEventListener("click", () => {
  $("settings").returnValue = "";
  openSettings();
});
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(store.theme()) + 1) % names.length];
  store.saveTheme(next);
  theme(next);
});
$("new").addEventListener("click", begin);
$("side-open").addEventListener("click", () => openSide(true));
$("side-close").addEventListener("click", () => {
  openSide(false);
  $("side-open").focus();
});
$("shade").addEventListener("click", () => openSide(false));
phone.addEventListener("change", () => openSide(false));
$("stop").addEventListener("click", () => {
  stop();
  $("question").focus();
});

function fit() {
  const area = $("question");
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
}

$("question").addEventListener("input", fit);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("question").value;
  if (!text.trim() || running) return;
  $("question").value = "";
  fit();
  ask(text);
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("side-open")) {
    openSide(false);
    $("side-open").focus();
  } else stop();
});
document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll("details.more[open]")) if (!open.contains(event.target)) open.open = false;
});
addEventListener("beforeunload", () => (leaving = true));
addEventListener("pageshow", () => (leaving = false));
addEventListener("pagehide", () => {
  if (running) {
    running.chat.messages.at(-1).note = "Stopped.";
    store.save(running.chat);
  }
});

/** What answers here. */
async function about() {
  try {
    model = (await get("v1/models", settings.key)).data[0].id;
    $("model").textContent = model;
  } catch (error) {
    $("model").textContent = error.status === 401 ? "asks for an API key" : "not reached";
  }
}

theme(store.theme());
openSide(false);
draw();
scroll(true);
about();
if (!phone.matches) $("question").focus();
