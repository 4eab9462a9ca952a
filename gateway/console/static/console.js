// Keeps the parts of a page that are marked `data-live` fresh, and makes a list of choices work by single keys.
// Everything else works without it.
"use strict";

const every = Number(document.body.dataset.refresh) * 1000;

async function refresh() {
  if (document.hidden) return;
  let answer;
  try {
    answer = await fetch(location.href, { credentials: "same-origin", headers: { accept: "text/html" } });
  } catch {
    document.body.classList.add("stale");
    return;
  }
  if (answer.redirected && new URL(answer.url).pathname !== location.pathname) {
    location.reload(); // the session has ended
    return;
  }
  document.body.classList.toggle("stale", !answer.ok);
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(old.id);
    // What someone is reading with the keyboard stays until they leave it.
    if (next && !old.contains(document.activeElement) && old.innerHTML !== next.innerHTML) {
      old.replaceWith(document.importNode(next, true));
    }
  }
  const wanted = Number(fresh.body.dataset.refresh) * 1000;
  if (wanted === 0) clearInterval(timer);
}

const timer = every > 0 ? setInterval(refresh, every) : undefined;

// One key for each choice, unless someone is writing: `data-key` on a button or a field.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    document.querySelector("[data-save]")?.click();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const writing = event.target.closest("input, textarea, select");
  if (writing) {
    if (event.key === "Escape") writing.blur();
    return;
  }
  const chosen = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (!chosen || chosen.disabled) return;
  event.preventDefault();
  if (chosen.matches("input, textarea, select, details")) chosen.focus();
  else chosen.click();
});
