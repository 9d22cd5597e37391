/* A picture in which a thing is clicked: its masks come from the server, and the chosen one lies over the picture. */
"use strict";

(() => {
  const { make, pictureFrame } = window.eis;
  const STORED = /^[0-9a-z]{26}$/;
  const PIXELS_OF_A_DRAG = 6;

  const share = (value, whole) => `${(100 * value) / whole}%`;
  const source = (mask) => (STORED.test(mask) ? `api/v1/images/${mask}?format=png` : mask);
  const round = (value) => Math.round(value * 10) / 10;

  function words(state) {
    if (state.told) return state.told;
    if (state.mask && (state.masks || []).length > 1) return "Choose the mask that fits; more clicks make it better.";
    if (state.mask) return "What is coloured is the mask.";
    return "Click the thing, or draw a box around it.";
  }

  function overlay(mask) {
    const layer = make("div", { className: "eis-thing-mask" });
    layer.style.maskImage = `url("${source(mask)}")`;
    return layer;
  }

  function marker([x, y, belongs], { width, height }) {
    const dot = make("i", { className: belongs ? "eis-thing-dot" : "eis-thing-dot without" });
    Object.assign(dot.style, { left: share(x, width), top: share(y, height) });
    return dot;
  }

  function frame([left, top, right, bottom], { width, height }) {
    const box = make("i", { className: "eis-thing-box" });
    Object.assign(box.style, {
      left: share(left, width), top: share(top, height), width: share(right - left, width), height: share(bottom - top, height),
    });
    return box;
  }

  eis.thingPicker = (element, props, watch, { title }, report) => {
    const root = element.querySelector(".eis-thing-picker");
    const line = make("p", { className: "eis-hint eis-face-line" });
    line.setAttribute("role", "status");
    let belongs = true;

    pictureFrame(root, props, watch, title, report, (body, value, { replace, redraw }) => {
      const state = value || {};
      const become = (changes) => { props.value = { ...props.value, ...changes }; redraw(); };
      const tell = (changes) => { become(changes); report({ action: "share" }); };
      const seek = (changes) => {
        if (state.looking) return;
        become({ masks: [], mask: null, chosen: 0, ...changes, looking: true, told: "Looking …" });
        report({ action: "segment" });
      };
      root.classList.toggle("looking", Boolean(state.looking));
      line.textContent = value ? words(state) : "";
      line.hidden = !value;
      body.replaceChildren();
      if (!value) return;
      /* A picture that was chosen here, and not put here by the server, is the other tabs' too. */
      if (root.classList.contains("busy") && !state.shared) { props.value = { ...value, shared: true }; report({ action: "share" }); }

      const { width, height, clicks = [], masks = [] } = state;
      const board = make("div", { className: "eis-faces eis-things" });
      board.style.aspectRatio = `${width} / ${height}`;
      board.append(make("img", { src: `api/v1/images/${value.image}?format=png`, alt: title, draggable: false }));
      if (state.mask) board.append(overlay(state.mask));
      if (state.box) board.append(frame(state.box, state));
      clicks.forEach((click) => board.append(marker(click, state)));

      const place = (event) => {
        const rect = board.getBoundingClientRect();
        const inside = (share, side) => Math.min(Math.max(share * side, 0), side - 0.1);
        return [round(inside((event.clientX - rect.left) / rect.width, width)), round(inside((event.clientY - rect.top) / rect.height, height))];
      };
      let from = null, drawn = null;
      board.onpointerdown = (event) => {
        if (event.button > 0 || state.looking) return;
        event.preventDefault();
        board.setPointerCapture(event.pointerId);
        from = { x: event.clientX, y: event.clientY, at: place(event) };
      };
      const boxTo = (event) => {
        const [x, y] = place(event);
        const [left, right] = [from.at[0], x].sort((a, b) => a - b), [top, bottom] = [from.at[1], y].sort((a, b) => a - b);
        return [left, top, right, bottom];
      };
      const dragged = (event) => Math.hypot(event.clientX - from.x, event.clientY - from.y) >= PIXELS_OF_A_DRAG;
      board.onpointermove = (event) => {
        if (!from || !dragged(event)) return;
        drawn?.remove();
        drawn = frame(boxTo(event), state);
        board.append(drawn);
      };
      board.onpointerup = (event) => {
        if (!from) return;
        const box = boxTo(event), moved = dragged(event) && box[2] > box[0] && box[3] > box[1];
        from = null;
        drawn?.remove();
        if (moved) return seek({ box, clicks: [] });
        const own = belongs && !event.shiftKey;
        if (!own && !state.box && !clicks.some((click) => click[2])) return become({ told: "First click the thing itself." });
        seek({ clicks: [...clicks, [...place(event), own ? 1 : 0]] });
      };
      board.onpointercancel = () => { from = null; drawn?.remove(); };

      const act = (text, onclick, pressed) => {
        const button = make("button", { type: "button", className: "eis-button", textContent: text, onclick });
        if (pressed !== undefined) button.setAttribute("aria-pressed", String(pressed));
        return button;
      };
      const choices = make("div", { className: "eis-bar eis-thing-masks" });
      if (masks.length > 1) {
        masks.forEach((found, at) => {
          const score = found.score === null ? "" : ` · ${found.score.toFixed(2)}`;
          choices.append(act(`Mask ${at + 1}${score}`, () => tell({ chosen: at, mask: found.mask, told: null }), at === state.chosen));
        });
      }
      const tools = make("div", { className: "eis-bar" });
      tools.append(
        act("Belongs to it", () => { belongs = true; redraw(); }, belongs),
        act("Does not", () => { belongs = false; redraw(); }, !belongs),
        act("Clear", () => tell({ clicks: [], box: null, masks: [], mask: null, told: null })),
        make("span", { className: "eis-hint eis-push", textContent: `${width} × ${height}` }),
        act("Other picture", replace),
      );
      body.append(board, choices, tools);
    });
    root.append(line);
  };
})();
