/* The slider between a picture before and after: by mouse and finger anywhere on it, by arrow keys on its input. */
"use strict";
(() => {
  function show(box, share) {
    const at = Math.max(0, Math.min(100, share));
    box.style.setProperty("--at", `${at}%`);
    const input = box.querySelector("input");
    if (Number(input.value) !== Math.round(at)) input.value = Math.round(at);
  }

  function follow(box, event) {
    const place = box.getBoundingClientRect();
    show(box, (100 * (event.clientX - place.left)) / place.width);
  }

  document.addEventListener("pointerdown", (event) => {
    const box = event.button === 0 && event.target.closest?.(".eis-slider-box");
    if (!box) return;
    event.preventDefault();
    box.querySelector("input").focus({ preventScroll: true });
    try { box.setPointerCapture(event.pointerId); } catch { /* the pointer has left already */ }
    const move = (other) => { if (other.pointerId === event.pointerId) follow(box, other); };
    const end = (other) => {
      if (other.pointerId !== event.pointerId) return;
      box.removeEventListener("pointermove", move);
      for (const name of ["pointerup", "pointercancel"]) box.removeEventListener(name, end);
    };
    box.addEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) box.addEventListener(name, end);
    follow(box, event);
  });

  document.addEventListener("input", (event) => {
    const box = event.target.closest?.(".eis-slider-box");
    if (box) show(box, Number(event.target.value));
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-client=slider]");
    if (!button) return;
    const view = button.closest("[data-view]") || button.closest(".eis-result") || button.parentElement.parentElement;
    const open = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(open));
    view.querySelector(".eis-slider").hidden = !open;
    view.querySelector(".eis-picture").hidden = open;
  });
})();
