"use strict";
// Histograms, bars and a video's curve, as SVG.
(() => {
  const { make, text, said } = page;
  const BAR = "#9aa5b1", HOT = "#d1495b", SHOWN = "#1f5a94", INK = "#333";
  const LEFT = 46, RIGHT = 18, TOP = 22, BOTTOM = 36, MOST_BARS = 8, SPANS = 10;

  function ticks(low, high, log) {
    const out = [];
    if (log) {
      const first = Math.floor(Math.log10(low)), last = Math.floor(Math.log10(high));
      for (let decade = first; decade <= last; decade++)
        for (const step of last - first > 2 ? [1] : [1, 2, 5]) out.push(step * 10 ** decade);
    } else {
      const rough = (high - low) / 4 || 1, base = 10 ** Math.floor(Math.log10(rough));
      const step = base * [1, 2, 5, 10].find(one => one * base >= rough);
      for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) out.push(tick);
    }
    return out.filter(tick => tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)).map(one => +one.toPrecision(6));
  }

  // Empty axes and the places of values in them. Values run from low to high and from 0 to top.
  function axes({ width, height, low, high, top, log, label, across, up }) {
    const bottom = height - BOTTOM, right = width - RIGHT, scale = log ? Math.log : one => one;
    const x = value => LEFT + (right - LEFT) * (scale(value) - scale(low)) / (scale(high) - scale(low) || 1);
    const y = value => bottom - (bottom - TOP) * value / (top || 1);
    const svg = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    const write = (words, x, y, anchor) => svg.append(make("svg:text", { x, y, "text-anchor": anchor }, words));
    const line = (x1, y1, x2, y2, colour) => svg.append(make("svg:line", { x1, y1, x2, y2, stroke: colour }));
    for (const tick of ticks(0, top, false)) {
      line(LEFT, y(tick), right, y(tick), "#edf0f2");
      write(tick.toLocaleString("en", { maximumSignificantDigits: 3 }), LEFT - 6, y(tick) + 4, "end");
    }
    for (const tick of ticks(low, high, log)) {
      line(x(tick), bottom, x(tick), bottom + 4, BAR);
      write(tick.toLocaleString("en", { maximumSignificantDigits: 4 }), x(tick), bottom + 17, "middle");
    }
    line(LEFT, bottom, right, bottom, BAR);
    write(across, right, bottom + 33, "end");
    write(up, 0, 11, "start");
    return { svg, x, y, bottom };
  }
  const box = (x, y, width, height, colour, opacity = 1) =>
    make("svg:rect", { x, y, width, height, fill: colour, opacity });
  const stroke = (d, colour, width, dashes = "none", opacity = 1) => make("svg:path",
    { d, fill: "none", stroke: colour, "stroke-width": width, "stroke-dasharray": dashes, opacity });
  function key(words, colour) {
    const element = text("span", "key", words);
    element.style.setProperty("--colour", colour);
    return element;
  }

  // bars and line: a value each between two edges; mark: a place on the axis. names: of bars, and of line or mark.
  page.histogram = one => {
    const low = one.edges[0], high = one.edges.at(-1), top = Math.max(...one.bars, ...(one.line || []));
    const { svg, x, y, bottom } = axes({ width: 380, height: 230, low, high, top, log: one.log, across: one.unit,
      up: one.of, label: `${one.title}: ${one.names.join(", ")}` });
    const gap = one.bars.length > 100 ? 0 : .5, reach = i => x(one.edges[i + 1]) - x(one.edges[i]) - gap;
    one.bars.forEach((value, i) => value
      && svg.append(box(x(one.edges[i]), y(value), Math.max(reach(i), .5), bottom - y(value), BAR)));
    if (one.line) svg.append(stroke("M" + one.line.map((value, i) =>
      `${x(one.edges[i])} ${y(value)}H${x(one.edges[i + 1])}`).join("L"), HOT, 2));
    if (one.mark >= low && one.mark <= high) svg.append(stroke(`M${x(one.mark)} ${TOP}V${bottom}`, HOT, 2, "5 4"));
    const names = one.names.map((name, i) => key(name, [BAR, HOT][i]));
    return make("figure", {}, make("figcaption", {}, text("b", "", one.title)), svg, make("figcaption", {}, ...names));
  };

  page.bars = (title, counts) => {
    const rest = counts.slice(MOST_BARS - 1);
    const shown = counts.length > MOST_BARS ? [...counts.slice(0, MOST_BARS - 1),
      [`${said(rest.length)} others`, rest.reduce((sum, one) => sum + one[1], 0)]] : counts;
    const largest = Math.max(...shown.map(one => one[1]), 1);
    return make("figure", {}, make("figcaption", {}, text("b", "", title)),
      make("div", { class: "bars" }, ...shown.flatMap(([name, number]) => {
        const bar = make("i");
        bar.style.width = `${100 * number / largest}%`;
        return [make("span", { class: "id", title: name }, name), bar, text("b", "", said(number))];
      })), ...(shown.length ? [] : [text("p", "quiet", "none")]));
  };

  // T-motion of a video, each of its clips as a line over its span at the height of its score.
  page.curve = (one, width) => {
    const high = Math.max(one.step * (one.curve.length - 1), 1), end = start => Math.min(start + one.span - 1, high);
    const top = Math.max(...one.curve, ...one.clips.map(clip => clip[1])) || 1;
    const { svg, x, y, bottom } = axes({ width, height: 220, low: 0, high, top, across: "frame",
      up: "px/frame per px", label: "T-motion of every frame, with the clips" });
    if (one.shown !== null)
      svg.append(box(x(one.shown), TOP, x(end(one.shown)) - x(one.shown), bottom - TOP, SHOWN, .12));
    svg.append(stroke("M" + one.curve.map((value, i) => `${x(i * one.step)} ${y(value)}`).join("L"), INK, 1.2));
    for (const [start, score, chosen] of one.clips)
      svg.append(stroke(`M${x(start)} ${y(score)}H${x(end(start))}`, chosen ? HOT : BAR, 2, "none", .75));
    if (one.median !== null) svg.append(stroke(`M${LEFT} ${y(one.median)}H${x(high)}`, HOT, 1, "5 4"));
    for (const number of one.number)
      svg.append(make("svg:path", { d: `M${x(number) - 4} 14h8l-4 7z`, fill: SHOWN }));
    return make("figure", {}, svg, make("figcaption", {}, ...legend(one)));
  };
  function legend(one) {
    if (!one.clip_count) return [key("T-motion of the frames", INK),
      `The video is too short for a clip, which takes ${one.span} frames.`];
    const chosen = one.clips.filter(clip => clip[2]).slice(0, SPANS), others = one.clip_count - one.chosen_count;
    const spans = chosen.map(([start]) => `${start} to ${start + one.span - 1}`).join(", ");
    return [key("T-motion of the frames", INK),
      key(`chosen clips, above the median ${one.median} (${said(one.chosen_count)})`, HOT),
      key(`other clips (${said(others)})`, BAR), key("clip and frames shown", SHOWN),
      text("p", "", `Chosen clips: frames ${spans}`
        + (one.chosen_count > chosen.length ? `, and ${said(one.chosen_count - chosen.length)} more.` : ".")
        + (one.step > 1 ? ` Each point of the curve is the largest of ${one.step} frames.` : "")
        + (one.clips.length < one.clip_count ? ` ${one.clips.length} of the clips are drawn.` : ""))];
  }
})();
