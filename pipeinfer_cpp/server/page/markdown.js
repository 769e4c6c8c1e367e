// Markdown as DOM nodes. Text only ever becomes text nodes, so no HTML of a model can pass.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*).*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+(.*))?$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEP = 8;
// Spans are bounded: a mark that is never closed must not make each other one look to the text's end.
const INLINE = new RegExp(
  [
    "(?<escape>\\\\[!-/:-@[-`{-~])",
    "(?<ticks>`+)(?<code>[^`]|[^`][\\s\\S]{0,2000}?[^`])\\k<ticks>(?!`)",
    "!?\\[(?<label>[^\\[\\]]*)\\]\\((?<href>[^()\\s]*(?:\\([^()\\s]*\\)[^()\\s]*)*)(?:\\s+\"[^\"]*\")?\\)",
    "<(?<auto>https?://[^\\s<>]+)>",
    "(?<bare>https?://(?:[^\\s<>\"'`()]|\\([^\\s<>\"'`()]*\\))*(?:[^\\s<>\"'`.,:;!?()\\]*_]|\\([^\\s<>\"'`()]*\\)))",
    "\\*\\*(?<strong>(?=\\S)[\\s\\S]{0,2000}?\\S)\\*\\*(?!\\*)",
    "(?<![\\p{L}\\p{N}])__(?<strong2>(?=\\S)[\\s\\S]{0,2000}?\\S)__(?![\\p{L}\\p{N}])",
    "\\*(?<em>(?=[^\\s*])[^*]*?[^\\s*])\\*(?!\\*)",
    "(?<![\\p{L}\\p{N}])_(?<em2>(?=[^\\s_])[^_]*?[^\\s_])_(?![\\p{L}\\p{N}])",
    "~~(?<gone>(?=\\S)[\\s\\S]{0,2000}?\\S)~~",
  ].join("|"),
  "u",
);

export function node(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Shows `text` in `place`. Blocks that did not change since the last call stay the nodes that they are. */
export function show(place, text) {
  const sources = blocks(text.replace(/\r\n?/g, "\n").split("\n"));
  const before = place.sources ?? [];
  let same = 0;
  while (same < sources.length && sources[same] === before[same]) same++;
  while (place.childNodes.length > same) place.lastChild.remove();
  for (const source of sources.slice(same)) place.append(block(source, 0));
  place.sources = sources;
}

/** Lines to the sources of blocks, one string each. */
function blocks(lines) {
  const found = [];
  for (let i = 0; i < lines.length; ) {
    if (!lines[i].trim()) {
      i++;
      continue;
    }
    const end = blockEnd(lines, i);
    found.push(lines.slice(i, end).join("\n"));
    i = end;
  }
  return found;
}

function blockEnd(lines, i) {
  const fence = lines[i].match(FENCE);
  if (fence) {
    const closes = (line) => line.trim().startsWith(fence[1]) && !line.trim().replaceAll(fence[1][0], "");
    for (let j = i + 1; j < lines.length; j++) if (closes(lines[j])) return j + 1;
    return lines.length;
  }
  if (HEADING.test(lines[i]) || RULE.test(lines[i])) return i + 1;
  if (ITEM.test(lines[i])) {
    let j = i + 1;
    for (; j < lines.length; j++) {
      const following = lines[j].trim() ? lines[j] : (lines[j + 1] ?? "");
      if (!lines[j].trim() && !/^\s/.test(following) && !ITEM.test(following)) break;
      if (lines[j].trim() && !/^\s/.test(lines[j]) && !ITEM.test(lines[j]) && starts(lines, j)) break;
    }
    while (!lines[j - 1].trim()) j--;
    return j;
  }
  if (QUOTE.test(lines[i])) {
    let j = i + 1;
    while (j < lines.length && QUOTE.test(lines[j])) j++;
    return j;
  }
  let j = i + 1;
  if (table(lines, i)) while (j < lines.length && lines[j].trim() && lines[j].includes("|")) j++;
  else while (j < lines.length && lines[j].trim() && !starts(lines, j)) j++;
  return j;
}

/** Whether a line ends the paragraph before it. */
function starts(lines, i) {
  const line = lines[i];
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line) || table(lines, i);
}

function table(lines, i) {
  return lines[i].includes("|") && i + 1 < lines.length && lines[i + 1].includes("-") && DIVIDER.test(lines[i + 1])
    && cells(lines[i]).length === cells(lines[i + 1]).length;
}

function block(source, depth) {
  const lines = source.split("\n");
  const first = lines[0];
  const fence = first.match(FENCE);
  if (fence) return code(lines, fence);
  const heading = first.match(HEADING);
  if (heading) return node(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2]));
  if (RULE.test(first)) return node("hr");
  if (depth < DEEP && ITEM.test(first)) return list(lines, depth);
  if (depth < DEEP && QUOTE.test(first)) {
    const inner = blocks(lines.map((line) => line.replace(QUOTE, "")));
    return node("blockquote", {}, ...inner.map((b) => block(b, depth + 1)));
  }
  if (table(lines, 0)) return grid(lines);
  return node("p", {}, ...inline(source));
}

function code(lines, fence) {
  const last = lines[lines.length - 1].trim();
  const closed = lines.length > 1 && last.startsWith(fence[1]) && !last.replaceAll(fence[1][0], "");
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const copy = node("button", { type: "button", className: "copy", textContent: "Copy", "aria-label": "Copy the code" });
  copy.addEventListener("click", () => copied(copy, text));
  const head = node("div", { className: "code-head" }, node("span", { textContent: fence[2] || "text" }), copy);
  return node("div", { className: "code" }, head, node("pre", { tabIndex: 0 }, node("code", { textContent: text })));
}

export async function copied(button, text) {
  const was = button.textContent;
  button.textContent = (await toClipboard(text)) ? "Copied" : "Not allowed";
  setTimeout(() => (button.textContent = was), 1500);
}

/** Browsers give the clipboard only to pages of this machine or over HTTPS; elsewhere the old command does it. */
async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const holder = node("textarea", { value: text, className: "unseen" });
    document.body.append(holder);
    holder.select();
    const done = document.execCommand("copy");
    holder.remove();
    return done;
  }
}

function list(lines, depth) {
  const first = lines[0].match(ITEM);
  const indent = first[1].length;
  const ordered = /\d/.test(first[2]);
  const items = [];
  for (const line of lines) {
    const item = line.match(ITEM);
    if (item && item[1].length <= indent + 1) items.push([item[3] ?? ""]);
    else items[items.length - 1].push(line);
  }
  const made = node(ordered ? "ol" : "ul");
  if (ordered) made.start = Number.parseInt(first[2], 10);
  for (const item of items) {
    const margin = Math.min(...item.slice(1).filter((l) => l.trim()).map((l) => l.match(/^\s*/)[0].length), indent + 4);
    const inner = blocks([item[0], ...item.slice(1).map((l) => l.slice(Math.min(margin, l.match(/^\s*/)[0].length)))]);
    const entry = node("li");
    inner.forEach((b, i) => {
      const made = block(b, depth + 1);
      if (i === 0 && made.tagName === "P") entry.append(...made.childNodes);
      else entry.append(made);
    });
    made.append(entry);
  }
  return made;
}

function cells(line) {
  const bare = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return bare.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function grid(lines) {
  const sides = cells(lines[1]).map((c) => (c.endsWith(":") ? (c.startsWith(":") ? "center" : "right") : "left"));
  const row = (tag, line) => {
    const said = cells(line);
    return node("tr", {}, ...sides.map((side, i) => node(tag, { className: side }, ...inline(said[i] ?? ""))));
  };
  const body = node("tbody", {}, ...lines.slice(2).map((line) => row("td", line)));
  const made = node("table", {}, node("thead", {}, row("th", lines[0])), body);
  return node("div", { className: "table", tabIndex: 0 }, made);
}

function inline(text, depth = 0) {
  const out = [];
  const within = (tag, inner) => node(tag, {}, ...(depth < DEEP ? inline(inner, depth + 1) : [inner]));
  for (let rest = text; rest; ) {
    const match = rest.match(INLINE);
    if (!match) {
      out.push(...broken(rest));
      break;
    }
    const { escape, code, label, href, auto, bare, strong, strong2, em, em2, gone } = match.groups;
    out.push(...broken(rest.slice(0, match.index)));
    if (escape) out.push(escape[1]);
    else if (code !== undefined) out.push(node("code", { textContent: code.replace(/^ (.*\S.*) $/, "$1") }));
    else if (href !== undefined) out.push(link(href, label || href, match[0]));
    else if (auto ?? bare) out.push(link(auto ?? bare, auto ?? bare, match[0]));
    else if (strong ?? strong2) out.push(within("strong", strong ?? strong2));
    else if (em ?? em2) out.push(within("em", em ?? em2));
    else out.push(within("del", gone));
    rest = rest.slice(match.index + match[0].length);
  }
  return out;
}

/** Two spaces or a backslash at a line's end break it. */
function broken(text) {
  return text.split(/(?: {2,}|\\)\n/).flatMap((part, i) => (i ? [node("br"), part] : [part]));
}

/** Pictures are links too: the page loads nothing from other hosts. */
function link(href, label, source) {
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return source;
  return node("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, label);
}
