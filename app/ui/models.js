/* The list of models: installed or not, pull with progress, a stop and the licence question, add a file, remove. */
"use strict";

(() => {
  const { make } = window.eis;
  const ROUTE = "api/v1/models";
  const MILLISECONDS_BETWEEN_LOOKS = 1000;
  const MILLISECONDS_ARMED = 4000;
  const KINDS = [["checkpoint", "Checkpoints"], ["lora", "LoRAs"], ["embedding", "Textual inversions"], ["vae", "Autoencoders"], ["controlnet", "ControlNets"], ["preprocessor", "Map makers"], ["identity", "Identity"], ["ip-adapter", "IP-Adapters"], ["faces", "Face stacks"], ["image-encoder", "Image encoders"], ["segmenter", "Segmenters"], ["eraser", "Erasers"], ["upscaler", "Upscalers"], ["restorer", "Face restorers"], ["tagger", "Taggers"], ["other", "Other"]];
  const FAMILIES = { sd15: "SD 1.5", sdxl: "SDXL", "qwen-image": "Qwen-Image" };
  const UNDER_WAY = ["waiting", "running", "cancelling"];
  const UNITS = ["B", "kB", "MB", "GB", "TB"];

  function size(bytes) {
    let value = bytes, unit = 0;
    while (value >= 1000 && unit < UNITS.length - 1) { value /= 1000; unit += 1; }
    return `${value >= 10 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
  }
  async function call(path, options) {
    const answer = await fetch(path, options);
    const json = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(json.error?.message || `The server answered ${answer.status}.`);
    return json;
  }
  const button = (text, onclick, extra = "") => make("button", { type: "button", className: `eis-button ${extra}`, textContent: text, onclick });
  const link = (licence) => make("a", { href: licence.url, target: "_blank", rel: "noopener noreferrer", textContent: licence.name });
  const under = (model) => `${ROUTE}/${encodeURIComponent(model.id)}`;

  eis.models = (element, props, watch, changed) => {
    const root = element.querySelector(".eis-models");
    const list = make("div", { className: "eis-model-list" });
    const message = make("p", { className: "eis-error-line", hidden: true });
    message.setAttribute("role", "alert");
    const adding = addCard();
    const foreign = make("p", { className: "eis-hint", hidden: true, textContent: "Only a key that EIS_ADMIN_KEYS names may pull, add and remove models." });
    adding.hidden = true;
    root.append(adding, foreign, message, list);
    const asking = new Set();
    const errors = new Map();
    const armed = new Map();
    const cards = new Map();
    let models = [], mayChange = false, timer = null, signature = "", begun = 0, known = 0;

    const say = (text) => { message.textContent = text; message.hidden = !text; };
    const visible = () => root.isConnected && root.offsetParent !== null;

    async function look() {
      clearTimeout(timer);
      const mine = begun += 1;
      let told = null, problem = "";
      try {
        told = await call(ROUTE);
      } catch (error) {
        problem = `The list could not be read: ${error.message}`;
      }
      // Several looks may be under way: what an earlier one saw is older than what is known already.
      if (mine < known) return;
      known = mine;
      say(problem);
      if (told) {
        models = told.models;
        mayChange = told.may_change;
        adding.hidden = !mayChange;
        foreign.hidden = mayChange;
      }
      const now = models.filter((model) => model.installed).map((model) => model.id).join(" ");
      if (signature && signature !== now) changed(signature.split(" ").filter((id) => id && !now.split(" ").includes(id)));
      signature = now || " ";
      draw();
      const pulling = models.some((model) => UNDER_WAY.includes(model.pull?.status));
      if (pulling && visible()) timer = setTimeout(look, MILLISECONDS_BETWEEN_LOOKS);
    }

    async function act(model, path, options) {
      errors.delete(model.id);
      asking.delete(model.id);
      disarm(model.id);
      try {
        await call(path, options);
      } catch (error) {
        errors.set(model.id, error.message);
      }
      await look();
    }
    const pull = (model, accepted) => act(model, `${under(model)}/pull${accepted ? "?accept_licence=true" : ""}`, { method: "POST" });

    function disarm(id) {
      clearTimeout(armed.get(id));
      armed.delete(id);
    }
    function arm(id) {
      armed.set(id, setTimeout(() => { disarm(id); draw(); }, MILLISECONDS_ARMED));
      draw();
    }

    // A card is made anew only when something of its own has changed: a button that is being pressed stays under the hand.
    function draw() {
      const focused = document.activeElement;
      const pieces = [];
      for (const [kind, title] of KINDS) {
        const own = models.filter((model) => model.kind === kind);
        if (!own.length) continue;
        pieces.push(make("h2", { className: "eis-heading", textContent: title }));
        own.sort((a, b) => Number(b.installed) - Number(a.installed));
        for (const model of own) {
          const state = JSON.stringify([model, mayChange, asking.has(model.id), errors.get(model.id), armed.has(model.id)]);
          if (cards.get(model.id)?.state !== state) cards.set(model.id, { state, box: card(model) });
          pieces.push(cards.get(model.id).box);
        }
      }
      list.replaceChildren(...pieces);
      if (list.contains(focused)) focused.focus();
    }

    function card(model) {
      const box = make("article", { className: "eis-model" });
      box.dataset.model = model.id;
      const text = make("div", { className: "eis-model-text" });
      const head = make("div", { className: "eis-model-title" });
      head.append(make("strong", { textContent: model.title }), make("code", { textContent: model.id }));
      const state = model.embedded && model.installed ? ["Included", "eis-good"] : model.installed ? ["Installed", "eis-good"] : ["Not installed", ""];
      head.append(make("span", { className: `eis-badge ${state[1]}`, textContent: state[0] }));
      const facts = [];
      const bytes = model.bytes_on_disk || model.bytes;
      if (bytes) facts.push(size(bytes));
      if (FAMILIES[model.family]) facts.push(FAMILIES[model.family]);
      if (model.recommended) facts.push(`${model.recommended.width} × ${model.recommended.height}, ${model.recommended.num_inference_steps} steps`);
      const line = make("p", { className: "eis-hint" });
      line.append(facts.join(" · "), facts.length ? " · " : "");
      line.append(model.licence.url ? link(model.licence) : model.licence.name || "no licence stated");
      if (model.licence.ask && !model.licence.commercial) line.append(" · ", make("strong", { textContent: "no commercial use" }));
      text.append(head, make("p", { className: "eis-model-about", textContent: model.description || "Added by you." }), line);
      const actions = make("div", { className: "eis-model-act" });
      const state_ = model.pull?.status;
      if (UNDER_WAY.includes(state_)) {
        const share = model.pull.bytes_total ? (100 * model.pull.bytes_done) / model.pull.bytes_total : 0;
        const bar = make("div", { className: `eis-progress${state_ === "waiting" ? " waiting" : ""}` });
        bar.append(Object.assign(make("i"), { style: `width:${Math.min(100, share).toFixed(1)}%` }));
        text.append(bar, make("p", { className: "eis-hint", textContent: state_ === "waiting" ? "Waiting for another pull" : `${size(model.pull.bytes_done)} of ${size(model.pull.bytes_total)}` }));
        const stop = button("Stop", () => act(model, `${under(model)}/pull`, { method: "DELETE" }));
        stop.disabled = state_ === "cancelling";
        if (mayChange) actions.append(stop);
      } else if (!mayChange) {
        // What this key may not do is not offered.
      } else if (!model.installed && model.pullable) {
        actions.append(button("Pull", () => (model.licences_to_accept.length ? (asking.add(model.id), draw()) : pull(model, false)), "eis-strong"));
      } else if (model.installed && !model.embedded) {
        const sure = armed.has(model.id);
        actions.append(button(sure ? "Remove its files?" : "Remove", () => (sure ? act(model, under(model), { method: "DELETE" }) : arm(model.id)), `eis-danger${sure ? " armed" : ""}`));
      }
      if (!model.installed && model.pullable) {
        const shell = make("code", { className: "eis-shell", textContent: `eis models pull ${model.id}` });
        text.append(shell);
      }
      const failed = errors.get(model.id) || (state_ === "failed" ? model.pull.error?.message : "");
      if (failed) text.append(make("p", { className: "eis-error-line", textContent: failed }));
      box.append(text, actions);
      if (asking.has(model.id)) box.append(question(model.licences_to_accept, "I accept, pull", () => pull(model, true), () => { asking.delete(model.id); draw(); }));
      return box;
    }

    function question(licences, yes, accept, refuse) {
      const ask = make("div", { className: "eis-ask" });
      ask.setAttribute("role", "group");
      for (const licence of licences) {
        const words = make("p");
        words.append("The licence ", link(licence), licence.commercial === false ? " allows no commercial use of these weights, nor of what they make." : " limits what these weights may be used for.");
        ask.append(words);
      }
      ask.append(make("p", { textContent: "Read before you accept." }), button(yes, accept, "eis-strong"), button("Not now", refuse));
      return ask;
    }

    function addCard() {
      const box = make("div", { className: "eis-add" });
      const file = make("input", { type: "file", accept: ".safetensors", hidden: true });
      const choose = button("Add a file", () => file.click());
      const note = make("span", { className: "eis-hint", textContent: "A .safetensors checkpoint, LoRA, textual inversion, ControlNet, IP-Adapter or PuLID. Large files and folders: eis models add FILE." });
      const bar = make("div", { className: "eis-progress", hidden: true });
      const fill = make("i");
      bar.append(fill);
      const asked = make("div");
      const problem = make("p", { className: "eis-error-line", hidden: true });
      problem.setAttribute("role", "alert");
      file.onchange = () => {
        const chosen = file.files[0];
        file.value = "";
        if (!chosen) return;
        send(chosen, false);
      };
      function send(chosen, accepted) {
        const body = new FormData();
        if (accepted) body.append("accept_licence", "true");
        body.append("file", chosen, chosen.name);
        asked.replaceChildren();
        const request = new XMLHttpRequest();
        const end = (text) => {
          bar.hidden = true;
          choose.disabled = false;
          problem.textContent = text;
          problem.hidden = !text;
          look();
        };
        request.upload.onprogress = (event) => { fill.style.width = `${(100 * event.loaded) / event.total}%`; };
        request.onload = () => {
          let json = {};
          try { json = JSON.parse(request.responseText); } catch { /* told below by the status */ }
          const licences = json.error?.details?.licences;
          if (request.status === 409 && licences) {
            asked.replaceChildren(question(licences, "I accept, add", () => send(chosen, true), () => asked.replaceChildren()));
            return end("");
          }
          end(request.status < 300 ? "" : json.error?.message || `The server answered ${request.status}.`);
        };
        request.onerror = () => end("The file was refused while it was being sent; it may be larger than this server takes in. Use: eis models add FILE.");
        request.open("POST", ROUTE);
        fill.style.width = "0";
        bar.hidden = false;
        choose.disabled = true;
        problem.hidden = true;
        request.send(body);
      }
      box.append(choose, note, file, bar, problem, asked);
      return box;
    }

    watch("value", look);
    look();
  };
})();
