/**
 * A rectangle that is drawn over an element by dragging the mouse or a pen. A finger scrolls, as everywhere.
 *
 * Guarantees: the page scrolls while the pointer is near an edge of the window or beyond it; Escape cancels; the click at
 * the end of a drag reaches nothing in the element.
 */

import { el } from "../common/dom.js";

const CLICK = 4; // pixels that a pointer may move during a click
const EDGE = 40; // pixels from the bottom of the window

const range = (a, b, most) => [a, Math.max(0, Math.min(b, most))].sort((one, other) => one - other);

/**
 * Watch `node`. `started(event)`; `changed([left, right], [top, bottom])`, in the node, for each frame; `canceled()`.
 * Return a function that cancels.
 */
export function rectangle(node, { started, changed, canceled }) {
  const box = el("div.rectangle", { ariaHidden: "true" });
  let drag = null; // {x, y: its start in the node; down, last: events of the pointer}
  let suppressed = false; // the click of this drag

  function draw() {
    const area = node.getBoundingClientRect();
    const [left, right] = range(drag.x, drag.last.clientX - area.left, area.width);
    const [top, bottom] = range(drag.y, drag.last.clientY - area.top, area.height);
    box.style.cssText = `left: ${left}px; top: ${top}px; width: ${right - left}px; height: ${bottom - top}px`;
    changed([left, right], [top, bottom]);
  }

  function follow() {
    if (!box.isConnected) return;
    if (node.offsetParent === null) return void cancel(); // another view was opened
    const above = drag.last.clientY - parseFloat(getComputedStyle(node).scrollMarginTop); // the toolbar
    scrollBy({ top: (Math.min(0, above) + Math.max(0, drag.last.clientY - innerHeight + EDGE)) / 2 });
    draw();
    requestAnimationFrame(follow);
  }

  function cancel() {
    drag = null;
    if (!box.isConnected) return;
    box.remove();
    canceled();
  }

  node.onpointerdown = (event) => {
    if (event.pointerType === "touch" || event.button !== 0) return;
    const { left, top } = node.getBoundingClientRect();
    drag = { x: event.clientX - left, y: event.clientY - top, down: event, last: event };
  };
  node.onpointermove = (event) => {
    if (event.pointerId !== drag?.down.pointerId) return;
    drag.last = event;
    if (box.isConnected) return;
    if (!(event.buttons & 1)) drag = null; // it was released outside of the window
    else if (Math.hypot(event.clientX - drag.down.clientX, event.clientY - drag.down.clientY) > CLICK) {
      node.setPointerCapture(event.pointerId);
      node.append(box);
      suppressed = true;
      started(event);
      follow();
    }
  };
  for (const type of ["pointerup", "pointercancel"]) {
    addEventListener(type, () => {
      if (type === "pointercancel") cancel();
      else if (box.isConnected) draw();
      box.remove();
      drag = null;
      setTimeout(() => { suppressed = false; }); // after the click
    });
  }
  node.addEventListener("click", (event) => suppressed && event.stopImmediatePropagation(), true);
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !box.isConnected) return;
    event.preventDefault(); // it would also clear the selection
    cancel();
  }, true);
  // A pen would scroll too. The browser decides when it touches the screen; before, it is in the air above the node.
  node.onpointerenter = ({ pointerType }) => { node.style.touchAction = pointerType === "pen" ? "none" : ""; };
  node.onpointerleave = () => { node.style.touchAction = ""; };
  return cancel;
}
