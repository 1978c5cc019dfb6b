// A map of many places: wheel or pinch zooms, dragging pans, a double click shows all, hovering names, a click chooses.
const floats = view => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
const bytes = view => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const REACH = 12;  // pixels from a place within which the mouse means it

function render({ model, el }) {
  const canvas = document.createElement("canvas"), tip = document.createElement("div"), legend = document.createElement("div");
  el.style.position = "relative";
  canvas.style.cssText = "width:100%;height:360px;display:block;cursor:crosshair;touch-action:none;border:1px solid #8886";
  tip.style.cssText = "position:absolute;pointer-events:none;display:none;padding:2px 6px;font:12px system-ui;" +
    "background:#222d;color:#fff;border-radius:3px;white-space:pre";
  legend.style.cssText = "display:flex;flex-wrap:wrap;gap:2px 14px;font:12px system-ui;padding:3px 0;color:var(--jp-ui-font-color1, inherit)";
  el.append(canvas, tip, legend);
  const pen = canvas.getContext("2d");
  const xy = floats(model.get("xy")), lines = floats(model.get("outlines")), ids = model.get("ids").split("\n");
  const count = xy.length / 2, stretch = model.get("stretch");
  let buckets, visible, view, asked = false, size = [1, 1];

  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (let i = 0; i < count; i++) {
    box[0] = Math.min(box[0], xy[2 * i]); box[2] = Math.max(box[2], xy[2 * i]);
    box[1] = Math.min(box[1], xy[2 * i + 1]); box[3] = Math.max(box[3], xy[2 * i + 1]);
  }
  const all = () => {
    const [w, h] = size, wide = (box[2] - box[0]) * 1.1 || 1, high = (box[3] - box[1]) * 1.1 * stretch || 1;
    view = { x: (box[0] + box[2]) / 2, y: (box[1] + box[3]) / 2, scale: Math.min(w / wide, h / high) };
  };
  const px = x => (x - view.x) * view.scale + size[0] / 2, py = y => size[1] / 2 - (y - view.y) * view.scale * stretch;

  function sort() {  // places by colour, as changing the colour of the pen is what takes time
    const shade = bytes(model.get("shade"));
    visible = bytes(model.get("visible"));
    buckets = model.get("palette").map(() => []);
    for (let i = 0; i < count; i++) if (visible[i]) buckets[shade[i]].push(i);
    legend.replaceChildren(...model.get("legend").map((text, n) => {
      const entry = document.createElement("span"), dot = document.createElement("span");
      dot.style.cssText = `display:inline-block;width:9px;height:9px;border-radius:9px;margin-right:5px;background:${model.get("palette")[n]}`;
      entry.append(dot, `${text} (${buckets[n].length.toLocaleString("en")})`);
      return entry;
    }));
  }
  function draw() {
    asked = false;
    const ratio = window.devicePixelRatio || 1, [w, h] = size;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    pen.strokeStyle = "#8888"; pen.lineWidth = 0.8; pen.beginPath();
    for (let i = 0, up = true; i < lines.length; i += 2) {
      if (Number.isNaN(lines[i])) { up = true; continue; }
      if (up) pen.moveTo(px(lines[i]), py(lines[i + 1])); else pen.lineTo(px(lines[i]), py(lines[i + 1]));
      up = false;
    }
    pen.stroke();
    const side = Math.min(9, Math.max(2, 220 / Math.sqrt(count)) * Math.sqrt(view.scale / view.first || 1));
    pen.globalAlpha = 0.8;
    buckets.forEach((bucket, n) => {
      pen.fillStyle = model.get("palette")[n];
      for (const i of bucket) {
        const x = px(xy[2 * i]), y = py(xy[2 * i + 1]);
        if (x > -9 && y > -9 && x < w + 9 && y < h + 9) pen.fillRect(x - side / 2, y - side / 2, side, side);
      }
    });
    pen.globalAlpha = 1;
    const chosen = model.get("chosen");
    if (chosen >= 0) {
      for (const [width, colour] of [[4, "#fff"], [2, "#111"]]) {
        pen.lineWidth = width; pen.strokeStyle = colour; pen.beginPath();
        pen.arc(px(xy[2 * chosen]), py(xy[2 * chosen + 1]), 9, 0, 7); pen.stroke();
      }
    }
  }
  const redraw = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };
  function nearest(event) {
    let found = -1, best = REACH ** 2;
    for (let i = 0; i < count; i++) {
      if (!visible[i]) continue;
      const d = (px(xy[2 * i]) - event.offsetX) ** 2 + (py(xy[2 * i + 1]) - event.offsetY) ** 2;
      if (d < best) { best = d; found = i; }
    }
    return found;
  }
  let down = null, moved = false;
  canvas.addEventListener("pointerdown", event => { down = [event.offsetX, event.offsetY]; moved = false; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", event => {
    if (down) {
      const [dx, dy] = [event.offsetX - down[0], event.offsetY - down[1]];
      if (!moved && Math.hypot(dx, dy) < 4) return;
      moved = true; down = [event.offsetX, event.offsetY];
      view.x -= dx / view.scale; view.y += dy / view.scale / stretch;
      redraw();
      return;
    }
    const i = nearest(event);
    tip.style.display = i < 0 ? "none" : "block";
    if (i >= 0) { tip.textContent = ids[i]; tip.style.left = `${event.offsetX + 12}px`; tip.style.top = `${event.offsetY + 8}px`; }
  });
  canvas.addEventListener("pointerup", event => {
    const i = moved || !down ? -1 : nearest(event);
    down = null;
    if (i >= 0) { model.set("chosen", i); model.save_changes(); }
  });
  canvas.addEventListener("pointerleave", () => { tip.style.display = "none"; });
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    const factor = Math.exp(-event.deltaY / 400), dx = event.offsetX - size[0] / 2, dy = event.offsetY - size[1] / 2;
    view.x += dx / view.scale * (1 - 1 / factor); view.y -= dy / view.scale / stretch * (1 - 1 / factor);
    view.scale *= factor;
    redraw();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { all(); view.first = view.scale; redraw(); });
  for (const name of ["shade", "visible", "palette", "legend"]) model.on(`change:${name}`, () => { sort(); redraw(); });
  model.on("change:chosen", redraw);
  const watch = new ResizeObserver(() => {
    if (!canvas.clientWidth) return;
    const ratio = window.devicePixelRatio || 1;
    size = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = size[0] * ratio; canvas.height = size[1] * ratio;
    if (!view) { all(); view.first = view.scale; }
    draw();
  });
  sort();
  watch.observe(canvas);
  return () => watch.disconnect();
}
export default { render };
