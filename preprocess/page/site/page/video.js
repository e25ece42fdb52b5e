"use strict";
// An opened video: #video=POSITION in the address opens it, so that the browser's way back closes it.
(() => {
  const { at, make, text, said, known } = page;
  const BOX_COLOURS = ["#ffd400", "#00c8ff", "#ff4fd8"], CURVE = [320, 1100];
  let opened, details = {}, siblings = [], stepped = false;

  page.video = (number, content) => { details = { number, content }; };

  page.startVideos = () => {
    addEventListener("hashchange", route);
    document.addEventListener("click", event => {
      const section = event.target.closest('a[href^="#video="]')?.closest("section");
      if (!section) return;
      stepped = true;
      siblings = [...new Set(Array.from(section.querySelectorAll('a[href^="#video="]'),
        one => +one.getAttribute("href").slice(7)))];
    });
    at("video").addEventListener("click", event => event.target === at("video") && at("video").close());
    at("video").addEventListener("close", leave);
    at("close").onclick = () => at("video").close();
    at("previous").onclick = () => step(-1);
    at("next").onclick = () => step(1);
    addEventListener("keydown", event => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (at("video").open) step({ ArrowLeft: -1, ArrowRight: 1 }[event.key]);
      else if (event.key === "/" && !/INPUT|SELECT/.test(event.target.tagName)) {
        event.preventDefault();
        at("words").focus();
      }
    });
    route();
  };
  function route() {
    const found = /^#video=(\d+)$/.exec(location.hash);
    if (found && +found[1] < page.data.videos) open(+found[1]).catch(page.trouble);
    else if (at("video").open) at("video").close();
  }
  function leave() {
    opened = undefined;
    if (!location.hash.startsWith("#video=")) return;
    if (stepped) history.back();
    else history.replaceState(null, "", location.href.split("#")[0]);
    stepped = false;
  }
  function step(by) {
    const next = siblings[siblings.indexOf(opened) + by];
    if (next !== undefined) location.replace(`#video=${next}`);
  }

  async function open(position) {
    opened = position;
    if (!siblings.includes(position)) siblings = page.data.chosen;
    await page.shardOf(position);
    if (opened !== position) return;
    const place = siblings.indexOf(position), number = page.pictureOf.get(position), id = page.cell("id", position);
    at("previous").disabled = place <= 0;
    at("next").disabled = place < 0 || place === siblings.length - 1;
    at("video-title").replaceChildren(text("span", "id", id));
    at("video-body").replaceChildren(about(position));
    if (!at("video").open) at("video").showModal();
    at("video").scrollTop = 0;
    if (number === undefined) {
      const command = `python -m preprocess.show ${quoted(page.data.store)} --video ${quoted(id)} --out video.png`;
      at("video-body").append(text("p", "quiet", "This page keeps no pictures of this video. To draw them:"),
        make("p", {}, text("code", "", command)));
      return;
    }
    await page.load(`videos/${number}.js`);
    if (opened === position && details.number === number)
      at("video-body").append(...drawing(number, details.content));
  }
  const quoted = words => /^[\w@%+=:,./-]+$/.test(words) ? words : `'${words.replaceAll("'", "'\\''")}'`;

  function about(position) {
    const { cell } = page, height = cell("height", position);
    const size = height && `${height}x${cell("width", position)} px`;
    const twins = (page.twinsOf.get(position) || []).map(one => known(one)[0]).join(", ");
    return make("dl", { class: "about" }, ...[
      ["class", page.className(position)], ["splits", page.splits(position) || "none"],
      ["group", cell("group", position)], ["frames", said(cell("frames", position))],
      ["seconds", page.seconds(position)], ["source", size],
      ["motion", String(cell("motion", position))], ["suspicious", page.kindsOf(position)], ["same frames as", twins],
      ["cut off", page.data.cut[position]], ["note", cell("note", position)],
    ].filter(([, value]) => value).map(([name, value]) =>
      make("div", {}, text("dt", "", name), text("dd", "id", value))));
  }

  // A sheet holds pictures of the frames' size side by side; `part` cuts one of them, or a box of one, out of it.
  function part(sheet, [height, width], i, words, { box, pixels, over = [] } = {}) {
    const [y, x, h, w] = box || [0, 0, height, width];
    const image = make("svg:image",
      { href: sheet.uri, width: sheet.count * width, height, preserveAspectRatio: "none" });
    if (pixels) image.style.imageRendering = "pixelated";
    const shift = make("svg:g", { transform: `translate(${i * width} 0)` }, ...over);
    return make("svg:svg", { viewBox: `${i * width + x} ${y} ${w} ${h}`, style: `aspect-ratio: ${w} / ${h}`,
      role: "img", "aria-label": words }, image, shift);
  }
  const figure = (words, ...pictures) => make("figure", {}, ...pictures, text("figcaption", "", words));

  function drawing(number, one) {
    const shown = one.number.length, middle = Math.floor(shown / 2), [height] = one.size;
    const frames = { uri: one.frames, count: shown }, maps = { uri: one.maps, count: shown + 1 };
    const hot = colour => make("svg:path", { d: one.hot, fill: "none", stroke: colour, "stroke-width": height / 150 });
    const boxes = one.boxes.map(([y, x, height_, width], i) => make("svg:rect", { x, y, width, height: height_,
      fill: "none", stroke: BOX_COLOURS[i], "stroke-width": height / 80 }));
    const crops = one.boxes.map((box, i) => {
      const crop = part(frames, one.size, middle, `crop ${i + 1}`, { box });
      crop.style.border = `3px solid ${BOX_COLOURS[i]}`;
      return figure(`crop ${i + 1}, ${box[2]}x${box[3]} px`, crop);
    });
    const space = [figure(one.hot ? "S-motion and its hot cells" : "S-motion",
      part(maps, one.size, shown, "S-motion", { pixels: true, over: [hot("#5ce1ff")] }))];
    if (crops.length) space.push(figure("crops drawn for it",
      part(frames, one.size, middle, "the crops on a frame", { over: [hot("#ffffffcc"), ...boxes] })), ...crops);
    const wide = Math.min(Math.max(at("video-body").clientWidth, CURVE[0]), CURVE[1]);
    return [text("h3", "", "The whole video"),
      make("img", { class: "whole", src: `videos/${number}.jpg`, alt: "four frames, spread over the video" }),
      text("h3", "", one.shown === null ? "Frames and their motion maps"
        : `Its most moving clip: frames ${one.shown} to ${one.shown + one.span - 1}`),
      make("div", { class: "frames" }, ...one.number.map((name, i) => figure(`frame ${name}`,
        part(frames, one.size, i, `frame ${name}`),
        part(maps, one.size, i, `motion map of frame ${name}`, { pixels: true })))),
      make("p", { class: "quiet" }, "motion map, 0", make("span", { class: "scale" }), `${one.high} px/frame per px`),
      text("h3", "", "T-motion and clips"), page.curve(one, wide),
      text("h3", "", crops.length ? "S-motion and crops" : "S-motion"), make("div", { class: "space" }, ...space)];
  }
})();
