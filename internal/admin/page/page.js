"use strict";
(() => {
  const every = 5000;
  const shown = new Map(); // what the server last sent for each part
  let timer, answered = new Date();

  const beingSelected = part => {
    const selection = getSelection();
    return !selection.isCollapsed && selection.containsNode(part, true);
  };

  // A part is replaced only when it changed, so that a reader keeps the place, and a screen reader its peace.
  const replace = (part, fresh) => {
    if (!fresh || shown.get(part.id) === fresh.innerHTML || beingSelected(part)) return;
    const focused = part.contains(document.activeElement) && document.activeElement.closest("details");
    const open = [...part.querySelectorAll("details[open]")].map(d => d.id);
    shown.set(part.id, fresh.innerHTML);
    part.replaceChildren(...document.importNode(fresh, true).childNodes);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focused) document.getElementById(focused.id)?.querySelector("summary").focus();
  };

  // What is shown may be wrong by now, and the colour of it most of all.
  const noAnswer = since => {
    document.title = "No answer - koji-relay";
    const state = document.getElementById("state");
    const box = document.createElement("div");
    box.className = "state-box bad";
    const add = (parent, tag, name, text) => {
      const made = document.createElement(tag);
      made.className = name;
      made.textContent = text;
      parent.append(made);
      return made;
    };
    add(box, "p", "word", "No answer");
    add(box, "p", "sentence", `The relay has not answered ${since}. What is shown below is from then.`);
    add(add(box, "p", "hint", ""), "code", "command", `systemctl status ${document.documentElement.dataset.unit || "koji-relay"}`);
    state.replaceChildren(box);
    shown.delete("state"); // so that the next answer replaces it
  };

  const update = async () => {
    try {
      const answer = await fetch("/", {cache: "no-store", signal: AbortSignal.timeout(10000)});
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (page.documentElement.dataset.version !== document.documentElement.dataset.version) return location.reload();
      document.title = page.title;
      document.querySelectorAll("[data-live]").forEach(part => replace(part, page.getElementById(part.id)));
      answered = new Date();
    } catch {
      noAnswer(`since ${answered.toISOString().slice(11, 19)} UTC`);
    }
    next();
  };
  const next = () => {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(update, every);
  };

  document.querySelectorAll("[data-live]").forEach(part => shown.set(part.id, part.innerHTML));
  document.addEventListener("visibilitychange", () => document.hidden ? clearTimeout(timer) : update());
  next();
})();
