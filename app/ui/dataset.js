/* The pictures of a training: many at once or as an archive, each with its caption, and those marked that look alike. */
"use strict";

(() => {
  const { make } = window.eis;
  const ACCEPT = "image/png,image/jpeg,image/webp,image/avif,.zip,.tar,.gz,.tgz,.bz2,.xz,.txt";
  const RISE = 3, NEAR = 12, NEAR_COLOUR = 24;
  const stem = (name) => name.replace(/\.[^.]*$/, "");
  const isText = (file) => /\.txt$/i.test(file.name);

  async function post(path, name, file) {
    const body = new FormData();
    body.append(name, file, name === "archive" ? "archive" : "picture");
    const answer = await fetch(`api/v1/${path}`, { method: "POST", body });
    const json = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(json.error?.message || json.detail || `The server answered ${answer.status}.`);
    return json;
  }

  /* As app/imaging/near_duplicates.py: whether brightness rises from each of 9 x 9 places to the next, and the colour. */
  function hashOf(image) {
    const canvas = make("canvas", { width: 9, height: 9 });
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.imageSmoothingQuality = "high";
    pen.drawImage(image, 0, 0, 9, 9);
    const { data } = pen.getImageData(0, 0, 9, 9);
    const grey = (at) => 0.299 * data[4 * at] + 0.587 * data[4 * at + 1] + 0.114 * data[4 * at + 2];
    const bits = [], colour = [0, 0, 0];
    for (let y = 0; y < 8; y += 1) for (let x = 0; x < 8; x += 1) bits.push(grey(9 * y + x + 1) - grey(9 * y + x) > RISE);
    for (let y = 0; y < 8; y += 1) for (let x = 0; x < 8; x += 1) bits.push(grey(9 * y + x + 9) - grey(9 * y + x) > RISE);
    for (let at = 0; at < 81; at += 1) for (const channel of [0, 1, 2]) colour[channel] += data[4 * at + channel] / 81;
    return { bits, colour };
  }
  const alike = (one, other) => one.bits.filter((bit, at) => bit !== other.bits[at]).length <= NEAR
    && one.colour.every((level, channel) => Math.abs(level - other.colour[channel]) <= NEAR_COLOUR);

  eis.dataset = (element, props, watch, { title, limit, captioned }) => {
    const root = element.querySelector(".eis-dataset");
    const hashes = new Map();
    const file = make("input", { type: "file", accept: ACCEPT, multiple: true, hidden: true });
    const drop = make("button", { type: "button", className: "eis-drop" });
    drop.append(make("strong", { textContent: "Choose pictures" }), make("span", { textContent: captioned ? "or an archive; .txt files beside them are captions" : "or an archive, in the order of the pictures" }));
    const told = make("p", { className: "eis-hint" });
    const message = make("p", { className: "eis-error-line", hidden: true });
    message.setAttribute("role", "alert");
    const rows = make("div", { className: "eis-dataset-rows" });
    root.append(make("span", { className: "eis-label", textContent: title }), file, drop, told, message, rows);
    const say = (text) => { message.textContent = text; message.hidden = !text; };
    const list = () => props.value?.pictures || [];
    let own = null;
    function put(pictures) {
      own = JSON.stringify(pictures);
      props.value = { pictures };
    }
    async function take(files) {
      say("");
      root.classList.add("busy");
      try {
        const texts = new Map();
        for (const one of files.filter(isText)) texts.set(stem(one.name), (await one.text()).trim().replace(/\s+/g, " ").slice(0, 2000));
        for (const one of files.filter((each) => !isText(each))) {
          if (list().length >= limit) throw new Error(`A training may have ${limit} pictures.`);
          if (one.type.startsWith("image/")) {
            const stored = await post("images", "file", one);
            put([...list(), { image: stored.id, name: one.name, caption: texts.get(stem(one.name)) || "" }]);
          } else {
            const { images } = await post("datasets", "archive", one);
            put([...list(), ...images.map(({ id, name, caption }) => ({ image: id, name, caption }))].slice(0, limit));
          }
          draw();
        }
      } catch (error) {
        say(error.message);
      } finally {
        root.classList.remove("busy");
        file.value = "";
        draw();
      }
    }
    drop.onclick = () => file.click();
    file.onchange = () => take([...file.files]);
    root.ondragover = (event) => { event.preventDefault(); root.classList.add("over"); };
    root.ondragleave = () => root.classList.remove("over");
    root.ondrop = (event) => { event.preventDefault(); root.classList.remove("over"); take([...event.dataTransfer.files]); };
    function mark() {
      const seen = list();
      let count = 0;
      for (const [at, row] of [...rows.children].entries()) {
        const mine = hashes.get(seen[at]?.image);
        const near = (other) => { const its = hashes.get(other.image); return mine && its && alike(mine, its); };
        const twin = seen.slice(0, at).findIndex(near);
        row.querySelector(".eis-twin").textContent = twin < 0 ? "" : `looks like ${twin + 1}`;
        row.classList.toggle("twin", twin >= 0);
        count += twin >= 0;
      }
      told.textContent = seen.length ? `${seen.length} pictures${count ? `, ${count} of them ${count === 1 ? "looks" : "look"} like another` : ""}` : "";
    }
    function draw() {
      rows.replaceChildren(...list().map((picture, at) => {
        const row = make("div", { className: "eis-dataset-row" });
        const image = make("img", { src: `api/v1/images/${picture.image}/thumbnail`, alt: picture.name || `Picture ${at + 1}`, loading: "eager" });
        image.onload = () => { hashes.set(picture.image, hashOf(image)); mark(); };
        const caption = make("textarea", { rows: 2, maxLength: 2000, value: picture.caption, placeholder: "what it shows", ariaLabel: `Caption of picture ${at + 1}`, hidden: !captioned });
        caption.onchange = () => put(list().map((one, number) => (number === at ? { ...one, caption: caption.value.trim() } : one)));
        const remove = make("button", { type: "button", className: "eis-button", textContent: "Remove" });
        remove.onclick = () => { put(list().filter((_, number) => number !== at)); draw(); };
        const side = make("div", { className: "eis-dataset-side" });
        side.append(make("span", { className: "eis-hint", textContent: `${at + 1}` }), make("span", { className: "eis-twin" }), remove);
        row.append(image, caption, side);
        return row;
      }));
      mark();
    }
    watch("value", () => { if (JSON.stringify(list()) !== own) { own = JSON.stringify(list()); draw(); } });
    draw();
  };
})();
