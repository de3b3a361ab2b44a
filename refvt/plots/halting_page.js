"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [rows, columns] = data.grid, [windowRows, windowColumns] = data.windows;
  const height = rows * windowRows, width = columns * windowColumns; // of a frame, in patches
  const L = data.layers, T = data.frames.length, B = data.clips.length;
  const $ = (id) => document.getElementById(id);
  const ALIVE = 0, HALTED = 1, DROPPED = 2, LEFT = 3, HALTS = 4;
  const view = { frame: 0, layer: Math.ceil(L / 2), chosen: null, held: false };

  // ---- the numbers

  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const limit = Number((1 - data.epsilon).toPrecision(6));
  const show = (x) => (x > 0 && x < 0.00005 ? "< 0.0001" : x.toFixed(4));
  const cost = (x) => x.toPrecision(3);
  const clsLayer = (clip) => data.clips[clip].halting_layer[0];

  /** The token at a place: its clip, its number in the clip (−g: dropped by Glimpser block g), and its name. */
  function tokenAt(frame, y, x) {
    const clip = Math.floor(y / rows) * windowColumns + Math.floor(x / columns);
    const patch = (y % rows) * columns + (x % columns);
    const place = `${nameOf(frame)}, patch in row ${y + 1}, column ${x + 1}`;
    return { clip, token: data.clips[clip].token[frame][patch], name: place + inWindow(clip) };
  }

  /** A frame in words, counted from 1, in the clip and in the video. */
  function nameOf(frame) {
    return `Frame ${frame + 1}` + (data.indices ? ` (frame ${data.indices[frame] + 1} of the video)` : "");
  }

  function inWindow(clip) {
    if (B === 1) return "";
    return `, window ${clip + 1} of ${B}`;
  }

  /** What a token is in a layer, counted from 1. */
  function stateOf(clip, token, layer) {
    if (token < 0) return DROPPED;
    const halts = data.clips[clip].halting_layer[token];
    if (halts === 0) return layer > clsLayer(clip) ? LEFT : ALIVE;
    return layer < halts ? ALIVE : layer === halts ? HALTS : HALTED;
  }

  /** One or two sentences: in which layer a token ends, and why. */
  function reason(clip, token) {
    const of = data.clips[clip];
    if (token < 0) {
      return `Dropped by the Glimpser in block ${-token - 1}: it is not among the patches that this block keeps of its frame. ` +
        "It has no score, no remainder and no ponder.";
    }
    const halts = of.halting_layer[token], total = sum(of.scores[token]), cls = clsLayer(clip);
    if (halts === 0) {
      return `Still alive when the clip left: CLS halted in layer ${cls}, and no later layer was computed. ` +
        `The sum of its scores was ${show(total)}.`;
    }
    let text;
    if (halts < L) {
      text = `Halts in layer ${halts}: with this layer the sum of its scores is ${show(total)}, more than 1 − ε = ${limit}.`;
    } else {
      text = `Lives to the last layer, ${L}, in which every token halts: there the score is always 1. ` +
        `The sum before was ${show(total - 1)}, not more than 1 − ε = ${limit}.`;
    }
    if (cls > 0 && cls < halts) {
      text += ` CLS halts in layer ${cls}; a clip that leaves then leaves this token still alive.`;
    }
    return text;
  }

  // ---- the picture

  const canvas = $("picture"), context = canvas.getContext("2d");
  const images = data.frames.map((source) => Object.assign(new Image(), { src: source, onload: () => draw() }));
  const P = Math.max(12, Math.ceil(960 / width)); // pixels of a patch
  canvas.width = P * width;
  canvas.height = P * height;

  /** Mark a square by its state; marks differ in form, not by colour alone. */
  function mark(to, state, x, y, side) {
    const line = (...points) => {
      to.beginPath();
      for (let i = 0; i < points.length; i += 4) {
        to.moveTo(x + side * points[i], y + side * points[i + 1]);
        to.lineTo(x + side * points[i + 2], y + side * points[i + 3]);
      }
      to.stroke();
    };
    to.lineWidth = Math.max(1, side / 16);
    if (state === HALTED) {
      to.fillStyle = "rgba(230, 159, 0, .64)";
      to.fillRect(x, y, side, side);
      to.strokeStyle = "rgba(60, 35, 0, .75)";
      line(0, 0.5, 0.5, 0, 0, 1, 1, 0, 0.5, 1, 1, 0.5);
    } else if (state === DROPPED) {
      to.fillStyle = "rgba(18, 22, 62, .8)";
      to.fillRect(x, y, side, side);
      to.strokeStyle = "rgba(190, 200, 255, .7)";
      line(0.36, 0.36, 0.64, 0.64, 0.64, 0.36, 0.36, 0.64);
    } else if (state === LEFT) {
      to.fillStyle = "rgba(255, 255, 255, .85)";
      to.fillRect(x, y, side, side);
      to.fillStyle = "#444";
      to.beginPath();
      to.arc(x + side / 2, y + side / 2, side / 9, 0, 7);
      to.fill();
    } else if (state === HALTS) {
      to.beginPath();
      to.moveTo(x + side * 0.94, y + side * 0.54);
      to.lineTo(x + side * 0.94, y + side * 0.94);
      to.lineTo(x + side * 0.54, y + side * 0.94);
      to.closePath();
      to.fillStyle = "#e69f00";
      to.fill();
      to.strokeStyle = "#000";
      to.stroke();
    }
  }

  function draw() {
    context.clearRect(0, 0, canvas.width, canvas.height);
    const image = images[view.frame];
    if (image.complete) context.drawImage(image, 0, 0, canvas.width, canvas.height);
    for (let y = 0; y < height && view.layer > 0; y++) {
      for (let x = 0; x < width; x++) {
        const { clip, token } = tokenAt(view.frame, y, x);
        mark(context, stateOf(clip, token, view.layer), x * P, y * P, P);
        context.strokeStyle = "rgba(0, 0, 0, .3)";
        context.lineWidth = 1;
        context.strokeRect(x * P, y * P, P, P);
      }
    }
    context.strokeStyle = "rgba(255, 255, 255, .8)";
    context.lineWidth = 2;
    for (let i = 1; i < windowColumns; i++) context.strokeRect(i * columns * P, -9, 0, canvas.height + 18);
    for (let i = 1; i < windowRows; i++) context.strokeRect(-9, i * rows * P, canvas.width + 18, 0);
    if (view.chosen && "y" in view.chosen) {
      const side = [view.chosen.x * P + 3, view.chosen.y * P + 3, P - 6, P - 6];
      for (const [colour, thick] of [["#000", 7], ["#fff", 3]]) {
        context.strokeStyle = colour;
        context.lineWidth = thick;
        context.strokeRect(...side);
      }
    }
  }

  // ---- the life of the chosen token

  function chosenToken() {
    const chosen = view.chosen;
    return "y" in chosen ? tokenAt(view.frame, chosen.y, chosen.x) : chosen;
  }

  function element(name, text, properties = {}) {
    return Object.assign(document.createElement(name), { textContent: text }, properties);
  }

  function showLife() {
    const { clip, token, name } = chosenToken(), of = data.clips[clip];
    const dropped = token < 0, halts = dropped ? 0 : of.halting_layer[token];
    const scores = dropped ? [] : of.scores[token], rest = dropped ? null : of.remainders[token];
    $("who").textContent = name + (view.held ? " (held)" : "");
    $("who").dataset.clip = clip;
    $("who").dataset.token = token;
    $("why").textContent = reason(clip, token);
    const weights = scores.map((h, i) => (i + 1 === halts ? rest : h));
    $("bar").replaceChildren(...weights.map((weight, i) => slice(weight, i + 1, halts)));
    const slices = weights.map((w, i) => (i + 1 === halts ? `remainder ${show(w)}` : `layer ${i + 1} ${show(w)}`));
    $("bar").setAttribute("aria-label", slices.length ? `A bar from 0 to 1: ${slices.join(", ")}` : "An empty bar");
    const body = $("scores").tBodies[0];
    let total = 0;
    body.replaceChildren(...Array.from({ length: L }, (_, i) => {
      const layer = i + 1, row = document.createElement("tr"), known = i < scores.length;
      if (known) total += scores[i];
      const cells = known ? [show(scores[i]), show(total), show(weights[i])] : ["–", "–", "–"];
      if (layer === halts) cells[2] = `r = ${cells[2]}`;
      row.append(...[`${layer}${layer === halts ? " halts" : ""}`, ...cells].map((text) => element("td", text)));
      if (known) {
        row.children[1].dataset.value = scores[i];
        row.children[3].dataset.value = weights[i];
      }
      if (layer === view.layer) row.setAttribute("aria-current", "true");
      return row;
    }));
    const ponder = dropped ? null : of.ponder[token];
    $("ponder").textContent = ponder === null ? "It has no ponder."
      : `Ponder ρ = N_k + r = ${halts} + ${show(rest)} = ${show(ponder)}`;
    $("ponder").dataset.value = ponder;
  }

  function slice(weight, layer, halts) {
    const box = document.createElement("div"), kind = layer === halts ? "rest" : layer % 2 ? "odd" : "even";
    box.className = kind + (layer > view.layer ? " later" : "");
    box.style.width = `${100 * weight}%`;
    const text = layer === halts ? `r ${weight.toFixed(2)}` : weight.toFixed(2);
    if (weight > 0.1) {
      box.append(element("span", layer === halts ? "rest" : `layer ${layer}`), document.createElement("br"), element("span", text));
    }
    box.title = `layer ${layer}: ${layer === halts ? "remainder" : "score"} ${show(weight)}`;
    return box;
  }

  // ---- tokens and cost

  const tokensIn = (layer) => sum(data.clips.map((clip) => clip.tokens_per_layer[layer - 1]));
  const soFar = (layer) => sum(data.clips.map((clip) => clip.gflops_so_far[layer]));
  const early = (layer) => sum(data.clips.map((clip, b) => (layer <= (clsLayer(b) || L) ? clip.tokens_per_layer[layer - 1] : 0)));
  const entering = B * data.tokens_entering;

  function buildCost() {
    const body = $("cost").tBodies[0];
    for (let layer = 0; layer <= L; layer++) {
      const row = document.createElement("tr"), full = B * data.gflops_so_far_without_halting[layer];
      const cells = layer === 0 ? ["before", `${entering}`, "", cost(soFar(0)), cost(soFar(0)), cost(full)]
        : [`${layer}`, `${tokensIn(layer)}`, `${early(layer)}`, cost(soFar(layer) - soFar(layer - 1)), cost(soFar(layer)), cost(full)];
      row.append(...cells.map((text) => element("td", text)));
      row.children[2].className = "early";
      if (layer) {
        row.children[1].className = "bar";
        row.children[1].style.setProperty("--share", `${(100 * tokensIn(layer)) / entering}%`);
        if (early(layer) !== tokensIn(layer)) document.body.classList.add("leaves-early");
      }
      row.children[4].dataset.value = soFar(layer);
      body.append(row);
    }
    $("of-windows").textContent = B > 1 ? `: sums over ${B} windows, each a clip of its own` : "";
  }

  // ---- everything that depends on frame, layer and the chosen token

  function update() {
    const { frame, layer } = view;
    $("frame").value = frame;
    $("layer").value = layer;
    $("frame-text").textContent = `${frame + 1} / ${T}`;
    $("layer-text").textContent = `${layer} / ${L}`;
    for (const name of ["frame", "layer"]) $(name).setAttribute("aria-valuetext", $(name + "-text").textContent.replace("/", "of"));
    const scope = `(${T > 1 ? `all ${T} frames` : "1 frame"}${B > 1 ? `, ${B} windows` : ""})`;
    const counts = layer === 0 ? `Before the layers: ${entering} tokens of the clip enter layer 1 ${scope}`
      : `Layer ${layer}: ${tokensIn(layer)} of ${entering} tokens of the clip alive ${scope}, ${cost(soFar(layer))} GFLOPs so far`;
    $("status").textContent = `${counts}. Shown: frame ${frame + 1}.`;
    for (const [i, row] of [...$("cost").tBodies[0].rows].entries()) {
      if (i === layer) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    for (const button of $("others").children) {
      const { clip, token } = button.chosen, state = stateOf(clip, token, layer || 1);
      const alive = state === ALIVE || state === HALTS;
      button.textContent = `${alive ? "●" : "○"} ${button.chosen.label} ${alive ? "alive" : state === HALTED ? "halted" : "left"}`;
      button.hidden = button.chosen.frame !== undefined && button.chosen.frame !== frame;
      button.setAttribute("aria-pressed", String(view.chosen === button.chosen));
    }
    showLife();
    canvas.setAttribute("aria-label", `The frame in patches. Chosen: ${$("who").textContent}`);
    draw();
  }

  function setFrame(frame) { view.frame = (frame + T) % T; update(); }
  function setLayer(layer) { view.layer = Math.max(0, Math.min(L, layer)); update(); }
  function choose(chosen, held) { view.chosen = chosen; view.held = held; update(); }

  // ---- pointer, keys, playing

  function placeOf(event) {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * height);
    return x < 0 || y < 0 || x >= width || y >= height ? null : { y, x };
  }
  const same = (a, b) => a && b && a.y === b.y && a.x === b.x;

  canvas.addEventListener("pointermove", (event) => {
    const place = placeOf(event);
    if (event.pointerType === "mouse" && !view.held && place && !same(place, view.chosen)) choose(place, false);
  });
  canvas.addEventListener("click", (event) => {
    const place = placeOf(event);
    if (place) choose(place, !(view.held && same(place, view.chosen)));
  });

  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = STEPS[event.key], inPicture = event.target === canvas;
    const typing = event.target.closest("input, button");
    if (event.key === "Escape") choose(view.chosen, false);
    else if (event.key === " " && !typing) toggle("frame");
    else if (!step || (typing && event.target.type === "range")) return;
    else if (inPicture && !event.shiftKey) {
      const from = "y" in view.chosen ? view.chosen : { y: 0, x: 0 };
      const y = Math.max(0, Math.min(height - 1, from.y + step[0])), x = Math.max(0, Math.min(width - 1, from.x + step[1]));
      choose({ y, x }, true);
    } else if (step[1]) setFrame(view.frame + step[1]);
    else setLayer(view.layer + step[0]);
    event.preventDefault();
  });

  const timers = {};
  function toggle(name) {
    const playing = name in timers, button = $(`play-${name}`);
    if (playing) {
      clearInterval(timers[name]);
      delete timers[name];
    } else {
      const next = { frame: () => setFrame(view.frame + 1), layer: () => setLayer(view.layer === L ? 0 : view.layer + 1) };
      timers[name] = setInterval(next[name], name === "frame" ? 500 : 1000);
    }
    button.textContent = playing ? "▶" : "❚❚";
    button.setAttribute("aria-label", `${playing ? "Play" : "Pause"} the ${name}s`);
    button.setAttribute("aria-pressed", String(!playing));
  }

  // ---- the start

  for (const name of ["frame", "layer"]) {
    $(name).max = name === "frame" ? T - 1 : L;
    $(name).addEventListener("input", (event) => (name === "frame" ? setFrame : setLayer)(Number(event.target.value)));
    const button = $(`play-${name}`);
    button.textContent = "▶";
    button.setAttribute("aria-label", `Play the ${name}s`);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => toggle(name));
  }
  for (const [clip, of] of data.clips.entries()) {
    const add = (chosen) => {
      const button = element("button", "", { type: "button", chosen });
      button.addEventListener("click", () => choose(chosen, true));
      $("others").append(button);
    };
    const label = B > 1 ? `CLS ${clip + 1}` : "CLS";
    add({ clip, token: 0, label, name: `CLS, the token that the classes are read from${inWindow(clip)}` });
    for (const [frame, token] of of.fused) {
      add({ clip, token, frame, label: "fused", name: `${nameOf(frame)}, the fused token of the dropped patches${inWindow(clip)}` });
    }
  }
  const found = new Set();
  for (const [clip, of] of data.clips.entries()) {
    for (const of_frame of of.token) for (const token of of_frame) {
      for (let layer = 1; layer <= L; layer++) found.add(stateOf(clip, token, layer));
    }
  }
  const MEANING = [[ALIVE, "alive: computed"], [HALTS, "alive, and halts in this layer"], [HALTED, "halted in an earlier layer"],
    [DROPPED, "dropped before layer 1"], [LEFT, "not computed: the clip had left"]];
  for (const [state, text] of MEANING.filter(([state]) => found.has(state))) {
    const item = document.createElement("li"), sample = Object.assign(document.createElement("canvas"), { width: 40, height: 40 });
    const to = sample.getContext("2d");
    to.fillStyle = "#9a9a9a";
    to.fillRect(0, 0, 40, 40);
    mark(to, state, 0, 0, 40);
    sample.setAttribute("aria-hidden", "true");
    item.append(sample, text);
    $("legend").append(item);
  }
  $("limit").textContent = `dashed: 1 − ε = ${limit}`;
  $("bar-box").style.setProperty("--limit", `${100 * limit}%`);
  buildCost();

  /** The patch of a frame that lives longest of those that halt before the last layer; of equal ones the first. */
  function longest(frame) {
    let best = { y: 0, x: 0 }, most = -1;
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      const { clip, token } = tokenAt(frame, y, x);
      const lived = token < 0 ? 0 : data.clips[clip].scores[token].length;
      if (lived > most && lived < L) [best, most] = [{ y, x }, lived];
    }
    return best;
  }
  choose(longest(0), false);
})();
