/* A picture of people: its faces framed and numbered on it, so that the one that is meant can be clicked. */
"use strict";

(() => {
  const { make, pictureFrame } = window.eis;
  const HIGHEST = 320;

  const share = (value, whole) => `${(100 * value) / whole}%`;

  function framed(face, number, { width, height, chosen }, choose) {
    const [left, top, right, bottom] = face.box.map((edge, at) => Math.max(0, Math.min(edge, at % 2 ? height : width)));
    const frame = make("button", { type: "button", className: "eis-face", title: `Face ${number}`, ariaLabel: `Face ${number}` });
    frame.append(make("span", { textContent: String(number) }));
    frame.setAttribute("aria-pressed", String(number === chosen));
    Object.assign(frame.style, {
      left: share(left, width), top: share(top, height), width: share(right - left, width), height: share(bottom - top, height),
    });
    frame.onclick = () => choose(number === chosen ? null : number);
    return frame;
  }

  function words({ faces, chosen, told }) {
    if (told) return told;
    if (chosen !== null && chosen !== undefined) return `Face ${chosen} is meant.`;
    if (!faces) return "";
    if (!faces.length) return "No face was found in this picture.";
    return faces.length === 1 ? "One face was found." : `${faces.length} faces were found: click the one that is meant.`;
  }

  eis.facePicker = (element, props, watch, { title }, report) => {
    const root = element.querySelector(".eis-face-picker");
    const line = make("p", { className: "eis-hint eis-face-line" });
    line.setAttribute("role", "status");
    pictureFrame(root, props, watch, title, report, (body, value, { replace, clear, redraw }) => {
      const state = props.value || {};
      const become = (changes) => { props.value = { ...props.value, ...changes }; redraw(); };
      const choose = (chosen) => become({ chosen, told: null });
      root.classList.toggle("busy", Boolean(state.looking));
      line.textContent = words(state);
      if (!value && Number.isInteger(state.chosen)) {
        line.textContent = `Face ${state.chosen} of the picture that is changed is meant. `;
        line.append(make("button", { type: "button", className: "eis-button", textContent: "Any face", onclick: clear }));
      }
      line.hidden = !line.textContent;
      body.replaceChildren();
      if (!value) return;
      const board = make("div", { className: "eis-faces" });
      board.style.aspectRatio = `${value.width} / ${value.height}`;
      board.style.width = `min(100%, ${Math.round((HIGHEST * value.width) / value.height)}px)`;
      board.append(make("img", { src: `api/v1/images/${value.image}?format=png`, alt: title, draggable: false }));
      (value.faces || []).forEach((face, number) => board.append(framed(face, number, value, choose)));
      const bar = make("div", { className: "eis-bar" });
      bar.append(make("span", { className: "eis-hint", textContent: `${value.width} × ${value.height}` }));
      if (!value.faces) {
        const find = make("button", { type: "button", className: "eis-button", textContent: "Find faces" });
        find.onclick = () => {
          become({ looking: true, told: "Looking for faces …" });
          report({ action: "faces" });
        };
        bar.append(find);
      }
      bar.append(
        make("button", { type: "button", className: "eis-button", textContent: "Replace", onclick: replace }),
        make("button", { type: "button", className: "eis-button", textContent: "Remove", onclick: clear }),
      );
      body.append(board, bar);
    });
    root.append(line);
  };
})();
