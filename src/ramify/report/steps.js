"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const canvas = document.querySelector("#tree svg");
  const ROW = 30, HEIGHT = 22, GAP = 34, LETTER = 7.25, LONGEST = 20, TALLEST = 520;
  const state = { method: 0, prompt: 0, step: 0 };
  const view = { x: 0, y: 0, scale: 1, width: 0, height: 0, size: [0, 0], middle: 0 };

  const piece = (token) => data.pieces[token] ?? "#" + token;
  const trace = () => data.rows[state.method].prompts[state.prompt];

  // Text with white space made visible: [text, whether it is a sign] pairs.
  function visible(text) {
    const parts = [];
    for (const run of text.match(/ +|\n|\t|\r|[^ \n\t\r]+/g) ?? []) {
      if (run[0] === " ") parts.push([run.length > 3 ? "·×" + run.length : "·".repeat(run.length), true]);
      else if (run === "\n") parts.push(["⏎", true]);
      else if (run === "\t") parts.push(["⇥", true]);
      else if (run === "\r") parts.push(["␍", true]);
      else parts.push([run, false]);
    }
    return parts.length ? parts : [["∅", true]];
  }
  const written = (token) => visible(piece(token)).map((part) => part[0]).join("");

  function element(make, name, attributes, ...children) {
    const made = make(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  const html = (...given) => element((name) => document.createElement(name), ...given);
  const svg = (...given) => element((name) => document.createElementNS(canvas.namespaceURI, name), ...given);

  // The nodes of a step: node 0 is the last committed token, the draft follows, the model's own token comes last.
  function nodesOf(step, last) {
    const [shape, tokens, path, committed] = step;
    const kept = Math.min(path.length, committed.length);
    const accepted = new Set(path.slice(0, kept));
    const nodes = [{ token: last, parent: -1, depth: -1, kind: "root", children: [] }];
    data.shapes[shape].forEach((parent, index) => {
      const above = nodes[parent + 1];
      const reached = above.kind === "root" || above.kind === "accepted";
      const kind = accepted.has(index) ? "accepted" : reached ? "rejected" : "unreached";
      nodes.push({ token: tokens[index], parent: parent + 1, depth: above.depth + 1, kind, children: [] });
    });
    if (committed.length > kept) {
      const parent = kept ? path[kept - 1] + 1 : 0;
      nodes.push({ token: committed[kept], parent, depth: nodes[parent].depth + 1, kind: "own", children: [] });
    }
    nodes.forEach((node, index) => { if (node.parent >= 0) nodes[node.parent].children[node.kind === "own" ? "unshift" : "push"](index); });
    for (const node of nodes) node.why = reason(node, committed);
    return nodes;
  }

  function reason(node, committed) {
    const wanted = committed[node.depth];
    if (node.kind === "root") return "the last token so far";
    if (node.kind === "accepted") return "drafted, and what the model wrote too";
    if (node.kind === "own") return "the model's own next token";
    if (node.kind === "unreached") return "not looked at: a token before it was rejected";
    return wanted === undefined ? "not needed: the text had ended" : "rejected: the model wrote " + written(wanted);
  }

  // Places: a column per depth, a line per leaf; a parent sits level with the child that was kept, or amid its children.
  function place(nodes) {
    const widths = [];
    for (const node of nodes) {
      node.parts = node.token === null ? [["prompt", true]] : visible(piece(node.token));
      let length = node.parts.reduce((sum, part) => sum + [...part[0]].length, 0);
      if (length > LONGEST) {
        const letters = node.parts.flatMap(([text, sign]) => [...text].map((letter) => [letter, sign]));
        node.parts = [...letters.slice(0, LONGEST - 1), ["…", true]];
        length = LONGEST;
      }
      node.width = Math.max(24, length * LETTER + 14);
      widths[node.depth + 1] = Math.max(widths[node.depth + 1] ?? 0, node.width);
    }
    const left = [12];
    widths.forEach((width, depth) => { left[depth + 1] = left[depth] + width + GAP; });
    let line = 0;
    const visit = (index) => {
      const node = nodes[index];
      node.children.forEach(visit);
      const kept = node.children.find((child) => ["accepted", "own"].includes(nodes[child].kind));
      if (!node.children.length) node.y = 20 + ROW * line++;
      else if (kept !== undefined) node.y = nodes[kept].y;
      else node.y = (nodes[node.children[0]].y + nodes[node.children.at(-1)].y) / 2;
      node.x = left[node.depth + 1];
    };
    visit(0);
    return [left.at(-1) - GAP + 12, 10 + ROW * line];
  }

  function drawTree(nodes) {
    view.size = place(nodes);
    view.middle = nodes[0].y;
    canvas.replaceChildren();
    canvas.setAttribute("aria-label", $("told").textContent);
    const order = { unreached: 0, rejected: 1, root: 2, accepted: 3, own: 4 };
    const drawn = [...nodes].sort((a, b) => order[a.kind] - order[b.kind]);
    for (const node of drawn.filter((each) => each.parent >= 0)) {
      const above = nodes[node.parent], start = above.x + above.width, bend = (node.x - start) / 2;
      const d = `M${start} ${above.y}C${start + bend} ${above.y} ${node.x - bend} ${node.y} ${node.x} ${node.y}`;
      canvas.append(svg("path", { class: node.kind, d }));
    }
    for (const node of drawn) {
      const text = svg("text", { x: node.x + 7, y: node.y + 0.5 });
      for (const [part, sign] of node.parts) text.append(svg("tspan", sign ? { class: "sign" } : {}, part));
      const title = svg("title", {}, node.parts.map((part) => part[0]).join("") + " – " + node.why);
      const box = { x: node.x, y: node.y - HEIGHT / 2, width: node.width, height: HEIGHT, rx: 5 };
      canvas.append(svg("g", { class: node.kind }, title, svg("rect", box), text));
    }
    fit(0.8);
  }

  // The part of the tree in view; `smallest` is the scale below which it is cut rather than shrunk further.
  function fit(smallest) {
    const [width, height] = view.size;
    view.width = canvas.parentNode.clientWidth || 800;
    const whole = Math.min(1, view.width / width);
    view.scale = Math.max(smallest, Math.min(whole, smallest ? 1 : TALLEST / height));
    view.height = Math.max(110, Math.min(TALLEST, height * view.scale + 8));
    canvas.setAttribute("height", view.height);
    const shown = view.height / view.scale;
    view.x = 0;
    view.y = height <= shown ? (height - shown) / 2 : Math.min(Math.max(0, view.middle - shown / 2), height - shown);
    look();
  }
  function look() {
    const { x, y, scale, width, height } = view;
    canvas.setAttribute("viewBox", [x, y, width / scale, height / scale].map((n) => n.toFixed(1)).join(" "));
  }
  function zoom(factor, at = [view.width / 2, view.height / 2]) {
    const before = view.scale;
    view.scale = Math.min(3, Math.max(0.1, before * factor));
    view.x += at[0] / before - at[0] / view.scale;
    view.y += at[1] / before - at[1] / view.scale;
    look();
  }
  function wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 300), [event.offsetX, event.offsetY]);
  }
  function drag(start) {
    const from = [view.x, view.y];
    const move = (event) => {
      view.x = from[0] - (event.clientX - start.clientX) / view.scale;
      view.y = from[1] - (event.clientY - start.clientY) / view.scale;
      look();
    };
    const end = () => {
      canvas.classList.remove("dragging");
      canvas.removeEventListener("pointermove", move);
    };
    canvas.classList.add("dragging");
    canvas.setPointerCapture(start.pointerId);
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("pointerup", end, { once: true });
    canvas.addEventListener("pointercancel", end, { once: true });
  }

  // What happened, in words, with tokens as marked quotations.
  function tell(step, nodes) {
    const [, tokens, path, committed] = step;
    const kept = Math.min(path.length, committed.length), own = committed[kept];
    const quote = (token, kind) => html("q", { class: kind ?? "" }, written(token));
    const listed = (all, kind) => all.flatMap((token, i) => (i ? [" ", quote(token, kind)] : [quote(token, kind)]));
    const said = [];
    if (!tokens.length) said.push("Nothing was drafted: one forward pass, one token, ", quote(own, "own"), ".");
    else {
      said.push(`${tokens.length} token${tokens.length > 1 ? "s" : ""} drafted, ${kept} accepted`);
      if (kept) said.push(": ", ...listed(committed.slice(0, kept), "accepted"));
      said.push(". ");
      if (own === undefined) said.push("The text ended inside the draft.");
      else {
        const tried = nodes.filter((n) => n.kind === "rejected" && n.depth === kept).map((n) => n.token);
        said.push(tried.length ? "Then the model wrote " : "Nothing more was drafted there, and the model went on with ", quote(own, "own"));
        if (tried.length) said.push(", where the draft had ", ...listed(tried.slice(0, 8)), tried.length > 8 ? ` and ${tried.length - 8} more` : "");
        said.push(".");
      }
      said.push(` ${committed.length} token${committed.length > 1 ? "s" : ""} for one forward pass.`);
    }
    $("told").replaceChildren(...said);
  }

  function drawText(steps) {
    const text = $("text"), committed = steps[state.step][3], kept = Math.min(steps[state.step][2].length, committed.length);
    const before = steps.slice(0, state.step).flatMap((step) => step[3]).map(piece).join("");
    text.replaceChildren(html("span", { class: "prompt" }, data.prompts[state.prompt].text), before);
    let end = null;
    committed.forEach((token, i) => {
      const shown = piece(token);
      const marked = shown.trim() ? shown : shown.replace(/\n/g, "⏎\n").replace(/ /g, "·");
      end = text.appendChild(html("span", { class: i < kept ? "accepted" : "own" }, marked));
    });
    if (end) text.scrollTop = Math.max(0, end.offsetTop - text.offsetTop - text.clientHeight * 0.6);
  }

  function show() {
    const { steps, of } = trace();
    state.step = Math.max(0, Math.min(state.step, steps.length - 1));
    $("slider").max = Math.max(0, steps.length - 1);
    $("slider").value = state.step;
    $("previous").disabled = state.step <= 0;
    $("next").disabled = state.step >= steps.length - 1;
    $("where").textContent = steps.length ? `step ${state.step + 1} of ${steps.length}${of > steps.length ? ` (${of} in all)` : ""}` : "no steps";
    const longest = Math.max(1, ...steps.map((step) => step[3].length));
    $("strip").replaceChildren(...steps.map((step, i) => {
      const bar = html("i", { class: i === state.step ? "now" : i < state.step ? "seen" : "", title: `step ${i + 1}: ${step[3].length} tokens`, style: `height:${(100 * step[3].length) / longest}%` });
      bar.addEventListener("click", () => go(i));
      return bar;
    }));
    $("tree").hidden = !steps.length;
    if (!steps.length) {
      $("told").textContent = "This method does not report its steps.";
      $("text").replaceChildren(html("span", { class: "prompt" }, data.prompts[state.prompt].text));
      return;
    }
    const last = state.step ? steps[state.step - 1][3].at(-1) ?? null : null;
    const nodes = nodesOf(steps[state.step], last);
    tell(steps[state.step], nodes);
    drawTree(nodes);
    drawText(steps);
  }

  function go(step) {
    state.step = step;
    show();
    history.replaceState(null, "", `#${state.method + 1}.${state.prompt + 1}.${state.step + 1}`);
  }

  function start() {
    const best = data.rows.findLastIndex((row) => row.prompts.some((p) => p.steps.some((step) => step[1].length)));
    state.method = Math.max(0, best);
    const given = /^#(\d+)\.(\d+)\.(\d+)$/.exec(location.hash);
    if (given) {
      const [method, prompt, step] = given.slice(1).map((n) => Number(n) - 1);
      if (data.rows[method]?.prompts[prompt]) Object.assign(state, { method, prompt, step });
    }
    data.rows.forEach((row, i) => $("pick-method").append(html("option", { value: i }, row.label)));
    data.prompts.forEach((p, i) => $("pick-prompt").append(html("option", { value: i }, p.group ? `${p.id} (${p.group})` : p.id)));
    $("pick-method").value = state.method;
    $("pick-prompt").value = state.prompt;
    $("pick-method").addEventListener("change", (event) => { state.method = Number(event.target.value); go(state.step); });
    $("pick-prompt").addEventListener("change", (event) => { state.prompt = Number(event.target.value); go(0); });
    $("slider").addEventListener("input", (event) => go(Number(event.target.value)));
    $("previous").addEventListener("click", () => go(state.step - 1));
    $("next").addEventListener("click", () => go(state.step + 1));
    $("zoom-in").addEventListener("click", () => zoom(1.3));
    $("zoom-out").addEventListener("click", () => zoom(1 / 1.3));
    $("zoom-fit").addEventListener("click", () => fit(0));
    addEventListener("keydown", (event) => {
      if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.target.closest?.(".scroll, .text")) return;
      if (event.key === "ArrowRight") go(state.step + 1);
      if (event.key === "ArrowLeft") go(state.step - 1);
    });
    addEventListener("resize", () => fit(0.8));
    canvas.addEventListener("pointerdown", drag);
    canvas.addEventListener("wheel", wheel, { passive: false });
    document.querySelector(".panel").hidden = false;
    show();
  }
  start();
})();
