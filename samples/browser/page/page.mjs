// The chat: what is on the screen. The model runs in worker.mjs, so that the page never waits for it.
const [status, progress, talk, form, message, send, stop, clear] = [
  ..."status progress talk form message send stop clear".split(" "),
].map((id) => document.getElementById(id));

const worker = new Worker("worker.mjs", { type: "module" });
let conversation = [];
let answer = null;

function tell(text, failed = false) {
  status.textContent = text;
  status.classList.toggle("failed", failed);
}

function show(role, text) {
  const line = document.createElement("p");
  line.className = role;
  line.textContent = text;
  talk.append(line);
  line.scrollIntoView({ block: "end" });
  return line;
}

/** What may be clicked: `state` is "waiting" (nothing), "ready" or "answering". */
function allow(state) {
  message.disabled = send.disabled = clear.disabled = state !== "ready";
  stop.hidden = state !== "answering";
  document.body.dataset.state = state;
  if (state === "ready") message.focus();
}

const handlers = {
  loading({ loaded, total }) {
    progress.value = loaded / total;
    tell(`Loading the model: ${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`);
  },
  ready({ about }) {
    progress.hidden = true;
    tell(about);
    allow("ready");
  },
  piece({ text }) {
    answer.textContent += text;
    answer.scrollIntoView({ block: "end" });
  },
  done({ about }) {
    conversation.push({ role: "assistant", content: answer.textContent });
    answer = null;
    tell(about);
    allow("ready");
  },
  // Of a message that cannot be answered (it is too long): it is taken back, and the chat goes on.
  refused({ text }) {
    message.value = conversation.pop().content;
    talk.lastChild.previousSibling.remove();
    talk.lastChild.remove();
    answer = null;
    tell(text, true);
    allow("ready");
  },
  failed({ text }) {
    progress.hidden = true;
    tell(text, true);
    allow("waiting");
  },
};
worker.onmessage = ({ data }) => handlers[data.type](data);
worker.onerror = (event) => handlers.failed({ text: `The model's part of the page did not start: ${event.message}` });

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const content = message.value.trim();
  if (!content || send.disabled) return;
  message.value = "";
  conversation.push({ role: "user", content });
  show("user", content);
  answer = show("assistant", "");
  allow("answering");
  worker.postMessage({ type: "answer", messages: conversation });
});
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    form.requestSubmit();
  }
});
stop.addEventListener("click", () => worker.postMessage({ type: "stop" }));
clear.addEventListener("click", () => {
  conversation = [];
  talk.replaceChildren();
  message.focus();
});

// Keeps the page and the model for visits without a network, where the browser lets it.
navigator.serviceWorker?.register("service.mjs", { type: "module" }).catch(() => {});
const options = Object.fromEntries(new URLSearchParams(location.search));
const [model, native] = ["model/", "native/"].map((folder) => new URL(folder, location.href).href);
worker.postMessage({ type: "load", model, native, ...options });
