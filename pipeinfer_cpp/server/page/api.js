// The server, over the same HTTP API that programs use.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  const made = { "Content-Type": "application/json" };
  if (key) made.Authorization = `Bearer ${key}`;
  return made;
}

async function refusal(response) {
  let said = "";
  try {
    const { error } = await response.json();
    said = typeof error === "string" ? error : error.message;
  } catch {
    // no JSON: a proxy, perhaps
  }
  if (response.status === 401) said = "The server asks for an API key: type it in the settings.";
  return new Refused(response.status, said || `The server answered with ${response.status}.`);
}

export async function get(path, key) {
  const response = await fetch(path, { headers: headers(key), cache: "no-store" });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/** The answer's chunks, as they come. */
export async function* answer(body, key, signal) {
  let response;
  try {
    response = await fetch("v1/chat/completions", { method: "POST", headers: headers(key), body: JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server cannot be reached. See whether it still runs.");
  }
  if (!response.ok) throw await refusal(response);
  let ended = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(500, chunk.error.message ?? String(chunk.error));
    yield chunk;
  }
  if (!ended) throw new Refused(0, "The connection ended in the middle of the answer.");
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Refused(0, "The connection ended in the middle of the answer.");
      }
      rest += part.value ?? "";
      const whole = rest.split(/\r?\n\r?\n/);
      rest = whole.pop();
      for (const event of whole) {
        const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
      if (part.done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
