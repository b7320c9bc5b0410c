/* Two interactive figures on stored rows: no server, no library, from file:// too. */
(() => {
  "use strict";
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  const SVG = "http://www.w3.org/2000/svg";

  const make = (tag, attributes = {}, ...children) => {
    const one = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
    one.append(...children);
    return one;
  };
  const draw = (tag, attributes, text = "") => {
    const one = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
    one.textContent = text;
    return one;
  };
  const percent = (share) => `${Number((100 * share).toFixed(1))} %`;
  const unique = (values) => [...new Set(values)];

  /** Load a script of rows once, then draw. */
  const withRows = (name, then) => {
    const script = make("script", { src: `${here}rows-${name}.js` });
    script.onload = () => then(window.sparselibRows[name]);
    document.head.append(script);
  };

  const labeled = (text, control) => make("label", {}, make("span", {}, text), control);

  /** Speedup of sparse over dense: choose the case, see the curve and the number. */
  const speed = (place, rows) => {
    const chosen = { mode: "inference", network: "512-512-512-512-512-10", batch: 10000,
      machine: rows[0].machine };
    const keys = { mode: "what", network: "network", batch: "batch", machine: "machine" };
    const selects = {};
    const slider = make("input", { type: "range", min: 0, step: 1, value: 5 });
    const controls = make("div", { class: "sl-controls" });
    const fits = (row, keys) => keys.every((key) => row[key] === chosen[key]);
    const picture = draw("svg", { viewBox: "0 0 640 300", role: "img" });
    const told = make("p", { class: "sl-told", "aria-live": "polite" });

    Object.entries(keys).forEach(([key, label], place) => {
      const select = make("select");
      selects[key] = select;
      select.addEventListener("change", () => {
        chosen[key] = key === "batch" ? Number(select.value) : select.value;
        update();
      });
      controls.append(labeled(label, select));
    });
    const sparsity = make("output");
    controls.append(make("label", {}, make("span", {}, "sparsity ", sparsity), slider));
    slider.addEventListener("input", () => update());

    /** Offer what was measured under the choices before; keep a choice that is still there. */
    const offer = () => {
      const before = [];
      for (const key of Object.keys(keys)) {
        const offered = unique(rows.filter((row) => fits(row, before)).map((row) => row[key]));
        offered.sort((a, b) => (typeof a === "number" ? a - b : 0));
        if (!offered.includes(chosen[key])) chosen[key] = offered[offered.length - 1];
        selects[key].replaceChildren(...offered.map((value) =>
          make("option", value === chosen[key] ? { value, selected: "" } : { value },
            key === "batch" ? value.toLocaleString("en") : value)));
        before.push(key);
      }
    };

    const update = () => {
      offer();
      const same = rows.filter((row) => fits(row, ["mode", "network", "batch"]));
      const row = same.find((one) => one.machine === chosen.machine);
      slider.max = row.sparsity.length - 1;
      const at = Math.min(Number(slider.value), row.sparsity.length - 1);
      sparsity.textContent = percent(row.sparsity[at]);
      slider.setAttribute("aria-valuetext", sparsity.textContent);
      const ratio = row.sparse_speedup[at];
      const outcome = ratio >= 1 ? "" : ": sparse is slower";
      told.replaceChildren(make("strong", {}, `Speedup ${ratio.toPrecision(3)}×${outcome}. `),
        `${row.sparse_ms[at]} ms against ${row.dense_ms[at]} ms dense, ${chosen.mode} of `
        + `${chosen.network}, batch ${chosen.batch.toLocaleString("en")}, ${percent(row.sparsity[at])} `
        + `sparsity, two cores of ${chosen.machine}.`);
      plot(same, row, at);
    };

    const plot = (same, row, at) => {
      const values = same.flatMap((one) => one.sparse_speedup);
      const low = Math.min(0.5, ...values);
      const high = Math.max(2, ...values) * 1.15;
      const x = (place) => 60 + (560 * place) / (row.sparsity.length - 1);
      const y = (value) => 255 - (235 * Math.log(value / low)) / Math.log(high / low);
      const machines = same.map((one) => one.machine);
      picture.replaceChildren(draw("title", {}, told.textContent));
      for (const value of [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]) {
        if (value < low || value > high) continue;
        const kind = value === 1 ? "sl-one" : "sl-grid";
        picture.append(draw("line", { class: kind, x1: 60, x2: 620, y1: y(value), y2: y(value) }),
          draw("text", { x: 52, y: y(value) + 5, "text-anchor": "end" }, `${value}×`));
      }
      row.sparsity.forEach((share, place) => picture.append(
        draw("text", { x: x(place), y: 278, "text-anchor": "middle" }, percent(share))));
      picture.append(draw("text", { x: 340, y: 297, "text-anchor": "middle" }, "sparsity"));
      for (const one of same) {
        const mine = one === row;
        const points = one.sparse_speedup.map((value, place) => `${x(place)},${y(value)}`);
        picture.append(draw("polyline", { class: mine ? "sl-mine" : "sl-other",
          points: points.join(" ") }));
        const high = 24 + 24 * machines.indexOf(one.machine);
        picture.append(
          draw("line", { class: mine ? "sl-mine" : "sl-other", x1: 75, x2: 105, y1: high, y2: high }),
          draw("text", { x: 113, y: high + 5, class: mine ? "sl-mine-name" : "" }, one.machine));
      }
      picture.append(draw("circle", { class: "sl-here", r: 6, cx: x(at),
        cy: y(row.sparse_speedup[at]) }));
    };

    place.replaceChildren(controls, told, picture,
      make("p", { class: "sl-caption" }, "Speedup over the dense network, logarithmic; above 1× "
        + "the sparse one is faster. Medians of the stored rows."));
    update();
  };

  /** Where connections start, epoch by epoch. */
  const evolution = (place, { frames, connections, dark, new: fresh }) => {
    const slider = make("input", { type: "range", min: 0, max: frames.length - 1, step: 1, value: 0 });
    const epoch = make("output");
    const told = make("p", { class: "sl-told", "aria-live": "polite" });
    const picture = draw("svg", { viewBox: "0 0 28 28", role: "img", class: "sl-pixels" });
    const counts = frames.map((frame) => [...frame].map((digit) => parseInt(digit, 36)));
    const most = 8; // as in the figure of the page
    const pixels = counts[0].map((_, place) => draw("rect", { width: 1.02, height: 1.02,
      x: place % 28, y: Math.floor(place / 28) }));
    const title = draw("title", {});
    picture.append(title, ...pixels);
    const shade = (count) => {
      const share = Math.min(1, count / most);
      return `rgb(${Math.round(253 * share)},${Math.round(32 + 200 * share)},`
        + `${Math.round(77 + 20 * share - 40 * share * share)})`;
    };
    const update = () => {
      const at = Number(slider.value);
      epoch.textContent = at ? `epoch ${at}` : "initialization";
      slider.setAttribute("aria-valuetext", epoch.textContent);
      pixels.forEach((pixel, place) => pixel.setAttribute("fill", shade(counts[at][place])));
      told.textContent = `${fresh[at].toLocaleString("en")} of ${connections.toLocaleString("en")} `
        + `connections are not those of the initialization; ${dark[at]} start at pixels that are `
        + `always dark; the busiest pixel has ${Math.max(...counts[at])}.`;
      title.textContent = `Connections from each pixel, ${epoch.textContent}. ${told.textContent}`;
    };
    slider.addEventListener("input", update);
    place.replaceChildren(
      make("div", { class: "sl-controls" }, make("label", {}, make("span", {}, epoch), slider)),
      picture, told,
      make("p", { class: "sl-caption" }, "Connections of the first layer that start at each pixel: "
        + "dark blue none, yellow most. Move the slider, or use the arrow keys."));
    update();
  };

  const kinds = { speed, evolution };
  document.addEventListener("DOMContentLoaded", () => {
    for (const place of document.querySelectorAll(".sl-figure[data-figure]")) {
      const kind = place.dataset.figure;
      if (kinds[kind]) withRows(kind, (rows) => kinds[kind](place, rows));
    }
  });
})();
