// The map of errors: draws the data in the page's JSON block, whose arrays run from the smallest error to the largest.
// Texts of the data are only ever set as textContent. `map` and `tiles` are folium's, named in the page.
"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const MOST_LINES = 800; // in view, those of the largest errors
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
const put = (parent, kind, text, name) => {
  const element = document.createElement(kind);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  parent.append(element);
  return element;
};

map.attributionControl.setPrefix("Leaflet · Natural Earth, US Census Bureau");
map.fitBounds(page.bounds, { maxZoom: 12, padding: [20, 20], animate: false });

// Ground. The land is drawn three times, as a line over the date line leads to longitudes beyond 180.
const turned = (rings) => [-360, 0, 360].map((turn) => rings.map((ring) => ring.map(([lat, lon]) => [lat, lon + turn])));
const ground = { renderer: L.canvas({ padding: 0.5 }), interactive: false };
const land = L.polygon(page.land.flatMap(turned), { ...ground, stroke: false, fillOpacity: 1 });
const countries = L.polyline(turned(page.countries).flat(), { ...ground, weight: 0.8 });
const states = L.polygon(page.states.map((ring) => [ring]), { ...ground, weight: 0.8, fillOpacity: 1 });
const paintGround = () => {
  const open = map.hasLayer(tiles) ? 0 : 1;
  land.setStyle({ fillColor: colour("land"), fillOpacity: open });
  countries.setStyle({ color: colour("border") });
  states.setStyle({ color: colour("border"), fillColor: colour("land"), fillOpacity: open });
};
[land, countries, states].forEach((layer) => layer.addTo(map));

// Dots and lines, on one canvas. Positions are those of Leaflet's projection at zoom 0.
const project = (lats, lons) => lats.map((lat, i) => L.CRS.EPSG3857.latLngToPoint(L.latLng(lat, lons[i]), 0));
const split = (points) => [Float64Array.from(points, (p) => p.x), Float64Array.from(points, (p) => p.y)];
const [trueX, trueY] = split(project(page.latitude, page.longitude));
const [guessX, guessY] = split(project(page.guess_latitude, page.guess_longitude));
const count = page.level.length;
const shades = () => (dark.matches ? [...page.colours].reverse() : page.colours);
const radius = () => Math.min(6, Math.max(1.5, map.getZoom() / 2 + 4 - Math.log10(count)));
let chosen = -1;

const canvas = L.canvas({ padding: 0.2 });
function paint() {
  const pen = canvas._ctx, box = canvas._bounds, zoom = 2 ** map.getZoom(), origin = map.getPixelOrigin();
  if (!pen || !box) return;
  pen.clearRect(box.min.x, box.min.y, box.max.x - box.min.x, box.max.y - box.min.y);
  const x = (value) => value * zoom - origin.x, y = (value) => value * zoom - origin.y;
  // The dots in view, without those that a dot of a larger error on the same pixel hides.
  const visible = [], width = Math.ceil(box.max.x - box.min.x) + 16, height = Math.ceil(box.max.y - box.min.y) + 16;
  const taken = new Uint8Array(width * height);
  for (let i = count - 1; i >= 0; i--) {
    const left = Math.round(x(trueX[i]) - box.min.x) + 8, top = Math.round(y(trueY[i]) - box.min.y) + 8;
    if (left < 0 || top < 0 || left >= width || top >= height || taken[top * width + left]) continue;
    taken[top * width + left] = 1;
    visible.push(i);
  }
  visible.reverse();
  const palette = shades(), size = radius();
  const line = (i) => {
    pen.beginPath();
    pen.moveTo(x(trueX[i]), y(trueY[i]));
    pen.lineTo(x(guessX[i]), y(guessY[i]));
    pen.strokeStyle = palette[page.level[i]];
    pen.stroke();
  };
  const dot = (left, top, r) => {
    pen.beginPath();
    pen.arc(left, top, r, 0, 2 * Math.PI);
  };
  pen.globalAlpha = visible.length < MOST_LINES ? 0.4 : 0.2;
  pen.lineWidth = 1;
  visible.slice(-MOST_LINES).forEach(line);
  pen.globalAlpha = 0.9;
  let level = -1;
  for (const i of visible) {
    if (level !== page.level[i]) pen.fillStyle = palette[(level = page.level[i])]; // 16 times, as they are in order
    if (size < 2.5) pen.fillRect(Math.round(x(trueX[i])) - 1, Math.round(y(trueY[i])) - 1, 3, 3);
    else dot(x(trueX[i]), y(trueY[i]), size), pen.fill();
  }
  pen.globalAlpha = 1;
  if (chosen < 0) return;
  pen.lineWidth = 2.5;
  line(chosen);
  pen.strokeStyle = colour("ink");
  pen.lineWidth = 2;
  dot(x(trueX[chosen]), y(trueY[chosen]), size + 1.5), pen.stroke();
  dot(x(guessX[chosen]), y(guessY[chosen]), 4), pen.stroke();
}
canvas.addTo(map);
map.on("moveend zoomend viewreset", paint); // after the canvas has cleared itself at the same events

function nearest(at) {
  const zoom = 2 ** map.getZoom(), origin = map.getPixelOrigin(), reach = (radius() + 6) ** 2;
  let best = reach, found = -1;
  for (let i = 0; i < count; i++) {
    const far = (trueX[i] * zoom - origin.x - at.x) ** 2 + (trueY[i] * zoom - origin.y - at.y) ** 2;
    if (far <= best) [best, found] = [far, i];
  }
  return found;
}
map.on("mousemove", (event) => {
  map.getContainer().style.cursor = nearest(event.layerPoint) < 0 ? "" : "pointer";
});
map.on("click", (event) => {
  const i = nearest(event.layerPoint);
  if (i < 0) return;
  const box = document.createElement("div");
  put(box, "p", page.labels[i]);
  const pictures = put(box, "div", undefined, "pictures");
  for (const jpeg of page.pictures[i] ?? []) put(pictures, "img").src = `data:image/jpeg;base64,${jpeg}`;
  if (!page.pictures[i]) put(box, "p", page.without, "soft");
  L.popup({ maxWidth: Math.min(300, innerWidth - 90), minWidth: Math.min(270, innerWidth - 100), maxHeight: innerHeight * 0.6,
    autoPanPaddingTopLeft: [10, 10], autoPanPaddingBottomRight: [10, innerHeight - legend.getContainer().getBoundingClientRect().top + 10] })
    .setLatLng([page.latitude[i], page.longitude[i]]).setContent(box).openOn(map);
  chosen = i;
  paint();
});
map.on("popupclose", () => { chosen = -1; paint(); });

const legend = L.control({ position: "bottomleft" });
legend.onAdd = () => put(document.createElement("div"), "div", undefined, "legend");
legend.addTo(map);
function paintLegend() {
  const box = legend.getContainer();
  box.replaceChildren();
  put(box, "i").style.background = `linear-gradient(to right, ${shades().join(",")})`;
  const ends = put(box, "div");
  page.ends.forEach((text) => put(ends, "span", text));
  put(box, "p", page.caption);
}
const paintAll = () => { paintGround(); paint(); paintLegend(); };
map.on("overlayadd overlayremove", paintGround);
dark.addEventListener("change", paintAll);
paintAll();
