/* Paths of optimizers over functions of two numbers. No library, no network, no storage.
   window.lossbookPaths has the update functions, which the tests compare with lossbook's. */
(() => {
  "use strict";
  const h = Math.SQRT1_2;
  const bowl = (a, b, c) => ({ // half of a x^2 + 2 b x y + c y^2
    f: ([x, y]) => (a * x * x + 2 * b * x * y + c * y * y) / 2,
    grad: ([x, y]) => [a * x + b * y, b * x + c * y],
    minimum: [0, 0],
  });
  const valley = (k) => ({ // half of (1 - x)^2 + k (y - x^2)^2
    f: ([x, y]) => ((1 - x) ** 2 + k * (y - x * x) ** 2) / 2,
    grad: ([x, y]) => [x - 1 - 2 * k * x * (y - x * x), k * (y - x * x)],
    minimum: [1, 1],
  });
  const problems = {
    bowl: { name: "bowl, curvatures 10 and 1", start: [1, 1], box: [-1.6, 1.6, -0.8, 1.4],
      ...bowl(10, 0, 1) },
    narrow: { name: "narrow bowl, 100 and 1", start: [0.7, 1], box: [-1.6, 1.6, -0.8, 1.4],
      ...bowl(100, 0, 1) },
    turned: { name: "narrow bowl, turned by 45°", start: [-0.3 * h, 1.7 * h],
      box: [-1.6, 1.6, -0.8, 1.4], ...bowl(50.5, 49.5, 50.5) },
    banana: { name: "banana valley", start: [-1.2, 1], box: [-1.8, 1.8, -0.7, 1.8], ...valley(10) },
    rosenbrock: { name: "Rosenbrock's valley", start: [-1.2, 1], box: [-1.8, 1.8, -0.7, 1.8],
      ...valley(200) },
  };

  /* Each update: (coordinate, gradient, memory of this coordinate, step, options) -> coordinate. */
  const optimizers = {
    sgd: { name: "gradient descent", lr: 0.18,
      step: (x, g, m, t, o) => x - o.lr * g },
    ball: { name: "heavy ball", lr: 0.23, momentum: 0.27, label: "Momentum μ",
      step: (x, g, m, t, o) => x - o.lr * (m.b = o.momentum * (m.b || 0) + g) },
    nesterov: { name: "Nesterov", lr: 0.1, momentum: 0.52, label: "Momentum μ",
      step: (x, g, m, t, o) => {
        m.b = o.momentum * (m.b || 0) + g;
        return x - o.lr * (g + o.momentum * m.b);
      } },
    rmsprop: { name: "RMSProp (α = 0.9)", lr: 0.05,
      step: (x, g, m, t, o) => {
        m.v = 0.9 * (m.v || 0) + (1 - 0.9) * g * g;
        return x - o.lr * g / (Math.sqrt(m.v) + 1e-8);
      } },
    adam: { name: "Adam (β₂ = 0.999)", lr: 0.1, momentum: 0.9, label: "β₁",
      step: (x, g, m, t, o) => {
        m.m = o.momentum * (m.m || 0) + (1 - o.momentum) * g;
        m.v = 0.999 * (m.v || 0) + (1 - 0.999) * g * g;
        const mean = m.m / (1 - o.momentum ** t), square = m.v / (1 - 0.999 ** t);
        return x - o.lr * mean / (Math.sqrt(square) + 1e-8);
      } },
  };

  /* A walk that remembers: next() makes one step and returns the new point. */
  function walker(problem, optimizer, options) {
    const memory = [{}, {}];
    let point = problems[problem].start, t = 0;
    return { next() {
      const g = problems[problem].grad(point);
      t += 1;
      point = point.map((x, i) => optimizers[optimizer].step(x, g[i], memory[i], t, options));
      return point;
    } };
  }
  function run(problem, optimizer, options, steps) {
    const walk = walker(problem, optimizer, options), path = [problems[problem].start];
    while (path.length <= steps) path.push(walk.next());
    return path;
  }

  // Contours by marching squares: where a level crosses the sides of small cells.
  const WIDTH = 640, HEIGHT = 440, CELLS = 72;
  function contour(f, [left, right, low, high], level, toPixels) {
    const at = (i, j) => [left + (right - left) * i / CELLS, low + (high - low) * j / CELLS];
    const grid = [...Array(CELLS + 1).keys()];
    const value = grid.map((i) => grid.map((j) => f(at(i, j)) - level));
    let d = "";
    const corners = [[0, 0], [1, 0], [1, 1], [0, 1]];
    for (let i = 0; i < CELLS; i++) for (let j = 0; j < CELLS; j++) {
      const crossings = [];
      corners.forEach(([a, b], k) => {
        const [c, e] = corners[(k + 1) % 4];
        const one = value[i + a][j + b], two = value[i + c][j + e];
        if (one < 0 === two < 0) return;
        const s = one / (one - two);
        crossings.push(toPixels(at(i + a + s * (c - a), j + b + s * (e - b))));
      });
      for (let k = 0; k + 1 < crossings.length; k += 2)
        d += `M${crossings[k].join(" ")}L${crossings[k + 1].join(" ")}`;
    }
    return d;
  }

  let count = 0;
  function make(tag, attributes = {}, text = "") {
    const svg = /^(svg|path|circle|g|text)$/.test(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  }
  const rounded = (x) => Number(x.toPrecision(2));
  const short = (x) => Math.abs(x) < 1e4 && (Math.abs(x) >= 1e-3 || x === 0)
    ? x.toFixed(4) : x.toExponential(2);

  function build(figure) {
    const id = `paths-${count++}`, data = figure.dataset;
    const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
    const controls = make("div", { class: "paths-controls" }), field = {};
    function control(key, label, element) {
      element.id = `${id}-${key}`;
      field[key] = element;
      const box = make("div");
      box.append(make("label", { for: element.id }, label), element);
      controls.append(box);
      return box;
    }
    function choice(key, label, entries, chosen) {
      const select = make("select");
      for (const [value, { name }] of Object.entries(entries))
        select.append(make("option", { value }, name));
      select.value = chosen in entries ? chosen : Object.keys(entries)[0];
      control(key, label, select);
    }
    choice("problem", "Landscape", problems, data.problem);
    choice("optimizer", "Optimizer", optimizers, data.optimizer);
    const slider = (key, min, max, step) =>
      control(key, "", make("input", { type: "range", min, max, step }));
    const lrBox = slider("lr", -4, 0.5, 0.02), momentumBox = slider("momentum", 0, 0.99, 0.01);
    const buttons = make("div", { class: "paths-buttons" });
    for (const [key, label] of [["step", "Step"], ["play", "Play"], ["reset", "Reset"]]) {
      field[key] = make("button", { type: "button" }, label);
      buttons.append(field[key]);
    }
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0,
      role: "application", "aria-describedby": `${id}-help` });
    const layer = (name, tag = "g") => svg.appendChild(make(tag, { class: `paths-${name}` }));
    const lines = layer("contours"), ticks = layer("ticks"), target = layer("minimum", "path");
    const trace = layer("trace", "path"), dots = layer("dots");
    const status = make("p", { class: "paths-status", "aria-live": "polite" });
    const help = make("p", { class: "paths-help", id: `${id}-help` },
      "Keys on the picture: → step, space play or pause, R reset.");
    figure.replaceChildren(controls, buttons, svg, status, help);
    figure.setAttribute("role", "group");
    figure.setAttribute("aria-label", "Paths of optimizers, interactive");

    let walk, path, timer = null, own = {};
    const lr = () => own.lr ?? rounded(10 ** field.lr.value);
    const momentum = () => Number(field.momentum.value);
    const problem = () => problems[field.problem.value];
    function toPixels([x, y]) {
      const [left, right, low, high] = problem().box;
      return [(x - left) / (right - left) * WIDTH, (high - y) / (high - low) * HEIGHT]
        .map((v) => Number(Math.max(-9e3, Math.min(9e3, v)).toFixed(1)));
    }
    function landscape() {
      const { f, start, box, minimum } = problem();
      lines.replaceChildren();
      for (let k = -6; k <= 5; k++) {
        const d = contour(f, box, f(start) * 3 ** (k / 1.5), toPixels);
        if (d) lines.append(make("path", { d }));
      }
      const [x, y] = toPixels(minimum);
      target.setAttribute("d", `M${x - 8} ${y}h16M${x} ${y - 8}v16`);
      ticks.replaceChildren(...[-1, 0, 1].flatMap((v) => {
        const [x, y] = toPixels([v, v]), name = (axis) => (v > 0 ? axis : "") + v;
        return [make("path", { d: `M${x} ${HEIGHT}v-9M0 ${y}h9` }),
          make("text", { x, y: HEIGHT - 14, "text-anchor": "middle" }, name("x = ")),
          make("text", { x: 14, y, dy: "0.35em" }, name("y = "))];
      }));
    }
    function draw() {
      const last = path.at(-1), loss = problem().f(last), pixels = path.map(toPixels);
      trace.setAttribute("d", "M" + pixels.map((p) => p.join(" ")).join("L"));
      dots.replaceChildren(...pixels.map(([cx, cy], i) =>
        make("circle", { cx, cy, r: i === path.length - 1 ? 6 : 3 })));
      const [left, right, low, high] = problem().box;
      const gone = !(last[0] >= left && last[0] <= right && last[1] >= low && last[1] <= high);
      const text = `Step ${path.length - 1}: x = ${short(last[0])}, y = ${short(last[1])}, `
        + `loss ${short(loss)}${gone ? ", outside the picture" : ""}.`;
      status.textContent = text;
      svg.setAttribute("aria-label", `${problem().name}, `
        + `${optimizers[field.optimizer.value].name}. ${text}`);
    }
    function pause() {
      clearInterval(timer);
      timer = null;
      field.play.textContent = still() ? "25 steps" : "Play";
      status.setAttribute("aria-live", "polite");
    }
    function step() {
      if (path.length > 500 || !(Math.hypot(...path.at(-1)) < 1e9)) return pause();
      path.push(walk.next());
      draw();
    }
    function play() {
      if (timer) return pause();
      if (still()) { // nothing moves: the steps are made at once
        for (let i = 0; i < 25; i++) step();
        return;
      }
      field.play.textContent = "Pause";
      status.setAttribute("aria-live", "off"); // ten sentences a second help nobody
      timer = setInterval(step, 120);
    }
    function reset() {
      pause();
      const optimizer = field.optimizer.value, { label } = optimizers[optimizer];
      lrBox.firstChild.textContent = `Rate η = ${lr()}`;
      field.lr.setAttribute("aria-valuetext", lr()); // not the logarithm
      momentumBox.firstChild.textContent = label ? `${label} = ${momentum()}` : "No momentum";
      field.momentum.disabled = !label;
      walk = walker(field.problem.value, optimizer, { lr: lr(), momentum: momentum() });
      path = [problem().start];
      draw();
    }
    function setRate(value) {
      own.lr = value; // exactly what was asked for, until the slider is moved
      field.lr.value = Math.log10(value);
    }
    function suit() { // a rate that works at all: in the bowl's units
      const steep = { bowl: 1, narrow: 10, turned: 10, banana: 5, rosenbrock: 400 };
      const { value } = field.optimizer, adaptive = ["rmsprop", "adam"].includes(value);
      setRate(rounded(optimizers[value].lr / (adaptive ? 1 : steep[field.problem.value])));
    }
    field.problem.addEventListener("change", () => { suit(); landscape(); reset(); });
    field.optimizer.addEventListener("change", () => {
      suit();
      field.momentum.value = optimizers[field.optimizer.value].momentum ?? 0;
      reset();
    });
    field.lr.addEventListener("input", () => { own.lr = undefined; reset(); });
    field.momentum.addEventListener("input", reset);
    field.step.addEventListener("click", () => { pause(); step(); });
    field.play.addEventListener("click", play);
    field.reset.addEventListener("click", reset);
    svg.addEventListener("keydown", (event) => {
      const action = { ArrowRight: () => { pause(); step(); }, " ": play, r: reset, R: reset };
      if (!action[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      action[event.key]();
    });
    suit();
    if (data.lr) setRate(Number(data.lr));
    field.momentum.value = data.momentum ?? 0.9;
    landscape();
    reset();
  }

  window.lossbookPaths = { problems, optimizers, run };
  const start = () => document.querySelectorAll(".paths-figure").forEach(build);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
