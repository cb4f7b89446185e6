// Makes the picture live: click or Enter fills the width with a box, Escape goes back, / searches, arrows walk.
(function () {
  "use strict";
  var svg = document.currentScript.closest("svg"), live = svg.querySelector("#live");
  var MARGIN = 10, INNER = 1180, LETTER = 7.25, FEWEST = 4, XHTML = "http://www.w3.org/1999/xhtml", SVG = "http://www.w3.org/2000/svg";
  var boxes = Array.prototype.map.call(svg.querySelectorAll("#boxes .f"), function (g, index) {
    var rect = g.querySelector("rect"), title = g.querySelector("title"), of = function (name) { return parseFloat(rect.getAttribute(name)); };
    var tip = title.textContent, lines = tip.split("\n"), forms = g.getAttribute("data-n");
    title.remove();
    g.setAttribute("role", "button");
    g.setAttribute("aria-label", lines.join(", "));
    g.setAttribute("tabindex", index === 0 ? "0" : "-1");
    return { g: g, rect: rect, text: g.querySelector("text"), x: (of("x") - MARGIN) / INNER, w: of("width") / INNER, y: of("y"), tip: tip,
      name: lines[0], forms: forms === null ? [lines[0]] : forms.split("\n"), value: parseFloat(g.getAttribute("data-v")), end: 0, up: -1, index: index };
  });
  // Boxes stand before what they call: a stack gives parents, and where each subtree ends.
  var open = [];
  boxes.forEach(function (box, index) {
    while (open.length && boxes[open[open.length - 1]].y >= box.y) { boxes[open.pop()].end = index; }
    box.up = open.length ? open[open.length - 1] : -1;
    open.push(index);
  });
  open.forEach(function (index) { boxes[index].end = boxes.length; });
  var root = 0, focused = 0, pattern = null;

  function fitted(forms, width) {
    var room = Math.floor(Math.max(0, (width - 6) / LETTER));
    if (room < FEWEST) { return ""; }
    for (var i = 0; i !== forms.length; i++) {
      if (Array.from(forms[i]).length <= room) { return forms[i]; }
    }
    return Array.from(forms[forms.length - 1]).slice(0, room - 1).join("") + "…";
  }

  function place(box, x, width) {
    box.rect.setAttribute("x", x.toFixed(3));
    box.rect.setAttribute("width", width.toFixed(3));
    var label = fitted(box.forms, width);
    if (!box.text) {
      if (!label) { return; }
      box.text = document.createElementNS(SVG, "text");
      box.text.setAttribute("y", box.y + 12.5);
      box.g.appendChild(box.text);
    }
    box.text.setAttribute("x", (x + 3).toFixed(3));
    box.text.textContent = label;
  }

  function zoom(index) {
    root = index;
    var at = boxes[index];
    boxes.forEach(function (box, number) {
      var above = number !== index && index > number && box.end > index, inside = number >= index && at.end > number;
      box.g.style.display = above || inside ? "" : "none";
      box.g.classList.toggle("past", above);
      if (above) { place(box, MARGIN, INNER); }
      if (inside) { place(box, MARGIN + (box.x - at.x) / at.w * INNER, box.w / at.w * INNER); }
    });
    back.hidden = index === 0;
    search();
  }

  function search() {
    var within = boxes[root], found = 0, until = -1, hits = 0, everything = within.value;
    boxes.forEach(function (box, number) {
      var hit = pattern !== null && pattern.test(box.name);
      box.g.classList.toggle("hit", hit);
      box.g.classList.toggle("miss", pattern !== null && !hit);
      // What is below a match is in the match's figure already.
      if (hit && number >= root && within.end > number) {
        hits++;
        if (number >= until) { found += box.value; until = box.end; }
      }
    });
    if (pattern === null) { result.textContent = ""; return; }
    var share = everything > 0 ? found * 100 / everything : 0;
    result.textContent = hits + (hits === 1 ? " match, " : " matches, ") + share.toFixed(share >= 10 || share === 0 ? 0 : 1) + " %";
  }

  function html(name, css, parent) {
    var element = document.createElementNS(XHTML, name);
    element.setAttribute("style", css);
    parent.appendChild(element);
    return element;
  }

  // Pictures are drawn without these where no script runs.
  live.setAttribute("display", "inline");
  live.style.pointerEvents = "none";
  var page = html("div", "position:relative;width:100%;height:100%;font:12px sans-serif;color-scheme:light dark", live);
  var bar = html("div", "position:absolute;right:10px;top:8px;width:310px;text-align:right;pointer-events:auto", page);
  var back = html("button", "font:12px sans-serif;margin-right:6px", bar);
  back.textContent = "Whole (Esc)";
  back.hidden = true;
  back.onclick = function () { zoom(0); focus(0); };
  var input = html("input", "font:12px sans-serif;width:200px;box-sizing:border-box", bar);
  input.type = "search";
  input.placeholder = "Search (regular expression)";
  input.setAttribute("aria-label", "Search functions by regular expression");
  var result = html("div", "font:12px sans-serif;color:#c2007a;font-weight:bold;min-height:16px;background:inherit", bar);
  result.setAttribute("role", "status");
  var tip = html("div", "position:absolute;display:none;max-width:640px;padding:5px 8px;border-radius:4px;white-space:pre-wrap;" +
    "overflow-wrap:anywhere;background:#202428;color:#fff;border:1px solid #888;font:12px/1.4 sans-serif;z-index:9", page);

  input.oninput = function () {
    var text = input.value;
    input.style.outline = "";
    input.title = "";
    try { pattern = text === "" ? null : new RegExp(text, "i"); } catch (error) {
      pattern = null;
      input.style.outline = "2px solid #d55e00";
      input.title = String(error.message);
      search();
      result.textContent = "no regular expression";
      return;
    }
    search();
  };
  input.onkeydown = function (event) {
    event.stopPropagation();
    if (event.key === "Escape") { input.value = ""; input.oninput(); focus(focused); }
    if (event.key === "Enter") { next(1); }
  };

  function show(box, x, y) {
    tip.textContent = box.tip;
    tip.style.display = "block";
    var width = tip.offsetWidth, height = tip.offsetHeight, all = live.getBBox();
    tip.style.left = Math.max(0, Math.min(x, all.width - width - 4)) + "px";
    tip.style.top = (y + height > all.height ? Math.max(0, y - height - 34) : y) + "px";
  }
  function hide() { tip.style.display = "none"; }

  function focus(index) {
    boxes[focused].g.setAttribute("tabindex", "-1");
    focused = index;
    var box = boxes[index];
    box.g.setAttribute("tabindex", "0");
    box.g.focus();
    show(box, parseFloat(box.rect.getAttribute("x")), box.y + 24);
  }
  function shown(index) { return boxes[index].g.style.display !== "none"; }
  function beside(step) {
    var up = boxes[focused].up, y = boxes[focused].y;
    for (var i = focused + step; i > 0 && boxes.length > i && i > up; i += step) {
      if (boxes[i].up === up && boxes[i].y === y) { return i; }
    }
    return focused;
  }
  function next(step) {
    for (var i = 1; i !== boxes.length + 1; i++) {
      var at = (focused + step * i + 2 * boxes.length) % boxes.length;
      if (boxes[at].g.classList.contains("hit") && shown(at)) { focus(at); return; }
    }
  }

  boxes.forEach(function (box, index) {
    box.g.addEventListener("click", function () { zoom(index); focus(index); hide(); });
    box.g.addEventListener("mousemove", function (event) {
      var point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      show(box, point.x + 12, point.y + 18);
    });
    box.g.addEventListener("mouseleave", hide);
    box.g.addEventListener("focus", function () { focused = index; });
    box.g.addEventListener("blur", hide);
  });
  (svg.parentNode === document ? document : svg.ownerDocument).addEventListener("keydown", function (event) {
    var key = event.key, to = -1;
    if (event.ctrlKey || event.metaKey || event.altKey) { return; }
    if (key === "Escape") { zoom(0); focus(0); hide(); }
    else if (key === "/") { input.focus(); }
    else if (key === "Enter" || key === " ") { zoom(focused); }
    else if (key === "n") { next(1); return; }
    else if (key === "N") { next(-1); return; }
    else if (key === "ArrowUp") { to = boxes[focused].up; }
    else if (key === "ArrowDown") { to = boxes[focused].end > focused + 1 ? focused + 1 : -1; }
    else if (key === "ArrowRight") { to = beside(1); }
    else if (key === "ArrowLeft") { to = beside(-1); }
    else { return; }
    event.preventDefault();
    if (to >= 0 && shown(to)) { focus(to); }
  });
})();
