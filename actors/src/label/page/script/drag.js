// Dragging by mouse, pen or finger: an element that is lifted, and the place beneath it when it is let go.
//
// The page keeps still meanwhile: what can be lifted has `touch-action: none`, and the area with the places stands on the
// screen wherever the page is scrolled to. Places that are out of sight to a side come by while the pointer is near it.

// A press that moves less is a click. Fingers never quite hold still.
const FAR_ENOUGH_PX = 5;
const FAR_ENOUGH_FOR_FINGERS_PX = 10;
// A finger hides what is beneath it: what it holds is drawn so much higher.
const ABOVE_FINGER_PX = 44;
// Nearer than this to a side of the area, the area is scrolled: a letter's width, so that the last place can be aimed at.
const NEAR_PX = 36;
// Slow enough to let go on a place that goes by.
const PX_PER_SECOND = 420;

// Calls `dropped(place)` with the element under the pointer that has `data-drop`. A press that does not move is a click.
export function makeDraggable(element, area, dropped) {
  // A finger that rests would open a menu.
  element.addEventListener("contextmenu", (event) => event.preventDefault());
  element.addEventListener("pointerdown", (down) => {
    if (down.button !== 0 || !down.isPrimary) return;
    const isFinger = down.pointerType === "touch";
    const box = element.getBoundingClientRect();
    let [ghost, over, at, frame] = [null, null, down, 0];
    element.setPointerCapture(down.pointerId);

    const lift = () => {
      ghost = element.cloneNode(true);
      ghost.classList.add("lifted");
      ghost.setAttribute("aria-hidden", "true");
      ghost.tabIndex = -1;
      element.classList.add("left-behind");
      area.classList.add("is-dragging");
      document.body.append(ghost);
      frame = requestAnimationFrame(scrolling(performance.now()));
    };
    const lookBeneath = () => {
      const found = document.elementFromPoint(at.clientX, at.clientY)?.closest("[data-drop]") ?? null;
      if (found === over) return;
      over?.classList.remove("over");
      over = found;
      over?.classList.add("over");
    };
    const scrolling = (before) => (now) => {
      const { left, right } = area.getBoundingClientRect();
      const towards = Number(at.clientX > right - NEAR_PX) - Number(at.clientX < left + NEAR_PX);
      if (towards !== 0) {
        area.scrollLeft += towards * PX_PER_SECOND * Math.max(0, now - before) / 1000;
        lookBeneath();
      }
      frame = requestAnimationFrame(scrolling(now));
    };
    const move = (event) => {
      if (event.pointerId !== down.pointerId) return;
      at = event;
      const [dx, dy] = [at.clientX - down.clientX, at.clientY - down.clientY];
      if (!ghost) {
        if (Math.hypot(dx, dy) < (isFinger ? FAR_ENOUGH_FOR_FINGERS_PX : FAR_ENOUGH_PX)) return;
        lift();
      }
      ghost.style.left = `${box.left + dx}px`;
      ghost.style.top = `${box.top + dy - (isFinger ? ABOVE_FINGER_PX : 0)}px`;
      lookBeneath();
    };
    const end = (event) => {
      if (event.pointerId !== down.pointerId) return;
      element.removeEventListener("pointermove", move);
      element.removeEventListener("pointerup", end);
      element.removeEventListener("pointercancel", end);
      if (!ghost) return;
      cancelAnimationFrame(frame);
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
