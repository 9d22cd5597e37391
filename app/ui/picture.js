/* Picture inputs: choose, drop or paste a picture; paint a mask on it. Pictures go to this server's own upload route. */
"use strict";

(() => {
  const { make } = window.eis;
  const MASK_COLOUR = [232, 62, 140];
  const ACCEPT = "image/png,image/jpeg,image/webp,image/avif";

  async function upload(file) {
    const body = new FormData();
    body.append("file", file, "picture");
    const answer = await fetch("api/v1/images", { method: "POST", body });
    const json = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(json.error?.message || json.detail || json.message || `The server answered ${answer.status}.`);
    return { image: json.id, width: json.width, height: json.height };
  }

  const address = (value) => `api/v1/images/${value.image}?format=png`;

  /* The frame that both inputs share: an empty drop zone, a message, and `show(value)` once a picture is there. */
  function frame(root, props, watch, title, report, show) {
    const file = make("input", { type: "file", accept: ACCEPT, hidden: true });
    const drop = make("button", { type: "button", className: "eis-drop" });
    drop.append(make("strong", { textContent: "Choose a picture" }), make("span", { textContent: "or drop or paste one here" }));
    const message = make("p", { className: "eis-error-line", hidden: true });
    message.setAttribute("role", "alert");
    const body = make("div", { className: "eis-picker-body" });
    const origin = make("div", { className: "eis-bar eis-origin", hidden: true });
    root.append(make("span", { className: "eis-label", textContent: title }), file, drop, body, origin, message);

    const say = (text) => { message.textContent = text; message.hidden = !text; };
    async function take(blob) {
      if (!blob) return;
      say("");
      root.classList.add("busy");
      try {
        props.value = await upload(blob);
        draw();
      } catch (error) {
        say(error.message);
      } finally {
        root.classList.remove("busy");
        file.value = "";
      }
    }
    drop.onclick = () => file.click();
    file.onchange = () => take(file.files[0]);
    root.ondragover = (event) => { event.preventDefault(); root.classList.add("over"); };
    root.ondragleave = () => root.classList.remove("over");
    root.ondrop = (event) => {
      event.preventDefault();
      root.classList.remove("over");
      take([...event.dataTransfer.files].find((item) => item.type.startsWith("image/")));
    };
    document.addEventListener("paste", (event) => {
      if (!root.isConnected || root.offsetParent === null) return;
      const item = [...(event.clipboardData?.files || [])].find((entry) => entry.type.startsWith("image/"));
      const first = [...document.querySelectorAll(".eis-picker")].find((other) => other.offsetParent !== null);
      if (item && first === root) take(item);
    });
    /* A file that says how it was made offers that: a recipe of this service, or the infotext of another one. */
    let looked = null;
    async function lookInto(reference) {
      if (looked === reference) return;
      looked = reference;
      origin.hidden = true;
      if (!reference) return;
      const answer = await fetch(`api/v1/images/${reference}/metadata`);
      const said = answer.ok ? await answer.json() : {};
      if (looked !== reference || !(said.infotext || said.recipe)) return;
      const title = "The file says how the picture was made.";
      const offer = (text, action) => make("button", { type: "button", className: "eis-button", title, textContent: text, onclick: () => report({ action, image: reference }) });
      origin.replaceChildren(offer("Use its settings", "take"), offer("Open as it was made", "settings"));
      origin.hidden = false;
    }
    const clear = () => { say(""); props.value = null; draw(); };
    function draw() {
      const value = props.value && props.value.image ? props.value : null;
      drop.hidden = Boolean(value);
      body.hidden = !value;
      root.classList.toggle("filled", Boolean(value));
      show(body, value, { replace: () => file.click(), clear, say, redraw: draw });
      lookInto(value ? value.image : null);
    }
    watch("value", draw);
    draw();
  }
  eis.pictureFrame = frame;

  eis.picker = (element, props, watch, { title }, report) => {
    frame(element.querySelector(".eis-picker"), props, watch, title, report, (body, value, { replace, clear }) => {
      body.replaceChildren();
      if (!value) return;
      const image = make("img", { src: address(value), alt: title, className: "eis-picked" });
      const bar = make("div", { className: "eis-bar" });
      bar.append(
        make("span", { className: "eis-hint", textContent: `${value.width} × ${value.height}` }),
        make("button", { type: "button", className: "eis-button", textContent: "Replace", onclick: replace }),
        make("button", { type: "button", className: "eis-button", textContent: "Remove", onclick: clear }),
      );
      body.append(image, bar);
    });
  };

  /* ---- the mask ------------------------------------------------------------------------------------------- */

  /* What was painted is kept as deeds, never as copies of the canvas: undo paints the deeds again, on top of one canvas
     that holds those too old to be undone. So a picture of 32 megapixels costs two canvases, however much is painted,
     and a stroke costs what it covers. The mask's PNG is made once, when Generate is pressed. */
  const DEEDS_TO_UNDO = 20;
  const STORED = /^[0-9a-z]{26}$/;
  /* Pixels as 32-bit numbers have their alpha in the highest byte and red in the lowest, on every machine of today. */
  const PAINTED = ((255 << 24) | (MASK_COLOUR[2] << 16) | (MASK_COLOUR[1] << 8) | MASK_COLOUR[0]) >>> 0;
  const WHITE = 0xffffffff, BLACK = 0xff000000;

  eis.painter = (element, props, watch, { title }, report) => {
    let shown = null;
    eis.beforeGenerate.add(() => { if (element.isConnected) shown?.publish(); });
    frame(element.querySelector(".eis-painter"), props, watch, title, report, (body, value, tools) => {
      if (!value) { shown = null; body.replaceChildren(); return; }
      if (shown && shown.image === value.image) { if ((value.mask || null) !== shown.mask()) shown.load(value.mask); return; }
      body.replaceChildren();
      shown = paintArea(body, value, props, tools);
    });
  };

  function stroke(brush, deed, from) {
    brush.globalCompositeOperation = deed.erasing ? "destination-out" : "source-over";
    brush.strokeStyle = `rgb(${MASK_COLOUR})`;
    brush.lineWidth = deed.radius * 2;
    brush.lineCap = brush.lineJoin = "round";
    for (let at = from; at < deed.points.length; at += 1) {
      const [x, y] = deed.points[at];
      brush.beginPath();
      brush.moveTo(...deed.points[Math.max(0, at - 1)]);
      brush.lineTo(x + 0.01, y + 0.01);
      brush.stroke();
    }
  }

  /* Which pixels of a decoded picture are white, one bit each. */
  function whiteBits(image, width, height) {
    const scratch = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
    scratch.drawImage(image, 0, 0);
    const pixels = new Uint32Array(scratch.getImageData(0, 0, width, height).data.buffer);
    const bits = new Uint8Array((pixels.length + 7) >> 3);
    for (let at = 0; at < pixels.length; at += 1) {
      if (pixels[at] >>> 31 && pixels[at] & 128) bits[at >> 3] |= 1 << (at & 7);
    }
    return bits;
  }

  function paintDeed(brush, deed, from = 0) {
    const { width, height } = brush.canvas;
    if (deed.points) { stroke(brush, deed, from); return; }
    brush.globalCompositeOperation = "source-over";
    if (deed.invert) {
      brush.globalCompositeOperation = "xor";
      brush.fillStyle = `rgb(${MASK_COLOUR})`;
      brush.fillRect(0, 0, width, height);
      return;
    }
    brush.clearRect(0, 0, width, height);
    if (!deed.bits) return;
    const image = brush.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let at = 0; at < pixels.length; at += 1) if (deed.bits[at >> 3] & (1 << (at & 7))) pixels[at] = PAINTED;
    brush.putImageData(image, 0, 0);
  }

  function paintArea(body, value, props, { replace, clear, say }) {
    const { width, height } = value;
    const canvas = make("canvas", { width, height, className: "eis-canvas" });
    canvas.setAttribute("aria-label", "Paint the part to make anew");
    const brush = canvas.getContext("2d");
    const board = make("div", { className: "eis-board" });
    board.style.aspectRatio = `${width} / ${height}`;
    board.append(make("img", { src: address(value), alt: "The picture to paint on", draggable: false }), canvas);

    let radius = Math.max(2, Math.round(Math.min(width, height) / 14));
    let erasing = false;
    let under = null;
    let deeds = [];
    let settled = null;
    let current = null;
    let changed = false;
    let loads = 0;

    function perform(deed) {
      deeds.push(deed);
      changed = true;
      paintDeed(brush, deed);
      if (deeds.length <= DEEDS_TO_UNDO) return;
      settled ||= make("canvas", { width, height }).getContext("2d");
      paintDeed(settled, deeds.shift());
    }
    function undo() {
      if (!deeds.pop()) return;
      changed = true;
      paintDeed(brush, {});
      if (settled) brush.drawImage(settled.canvas, 0, 0);
      for (const deed of deeds) paintDeed(brush, deed);
    }
    function publish() {
      if (!changed) return;
      const image = brush.getImageData(0, 0, width, height);
      const pixels = new Uint32Array(image.data.buffer);
      let painted = false;
      for (let at = 0; at < pixels.length; at += 1) {
        const white = pixels[at] >>> 31;
        if (white) painted = true;
        pixels[at] = white ? WHITE : BLACK;
      }
      current = null;
      if (painted) {
        const out = make("canvas", { width, height });
        out.getContext("2d").putImageData(image, 0, 0);
        current = out.toDataURL("image/png");
      }
      changed = false;
      props.value = { ...props.value, mask: current };
    }
    function place(event) {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) * width) / box.width, ((event.clientY - box.top) * height) / box.height];
    }
    canvas.onpointerdown = (event) => {
      if (event.button > 0) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      under = { erasing, radius, points: [place(event)] };
      perform(under);
    };
    canvas.onpointermove = (event) => {
      if (under) paintDeed(brush, under, under.points.push(place(event)) - 1);
    };
    canvas.onpointerup = canvas.onpointercancel = () => { under = null; };

    async function decoded(source) {
      const url = typeof source !== "string" ? URL.createObjectURL(source) : STORED.test(source) ? address({ image: source }) : source;
      try {
        const image = make("img", { src: url });
        await image.decode();
        if (image.naturalWidth !== width || image.naturalHeight !== height) {
          throw new Error(`The mask is ${image.naturalWidth} × ${image.naturalHeight}, the picture ${width} × ${height}.`);
        }
        return whiteBits(image, width, height);
      } catch (error) {
        throw error.name === "EncodingError" ? new Error("The mask is no picture that can be read.") : error;
      } finally {
        if (url !== source) URL.revokeObjectURL(url);
      }
    }
    /* The mask that a value brings along: what was painted before is no part of it. */
    async function load(source) {
      const mine = (loads += 1);
      deeds = [];
      settled = null;
      changed = false;
      current = source || null;
      paintDeed(brush, {});
      if (!source) return;
      try {
        const bits = await decoded(source);
        if (mine !== loads) return;
        const since = deeds;
        paintDeed(brush, { bits });
        for (const deed of since) paintDeed(brush, deed);
        settled = make("canvas", { width, height }).getContext("2d");
        paintDeed(settled, { bits });
      } catch (error) {
        if (mine !== loads) return;
        changed = true;
        say(error.message);
      }
    }
    const maskFile = make("input", { type: "file", accept: ACCEPT, hidden: true, className: "eis-mask-file" });
    maskFile.onchange = async () => {
      const chosen = maskFile.files[0];
      maskFile.value = "";
      if (!chosen) return;
      try {
        perform({ bits: await decoded(chosen) });
        say("");
      } catch (error) {
        say(error.message);
      }
    };

    const act = (text, onclick, extra = {}) => make("button", { type: "button", className: "eis-button", textContent: text, onclick, ...extra });
    const paint = act("Paint", () => choose(false));
    const erase = act("Erase", () => choose(true));
    function choose(value) {
      erasing = value;
      paint.setAttribute("aria-pressed", String(!value));
      erase.setAttribute("aria-pressed", String(value));
    }
    choose(false);
    const range = make("input", { type: "range", min: 1, max: Math.max(8, Math.round(Math.min(width, height) / 4)), value: radius, ariaLabel: "Brush size" });
    range.oninput = () => { radius = Number(range.value); };
    const sizeLine = make("label", { className: "eis-brush" });
    sizeLine.append(make("span", { textContent: "Brush" }), range);

    const tools = make("div", { className: "eis-bar" });
    tools.append(paint, erase, sizeLine);
    const more = make("div", { className: "eis-bar" });
    more.append(
      act("Undo", undo),
      act("Clear", () => perform({})),
      act("Invert", () => perform({ invert: true })),
      act("Load a mask", () => maskFile.click()),
      maskFile,
      make("span", { className: "eis-hint eis-push", textContent: `${width} × ${height}` }),
      act("Replace", replace),
      act("Remove", clear),
    );
    body.append(board, tools, more);
    if (value.mask) load(value.mask);
    return { image: value.image, mask: () => (changed ? undefined : current), load, publish };
  }
})();
