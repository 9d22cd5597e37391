/* The page's own behaviour: what its HTML parts report, theme, keyboard, copying, zoom. No request leaves from here. */
"use strict";
window.eis = window.eis || {};
/* What inputs do before Generate reads them: those whose value is dear to make, make it only then. */
eis.beforeGenerate = new Set();

(() => {
  const THEME = "eis.theme";
  const CONFIRM_SECONDS = 4;
  const SILENCE_SECONDS = 8;

  /* ---- parts: clicks and choices become events ------------------------------------------------------------- */

  function ask(button) {
    if (button.dataset.armed) return true;
    const label = button.textContent;
    button.dataset.armed = "1";
    button.textContent = button.dataset.confirm;
    button.classList.add("armed");
    setTimeout(() => {
      if (!button.dataset.armed) return;
      delete button.dataset.armed;
      button.textContent = label;
      button.classList.remove("armed");
    }, CONFIRM_SECONDS * 1000);
    return false;
  }

  eis.part = (element, report) => {
    element.addEventListener("click", (event) => {
      const target = event.target.closest("[data-action]");
      if (!target || target.tagName === "SELECT" || target.disabled || !element.contains(target)) return;
      event.preventDefault();
      if (target.dataset.confirm) {
        if (!ask(target)) return;
        delete target.dataset.armed;
      }
      report({ ...target.dataset });
    });
    element.addEventListener("change", (event) => {
      const target = event.target.closest("select[data-action]");
      if (!target || !target.value) return;
      report({ ...target.dataset, value: target.value });
      target.value = "";
    });
    let heard = Date.now();
    /* A stage whose job is under way must hear of it; after a refresh or a broken connection it asks to be followed. */
    const follow = () => {
      const frame = element.querySelector("[data-working]");
      if (!frame || !element.isConnected) return;
      const silent = Date.now() - heard > SILENCE_SECONDS * 1000;
      if (frame.dataset.resume === undefined && !silent) return;
      delete frame.dataset.resume;
      heard = Date.now();
      report({ action: "resume", job: frame.dataset.working });
    };
    setInterval(follow, 1000);
    const refresh = () => {
      for (const time of element.querySelectorAll("time[datetime]")) {
        const moment = new Date(time.dateTime);
        const today = moment.toDateString() === new Date().toDateString();
        const text = today
          ? moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
          : moment.toLocaleDateString([], { day: "numeric", month: "short" }) + ", " +
            moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
        if (time.textContent !== text) time.textContent = text;
        time.title = moment.toLocaleString();
      }
    };
    const changed = () => { heard = Date.now(); refresh(); follow(); };
    new MutationObserver(changed).observe(element, { childList: true, subtree: true, characterData: true });
    changed();
  };

  /* ---- rows of LoRAs and ControlNets --------------------------------------------------------------------------------------- */

  eis.loras = (element, props, watch, { limit, title, word }) => {
    const root = element.querySelector(".eis-loras");
    let wished = [];
    let own = "null";
    const offered = (row) => (props.value?.options || []).some((option) => option.id === row.model);
    function put(rows) {
      own = JSON.stringify(rows);
      props.value = { options: props.value?.options || [], rows };
    }
    /* A value without rows says only what there is to choose from now; the rows on the form stay. Those that the model
       cannot use are laid aside, and come back with a model that can. */
    function state() {
      const said = props.value?.rows;
      if (said && JSON.stringify(said) !== own) wished = [...said];
      const rows = wished.filter(offered).slice(0, limit);
      if (JSON.stringify(rows) !== JSON.stringify(said || null)) put(rows);
      return { options: props.value?.options || [], rows, aside: wished.filter((row) => !offered(row)) };
    }
    function keep(rows) {
      wished = [...rows, ...state().aside];
      put(rows);
      draw();
    }
    function draw() {
      const { options, rows, aside } = state();
      root.replaceChildren(make("span", { className: "eis-label", textContent: title }));
      if (aside.length) {
        const names = aside.map((row) => row.model).join(", ");
        root.append(make("p", { className: "eis-note", textContent: `Laid aside, not installed for this model: ${names}` }));
      }
      if (!options.length) {
        root.append(make("p", { className: "eis-hint", textContent: `No ${word} is installed for this model. The Models tab adds one.` }));
        return;
      }
      rows.forEach((row, index) => {
        const line = make("div", { className: "eis-lora" });
        const choice = make("select", { ariaLabel: word });
        for (const option of options) {
          choice.append(make("option", { value: option.id, textContent: option.title, selected: option.id === row.model }));
        }
        const weight = make("input", { type: "number", step: "0.05", min: "-4", max: "4", value: row.weight, ariaLabel: "Weight" });
        const remove = make("button", { type: "button", className: "eis-button", textContent: "Remove" });
        choice.onchange = () => keep(rows.map((r, i) => (i === index ? { ...r, model: choice.value } : r)));
        weight.onchange = () => {
          const number = Math.max(-4, Math.min(4, Number(weight.value)));
          keep(rows.map((r, i) => (i === index ? { ...r, weight: Number.isFinite(number) ? number : 1 } : r)));
        };
        remove.onclick = () => keep(rows.filter((_, i) => i !== index));
        line.append(choice, weight, remove);
        root.append(line);
      });
      if (rows.length < limit) {
        const add = make("button", { type: "button", className: "eis-button", textContent: `Add a ${word}` });
        add.onclick = () => keep([...rows, { model: options[0].id, weight: 1 }]);
        root.append(add);
      }
    }
    watch("value", draw);
    draw();
  };

  function make(tag, properties = {}) {
    const { ariaLabel, ...rest } = properties;
    const node = Object.assign(document.createElement(tag), rest);
    if (ariaLabel) node.setAttribute("aria-label", ariaLabel);
    return node;
  }
  eis.make = make;

  /* ---- light and dark -------------------------------------------------------------------------------------- */

  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem(THEME); } catch { return null; } };

  function applyTheme() {
    const dark = stored() ? stored() === "dark" : system.matches;
    if (document.body && document.body.classList.contains("dark") !== dark) document.body.classList.toggle("dark", dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
  }
  system.addEventListener("change", applyTheme);
  function watchTheme() {
    applyTheme();
    new MutationObserver(applyTheme).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  }
  // Gradio adds this script to the head when the page already stands.
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", watchTheme);
  else watchTheme();

  /* ---- what never has to reach the server ------------------------------------------------------------------ */

  const client = {
    theme() {
      const dark = document.body.classList.contains("dark");
      try { localStorage.setItem(THEME, dark ? "light" : "dark"); } catch { /* private mode: this page only */ }
      document.body.classList.toggle("dark", !dark);
      applyTheme();
    },
    async copy(button) {
      const text = document.getElementById(button.dataset.source)?.textContent ?? "";
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        const area = make("textarea", { value: text });
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      const label = button.textContent;
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1200);
    },
    zoom(image) {
      const overlay = make("div", { className: "eis-zoom", tabIndex: -1 });
      overlay.setAttribute("role", "dialog");
      overlay.append(make("img", { src: image.dataset.full || image.src, alt: image.alt || "The picture, large" }));
      overlay.onclick = () => overlay.remove();
      overlay.onkeydown = (event) => { if (event.key === "Escape") overlay.remove(); };
      document.querySelector(".gradio-container").append(overlay);
      overlay.focus();
    },
    pick(button) {
      const result = button.closest(".eis-result");
      for (const view of result.querySelectorAll("[data-view]")) view.hidden = view.dataset.view !== button.dataset.pick;
      for (const other of result.querySelectorAll("[data-pick]")) other.setAttribute("aria-pressed", String(other === button));
    },
    /* The person that was asked for beside every picture of the result, or those pictures alone. */
    compare(button) {
      const result = button.closest(".eis-result");
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of result.querySelectorAll("[data-client=compare]")) other.setAttribute("aria-pressed", String(on));
      for (const beside of result.querySelectorAll(".eis-beside")) beside.hidden = !on;
    },
  };
  eis.client = client;

  document.addEventListener("click", (event) => {
    const target = event.target.closest?.("[data-client]");
    if (target && client[target.dataset.client]) client[target.dataset.client](target);
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest?.("button.eis-generate")) eis.beforeGenerate.forEach((prepare) => prepare());
  }, true);

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const generate = [...document.querySelectorAll("button.eis-generate")].find((button) => button.offsetParent !== null);
    if (!generate || generate.disabled) return;
    event.preventDefault();
    // A field gives its text to the form when it loses focus.
    const focused = document.activeElement;
    focused?.blur?.();
    setTimeout(() => { generate.click(); focused?.focus?.({ preventScroll: true }); }, 30);
  }, true);

  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("button.eis-generate") || window.innerWidth > 900) return;
    const stage = [...document.querySelectorAll(".eis-stage")].find((part) => part.offsetParent !== null);
    stage?.scrollIntoView({ behavior: "smooth", block: "start" });
  });
})();
