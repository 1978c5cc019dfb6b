// The page: asks what is new, loads the step in view and nothing else, and lets map, charts and texts show it.
// Everything from a run is text written by a model: it only ever becomes textContent.

import { WorldMap, colour, share, themed } from "/watch_map.js";
import { Chart, short } from "/watch_charts.js";

const POLL_MS = 2000;
const KEPT_ROLLOUTS = 60000; // of steps already loaded
const MOST_CARDS = 100;
const at = (id) => document.getElementById(id);

const state = {
  tag: "", finished: false, skipped: [],
  tables: {}, // by phase: columns of the summary
  phase: "train", index: -1, // which row of that table is in view
  step: null, // what is loaded of it: its places, with points and rewards
  group: 0, place: null, // which place is in view, and the one that was asked for
  mode: "place", together: null, // the steps that have the followed place
  playing: 0,
};
const loaded = new Map(); // address: answer, the oldest first

const map = new WorldMap(at("map"), { onPick: pick, onHover: light });
const UNPARSED = "a reply without a place counts as a guess in the middle of all places";
const charts = [
  { column: "reward", title: "reward" },
  { column: "km", title: "mean km", hint: UNPARSED, log: true },
  { column: "parsed", title: "share with a place", low: 0, high: 1 },
  { column: "tau_km", title: "tau, km", log: true },
].map((options) => new Chart(at("charts"), { ...options, onSeek: seek }));

const table = () => state.tables[state.phase] ?? { step: [], version: [] };
const clamped = (value, most) => Math.min(Math.max(value, 0), Math.max(most, 0));

// What is new

async function poll() {
  try {
    const answer = await fetch("/steps", { cache: "no-store", headers: state.tag ? { "If-None-Match": state.tag } : {} });
    if (answer.status === 200) {
      state.tag = answer.headers.get("ETag");
      take(await answer.json());
    } else if (answer.status !== 304) throw new Error(answer.statusText);
    const skipped = state.skipped.length ? `, unreadable: ${state.skipped.join(", ")}` : "";
    tell((state.finished ? "finished" : "live") + skipped, state.finished ? "" : "live");
  } catch {
    tell("the server is gone", "lost");
  }
  setTimeout(poll, POLL_MS);
}

function tell(text, kind) {
  if (at("status").textContent === text) return;
  at("status").textContent = text;
  at("status").className = kind;
}

function take(summary) {
  const wasLast = state.index >= table().step.length - 1;
  const before = table().step[state.index];
  state.finished = summary.finished;
  state.skipped = summary.skipped ?? []; // names of files
  state.tables = byPhase(summary);
  at("run").textContent = summary.run;
  document.title = `${summary.run} · watch`;
  const phases = Object.keys(state.tables);
  if (!phases.includes(state.phase) && phases.length) state.phase = phases[0];
  const same = table().step.indexOf(before);
  state.index = wasLast || same < 0 ? table().step.length - 1 : same;
  for (const chart of charts) chart.load(state.tables);
  showPhases(phases);
  if (state.together) follow();
  show();
}

function byPhase(summary) {
  const tables = {};
  (summary.phase ?? []).forEach((phase, row) => {
    const mine = (tables[phase] ??= { step: [], version: [], rollouts: [], reward: [], km: [], parsed: [], tau_km: [] });
    for (const name of Object.keys(mine)) mine[name].push(summary[name][row]);
  });
  return Object.fromEntries(["train", "eval"].filter((phase) => phase in tables).map((phase) => [phase, tables[phase]]));
}

// What is in view

async function get(address, version, weight = 0) {
  const key = `${address} ${version}`;
  const have = loaded.get(key);
  if (have) return have.content;
  const answer = await fetch(address, { cache: "no-store" });
  const content = answer.ok ? await answer.json() : null;
  if (content) {
    loaded.set(key, { content, weight });
    let sum = 0;
    for (const kept of loaded.values()) sum += kept.weight + 1;
    for (const [old, kept] of loaded) {
      if (sum <= KEPT_ROLLOUTS || old === key) break;
      loaded.delete(old);
      sum -= kept.weight + 1;
    }
  }
  return content;
}

let busy = null;
let again = false;

/** Bring the step in view on the page. While one is on its way only the last one asked for is loaded after it. */
function show() {
  showPosition();
  if (busy) {
    again = true;
    return busy;
  }
  busy = (async () => {
    try {
      do {
        again = false;
        await load();
      } while (again);
    } catch {
      // the server is gone: the next poll tells
    } finally {
      busy = null;
    }
  })();
  return busy;
}

async function load() {
  const rows = table();
  if (state.index < 0) return;
  const [number, version] = [rows.step[state.index], rows.version[state.index]];
  const address = `/step/${number}/${state.phase}`;
  const step = await get(address, version, rows.rollouts[state.index]);
  if (!step || again) return; // taken back, or no longer asked for
  const wanted = step.groups.findIndex((group) => group.place === state.place);
  state.group = wanted >= 0 ? wanted : clamped(state.group, step.groups.length - 1);
  state.step = step;
  paint();
  const texts = await get(`${address}/${state.group}`, version);
  if (texts && !again) showGroup(texts);
}

function paint() {
  setScene();
  if (!at("hold").checked) map.fit();
  map.draw();
  at("view").dataset.painted = `${state.step.step}-${state.step.phase}`;
}

function setScene() {
  const { step, mode, group } = state;
  const shown = mode === "step" ? step.groups : [step.groups[group]];
  const dots = shown.flatMap((one) =>
    one.points.map((path, i) => ({ path, reward: one.reward[i], rollout: one.rollout[i], place: one.place, truth: one.truth })));
  let [low, high] = [Infinity, -Infinity];
  for (const { reward } of dots) [low, high] = [Math.min(low, reward), Math.max(high, reward)];
  const km = shown.flatMap((one) => one.km).filter((value) => value !== null).sort((a, b) => a - b);
  const median = km.length ? (km[(km.length - 1) >> 1] + km[km.length >> 1]) / 2 : null;
  const alone = mode === "place" && median !== null && median < 9000;
  const truths = shown.map((one) => one.truth);
  dots.sort((a, b) => a.reward - b.reward); // the best lie on top
  map.scene = { dots, truths, chosen: step.groups[group].truth, radiusKm: alone ? median : null, range: [low, high] };
  map.lit = null;
  at("told").textContent = told(dots.length, dots.length - km.length, median);
  at("lowest").textContent = `reward ${short(low)}`;
  at("highest").textContent = short(high);
}

function told(rollouts, silent, median) {
  const parts = [`${rollouts.toLocaleString("en")} rollouts`];
  if (median !== null) parts.push(`half within ${short(median)} km`);
  if (silent) parts.push(`${silent.toLocaleString("en")} without a place`);
  return parts.join(" · ");
}

function showPosition() {
  const rows = table();
  const last = rows.step.length - 1;
  const step = rows.step[state.index];
  at("slider").max = Math.max(last, 0);
  at("slider").value = state.index;
  at("where").textContent = last < 0 ? "nothing written yet" : `step ${step.toLocaleString("en")} of ${rows.step[last].toLocaleString("en")}`;
  at("slider").setAttribute("aria-valuetext", at("where").textContent);
  at("back").disabled = state.index <= 0;
  at("forward").disabled = state.index >= last;
  if (last >= 0) for (const chart of charts) chart.draw(step, state.phase, rows[chart.column][state.index]);
}

function showPhases(phases) {
  at("phases").replaceChildren(...phases.map((phase) => {
    const button = element("button", "", phase);
    button.setAttribute("aria-pressed", phase === state.phase);
    button.addEventListener("click", () => setPhase(phase));
    return button;
  }));
}

// The place: pictures, prompt, replies

function element(name, kind, text = "") {
  const made = document.createElement(name);
  made.className = kind;
  made.textContent = text;
  return made;
}

function showGroup(texts) {
  const { step } = state;
  const group = step.groups[state.group];
  at("number").textContent = `${(state.group + 1).toLocaleString("en")} of ${step.groups.length.toLocaleString("en")}`;
  at("place").textContent = group.place;
  at("before").disabled = state.group === 0;
  at("next").disabled = state.group === step.groups.length - 1;
  const tau = table().tau_km[state.index];
  at("facts").textContent = `${texts.environment} · truth ${group.truth.map((degrees) => degrees.toFixed(4)).join(", ")} · tau ${short(tau)} km`;
  at("prompt").textContent = texts.prompt;
  showPictures(texts.pictures);
  const best = group.reward.map((_, i) => i).sort((a, b) => group.reward[b] - group.reward[a]);
  const cards = best.slice(0, MOST_CARDS).map((i) => card(group, texts, i));
  if (best.length > MOST_CARDS) cards.push(element("li", "soft", `and ${best.length - MOST_CARDS} more with lower rewards`));
  at("rollouts").replaceChildren(...cards);
  document.querySelector("aside").dataset.painted = `${step.step}-${step.phase}-${state.group}`;
}

function showPictures(names) {
  const shown = [...at("pictures").children].map((image) => image.dataset.name);
  if (shown.join("/") === names.join("/")) return; // the same place again
  at("pictures").className = names.length === 1 ? "single" : "";
  at("pictures").replaceChildren(...names.map((name, view) => {
    const image = element("img", "");
    image.src = `/pictures/${encodeURIComponent(name)}`;
    image.dataset.name = name;
    image.alt = `view ${view + 1}`;
    image.tabIndex = 0; // in focus it is shown large
    return image;
  }));
}

function card(group, texts, i) {
  const made = element("li", "");
  made.dataset.rollout = group.rollout[i];
  const head = made.appendChild(element("div", "head"));
  const dot = head.appendChild(element("span", "dot"));
  dot.style.background = colour(share(group.reward[i], map.scene.range));
  head.append(element("b", "", short(group.reward[i])), advantage(group.advantage[i]));
  head.append(element("span", "km", group.km[i] === null ? "no place" : `${short(group.km[i])} km`), element("span", "soft", `#${group.rollout[i]}`));
  const replies = texts.replies[i];
  replies.forEach((reply, turn) => {
    if (replies.length > 1) {
      const line = made.appendChild(element("div", "turn soft"));
      line.append(element("span", "", `turn ${turn + 1}`), element("span", "", `reward ${short(texts.rewards[i][turn])}`));
    }
    made.append(element("div", "said", reply));
  });
  made.addEventListener("pointerenter", () => light(map.scene.dots.find((one) => one.place === group.place && one.rollout === group.rollout[i]) ?? null));
  made.addEventListener("pointerleave", () => light(null));
  return made;
}

function advantage(value) {
  if (value === null) return element("span", "soft", "");
  const made = element("span", value > 0 ? "plus" : value < 0 ? "minus" : "soft", `${value > 0 ? "+" : ""}${short(value)}`);
  made.title = "advantage";
  return made;
}

function light(dot) {
  if (map.lit === dot) return;
  map.lit = dot;
  map.draw();
  const here = dot && dot.place === state.step.groups[state.group].place;
  for (const one of at("rollouts").children) one.classList.toggle("lit", Boolean(here) && Number(one.dataset.rollout) === dot.rollout);
}

function pick(dot) {
  if (!dot) return;
  if (dot.place === state.step.groups[state.group].place) {
    at("rollouts").querySelector(`[data-rollout="${dot.rollout}"]`)?.scrollIntoView({ block: "nearest" });
  } else setGroup(state.step.groups.findIndex((group) => group.place === dot.place));
}

// What one can do

function setPhase(phase) {
  const step = table().step[state.index];
  state.phase = phase;
  at("follow").checked = false;
  state.together = null;
  showPhases(Object.keys(state.tables));
  seek(step);
}

function setGroup(number) {
  if (!state.step) return;
  state.group = clamped(number, state.step.groups.length - 1);
  state.place = state.step.groups[state.group].place;
  if (state.together) follow();
  show();
}

/** Go to the step nearest to a number, of those that may be gone to. */
function seek(step) {
  const steps = table().step;
  let best = -1;
  steps.forEach((one, i) => {
    const allowed = !state.together || state.together.has(one);
    if (allowed && (best < 0 || Math.abs(one - step) < Math.abs(steps[best] - step))) best = i;
  });
  return go(best < 0 ? state.index : best);
}

function go(index) {
  state.index = clamped(index, table().step.length - 1);
  return show();
}

/** Go some steps on; while a place is followed, to the next one that has it. False at the end. */
function move(by) {
  const steps = table().step;
  let index = state.index + by;
  while (state.together && index >= 0 && index < steps.length && !state.together.has(steps[index])) index += Math.sign(by);
  if (index < 0 || index >= steps.length) return false;
  return go(index);
}

async function follow() {
  if (!at("follow").checked || !state.step) {
    state.together = null;
    return;
  }
  const { step, phase } = state.step;
  state.place = state.step.groups[state.group].place;
  const answer = await fetch(`/step/${step}/${phase}/${state.group}/steps`, { cache: "no-store" });
  if (answer.ok) state.together = new Set(await answer.json());
}

async function play(on) {
  const mine = (state.playing = on ? performance.now() : 0);
  at("play").textContent = on ? "pause" : "play";
  if (on && state.index >= table().step.length - 1) seek(table().step[0]);
  while (mine && state.playing === mine) {
    const due = performance.now() + 1000 / Number(at("speed").value);
    const moved = move(1);
    if (moved === false) return play(false);
    await moved;
    await new Promise((done) => setTimeout(done, Math.max(due - performance.now(), 0)));
  }
}

const KEYS = {
  ArrowLeft: () => move(-1), ArrowRight: () => move(1),
  ArrowUp: () => setGroup(state.group - 1), ArrowDown: () => setGroup(state.group + 1),
  Home: () => seek(table().step[0]), End: () => seek(table().step.at(-1)),
  " ": () => play(!state.playing),
};

function listen() {
  document.addEventListener("keydown", (event) => {
    const other = event.target.closest("select, summary, a") || (event.key === " " && event.target.closest("button, input"));
    if (other || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  at("slider").addEventListener("input", (event) => seek(table().step[event.target.valueAsNumber]));
  at("back").addEventListener("click", () => move(-1));
  at("forward").addEventListener("click", () => move(1));
  at("play").addEventListener("click", () => play(!state.playing));
  at("before").addEventListener("click", () => setGroup(state.group - 1));
  at("next").addEventListener("click", () => setGroup(state.group + 1));
  at("follow").addEventListener("change", follow);
  at("hold").addEventListener("change", () => state.step && paint());
  at("modes").addEventListener("click", (event) => {
    if (!event.target.dataset.mode) return;
    state.mode = event.target.dataset.mode;
    for (const button of at("modes").children) button.setAttribute("aria-pressed", button === event.target);
    if (state.step) paint();
  });
  new ResizeObserver(redraw).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function redraw() {
  showPosition();
  if (!state.step) return map.draw();
  if (!at("hold").checked) map.fit();
  map.draw();
}

function drawRamp() {
  const context = at("ramp").getContext("2d");
  [at("ramp").width, at("ramp").height] = [90, 1];
  for (let x = 0; x < 90; x++) {
    context.fillStyle = colour(x / 89);
    context.fillRect(x, 0, 1, 1);
  }
}

listen();
drawRamp();
poll();
fetch("/outlines.json").then((answer) => answer.json()).then((outlines) => {
  map.load(outlines);
  redraw();
});
