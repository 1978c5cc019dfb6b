// The curves over steps: training as a line with its running mean, evaluations as dots with a line.

import { sized, themed } from "/watch_map.js";

const PAD = { left: 38, right: 8, top: 6, bottom: 16 };
const SMOOTH_FROM = 60; // points above which the running mean is drawn over the raw line

/** A number as short as can be told apart. */
export function short(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return value.toExponential(1);
  if (size >= 100) return Math.round(value).toLocaleString("en");
  if (size < 1e-6) return "0";
  return size < 0.001 ? value.toExponential(0) : String(Number(value.toPrecision(3)));
}

/** The mean of the last few values at each place: a fiftieth of them. */
function running(values) {
  const window = Math.ceil(values.length / 50);
  let sum = 0;
  return values.map((value, i) => {
    sum += value - (i >= window ? values[i - window] : 0);
    return sum / Math.min(i + 1, window);
  });
}

/** Between two powers of ten: 1, 2, 5 of each, or only the 1, or the two ends, whichever are enough and not too many. */
function logTicks(low, high, most) {
  for (const digits of [[1, 2, 5], [1]]) {
    const ticks = [];
    for (let power = Math.floor(low); power <= high; power++) {
      for (const digit of digits) {
        const at = power + Math.log10(digit);
        if (at >= low && at <= high) ticks.push(digit * 10 ** power);
      }
    }
    if (ticks.length > 1 && ticks.length <= most) return ticks;
  }
  return [10 ** (low + 0.06), 10 ** (high - 0.06)];
}

export class Chart {
  /** A chart of one column of the summary; `onSeek(step)` is told where one clicks or drags. */
  constructor(parent, { column, title, hint = "", log = false, low = null, high = null, onSeek }) {
    Object.assign(this, { column, log, low, high, onSeek, curves: {}, base: null, only: null });
    const figure = parent.appendChild(document.createElement("figure"));
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.append(title);
    caption.title = hint;
    this.value = caption.appendChild(document.createElement("b"));
    this.canvas = figure.appendChild(document.createElement("canvas"));
    this.canvas.setAttribute("aria-label", `${title} over steps`);
    const seek = (event) => event.buttons & 1 && this.onSeek(this.stepAt(event.offsetX));
    this.canvas.addEventListener("pointerdown", seek);
    this.canvas.addEventListener("pointermove", seek);
  }

  /** Take the curves of a summary: {train: {step: [], <column>: []}, eval: ...}. */
  load(byPhase) {
    this.curves = Object.fromEntries(Object.entries(byPhase).map(([phase, table]) => [phase, { step: table.step, value: table[this.column] }]));
    const steps = Object.values(this.curves).flatMap((curve) => curve.step);
    const values = Object.values(this.curves).flatMap((curve) => curve.value).filter((value) => !this.log || value > 0);
    let [first, last, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const step of steps) [first, last] = [Math.min(first, step), Math.max(last, step)];
    for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
    this.steps = [first, Math.max(last, first + 1)];
    this.range = this.framed(this.low ?? low, this.high ?? high);
    this.only = low === high && this.low === null ? low : null;
    this.base = null;
  }

  framed(low, high) {
    if (this.log) return [Math.log10(low / 1.15), Math.log10(high * 1.15)];
    const room = this.low === null ? 0.06 * (high - low) || 0.1 : 0.03 * (high - low);
    return [low - room, high + room];
  }

  x(step, width) {
    const [first, last] = this.steps;
    return PAD.left + ((step - first) / (last - first)) * (width - PAD.left - PAD.right);
  }

  y(value, height) {
    const at = this.log ? Math.log10(Math.max(value, 1e-9)) : value;
    const [low, high] = this.range;
    return height - PAD.bottom - ((at - low) / (high - low)) * (height - PAD.top - PAD.bottom);
  }

  stepAt(x) {
    const share = (x - PAD.left) / (this.canvas.clientWidth - PAD.left - PAD.right);
    return this.steps[0] + share * (this.steps[1] - this.steps[0]);
  }

  /** The curves, kept as they were drawn, and the mark of the step in view. */
  draw(step, phase, value) {
    const { context, width, height } = sized(this.canvas);
    if (!width || !this.steps || !Number.isFinite(this.steps[0])) return;
    const key = [this.canvas.width, this.canvas.height, themed("--ink")].join();
    if (this.base?.key !== key) {
      this.base = { key, canvas: new OffscreenCanvas(this.canvas.width, this.canvas.height) };
      const paper = this.base.canvas.getContext("2d");
      const ratio = this.canvas.width / width;
      paper.setTransform(ratio, 0, 0, ratio, 0, 0);
      this.drawCurves(paper, width, height);
    }
    context.clearRect(0, 0, width, height);
    context.drawImage(this.base.canvas, 0, 0, width, height);
    this.drawMark(context, width, height, step, phase, value);
    this.value.textContent = short(value);
  }

  drawCurves(context, width, height) {
    this.drawScales(context, width, height);
    for (const [phase, { step, value }] of Object.entries(this.curves)) {
      const many = phase === "train" && value.length > SMOOTH_FROM;
      context.strokeStyle = context.fillStyle = themed(`--${phase}`);
      this.drawLine(context, width, height, step, value, many ? 0.28 : 1, many ? 1 : 1.6);
      if (many) this.drawLine(context, width, height, step, running(value), 1, 1.8);
      if (phase === "eval" || value.length === 1) {
        for (let i = 0; i < value.length; i++) {
          context.beginPath();
          context.arc(this.x(step[i], width), this.y(value[i], height), 2.6, 0, 2 * Math.PI);
          context.fill();
        }
      }
    }
  }

  drawLine(context, width, height, step, value, alpha, thick) {
    context.globalAlpha = alpha;
    context.lineWidth = thick;
    context.lineJoin = "round";
    context.beginPath();
    for (let i = 0; i < value.length; i++) context.lineTo(this.x(step[i], width), this.y(value[i], height));
    context.stroke();
    context.globalAlpha = 1;
  }

  ticks(height) {
    if (this.only !== null) return [this.only];
    const [low, high] = this.range;
    const most = Math.max(Math.floor((height - PAD.top - PAD.bottom) / 16), 2);
    if (this.log) return logTicks(low, high, most);
    const rough = (high - low) / (most + 1);
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(Math.abs(at) < step / 1e6 ? 0 : at);
    return found;
  }

  drawScales(context, width, height) {
    context.font = "10px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    context.fillStyle = themed("--soft");
    context.strokeStyle = themed("--line");
    context.lineWidth = 1;
    for (const tick of this.ticks(height)) {
      const y = this.y(tick, height);
      context.beginPath();
      context.moveTo(PAD.left, y);
      context.lineTo(width - PAD.right, y);
      context.stroke();
      context.fillText(short(tick), PAD.left - 5, y);
    }
    context.fillText(this.steps[1].toLocaleString("en"), width - PAD.right, height - 6);
    context.textAlign = "left";
    context.fillText(this.steps[0].toLocaleString("en"), PAD.left, height - 6);
  }

  drawMark(context, width, height, step, phase, value) {
    const x = this.x(step, width);
    context.strokeStyle = themed("--ink");
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, PAD.top);
    context.lineTo(x, height - PAD.bottom);
    context.stroke();
    context.fillStyle = themed(`--${phase}`);
    context.beginPath();
    context.arc(x, this.y(value, height), 4, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }
}
