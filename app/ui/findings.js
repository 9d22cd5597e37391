/* Words that were found: tags taken out and added, and the caption and menus that follow them. */
"use strict";

(() => {
  const { make } = window.eis;

  const alike = (word) => word.trim().replaceAll("_", " ").toLowerCase();

  function follow(card) {
    const once = new Map();
    for (const chip of card.querySelectorAll('.eis-chip[aria-pressed="true"]')) {
      if (!once.has(alike(chip.dataset.word))) once.set(alike(chip.dataset.word), chip.dataset.word);
    }
    const text = [...once.values()].join(", ");
    card.querySelector(".eis-caption").textContent = text;
    card.querySelector("select[data-action=prompt]").dataset.text = text;
  }

  eis.client.tag = (chip) => {
    const on = chip.getAttribute("aria-pressed") !== "true";
    chip.setAttribute("aria-pressed", String(on));
    chip.title = on ? "Click to take it out" : "Click to bring it back";
    follow(chip.closest(".eis-tagged"));
  };

  function add(card, word) {
    const known = [...card.querySelectorAll(".eis-chip")].find((chip) => alike(chip.dataset.word) === alike(word));
    if (known) {
      known.setAttribute("aria-pressed", "true");
    } else {
      const chip = make("button", { type: "button", className: "eis-chip", textContent: word, title: "Click to take it out" });
      chip.dataset.client = "tag";
      chip.dataset.word = word;
      chip.setAttribute("aria-pressed", "true");
      const group = card.querySelector("[data-added]");
      group.hidden = false;
      group.querySelector(".eis-chips").append(chip);
    }
    follow(card);
  }

  document.addEventListener("keydown", (event) => {
    const box = event.target.closest?.(".eis-add-tag input");
    if (!box || event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    for (const word of box.value.split(",")) if (word.trim()) add(box.closest(".eis-tagged"), word.trim());
    box.value = "";
  });

  /* A text that was found goes to a prompt as it was edited. */
  document.addEventListener("input", (event) => {
    const text = event.target.closest?.(".eis-grounding textarea");
    if (text) text.closest(".eis-grounding").querySelector("select[data-action=prompt]").dataset.text = text.value;
  });

  /* A preview that cannot be had leaves its place to a word. */
  document.addEventListener("error", (event) => {
    if (event.target.matches?.(".eis-found img")) event.target.replaceWith(make("span", { className: "eis-no-preview", textContent: "No preview" }));
  }, true);
})();
