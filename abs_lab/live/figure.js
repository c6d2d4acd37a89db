// Draws what `Figure` (nbs/live/00_widgets.ipynb) says. uPlot gives the axes, the zoom and the shared pointer; what is between the axes is drawn here, so that each curve has points of its own.
// Comes after `reconnect` and uPlot in one script. All text is set as text: names may come from anywhere.

const make = (kind, name, text = "") => { const made = document.createElement(kind); made.className = name; made.textContent = text; return made; };
const numbers = (view, kind) => view?.byteLength ? new kind(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength)) : new kind(0);
const short = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 4}), long = new Intl.NumberFormat("en", {maximumSignificantDigits: 5});
const said = (v, most = v) => v === null ? "" : Math.abs(most) >= 1e5 ? short.format(v) : v !== 0 && Math.abs(v) < 1e-4 ? v.toExponential(1) : long.format(v);
const FONT = "11px system-ui, sans-serif", LEFT = 54, AXIS = 22, LABEL = 18, TITLE = 22, LEAST = 92;  // pixels; LEAST: the height of a panel

function draw_curve(u, curve, ratio) {
  const {ctx} = u, at = i => [u.valToPos(curve.x[i], "x", true), u.valToPos(curve.y[i], "y", true)], size = curve.width * ratio;
  ctx.strokeStyle = ctx.fillStyle = curve.colour;
  ctx.lineWidth = size;
  ctx.setLineDash(curve.dash.map(d => d * ratio));
  ctx.beginPath();
  if (curve.kind === "band") {
    curve.x.forEach((x, i) => ctx.lineTo(u.valToPos(x, "x", true), u.valToPos(curve.y[i], "y", true)));
    ctx.fill();
  } else if (curve.kind === "dots") {
    for (let i = 0; i < curve.x.length; i++) { const [a, b] = at(i); if (!isFinite(b)) continue; ctx.moveTo(a + size / 2, b); ctx.arc(a, b, size / 2, 0, 7); }
    ctx.fill();
  } else if (curve.kind === "diamonds") {
    for (let i = 0; i < curve.x.length; i++) { const [a, b] = at(i), r = size / 2; ctx.moveTo(a - r, b); ctx.lineTo(a, b - r); ctx.lineTo(a + r, b); ctx.lineTo(a, b + r); ctx.closePath(); }
    ctx.fill();
    ctx.strokeStyle = "white"; ctx.lineWidth = ratio; ctx.stroke();
  } else {
    let open = false, level = 0;
    for (let i = 0; i < curve.x.length; i++) {
      const [a, b] = at(i);
      if (!isFinite(b)) { open = false; continue; }
      if (open && curve.kind === "steps") ctx.lineTo(a, level);
      open ? ctx.lineTo(a, b) : ctx.moveTo(a, b);
      [open, level] = [true, b];
    }
    ctx.stroke();
  }
  ctx.setLineDash([]);
}

function render({model, el}) {
  const figure = make("div", "abs-lab-figure"), top = make("div", "abs-lab-legend"), names = make("div", "names"), grid = make("div", "abs-lab-panels"), tip = make("div", "abs-lab-tip");
  const whole = make("button", "abs-lab-small", "whole"), camera = make("button", "abs-lab-small", "PNG");
  whole.title = "show the whole x axis again (or double-click in the plot); to see a part of it, drag over that part";
  camera.title = "save the figure as a PNG file";
  top.append(names, whole, camera);
  figure.append(top, grid, tip);
  el.append(figure);
  const key = `abs-lab-${Math.random()}`, hidden = new Set();
  let plots = [], curves = [], columns = 1, drag = null, theme = {};

  const read = () => figure.curves = curves = model.get("drawn").map(c => ({...c, x: numbers(c.x, Float64Array), y: numbers(c.y, Float32Array)}));
  const shown = panel => curves.filter(c => c.panel === panel && !hidden.has(c.group));
  const lines = panel => (drag ?? model.get("lines")).filter(l => l.panel === panel);
  const zoom = range => { model.set("zoom", range); model.save_changes(); };
  const colour = (name, otherwise) => getComputedStyle(figure).getPropertyValue(name).trim() || otherwise;
  const look = () => theme = {ink: getComputedStyle(figure).color, grid: colour("--jp-border-color2", "#8b919a55"), paper: colour("--jp-layout-color0", "#fff")};

  const extent = (found, room) => {
    let [low, high] = [Infinity, -Infinity];
    for (const v of found) if (isFinite(v)) { low = Math.min(low, v); high = Math.max(high, v); }
    if (low > high) return [0, 1];
    const more = (high - low || Math.abs(high) || 1) * room;
    return [low - more * (low !== 0), high + more];
  };
  const reach = () => {
    const [zoomed, given] = [model.get("zoom"), model.get("x_range")];
    return zoomed.length ? zoomed : given.length ? given : extent(curves.flatMap(c => [c.x[0] ?? NaN, c.x[c.x.length - 1] ?? NaN]), 0);
  };
  const height = (panel, [left, right]) => {
    const {range, log} = model.get("panels")[panel];
    if (range && !model.get("zoom").length) return range;
    const found = shown(panel).flatMap(c => [...c.y].filter((y, i) => c.x[i] >= left && c.x[i] <= right && (y > 0 || !log)));
    if (!log) return extent([...found, ...lines(panel).map(l => l.y), ...model.get("from_zero") ? [0] : []], 0.08);
    const [low, high] = extent([...found, ...lines(panel).map(l => l.y)].map(Math.log10), 0.08);
    return [10 ** low, 10 ** high];
  };

  function below(u, panel) {
    const {ctx, bbox} = u, ratio = devicePixelRatio;
    ctx.save();
    ctx.fillStyle = theme.ink; ctx.font = `600 ${11 * ratio}px system-ui, sans-serif`; ctx.textAlign = "left"; ctx.textBaseline = "alphabetic";
    ctx.fillText(model.get("panels")[panel].title, 4 * ratio, bbox.top - 7 * ratio);
    ctx.beginPath(); ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height); ctx.clip();
    ctx.strokeStyle = "#8b919a"; ctx.lineWidth = ratio; ctx.setLineDash([2 * ratio, 3 * ratio]);
    for (const x of model.get("moments")) { const a = u.valToPos(x, "x", true); ctx.beginPath(); ctx.moveTo(a, bbox.top); ctx.lineTo(a, bbox.top + bbox.height); ctx.stroke(); }
    for (const c of shown(panel)) draw_curve(u, c, ratio);
    ctx.restore();
    ctx.save();
    ctx.font = `${11 * ratio}px system-ui, sans-serif`; ctx.lineWidth = 2.5 * ratio; ctx.textAlign = "left";
    lines(panel).forEach((line, i) => {
      const at = u.valToPos(line.y, "y", true), inside = at >= bbox.top - 1 && at <= bbox.top + bbox.height + 1;
      if (u.handles[i]) { u.handles[i].hidden = !inside; u.handles[i].style.top = `${(at - bbox.top) / ratio}px`; }
      if (!inside) return;
      ctx.strokeStyle = ctx.fillStyle = line.colour;
      ctx.beginPath(); ctx.moveTo(bbox.left, at); ctx.lineTo(bbox.left + bbox.width, at); ctx.stroke();
      ctx.textBaseline = i ? "bottom" : "top";  // the upper one's above it, so that two of them do not lie on one another
      ctx.fillStyle = `color-mix(in srgb, ${line.colour} 55%, ${theme.ink})`;
      if (line.name) ctx.fillText(`${line.name} ${Number(line.y.toPrecision(3))}`, bbox.left + bbox.width + 5 * ratio, at);
    });
    ctx.restore();
  }

  function handles(u, panel) {
    u.handles = lines(panel).map((line, i) => {
      if (!line.name) return null;
      const handle = make("div", "abs-lab-line");
      handle.title = `drag: ${line.name}`;
      handle.dataset.colour = line.colour;
      handle.onmousedown = e => e.stopPropagation();  // it is no zoom
      handle.onpointerdown = e => { handle.setPointerCapture(e.pointerId); drag = model.get("lines").map(l => ({...l})); };
      handle.onpointermove = e => { if (!drag) return;
        drag.filter(l => l.panel === panel)[i].y = u.posToVal(e.clientY - u.over.getBoundingClientRect().top, "y"); u.redraw(false, false); };
      handle.onpointerup = handle.onpointercancel = () => { if (!drag) return; model.set("lines", drag); drag = null; model.save_changes(); };
      u.over.append(handle);
      return handle;
    });
  }

  function point(u, panel, e) {
    const place = u.over.getBoundingClientRect(), [left, up] = [e.clientX - place.left, e.clientY - place.top];
    let best = null, least = 24 ** 2;
    for (const c of shown(panel)) for (let i = 0; c.hover && i < c.x.length; i++) {
      const d = (u.valToPos(c.x[i], "x") - left) ** 2 + (u.valToPos(c.y[i], "y") - up) ** 2;
      if (d < least) [best, least] = [[c, i], d];
    }
    tip.hidden = !best;
    if (!best) return;
    const [c, i] = best, box = figure.getBoundingClientRect();
    tip.textContent = c.text?.[i] ?? `${c.name}: ${said(c.y[i])}\n${model.get("x_label")}: ${long.format(c.x[i])}`;
    tip.style.borderColor = c.colour;
    tip.style.left = `${Math.min(place.left - box.left + left + 14, box.width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${Math.max(place.top - box.top + up - tip.offsetHeight - 10, 0)}px`;
  }

  function build() {
    plots.forEach(u => u.destroy());
    const panels = model.get("panels"), width = Math.floor(grid.clientWidth / columns), rows = Math.ceil(panels.length / columns), stacked = columns === 1 && model.get("columns") === 1;
    const ticked = i => !stacked || i === panels.length - 1, labelled = i => i >= panels.length - columns && !!model.get("x_label");
    const room = (grid.clientHeight - LABEL * !!model.get("x_label") - (stacked ? 1 : rows) * AXIS) / rows;
    grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    plots = panels.map((panel, i) => {
      const x = reach(), axis = {stroke: () => theme.ink, font: FONT, labelFont: FONT, grid: {stroke: () => theme.grid, width: 1}, ticks: {show: false}, gap: 4};
      const div = make("div", "abs-lab-panel");
      div.setAttribute("role", "img"); div.setAttribute("aria-label", panel.title);
      const u = new uPlot({
        width, height: Math.floor(room + AXIS * ticked(i) + LABEL * labelled(i)), padding: [TITLE, model.get("right"), ticked(i) ? 0 : 8, 0], legend: {show: false},
        cursor: {sync: {key, scales: ["x", null]}, points: {show: false}, y: false, drag: {x: true, y: false, setScale: false}, bind: {dblclick: () => () => zoom([])}},
        scales: {x: {time: false, range: (_, low, high) => [low, high]}, y: {auto: false, distr: panel.log ? 3 : 1, range: (_, low, high) => [low, high]}},
        series: [{}, {}],
        axes: [{...axis, size: ticked(i) ? AXIS : 0, space: 70, values: (_, all) => all.map(v => ticked(i) ? said(v, all[all.length - 1]) : ""), ...labelled(i) ? {label: model.get("x_label"), labelSize: LABEL, labelGap: 0} : {}},
               {...axis, size: LEFT, space: 26, values: (_, all) => all.map(v => said(v))}],
        hooks: {drawAxes: [u => below(u, i)], setSelect: [u => {
          const {left, width} = u.select;
          if (width > 4 && u.cursor.event) zoom([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
          if (width) u.setSelect({left: 0, width: 0, top: 0, height: 0}, false); }]},
      }, [[x[0], x[1]], [null, null]], div);
      handles(u, i);
      u.over.addEventListener("mousemove", e => point(u, i, e));
      u.over.addEventListener("mouseleave", () => tip.hidden = true);
      return u;
    });
    grid.replaceChildren(...plots.map(u => u.root.parentNode));
    draw();
  }

  function draw() {
    whole.hidden = !model.get("zoom").length;
    figure.ranges = plots.map((_, i) => height(i, reach()));
    plots.forEach((u, i) => u.batch(() => {
      const [left, right] = reach(), [low, high] = figure.ranges[i];
      u.setData([[left, right], [null, null]], false);
      u.setScale("x", {min: left, max: right});
      u.setScale("y", {min: low, max: high});
    }));
  }

  function name() {
    const seen = new Set();
    names.replaceChildren(...curves.filter(c => c.legend && !seen.has(c.group) && seen.add(c.group)).map(c => {
      const button = make("button", `name ${c.kind}`), swatch = make("i", "");
      swatch.style.setProperty("--colour", c.colour);
      swatch.style.setProperty("--style", c.dash.length ? "dashed" : "solid");
      button.append(swatch, c.name);
      button.title = "hide or show";
      const press = () => { button.setAttribute("aria-pressed", !hidden.has(c.group)); draw(); };
      button.onclick = () => { hidden.has(c.group) ? hidden.delete(c.group) : hidden.add(c.group); press(); };
      button.setAttribute("aria-pressed", !hidden.has(c.group));
      return button;
    }));
  }

  function save() {
    const ratio = devicePixelRatio, box = figure.getBoundingClientRect(), canvas = document.createElement("canvas"), ink = canvas.getContext("2d");
    [canvas.width, canvas.height] = [box.width * ratio, box.height * ratio];
    ink.fillStyle = theme.paper; ink.fillRect(0, 0, canvas.width, canvas.height);
    for (const u of plots) { const at = u.ctx.canvas.getBoundingClientRect(); ink.drawImage(u.ctx.canvas, (at.left - box.left) * ratio, (at.top - box.top) * ratio); }
    ink.font = `${11 * ratio}px system-ui, sans-serif`; ink.textBaseline = "middle";
    for (const button of names.children) {
      const at = button.getBoundingClientRect(), [x, y] = [(at.left - box.left) * ratio, (at.top - box.top + at.height / 2) * ratio];
      if (button.getAttribute("aria-pressed") === "false") continue;
      ink.fillStyle = button.firstChild.style.getPropertyValue("--colour"); ink.fillRect(x + 4 * ratio, y - 1.5 * ratio, 14 * ratio, 3 * ratio);
      ink.fillStyle = theme.ink; ink.fillText(button.textContent, x + 22 * ratio, y);
    }
    canvas.toBlob(blob => { const a = document.createElement("a"); a.href = URL.createObjectURL(blob); a.download = "abs_lab.png"; a.click(); });
  }

  function fit() {
    const rows = n => Math.ceil(model.get("panels").length / n);
    columns = Math.max(Math.min(model.get("columns"), Math.floor(el.clientWidth / 200)), 1);
    figure.style.height = `max(${model.get("height")}px, 100vh - ${model.get("beside")}px, ${rows(columns) * LEAST + AXIS + LABEL + 30}px)`;
    look();
    if (grid.clientWidth && grid.clientHeight) build();
  }

  let legend = "";
  const renew = () => { read(); const said = JSON.stringify(curves.map(c => [c.name, c.colour, c.legend, c.group])); if (said !== legend) { legend = said; name(); } draw(); };
  const parts = () => JSON.stringify([model.get("panels").map(p => [p.title, p.log]), model.get("columns"), model.get("x_label"), model.get("height"), model.get("lines").map(l => [l.panel, l.name])]);
  let built = parts(), due = 0;
  const again = () => { if (parts() !== built) { built = parts(); fit(); } else draw(); };
  const soon = what => () => { cancelAnimationFrame(due); changed.add(what); due = requestAnimationFrame(() => { for (const f of [...changed]) f(); changed.clear(); }); };
  const changed = new Set();
  model.on("change:drawn", soon(renew));
  for (const t of ["panels", "columns", "x_label", "height", "lines", "moments", "x_range", "zoom"]) model.on("change:" + t, soon(again));
  whole.onclick = () => zoom([]);
  camera.onclick = save;
  const sizes = new ResizeObserver(fit), themes = new MutationObserver(() => requestAnimationFrame(() => { look(); plots.forEach(u => u.redraw(false, true)); }));
  sizes.observe(grid);
  themes.observe(document.body, {attributes: true}); themes.observe(document.documentElement, {attributes: true});
  tip.hidden = true;
  renew();
  return () => { sizes.disconnect(); themes.disconnect(); plots.forEach(u => u.destroy()); };
}
export default {initialize: reconnect, render};
