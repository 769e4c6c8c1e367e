// What the browser keeps: each chat under a key of its own, so that two tabs do not write over each other.

const CHAT = "pipeinfer.chat.";
const SETTINGS = "pipeinfer.settings";
const THEME = "pipeinfer.theme";

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

/** False where the browser has no room left, or keeps nothing. */
function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function fresh() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { id: `${Date.now().toString(36)}-${random[0].toString(36)}${random[1].toString(36)}`, title: "", named: false, changed: Date.now(), messages: [] };
}

/** The newest first. */
export function chats() {
  let keys = [];
  try {
    keys = Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  } catch {
    return [];
  }
  const found = keys.map(read).filter((chat) => chat && typeof chat.id === "string" && Array.isArray(chat.messages));
  return found.sort((a, b) => b.changed - a.changed);
}

export const chat = (id) => read(CHAT + id);
export const isChat = (key) => key === null || key.startsWith(CHAT);
export const keyOf = (id) => CHAT + id;

export function save(chat) {
  return write(CHAT + chat.id, chat);
}

export function remove(id) {
  try {
    localStorage.removeItem(CHAT + id);
  } catch {
    // nothing is kept there
  }
}

export const settings = () => ({ system: "", temperature: "", top_p: "", max_tokens: "", seed: "", key: "", ...read(SETTINGS) });
export const saveSettings = (values) => write(SETTINGS, values);
export const theme = () => read(THEME) ?? "system";
export const saveTheme = (name) => write(THEME, name);

/** A chat as Markdown, for other programs and people. */
export function exported(chat) {
  const parts = chat.messages.map((m) => `## ${m.role === "user" ? "You" : "Model"}\n\n${m.content}\n`);
  return `# ${chat.title || "Chat"}\n\n${parts.join("\n")}`;
}
