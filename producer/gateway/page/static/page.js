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
    const after = [...cards.children].find((one) => BigInt(one.dataset.id) < BigInt(caption.id));
    cards.insertBefore(card(caption.html[language]), after || null);
    while (cards.children.length > MOST_CARDS) cards.lastElementChild.remove();
    document.getElementById("empty")?.remove();
  });
  let lost = false;
  events.addEventListener("error", () => { lost = true; state.textContent = state.dataset.offline; });
  events.addEventListener("open", () => {
    if (lost) location.reload();  // what has arrived meanwhile
  });
}

localTimes(document);
const cards = document.getElementById("cards");
if (cards) follow(cards);
