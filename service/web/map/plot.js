/**
 * A scatter plot on a canvas: points that can be moved, zoomed and encircled.
 *
 * Guarantees: 100,000 points are drawn in one frame's time; thumbnails appear when at most a few hundred points are in
 * view and have room.
 * Out of scope: reading points to screen readers. The list of labels beside the map has the same pictures.
 */

import { picture } from "./pictures.js";

const THUMBNAILS = 250; // points in view at most, so that they have room
const SIZE = 48; // pixels of a thumbnail
const NEAR = 12; // pixels between the pointer and a point that it points to
const CLICK = 4; // pixels that a pointer may move during a click
const ZOOM = 1.4;

/** Return a plot on `canvas`. `pointed(i)`, `opened(i)`, `encircled(indices)` get positions in the points. */
export function plot(canvas, { pointed, opened, encircled }) {
  const context = canvas.getContext("2d");
  const state = {
    points: { x: [], y: [], keys: [], color: [] }, colors: [], dimmed: null, chosen: new Set(), pin: null,
    scale: 1, left: 0, top: 0, // screen = left + scale * x
    tool: "move", pointers: new Map(), path: [], moved: 0, frame: 0,
  };
  const later = () => { state.frame ||= requestAnimationFrame(draw); };
  const screen = (i) => [state.left + state.scale * state.points.x[i], state.top - state.scale * state.points.y[i]];

  /** Show all points. */
  function fit() {
    const { x, y } = state.points;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const range = (values) => values.reduce(([least, most], v) => [Math.min(least, v), Math.max(most, v)], [Infinity, -Infinity]);
    const [[x0, x1], [y0, y1]] = x.length ? [range(x), range(y)] : [[-1, 1], [-1, 1]];
    state.scale = 0.9 * Math.min(width / (x1 - x0 || 1), height / (y1 - y0 || 1));
    state.left = width / 2 - (state.scale * (x0 + x1)) / 2;
    state.top = height / 2 + (state.scale * (y0 + y1)) / 2;
    later();
  }

  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    state.left = x - (x - state.left) * factor;
    state.top = y - (y - state.top) * factor;
    state.scale *= factor;
    later();
  }

  function pan(dx, dy) {
    state.left += dx;
    state.top += dy;
    later();
  }

  function draw() {
    state.frame = 0;
    const [width, height, ratio] = [canvas.clientWidth, canvas.clientHeight, devicePixelRatio];
    if (!width || !state.colors.length) return; // hidden, or not loaded
    const [columns, rows] = [width, height].map((pixels) => Math.round(pixels * ratio));
    if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const { x, color } = state.points;
    const byColor = state.colors.map(() => []);
    let visible = 0;
    for (let i = 0; i < x.length; i += 1) {
      const [px, py] = screen(i);
      if (px < -SIZE || py < -SIZE || px > width + SIZE || py > height + SIZE) continue;
      visible += 1;
      byColor[color[i]].push(i);
    }
    const radius = Math.max(1.5, Math.min(5, 120 / Math.sqrt(visible || 1)));
    const others = byColor.length - 1; // below all labels; then the frequent ones, which would cover the rare ones
    for (const c of [others, ...byColor.slice(0, others).keys()]) {
      context.fillStyle = state.colors[c];
      context.globalAlpha = state.dimmed === null || state.dimmed === c ? 1 : 0.12;
      for (const i of byColor[c]) {
        const [px, py] = screen(i);
        if (visible > 5000) context.fillRect(px - radius, py - radius, 2 * radius, 2 * radius); // circles would take too long
        else circle(px, py, radius).fill();
      }
    }
    context.globalAlpha = 1;
    if (visible <= THUMBNAILS) for (const i of byColor.flat()) thumbnail(i);
    marks(radius);
  }

  function circle(x, y, radius) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    return context;
  }

  function thumbnail(i) {
    const image = picture(state.points.keys[i], later);
    if (!image) return;
    const box = [...screen(i).map((center) => center - SIZE / 2), SIZE, SIZE];
    context.drawImage(image, ...box);
    context.strokeStyle = state.colors[state.points.color[i]];
    context.lineWidth = 2;
    context.strokeRect(...box);
  }

  function marks(radius) {
    const style = getComputedStyle(canvas);
    context.strokeStyle = style.color;
    context.lineWidth = 1.5;
    for (const i of state.chosen) circle(...screen(i), radius + 2).stroke();
    if (state.pin) {
      const [px, py] = [state.left + state.scale * state.pin[0], state.top - state.scale * state.pin[1]];
      context.fillStyle = style.color;
      context.beginPath();
      context.moveTo(px, py);
      context.arc(px, py - 18, 8, 0.8 * Math.PI, 0.2 * Math.PI);
      context.fill();
    }
    if (state.path.length > 1) {
      context.setLineDash([5, 4]);
      outline();
      context.closePath();
      context.stroke();
      context.setLineDash([]);
    }
  }

  /** Return the point nearest to a place on the screen, or null if none is near. */
  function nearest(x, y) {
    let [found, best] = [null, NEAR ** 2];
    for (let i = 0; i < state.points.x.length; i += 1) {
      const [px, py] = screen(i);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < best) [found, best] = [i, distance];
    }
    return found;
  }

  function outline() {
    context.beginPath();
    for (const [px, py] of state.path) context.lineTo(px, py);
  }

  /** Choose the points inside the path, by the even-odd rule. */
  function encircle() {
    outline();
    const ratio = devicePixelRatio; // isPointInPath does not apply the transformation to the point
    choose([...state.points.x.keys()].filter((i) => context.isPointInPath(...screen(i).map((at) => at * ratio), "evenodd")));
  }

  function choose(indices) {
    state.chosen = new Set(indices);
    encircled(indices);
    later();
  }

  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    const start = [event.offsetX, event.offsetY];
    state.pointers.set(event.pointerId, start);
    state.moved = 0;
    state.path = state.tool === "choose" || event.shiftKey ? [start] : [];
  };
  canvas.onpointermove = (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    const before = state.pointers.get(event.pointerId);
    if (!before) {
      const at = nearest(x, y);
      canvas.style.cursor = at === null ? "" : "pointer";
      pointed(at);
      return;
    }
    const other = [...state.pointers].find(([id]) => id !== event.pointerId)?.[1];
    state.moved += Math.hypot(x - before[0], y - before[1]);
    if (other) { // two fingers
      const spread = Math.hypot(x - other[0], y - other[1]) / Math.hypot(before[0] - other[0], before[1] - other[1]);
      state.path = [];
      zoom(spread || 1, (x + other[0]) / 2, (y + other[1]) / 2);
    } else if (state.path.length) {
      state.path.push([x, y]);
      later();
    } else pan(x - before[0], y - before[1]);
    state.pointers.set(event.pointerId, [x, y]);
  };
  const up = (event) => {
    if (!state.pointers.delete(event.pointerId) || event.type === "pointercancel") return;
    const i = state.moved > CLICK ? null : nearest(event.offsetX, event.offsetY);
    if (state.path.length > 2 && state.moved > CLICK) encircle();
    else if (i !== null) opened(i);
    state.path = [];
    later();
  };
  canvas.onpointerup = canvas.onpointercancel = up;
  canvas.onpointerleave = () => pointed(null);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.onkeydown = (event) => {
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (step) pan(...step);
    else if (event.key === "+" || event.key === "=") zoom(ZOOM);
    else if (event.key === "-") zoom(1 / ZOOM);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  };
  new ResizeObserver(later).observe(canvas);

  return {
    fit, choose, zoom: (closer) => zoom(closer ? ZOOM : 1 / ZOOM), screen,
    set(changes) { Object.assign(state, changes); later(); },
  };
}
