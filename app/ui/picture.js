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
  function frame(root, props, watch, title, show) {
    const file = make("input", { type: "file", accept: ACCEPT, hidden: true });
    const drop = make("button", { type: "button", className: "eis-drop" });
    drop.append(make("strong", { textContent: "Choose a picture" }), make("span", { textContent: "or drop or paste one here" }));
    const message = make("p", { className: "eis-error-line", hidden: true });
    message.setAttribute("role", "alert");
    const body = make("div", { className: "eis-picker-body" });
    root.append(make("span", { className: "eis-label", textContent: title }), file, drop, body, message);

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
    const clear = () => { say(""); props.value = null; draw(); };
    function draw() {
      const value = props.value && props.value.image ? props.value : null;
      drop.hidden = Boolean(value);
      body.hidden = !value;
      root.classList.toggle("filled", Boolean(value));
      show(body, value, { replace: () => file.click(), clear, say });
    }
    watch("value", draw);
    draw();
  }

  eis.picker = (element, props, watch, { title }) => {
    frame(element.querySelector(".eis-picker"), props, watch, title, (body, value, { replace, clear }) => {
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

  eis.painter = (element, props, watch, { title }) => {
    let shown = null;
    frame(element.querySelector(".eis-painter"), props, watch, title, (body, value, tools) => {
      if (!value) { shown = null; body.replaceChildren(); return; }
      if (shown && shown.image === value.image) { if (value.mask !== shown.mask()) shown.load(value.mask); return; }
      body.replaceChildren();
      shown = paintArea(body, value, props, tools);
    });
  };

  function paintArea(body, value, props, { replace, clear, say }) {
    const { width, height } = value;
    const canvas = make("canvas", { width, height, className: "eis-canvas" });
    canvas.setAttribute("aria-label", "Paint the part to make anew");
    const brush = canvas.getContext("2d", { willReadFrequently: true });
    const board = make("div", { className: "eis-board" });
    board.style.aspectRatio = `${width} / ${height}`;
    board.append(make("img", { src: address(value), alt: "The picture to paint on", draggable: false }), canvas);

    let radius = Math.max(2, Math.round(Math.min(width, height) / 14));
    let erasing = false;
    let last = null;
    let current = null;
    const undone = [];

    const snapshot = () => brush.getImageData(0, 0, width, height);
    const remember = () => { undone.push(snapshot()); if (undone.length > 20) undone.shift(); };
    function publish() {
      const pixels = snapshot();
      let painted = false;
      const mask = new ImageData(width, height);
      for (let at = 0; at < pixels.data.length; at += 4) {
        const white = pixels.data[at + 3] >= 128;
        painted = painted || white;
        mask.data.set(white ? [255, 255, 255, 255] : [0, 0, 0, 255], at);
      }
      current = null;
      if (painted) {
        const out = make("canvas", { width, height });
        out.getContext("2d").putImageData(mask, 0, 0);
        current = out.toDataURL("image/png");
      }
      props.value = { ...props.value, mask: current };
    }
    function place(event) {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) * width) / box.width, ((event.clientY - box.top) * height) / box.height];
    }
    function stroke(to) {
      brush.globalCompositeOperation = erasing ? "destination-out" : "source-over";
      brush.strokeStyle = brush.fillStyle = `rgb(${MASK_COLOUR})`;
      brush.lineWidth = radius * 2;
      brush.lineCap = brush.lineJoin = "round";
      brush.beginPath();
      brush.moveTo(...(last || to));
      brush.lineTo(to[0] + 0.01, to[1] + 0.01);
      brush.stroke();
      last = to;
    }
    canvas.onpointerdown = (event) => {
      if (event.button > 0) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      remember();
      last = null;
      stroke(place(event));
    };
    canvas.onpointermove = (event) => { if (last) stroke(place(event)); };
    canvas.onpointerup = canvas.onpointercancel = () => { if (last) { last = null; publish(); } };

    async function load(source) {
      brush.clearRect(0, 0, width, height);
      current = source || null;
      if (!source) return;
      const image = make("img", { src: source });
      await image.decode();
      const scratch = make("canvas", { width, height }).getContext("2d");
      scratch.drawImage(image, 0, 0);
      const pixels = scratch.getImageData(0, 0, width, height);
      for (let at = 0; at < pixels.data.length; at += 4) {
        const white = pixels.data[at + 3] >= 128 && pixels.data[at] >= 128;
        pixels.data.set([...MASK_COLOUR, white ? 255 : 0], at);
      }
      brush.putImageData(pixels, 0, 0);
    }
    function invert() {
      remember();
      const pixels = snapshot();
      for (let at = 0; at < pixels.data.length; at += 4) {
        pixels.data.set([...MASK_COLOUR, pixels.data[at + 3] >= 128 ? 0 : 255], at);
      }
      brush.putImageData(pixels, 0, 0);
      publish();
    }
    const maskFile = make("input", { type: "file", accept: ACCEPT, hidden: true, className: "eis-mask-file" });
    maskFile.onchange = async () => {
      const chosen = maskFile.files[0];
      maskFile.value = "";
      if (!chosen) return;
      const source = URL.createObjectURL(chosen);
      try {
        const image = make("img", { src: source });
        await image.decode();
        if (image.naturalWidth !== width || image.naturalHeight !== height) {
          throw new Error(`The mask is ${image.naturalWidth} × ${image.naturalHeight}, the picture ${width} × ${height}.`);
        }
        remember();
        await load(source);
        publish();
        say("");
      } catch (error) {
        say(error.name === "EncodingError" ? "The mask is no picture that can be read." : error.message);
      } finally {
        URL.revokeObjectURL(source);
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
      act("Undo", () => { const before = undone.pop(); if (before) { brush.putImageData(before, 0, 0); publish(); } }),
      act("Clear", () => { remember(); brush.clearRect(0, 0, width, height); publish(); }),
      act("Invert", invert),
      act("Load a mask", () => maskFile.click()),
      maskFile,
      make("span", { className: "eis-hint eis-push", textContent: `${width} × ${height}` }),
      act("Replace", replace),
      act("Remove", clear),
    );
    body.append(board, tools, more);
    if (value.mask) load(value.mask);
    return { image: value.image, mask: () => current, load };
  }
})();
