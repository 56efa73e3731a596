// Tables sort by a click on a heading and give their CSV; figures tell the value that is next to the pointer.
for (const table of document.querySelectorAll("main table")) {
  const value = cell => { const n = parseFloat(cell.innerText.replace(/[,\u00a0]/g, "").replace("−", "-")); return isNaN(n) ? cell.innerText : n; };
  table.querySelectorAll("thead th").forEach((heading, at) => heading.addEventListener("click", () => {
    const up = heading.dataset.sorted !== "up", body = table.tBodies[0];
    table.querySelectorAll("thead th").forEach(other => delete other.dataset.sorted);
    heading.dataset.sorted = up ? "up" : "down";
    [...body.rows].map(row => [value(row.cells[at]), row]).sort(([a], [b]) =>
      (typeof a === typeof b ? (a > b) - (a < b) : typeof a === "string" ? 1 : -1) * (up ? 1 : -1)).forEach(([, row]) => body.append(row));
  }));
  const link = document.createElement("a"), text = cell => '"' + cell.innerText.replace(/\s+/g, " ").trim().replace(/"/g, '""') + '"';
  link.textContent = "CSV";
  link.className = "csv";
  link.download = (document.title + " " + (table.closest("section")?.querySelector("h2")?.innerText ?? "table")).replace(/[^\w]+/g, "_") + ".csv";
  link.href = "#";
  link.addEventListener("click", () => { link.href = URL.createObjectURL(new Blob([[...table.rows].map(row => [...row.cells].map(text).join(",")).join("\n")], {type: "text/csv"})); });
  (table.closest(".scroll") ?? table).after(link);
}
const told = document.body.appendChild(Object.assign(document.createElement("div"), {id: "told", hidden: true}));
const digits = x => Math.abs(x) >= 1e4 ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(4));
for (const picture of document.querySelectorAll("svg[data-panels]")) {
  const panels = JSON.parse(picture.dataset.panels);
  const share = ([from, to, log], x) => log ? Math.log(x / from) / Math.log(to / from) : (x - from) / (to - from);
  picture.addEventListener("pointermove", event => {
    const frame = picture.getBoundingClientRect(), px = (event.clientX - frame.left) / frame.width, py = (event.clientY - frame.top) / frame.height;
    let best = null, nearest = 40;
    for (const {box: [left, top, right, bottom], x, y, labels, ticks, marks} of panels) if (px >= left && px <= right && py >= top && py <= bottom)
      for (const [name, xs, ys] of marks) xs.forEach((at, i) => {
        const dx = (left + share(x, at) * (right - left) - px) * frame.width, dy = (bottom - share(y, ys[i]) * (bottom - top) - py) * frame.height, far = Math.hypot(dx, dy);
        if (far < nearest) { nearest = far; best = [name, ticks.length ? ticks[Math.round(ys[i])] + ": " + digits(at) : (labels[0] || "x") + " " + digits(at) + ", " + (labels[1] || "y") + " " + digits(ys[i])]; }
      });
    told.hidden = !best;
    if (best) { told.textContent = best.filter(Boolean).join(": "); told.style.left = Math.min(event.pageX + 12, scrollX + innerWidth - told.offsetWidth - 8) + "px"; told.style.top = event.pageY + 16 + "px"; }
  });
  picture.addEventListener("pointerleave", () => { told.hidden = true; });
}
