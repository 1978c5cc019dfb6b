// The map of errors: draws the data in the page's JSON block. Texts of the data are only ever set as textContent.
function drawErrors(map) {
  const page = JSON.parse(document.getElementById("data").textContent);
  const element = (tag, text, style) => {
    const made = document.createElement(tag);
    made.textContent = text;
    Object.assign(made.style, style);
    return made;
  };
  const popUp = { whiteSpace: "pre-line", overflowWrap: "anywhere", maxHeight: "50vh", overflowY: "auto" };
  for (const [truth, guess, colour, label] of page.places) {
    L.polyline([truth, guess], { color: colour, weight: 1, opacity: 0.5 }).addTo(map);
    L.circleMarker(truth, { radius: 4, color: colour, fill: true, fillOpacity: 0.9, weight: 1 })
      .bindPopup(() => element("div", label, popUp), { maxWidth: 280 })
      .addTo(map);
  }
  map.fitBounds(page.bounds);
  const legend = L.control({ position: "topright" });
  legend.onAdd = () => {
    const box = element("div", "", { background: "white", padding: "6px 8px", maxWidth: "300px", borderRadius: "4px" });
    const colours = { background: `linear-gradient(to right, ${page.colours})`, height: "10px" };
    const ends = element("div", "", { display: "flex", justifyContent: "space-between" });
    ends.append(element("span", "0 km", {}), element("span", page.top, {}));
    box.append(element("div", "", colours), ends, element("div", page.caption, { overflowWrap: "anywhere" }));
    return box;
  };
  legend.addTo(map);
}
