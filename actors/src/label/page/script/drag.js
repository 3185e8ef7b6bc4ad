// Dragging by mouse, pen or finger: an element that is lifted, and the place beneath it when it is let go.

const FAR_ENOUGH_PX = 5;

// Calls `dropped(place)` with the element under the pointer that has `data-drop`. A press that does not move is a click.
export function makeDraggable(element, area, dropped) {
  element.addEventListener("pointerdown", (down) => {
    if (down.button !== 0) return;
    let ghost = null;
    let over = null;
    const box = element.getBoundingClientRect();
    element.setPointerCapture(down.pointerId);

    const move = (event) => {
      const [dx, dy] = [event.clientX - down.clientX, event.clientY - down.clientY];
      if (!ghost) {
        if (Math.hypot(dx, dy) < FAR_ENOUGH_PX) return;
        ghost = element.cloneNode(true);
        ghost.classList.add("lifted");
        ghost.setAttribute("aria-hidden", "true");
        ghost.tabIndex = -1;
        element.classList.add("left-behind");
        area.classList.add("is-dragging");
        document.body.append(ghost);
      }
      ghost.style.left = `${box.left + dx}px`;
      ghost.style.top = `${box.top + dy}px`;
      const found = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-drop]") ?? null;
      if (found !== over) {
        over?.classList.remove("over");
        over = found;
        over?.classList.add("over");
      }
    };
    const end = (event) => {
      element.removeEventListener("pointermove", move);
      element.removeEventListener("pointerup", end);
      element.removeEventListener("pointercancel", end);
      if (!ghost) return;
      ghost.remove();
      over?.classList.remove("over");
      element.classList.remove("left-behind");
      area.classList.remove("is-dragging");
      // The click that follows, if one does, is a part of the drag.
      const swallow = (click) => click.stopImmediatePropagation();
      element.addEventListener("click", swallow, { capture: true });
      setTimeout(() => element.removeEventListener("click", swallow, { capture: true }), 0);
      if (event.type === "pointerup" && over) dropped(over);
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", end);
    element.addEventListener("pointercancel", end);
  });
}
