// What the pages do beyond links and forms: parts that are pushed, ages that grow, and text that is copied. All of them can be read without it.
"use strict";

(() => {
  // Ages.
  const words = (seconds) => {
    const whole = Math.max(0, Math.floor(seconds));
    if (whole < 60) return `${whole}s`;
    if (whole < 3600) return `${Math.floor(whole / 60)}m${String(whole % 60).padStart(2, "0")}s`;
    if (whole < 86400) return `${Math.floor(whole / 3600)}h${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")}m`;
    return `${Math.floor(whole / 86400)}d${String(Math.floor((whole % 86400) / 3600)).padStart(2, "0")}h`;
  };
  // The server's clock counts: the browser's may be wrong.
  const now = document.querySelector("[data-now]");
  const skew = now ? Date.parse(now.dataset.now) - Date.now() : 0;
  const grow = () => {
    for (const element of document.querySelectorAll("time[data-ago]")) {
      const text = words((Date.now() + skew - Date.parse(element.dateTime)) / 1000);
      if (element.textContent !== text) element.textContent = text;
    }
  };
  grow();
  setInterval(grow, 1000);

  // What needs a script shows where there is one.
  const reveal = () => { for (const element of document.querySelectorAll("[data-copy][hidden], [data-all][hidden]")) element.hidden = false; };
  reveal();
  document.addEventListener("htmx:afterSwap", reveal);

  // Copying.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim());
    const label = button.textContent;
    button.textContent = button.dataset.done;
    setTimeout(() => { button.textContent = label; }, 1500);
  });

  // All of a table's rows at once.
  document.addEventListener("change", (event) => {
    const name = event.target.dataset ? event.target.dataset.all : "";
    if (!name) return;
    for (const box of document.querySelectorAll(`input[type=checkbox][name="${name}"]`)) box.checked = event.target.checked;
  });

  // Parts that are pushed. What somebody has marked or opened in a part stays so.
  const put = (id, html) => {
    const target = document.getElementById(id);
    if (!target) return;
    const marked = new Set([...target.querySelectorAll("input:checked")].map((box) => `${box.name}=${box.value}`));
    const opened = new Set([...target.querySelectorAll("details[open]")].map((part) => part.id));
    const focused = target.contains(document.activeElement) ? document.activeElement.id : "";
    target.innerHTML = html;
    for (const box of target.querySelectorAll("input[type=checkbox]")) box.checked = marked.has(`${box.name}=${box.value}`);
    for (const part of target.querySelectorAll("details")) if (opened.has(part.id)) part.open = true;
    if (focused && document.getElementById(focused)) document.getElementById(focused).focus();
    grow();
    reveal();
  };
  const main = document.querySelector("[data-stream]");
  if (!main) return;
  const light = document.querySelector(".ckp-live");
  const show = (state) => {
    if (!light) return;
    light.hidden = false;
    light.dataset.state = state;
    light.textContent = light.dataset[state];
  };
  let source = null;
  // Refused, not broken: where the session is over, or what is shown is gone, the page itself says so; else it is tried again.
  const ask = async () => {
    const page = await fetch(location.href, { method: "HEAD", redirect: "manual" }).catch(() => null);
    if (page && (page.type === "opaqueredirect" || page.status === 404)) location.reload();
    else setTimeout(() => { if (!document.hidden) connect(); }, 10000);
  };
  const connect = () => {
    if (source) return;
    source = new EventSource(main.dataset.stream);
    source.addEventListener("open", () => show("live"));
    source.addEventListener("error", () => {
      show("away");
      if (source && source.readyState === EventSource.CLOSED) { source = null; ask(); }
    });
    source.addEventListener("part", (event) => { const part = JSON.parse(event.data); put(part.id, part.html); });
    source.addEventListener("end", () => { source.close(); source = null; location.reload(); });
  };
  const disconnect = () => { if (source) { source.close(); source = null; } };
  // A page that nobody sees holds no connection: a browser has six for a host.
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  window.addEventListener("pagehide", disconnect);
  if (!document.hidden) connect();
})();
