// Shows times in the browser's zone, and new captions as they arrive. Without it, the page works by links and forms.
"use strict";

const MOST_CARDS = 500;

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!isNaN(at)) time.textContent = at.toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "medium" });
  }
}

function card(html) {
  const template = document.createElement("template");
  template.innerHTML = html;  // made by the gateway's templates, which escape all values
  const made = template.content.firstElementChild;
  localTimes(made);
  made.classList.add("new");
  return made;
}

async function reloadWhenUp() {
  try {
    const response = await fetch(location.href, { redirect: "manual" });
    if (response.ok || response.type === "opaqueredirect") return location.reload();
  } catch { /* the gateway is still away */ }
  setTimeout(reloadWhenUp, 3000);
}

function follow(cards) {
  const state = document.getElementById("state");
  const { live, camera, failed, language } = cards.dataset;
  let waiting = 0;
  const events = new EventSource("/page/events");
  events.addEventListener("caption", (event) => {
    const caption = JSON.parse(event.data);
    if ((camera && caption.camera !== camera) || (failed && !caption.failed)) return;
    if (!live) {
      waiting += 1;
      state.textContent = `${waiting} ${state.dataset.new}`;
      return;
    }
    if (cards.querySelector(`[data-id="${caption.id}"]`)) return;
    const older = document.getElementById("older");
    const after = [...cards.children].find((one) => BigInt(one.dataset.id) < BigInt(caption.id));
    if (!after && older) return;  // it is on a later page
    cards.insertBefore(card(caption.html[language]), after || null);
    if (cards.children.length <= MOST_CARDS) return document.getElementById("empty")?.remove();
    cards.lastElementChild.remove();
    if (older) {
      const next = new URL(older.href);
      next.searchParams.set("before", cards.lastElementChild.dataset.id);
      older.href = next;
    }
  });
  events.addEventListener("fleet", (event) => {
    document.getElementById("fleet").innerHTML = JSON.parse(event.data)[language];
  });
  let lost = false;
  events.addEventListener("error", () => {
    lost = true;
    state.textContent = state.dataset.offline;
    if (events.readyState === EventSource.CLOSED) setTimeout(reloadWhenUp, 3000);  // it does not try again by itself
  });
  events.addEventListener("open", () => {
    document.body.dataset.stream = "open";
    if (lost) location.reload();  // what has arrived meanwhile
  });
}

// Posts a question and shows the answer as it comes: OpenAI's chunks as server-sent events. `body` makes what is posted.
async function ask(form, url, body, shown) {
  const answers = form.querySelector(".answers");
  const question = document.createElement("p"), answer = document.createElement("p");
  question.className = "question";
  question.textContent = shown;
  answer.className = "whole answer waiting";
  question.dir = answer.dir = "auto";
  answers.append(question, answer);
  const buttons = form.querySelectorAll("button[type=submit], #again");
  for (const button of buttons) button.disabled = true;
  try {
    const response = await fetch(url, {
      method: "POST", body: JSON.stringify(await body()),
      headers: { "Content-Type": "application/json", "X-Sailq-Token": form.dataset.token },
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let left = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (left + value).split("\n");
      left = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const chunk = JSON.parse(line.slice(6));
        if (chunk.error) throw new Error(chunk.error.message);
        answer.textContent += chunk.choices[0]?.delta.content ?? "";
      }
    }
  } catch (error) {
    answer.classList.add("error");
    answer.textContent = error.message.replace(/^Part \d+ of message \d+: (data:\S* )?/, "");
    return null;
  } finally {
    answer.classList.remove("waiting");
    for (const button of buttons) button.disabled = false;
  }
  return answer.textContent;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function askAboutFiles(dialog) {
  const form = document.getElementById("file-form"), drop = document.getElementById("drop");
  const { file, model, question } = form.elements;
  const open = document.getElementById("open-ask");
  open.hidden = false;
  open.addEventListener("click", () => dialog.showModal());
  document.getElementById("close-ask").addEventListener("click", () => dialog.close());
  for (const kind of ["dragover", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      if (!dialog.open) dialog.showModal();
      if (kind === "drop") file.files = event.dataTransfer.files;
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = file.files[0], most = Number(form.dataset.most);
    const body = async () => {
      const asked = { model: model.value, question: question.value };
      if (!chosen) return asked;
      if (chosen.size > most) throw new Error(form.dataset.large.replace("{}", Math.floor(most / 2 ** 20)));
      const type = chosen.type.split("/")[0];
      return { ...asked, medium: await dataUrl(chosen), ...(["image", "video"].includes(type) ? { type } : {}) };
    };
    ask(form, "/page/ask", body, `${chosen ? chosen.name + ": " : ""}${question.value}`);
  });
}

function askAboutClip(form) {
  const { question } = form.elements, again = document.getElementById("again");
  const earlier = [];
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const asked = question.value;
    if (!asked.trim()) return;
    question.value = "";
    const answer = await ask(form, form.dataset.url, () => ({ question: asked, earlier }), asked);
    if (answer) earlier.push({ question: asked, answer });
  });
  again.addEventListener("click", () => ask(form, form.dataset.url, () => ({}), again.textContent));
}

localTimes(document);
const dialog = document.getElementById("ask"), clip = document.getElementById("clip-form");
if (dialog) askAboutFiles(dialog);
if (clip) askAboutClip(clip);
const cards = document.getElementById("cards");
if (cards) follow(cards);
