// A message as the page shows it.

import { copied, node, show } from "./markdown.js";

const COPY = "M9 9h10v11H9zM5 15V4h10";
const PEN = "M5 19l1-4L16 5l3 3L9 18zM14 7l3 3";
const AGAIN = "M19 8a8 8 0 1 0 1 6M20 4v5h-5";

function tool(label, path, act) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  const button = node("button", { type: "button", className: "icon small", title: label, "aria-label": label }, svg);
  button.addEventListener("click", () => act(button));
  return button;
}

/** A question of the user's. `edit` is there for the last one only. */
export function question(message, edit) {
  const text = node("div", { className: "text", textContent: message.content });
  const article = node("article", { className: "user", "aria-label": "You" }, text);
  const tools = node("div", { className: "tools" });
  if (edit) tools.append(tool("Edit the question", PEN, () => editing(article, message.content, edit)));
  article.append(tools);
  return article;
}

function editing(article, before, done) {
  const kept = [...article.childNodes];
  const area = node("textarea", { value: before, rows: Math.min(12, before.split("\n").length + 1), "aria-label": "The question, edited" });
  const cancel = node("button", { type: "button", textContent: "Cancel" });
  const send = node("button", { type: "button", className: "main", textContent: "Ask again" });
  const leave = () => {
    article.replaceChildren(...kept);
    article.classList.remove("editing");
    article.querySelector("button")?.focus();
  };
  const finish = () => {
    if (area.value.trim()) done(area.value);
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      finish();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      leave();
    }
  });
  cancel.addEventListener("click", leave);
  send.addEventListener("click", finish);
  article.classList.add("editing");
  article.replaceChildren(area, node("menu", {}, cancel, send));
  area.focus();
  area.setSelectionRange(before.length, before.length);
}

/** An answer, shown while it grows. `again` is there for the last one only. */
export class Answer {
  constructor(message, again) {
    this.message = message;
    this.again = again;
    this.thoughts = node("div", { className: "thoughts-text" });
    this.summary = node("summary", { textContent: "Thoughts" });
    this.fold = node("details", { className: "thoughts", hidden: true }, this.summary, this.thoughts);
    this.body = node("div", { className: "markdown" });
    this.note = node("p", { className: "note", hidden: true });
    this.tools = node("div", { className: "tools" });
    this.article = node("article", { className: "model", "aria-label": "Model" }, this.fold, this.body, this.note, this.tools);
  }

  update(busy) {
    const { content, thoughts, note, figures, failed } = this.message;
    this.article.classList.toggle("busy", busy);
    this.article.classList.toggle("waiting", busy && !content && !thoughts);
    this.article.setAttribute("aria-busy", String(busy));
    this.fold.hidden = !thoughts;
    if (thoughts) {
      this.summary.textContent = busy && !content ? "Thinking…" : "Thoughts";
      this.thoughts.textContent = thoughts;
    }
    show(this.body, content);
    this.note.hidden = !note;
    this.note.textContent = note ?? "";
    this.note.classList.toggle("failed", Boolean(failed));
    if (failed) this.note.setAttribute("role", "alert");
    if (busy) return;
    const tools = [tool("Copy the answer", COPY, (button) => copiedIcon(button, content))];
    if (this.again) tools.push(tool("Answer again", AGAIN, this.again));
    this.tools.replaceChildren(...(content ? tools : tools.slice(1)), node("span", { className: "figures", textContent: figures ?? "" }));
  }
}

async function copiedIcon(button, text) {
  const said = node("span", { className: "said", textContent: "" });
  button.after(said);
  said.textContent = "Copied";
  await copied(said, text);
  if (said.textContent === "Copied") setTimeout(() => said.remove(), 1400);
  else setTimeout(() => said.remove(), 3000);
}
