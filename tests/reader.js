// What a reader would find wrong with an open page: each function returns a list of sentences.
"use strict";

const reader = {
  /** Where an element stands, for a person who has to find it. */
  name(element) {
    const text = (element.alt || element.textContent || "").trim().replace(/\s+/g, " ");
    return `<${element.tagName.toLowerCase()} class="${element.className}"> ${text.slice(0, 60)}`;
  },

  theme(name) {
    document.documentElement.dataset.mode = name;
    document.documentElement.dataset.theme = name;
    // colors that fade from one theme to the other are read at their end
    for (const fading of document.getAnimations()) {
      if (Number.isFinite(fading.effect.getComputedTiming().endTime)) fading.finish();
    }
  },

  /** All mathematics is typeset, all images are there, each with a text. */
  async complete() {
    if (window.MathJax?.startup?.promise) await window.MathJax.startup.promise;
    const found = [];
    for (const formula of document.querySelectorAll(".math")) {
      const shown = formula.querySelector("mjx-container");
      if (!shown || formula.querySelector("mjx-merror")) {
        found.push(`not typeset: ${reader.name(formula)}`);
      }
    }
    for (const image of document.images) {
      image.loading = "eager";
      await image.decode().catch(() => {});
      if (!image.naturalWidth) found.push(`does not load: ${image.getAttribute("src")}`);
      if (!image.alt.trim() || /\.(png|svg)$/.test(image.alt)) {
        found.push(`no telling alt text: ${image.getAttribute("src")?.slice(0, 80)}`);
      }
    }
    return found;
  },

  /** Tables are whole: no sentence is cut, no reason is missing. */
  tables() {
    const found = [];
    for (const cell of document.querySelectorAll("article td, article th")) {
      const text = cell.textContent.trim();
      if (/(\.\.\.|…)$/.test(text)) found.push(`cut off: ${reader.name(cell)}`);
      if (cell.dataset.label === "why" && !text) {
        found.push(`a difference without a reason: ${cell.parentElement.textContent.trim()}`);
      }
    }
    return found;
  },

  /** Nothing is wider than its place. */
  overflow() {
    const found = [];
    const root = document.documentElement;
    if (root.scrollWidth > root.clientWidth) {
      const scrolls = (one) => one !== document.body
        && (/auto|scroll|hidden|clip/.test(getComputedStyle(one).overflowX)
          || (one.parentElement && scrolls(one.parentElement)));
      const wide = [...document.body.querySelectorAll("*")].filter((one) =>
        one.getBoundingClientRect().right > root.clientWidth + 1 && !scrolls(one.parentElement));
      const names = wide.slice(0, 3).map(reader.name).join("; ");
      found.push(`the page is ${root.scrollWidth} wide on ${root.clientWidth}: ${names}`);
    }
    if (root.clientWidth < 1000) return found;
    for (const table of document.querySelectorAll("article table")) {
      const room = table.parentElement;
      if (table.offsetWidth > room.clientWidth + 1 || room.scrollWidth > room.clientWidth + 1) {
        found.push(`a table is ${table.offsetWidth} wide in a box of ${room.clientWidth}: `
          + reader.name(table));
      }
    }
    return found;
  },

  /** A heading is smaller than those of the levels above it. */
  headings() {
    const sizes = [1, 2, 3, 4].map((level) =>
      [...document.querySelectorAll(`article h${level}`)].map((one) =>
        parseFloat(getComputedStyle(one).fontSize)));
    return sizes.flatMap((own, level) =>
      (own.length && Math.max(...own) >= Math.min(...sizes.slice(0, level).flat())
        ? [`headings of level ${level + 1} have ${Math.max(...own)} px, as much as one above`]
        : []));
  },

  /** A figure is shown at no less than two thirds of the size for which its words were set. */
  small() {
    return [...document.querySelectorAll(".cell_output img")].filter((one) =>
      one.offsetWidth && one.offsetWidth < 0.65 * parseFloat(one.style.width)).map((one) =>
      `words too small, ${one.offsetWidth} of ${one.style.width}: ${reader.name(one)}`);
  },

  /** Pictures of pixels have their own proportions. */
  stretched() {
    const pictures = [...document.querySelectorAll("article img")].filter((one) =>
      !/\.svg$/.test(one.src) && one.naturalWidth && one.offsetWidth);
    const off = (one) =>
      (one.offsetWidth * one.naturalHeight) / (one.offsetHeight * one.naturalWidth);
    return pictures.filter((one) => Math.abs(Math.log(off(one))) > 0.05).map((one) =>
      `stretched to ${one.offsetWidth} x ${one.offsetHeight}: ${reader.name(one)}`);
  },

  /** Serious and critical violations that axe-core sees, of all its rules but that of contrast. */
  async violations() {
    const color = reader.uncolored("pre, dt.sig > *");
    const found = await reader.checked(document, { rules: { "color-contrast": { enabled: false } } });
    color();
    return found;
  },

  /** Join the words of code, thousands of spans that only have colors; return what parts them. */
  uncolored(selector) {
    const plain = [...document.querySelectorAll(selector)].filter((one) =>
      !one.querySelector(":not(span, em, code)") && !one.querySelector("[role], [tabindex], [id]"));
    const words = plain.map((one) => [...one.childNodes]);
    for (const one of plain) one.replaceChildren(one.textContent);
    return () => plain.forEach((one, place) => one.replaceChildren(...words[place]));
  },

  /** Text that is too pale, of one element for each way in which text looks. */
  async pale() {
    const looks = new Map();
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const element = texts.currentNode.parentElement;
      if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
      const look = reader.look(element);
      if (!looks.has(look)) looks.set(look, element);
    }
    const include = [...looks.values()];
    const fill = reader.alone(include);
    const rule = { runOnly: { type: "rule", values: ["color-contrast"] } };
    const found = await reader.checked({ include }, rule);
    fill();
    return found;
  },

  /** Empty what stands beside these elements in the flow of text; return what fills it again. */
  alone(elements) {
    const kept = new Set(elements);
    for (const element of elements) {
      for (let above = element; above; above = above.parentElement) kept.add(above);
    }
    const beside = [...kept].filter((one) => !elements.includes(one))
      .flatMap((one) => [...one.children]).filter((one) => !kept.has(one)
        && !one.matches("style, link, script") && !one.querySelector("style, link")
        && getComputedStyle(one).position === "static");
    const empty = beside.map((one) => one.cloneNode(false));
    beside.forEach((one, place) => one.replaceWith(empty[place]));
    return () => empty.forEach((one, place) => one.replaceWith(beside[place]));
  },

  /** What the contrast of an element's text depends on: its letters, and all that lies behind. */
  look(element) {
    const letters = getComputedStyle(element);
    const parts = [letters.color, letters.fontSize, letters.fontWeight, letters.textShadow];
    for (let behind = element; behind; behind = behind.parentElement) {
      const style = getComputedStyle(behind);
      const own = [style.backgroundColor, style.backgroundImage, style.opacity, style.filter];
      if (own.join() !== "rgba(0, 0, 0, 0),none,1,none") parts.push(...own);
      if (style.position !== "static") parts.push(behind.className);
    }
    return parts.join();
  },

  async checked(context, options) {
    const { violations } = await axe.run(context, { resultTypes: ["violations"], ...options });
    return violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .flatMap(({ id, help, nodes }) =>
        nodes.slice(0, 3).map((node) => `${id} (${help}): ${node.html.slice(0, 160)}`
          + ` ${(node.any[0] || node.all[0] || node.none[0])?.message || ""}`));
  },

  /** How many pages the search offers, once it has finished. */
  async offered() {
    const summary = () => document.querySelector(".search-summary")?.textContent || "";
    const finished = /found \d+ page|Found one page|did not match|finished/i;
    for (let wait = 0; wait < 100 && !finished.test(summary()); wait++) {
      await new Promise((awake) => setTimeout(awake, 50));
    }
    return document.querySelectorAll("ul.search > li").length;
  },
};
