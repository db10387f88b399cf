// Figures that move without a kernel, and the filters of the ledger. Nothing is asked of any host.
"use strict";

const COLOURS = { plain: "#d55e00", residual: "#0072b2" };
const DASHES = { plain: "6 4", residual: "" };
const SVG = "http://www.w3.org/2000/svg";

function element(parent, name, attributes, text) {
  const node = name === "svg" || parent.namespaceURI === SVG
    ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

function ticks(low, high, log) {
  if (log) {
    const first = Math.ceil(Math.log10(low)), last = Math.floor(Math.log10(high));
    const step = Math.max(1, Math.ceil((last - first) / 5)), found = [];
    for (let power = first; power <= last; power += step) found.push(10 ** power);
    return found;
  }
  const raw = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(it => it * unit).find(it => it >= raw), found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9; at += step) found.push(at);
  return found;
}

function shown(value, log) {
  if (log && (value >= 1e4 || value < 1e-3)) return value.toExponential(0);
  return String(Number(value.toPrecision(3)));
}

function draw(figure, svg, curves, frame) {
  svg.replaceChildren();
  const [left, right, top, bottom, log] = [64, 590, 14, 290, figure.log];
  const every = figure.curves.flatMap(curve => curve.y).filter(it => it !== null && (!log || it > 0));
  let [low, high] = figure.limits || [Math.min(...every), Math.max(...every)];
  if (!log) low = Math.min(0, low);
  const scale = log ? Math.log10 : it => it;
  const xs = figure.xs || [...Array(Math.max(...curves.map(it => it.y.length))).keys()].map(it => it + 1);
  const place = {
    x: it => left + (right - left) * (it - xs[0]) / (xs[xs.length - 1] - xs[0]),
    y: it => bottom - (bottom - top) * (scale(it) - scale(low)) / (scale(high) - scale(low)),
  };
  for (const at of ticks(low, high, log)) {
    element(svg, "line", { class: "grid", x1: left, x2: right, y1: place.y(at), y2: place.y(at) });
    element(svg, "text", { x: left - 8, y: place.y(at) + 4, "text-anchor": "end" }, shown(at, log));
  }
  for (const at of ticks(xs[0], xs[xs.length - 1], false)) {
    element(svg, "text", { x: place.x(at), y: bottom + 18, "text-anchor": "middle" }, shown(at));
  }
  element(svg, "path", { class: "axis", fill: "none", d: `M${left} ${top}V${bottom}H${right}` });
  element(svg, "text", { x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle" }, figure.x);
  element(svg, "text", { x: 14, y: (top + bottom) / 2, "text-anchor": "middle",
    transform: `rotate(-90 14 ${(top + bottom) / 2})` }, figure.y);
  curves.forEach((curve, number) => {
    const points = curve.y.slice(0, frame).map((it, i) => [xs[i], it])
      .filter(([, it]) => it !== null && (!log || it > 0))
      .map(([x, y]) => [place.x(x), Math.min(bottom, Math.max(top, place.y(y)))]);
    const colour = COLOURS[curve.kind];
    element(svg, "polyline", { points: points.map(it => it.join(",")).join(" "), fill: "none",
      stroke: colour, "stroke-width": 2.5, "stroke-dasharray": DASHES[curve.kind] });
    const y = top + 16 + 20 * number;
    element(svg, "line", { x1: right - 210, x2: right - 180, y1: y - 4, y2: y - 4, stroke: colour,
      "stroke-width": 2.5, "stroke-dasharray": DASHES[curve.kind] });
    element(svg, "text", { x: right - 172, y }, curve.name);
  });
  const said = curves.map(curve => {
    const seen = curve.y.slice(0, frame).filter(it => it !== null);
    return `${curve.name}: from ${shown(seen[0], true)} to ${shown(seen[seen.length - 1], true)}`;
  });
  svg.setAttribute("aria-label", `${figure.title}. ${said.join("; ")}.`);
}

function slider(parent, name, options, chosen, changed) {
  const label = element(parent, "label", {}, `${name} `);
  const input = element(label, "input", { type: "range", min: 0, max: options.length - 1, step: 1 });
  const output = element(label, "output");
  const tell = () => {
    output.textContent = options[input.value];
    input.setAttribute("aria-valuetext", options[input.value]);
  };
  input.value = chosen;
  input.addEventListener("input", () => { tell(); changed(options[input.value]); });
  tell();
}

function move(frame) {
  const figure = JSON.parse(frame.dataset.figure), state = {};
  const last = Math.max(...figure.curves.map(curve => curve.y.length));
  element(frame, "p", { class: "title" }, figure.title);
  const svg = element(frame, "svg", { viewBox: "0 0 610 335", width: 610, role: "img" });
  const controls = element(frame, "div", { class: "controls" });
  let until = last;
  const again = () => draw(figure, svg, figure.curves.filter(curve =>
    Object.entries(curve.where).every(([key, value]) => state[key] === value)), until);
  for (const [name, options] of Object.entries(figure.choices)) {
    state[name] = figure.start[name];
    slider(controls, name, options, options.indexOf(state[name]), value => { state[name] = value; again(); });
  }
  if (figure.frames) {
    const frames = [...Array(last).keys()].map(it => it + 1);
    slider(controls, figure.frames, frames, last - 1, value => { until = value; again(); });
  }
  again();
}

function choice(parent, name, options, changed) {
  const label = element(parent, "label", {}, `${name} `);
  const select = element(label, "select");
  for (const [value, text] of options) element(select, "option", { value }, text);
  select.addEventListener("change", () => changed(select.value));
}

function filters(parent) {
  const claims = [...document.querySelectorAll(".claim")], wanted = { verdict: "", chapter: "" };
  const told = document.createElement("span");
  const apply = () => {
    for (const claim of claims) {
      claim.hidden = Object.values(wanted).some(it => it && !claim.classList.contains(it));
    }
    told.textContent = `${claims.filter(it => !it.hidden).length} of ${claims.length}`;
  };
  const chapters = new Map(claims.map(it => [
    [...it.classList].find(name => name.startsWith("in-")), it.querySelector(".where").textContent,
  ]));
  const verdicts = [["", "all"], ["holds", "holds"], ["condition", "holds when"], ["false", "false"], ["open", "not shown"]]
    .filter(([name]) => !name || claims.some(it => it.classList.contains(name)));
  choice(parent, "Verdict", verdicts, value => { wanted.verdict = value; apply(); });
  choice(parent, "Chapter", [["", "all"], ...[...chapters].sort()], value => { wanted.chapter = value; apply(); });
  told.setAttribute("role", "status");
  parent.append(told);
  apply();
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".moving").forEach(move);
  const parent = document.getElementById("filters");
  if (parent) filters(parent);
  for (const wide of document.querySelectorAll(".highlight pre, .output pre, table")) {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;  // or no keyboard scrolls it
  }
});
