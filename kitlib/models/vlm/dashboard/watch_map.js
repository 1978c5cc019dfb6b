// The map: equirectangular, land and states under the true place (a ring), the guesses (dots) and their ways over turns.
// Points are [lat, lon] in degrees. It draws what `scene` holds; the page decides what that is.

const KM_PER_DEGREE = (6371 * Math.PI) / 180;
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // for every colour vision
const COLOURS = 32;
const MANY = 400; // rollouts above which the map draws small dots and nothing else
const FEW = 60; // true places up to which their rings lie above the dots

/** The colour of a share from 0 to 1. */
export function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const mix = VIRIDIS[low].map((value, i) => Math.round(value + (VIRIDIS[low + 1][i] - value) * (at - low)));
  return `rgb(${mix.join(",")})`;
}

/** Where a reward lies between the lowest and the highest shown, 0 to 1. */
export function share(value, [low, high]) {
  return high > low ? (value - low) / (high - low) : 0.5;
}

/** A longitude difference, the shorter way round. */
function turned(degrees) {
  return degrees - 360 * Math.round(degrees / 360);
}

/** A canvas as sharp as the screen; its size in CSS pixels. */
export function sized(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}

const theme = new Map();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme.clear());

/** A colour of the style sheet. */
export function themed(name) {
  if (!theme.has(name)) theme.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return theme.get(name);
}

function outline(ring) {
  const path = new Path2D();
  const box = [Infinity, Infinity, -Infinity, -Infinity]; // west, south, east, north
  for (let i = 0; i < ring.length; i += 2) {
    const [lon, lat] = [ring[i], ring[i + 1]];
    path.lineTo(lon, lat);
    box[0] = Math.min(box[0], lon);
    box[1] = Math.min(box[1], lat);
    box[2] = Math.max(box[2], lon);
    box[3] = Math.max(box[3], lat);
  }
  path.closePath();
  return { path, box };
}

/** The points (lat, lon) at a distance from a place. */
function circle([lat, lon], km) {
  const [angle, lat0, radians] = [km / 6371, (lat * Math.PI) / 180, Math.PI / 180];
  return Array.from({ length: 73 }, (_, i) => {
    const bearing = i * 5 * radians;
    const sine = Math.sin(lat0) * Math.cos(angle) + Math.cos(lat0) * Math.sin(angle) * Math.cos(bearing);
    const east = Math.sin(bearing) * Math.sin(angle) * Math.cos(lat0);
    return [Math.asin(sine) / radians, lon + Math.atan2(east, Math.cos(angle) - Math.sin(lat0) * sine) / radians];
  });
}

export class WorldMap {
  /** `onPick(dot)` and `onHover(dot)` are told which of scene.dots is meant, null for none. */
  constructor(canvas, { onPick, onHover }) {
    Object.assign(this, { canvas, onPick, onHover });
    this.scene = { dots: [], truths: [], chosen: null, radiusKm: null, range: [0, 1] };
    this.view = { lat: 20, lon: 0, scale: 2, squeeze: 1 }; // scale: pixels a degree of latitude
    this.rings = { land: [], states: [] };
    this.lit = null;
    [this.width, this.height] = [0, 0];
    this.listen();
  }

  load(outlines) {
    this.rings = { land: outlines.land.map(outline), states: outlines.states.map(outline) };
    this.backdrop = null;
  }

  /** Move the view to hold all of the scene; whichever meridian is in the middle, it gets as narrow as can be. */
  fit() {
    const points = [...this.scene.truths, ...this.scene.dots.flatMap((dot) => dot.path)].filter(Boolean);
    const { width, height } = this.canvas.getBoundingClientRect();
    if (!points.length || !width || !height) return;
    let best = null;
    for (const middle of [points[0][1], 0, 180]) {
      const box = [90, 360, -90, -360];
      for (const [lat, lon] of points) {
        const at = turned(lon - middle);
        box[0] = Math.min(box[0], lat);
        box[1] = Math.min(box[1], at);
        box[2] = Math.max(box[2], lat);
        box[3] = Math.max(box[3], at);
      }
      if (!best || box[3] - box[1] < best.box[3] - best.box[1] - 1e-9) best = { middle, box };
    }
    const [south, west, north, east] = best.box;
    const lat = (south + north) / 2;
    const squeeze = Math.max(Math.cos((lat * Math.PI) / 180), 0.3);
    const [high, wide] = [Math.max(north - south, 0.03), Math.max((east - west) * squeeze, 0.03)];
    const scale = Math.min((height - 70) / high, (width - 70) / wide);
    this.view = { lat, lon: best.middle + (west + east) / 2, scale, squeeze };
  }

  x(lon) {
    return this.width / 2 + turned(lon - this.view.lon) * this.view.scale * this.view.squeeze;
  }

  y(lat) {
    return this.height / 2 - (lat - this.view.lat) * this.view.scale;
  }

  draw() {
    const { context, width, height } = sized(this.canvas);
    if (!width || !height) return;
    [this.width, this.height] = [width, height]; // asking the canvas for every point takes longer than drawing it
    context.clearRect(0, 0, width, height);
    this.drawBackdrop(context, width, height);
    const { dots, truths, chosen, radiusKm } = this.scene;
    if (radiusKm !== null) this.drawCircle(context, truths[0], radiusKm);
    if (dots.length <= MANY) this.drawWays(context);
    const few = truths.length <= FEW;
    if (!few) for (const truth of truths) this.drawRing(context, truth, 3);
    this.drawDots(context, dots.length > MANY ? 3 : 6);
    if (few) for (const truth of truths) this.drawRing(context, truth, 8);
    if (chosen && truths.length > 1) this.drawRing(context, chosen, 12);
    if (this.lit) this.drawLit(context);
  }

  /** Land, states and grid, drawn anew only when the view, the size or the theme changes. */
  drawBackdrop(context, width, height) {
    const key = JSON.stringify([this.view, this.canvas.width, this.canvas.height, themed("--sea"), this.rings.land.length]);
    if (this.backdrop?.key !== key) {
      this.backdrop = { key, canvas: new OffscreenCanvas(this.canvas.width, this.canvas.height) };
      const paper = this.backdrop.canvas.getContext("2d");
      const ratio = this.canvas.width / width;
      paper.setTransform(ratio, 0, 0, ratio, 0, 0);
      paper.fillStyle = themed("--sea");
      paper.fillRect(0, this.y(90), width, this.y(-90) - this.y(90));
      this.drawRings(paper, this.rings.land, width, height);
      this.drawRings(paper, this.rings.states, width, height);
      this.drawGrid(paper, width, height);
      this.drawScale(paper, width, height);
    }
    context.drawImage(this.backdrop.canvas, 0, 0, width, height);
  }

  drawRings(context, rings, width, height) {
    const { lat, lon, scale, squeeze } = this.view;
    const [half, high] = [width / 2 / scale / squeeze, height / 2 / scale];
    const screen = new Path2D();
    for (const turn of [-360, 0, 360]) {
      const place = new DOMMatrix([scale * squeeze, 0, 0, -scale, width / 2 - (lon - turn) * scale * squeeze, height / 2 + lat * scale]);
      for (const { path, box } of rings) {
        const beside = box[0] + turn > lon + half || box[2] + turn < lon - half || box[1] > lat + high || box[3] < lat - high;
        if (!beside) screen.addPath(path, place);
      }
    }
    context.fillStyle = themed("--land");
    context.strokeStyle = themed("--border");
    context.lineWidth = 1;
    context.fill(screen, "evenodd");
    context.stroke(screen);
  }

  drawGrid(context, width, height) {
    const { lat, lon, scale, squeeze } = this.view;
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30].find((degrees) => degrees * scale > 80) ?? 30;
    const digits = step < 0.1 ? 2 : step < 1 ? 1 : 0;
    context.strokeStyle = themed("--grid");
    context.fillStyle = themed("--soft");
    context.font = "10px system-ui, sans-serif";
    context.beginPath();
    for (let at = Math.ceil(Math.max(lat - height / 2 / scale, -90) / step) * step; at <= Math.min(lat + height / 2 / scale, 90); at += step) {
      context.moveTo(0, this.y(at));
      context.lineTo(width, this.y(at));
      context.fillText(`${Math.abs(at).toFixed(digits)}°${at < 0 ? "S" : "N"}`, 4, this.y(at) - 3);
    }
    const half = width / 2 / scale / squeeze;
    for (let at = Math.ceil((lon - half) / step) * step; at <= lon + half; at += step) {
      const x = width / 2 + (at - lon) * scale * squeeze;
      const shown = turned(at);
      context.moveTo(x, 0);
      context.lineTo(x, height);
      context.fillText(`${Math.abs(shown).toFixed(digits)}°${shown < 0 ? "W" : "E"}`, x + 3, height - 5);
    }
    context.stroke();
  }

  drawScale(context, width, height) {
    const most = (130 / this.view.scale) * KM_PER_DEGREE;
    const unit = 10 ** Math.floor(Math.log10(most));
    const km = unit * (most >= 5 * unit ? 5 : most >= 2 * unit ? 2 : 1);
    const length = (km / KM_PER_DEGREE) * this.view.scale;
    context.fillStyle = context.strokeStyle = themed("--ink");
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(width - 14 - length, height - 26);
    context.lineTo(width - 14 - length, height - 22);
    context.lineTo(width - 14, height - 22);
    context.lineTo(width - 14, height - 26);
    context.stroke();
    context.textAlign = "right";
    context.fillText(`${km >= 1 ? km.toLocaleString("en") : km} km`, width - 14, height - 30);
    context.textAlign = "left";
  }

  /** A line through points, the shorter way round the globe. */
  trace(context, points) {
    let x = null;
    let before = null;
    for (const [lat, lon] of points) {
      const along = x === null ? this.x(lon) : x + turned(lon - before) * this.view.scale * this.view.squeeze;
      if (x === null) context.moveTo(along, this.y(lat));
      else context.lineTo(along, this.y(lat));
      [x, before] = [along, lon];
    }
  }

  drawCircle(context, truth, km) {
    context.beginPath();
    this.trace(context, circle(truth, km));
    context.strokeStyle = themed("--soft");
    context.lineWidth = 1.2;
    context.setLineDash([5, 4]);
    context.stroke();
    context.setLineDash([]);
  }

  /** From guess to guess over the turns, the earlier ones small. */
  drawWays(context) {
    context.strokeStyle = themed("--soft");
    context.globalAlpha = 0.45;
    context.lineWidth = 1;
    context.beginPath();
    for (const { path } of this.scene.dots) this.trace(context, path.filter(Boolean));
    context.stroke();
    context.globalAlpha = 1;
    for (const { path, reward } of this.scene.dots) {
      context.fillStyle = colour(share(reward, this.scene.range));
      for (const point of path.slice(0, -1)) {
        if (point) context.fillRect(this.x(point[1]) - 2, this.y(point[0]) - 2, 4, 4);
      }
    }
  }

  /** Dots of all colours in a row on one canvas: copying them is faster than drawing ten thousand circles. */
  stamps(radius, size, ratio) {
    const key = [radius, ratio, themed("--ink")].join();
    if (this.stamped?.key !== key) {
      this.stamped = { key, canvas: new OffscreenCanvas(COLOURS * size * ratio, size * ratio) };
      const paper = this.stamped.canvas.getContext("2d");
      paper.scale(ratio, ratio);
      for (let i = 0; i < COLOURS; i++) {
        paper.beginPath();
        paper.arc((i + 0.5) * size, size / 2, radius, 0, 2 * Math.PI);
        paper.fillStyle = colour(i / (COLOURS - 1));
        paper.strokeStyle = themed("--ink");
        paper.fill();
        paper.stroke();
      }
    }
    return this.stamped.canvas;
  }

  drawDots(context, radius) {
    const ratio = Math.ceil(window.devicePixelRatio || 1);
    const size = Math.ceil(2 * radius + 4);
    const stamps = this.stamps(radius, size, ratio);
    context.imageSmoothingEnabled = ratio !== window.devicePixelRatio; // whole pixels are copied as they are
    for (const { path, reward } of this.scene.dots) {
      const point = path.at(-1);
      if (!point) continue;
      const i = Math.round(Math.min(Math.max(share(reward, this.scene.range), 0), 1) * (COLOURS - 1));
      const [x, y] = [Math.round(this.x(point[1]) - size / 2), Math.round(this.y(point[0]) - size / 2)];
      context.drawImage(stamps, i * size * ratio, 0, size * ratio, size * ratio, x, y, size, size);
    }
    context.imageSmoothingEnabled = true;
  }

  drawRing(context, [lat, lon], radius) {
    for (const [name, width] of [["--card", 5], ["--ink", 2.5]]) {
      context.beginPath();
      context.arc(this.x(lon), this.y(lat), radius, 0, 2 * Math.PI);
      context.strokeStyle = themed(name);
      context.lineWidth = width;
      context.stroke();
    }
  }

  drawLit(context) {
    const point = this.lit.path.at(-1);
    if (!point) return;
    context.beginPath();
    this.trace(context, [point, this.lit.truth]);
    context.strokeStyle = themed("--ink");
    context.lineWidth = 1.5;
    context.stroke();
    this.drawRing(context, point, 9);
  }

  /** The dot under a place on the canvas, the topmost. */
  dotAt(x, y) {
    let [found, nearest] = [null, 10 ** 2];
    for (const dot of this.scene.dots) {
      const point = dot.path.at(-1);
      if (!point) continue;
      const far = (this.x(point[1]) - x) ** 2 + (this.y(point[0]) - y) ** 2;
      if (far <= nearest) [found, nearest] = [dot, far];
    }
    return found;
  }

  zoom(factor, x, y) {
    const { view } = this;
    const scale = Math.min(Math.max(view.scale * factor, 0.8), 2e4);
    const [dx, dy] = [x - this.width / 2, y - this.height / 2];
    const moved = 1 / view.scale - 1 / scale; // what is under the pointer stays there
    this.view = { ...view, scale, lon: view.lon + (dx * moved) / view.squeeze, lat: view.lat - dy * moved };
  }

  listen() {
    let from = null;
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      from = { x: event.offsetX, y: event.offsetY, view: this.view, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return this.onHover(this.dotAt(event.offsetX, event.offsetY));
      const [dx, dy] = [event.offsetX - from.x, event.offsetY - from.y];
      if (Math.hypot(dx, dy) > 3) from.moved = true;
      const { lat, lon, scale, squeeze } = from.view;
      this.view = { ...from.view, lon: turned(lon - dx / scale / squeeze), lat: Math.min(Math.max(lat + dy / scale, -90), 90) };
      this.draw();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (from && !from.moved) this.onPick(this.dotAt(event.offsetX, event.offsetY));
      from = null;
    });
    canvas.addEventListener("pointerleave", () => this.onHover(null));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
      this.draw();
    }, { passive: false });
    canvas.addEventListener("dblclick", () => {
      this.fit();
      this.draw();
    });
  }
}
