"use strict";
// The page of a store: what the files share, and the sections above the list. data/store.js, data/rows-N.js and
// videos/N.js call page.store, page.rows and page.video. Whatever comes from the store enters the page as text or as
// a number, never as markup.
const page = {
  data: null,               // what data/store.js gave
  pictureOf: new Map(),     // position of a video in the store -> number of its pictures
  twinsOf: new Map(),       // position -> positions of the videos with the same frames
  at: id => document.getElementById(id),
  make(tag, attributes = {}, ...children) {
    const element = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  },
  text: (tag, kind, words) => page.make(tag, kind ? { class: kind } : {}, words),
  button(words, action) {
    const element = page.make("button", { type: "button" }, words);
    element.onclick = action;
    return element;
  },
  said: number => number.toLocaleString("en"),
  count: (number, one, many = one + "s") => `${page.said(number)} ${number === 1 ? one : many}`,
  link: position => ({ href: `#video=${position}` }),
  known: position => page.data.known[position] || [`video ${position}`, ""],
  load(file) {
    return new Promise((done, fail) => {
      const script = page.make("script", { src: file });
      script.onload = () => { script.remove(); done(); };
      script.onerror = () => fail(new Error(`${file} is missing beside this page: copy its whole folder.`));
      document.head.append(script);
    });
  },
  trouble(error) {
    page.at("trouble").textContent = error.message;
    page.at("trouble").hidden = false;
  },
};

(() => {
  const { at, make, text, button, said, count, link, known } = page;
  const STRIP_CLASSES = 24, STRIP_TILES = 4;

  function drawTimes() {
    if (!page.data.times.length) return;
    at("times").append(make("details", {}, make("summary", {}, "CPU seconds a video, and the slowest videos"),
      make("dl", {}, ...page.data.times.map(({ stage, p50, p95, slowest }) => make("div", {}, text("dt", "", stage),
        text("dd", "", `half under ${p50}, 95 % under ${p95}; slowest: `
          + slowest.map(([video, seconds]) => `${video} ${seconds}`).join(", ")))))));
  }

  page.store = data => {
    page.data = data;
    data.chosen.forEach((position, number) => page.pictureOf.set(position, number));
    for (const group of data.twins)
      for (const one of group) page.twinsOf.set(one, group.filter(other => other !== one));
    document.title = at("title").textContent = data.title;
    at("path").textContent = data.store;
    at("facts").append(...data.facts.map(([name, value]) =>
      make("div", {}, text("dt", "", name), text("dd", "", value))));
    drawCharts();
    drawTimes();
    drawStrips(STRIP_CLASSES);
    at("most").append(...data.most.map(position => card(position)));
    at("least").append(...data.least.map(position => card(position)));
    drawSuspects();
    drawFailures();
    page.startList();
    page.startVideos();
  };

  function drawCharts() {
    const { classes, histograms, sizes, splits } = page.data, counts = classes.map(one => one.count);
    at("charts").append(...histograms.map(page.histogram));
    if (classes.length > 8) at("charts").append(page.histogram({
      title: "Videos by class", unit: "classes, largest first", of: "videos", bars: counts,
      edges: [...counts.keys(), counts.length], names: [count(classes.length, "class", "classes")] }));
    else at("charts").append(page.bars("Videos by class", classes.map(one => [one.name || "unlabelled", one.count])));
    at("charts").append(page.bars("Videos by frame size, height x width", sizes), page.bars("Videos by split", splits));
  }

  // One of the four frames that a video's picture holds side by side.
  function frame(position, number) {
    const image = make("img", { src: `videos/${page.pictureOf.get(position)}.jpg`, alt: "", loading: "lazy" });
    image.style.objectPosition = `${100 * number / (STRIP_TILES - 1)}% 0`;
    return image;
  }
  function card(position, remark) {
    const [id, motion] = known(position);
    const picture = page.pictureOf.has(position) ? make("span", { class: "strip" }, ...Array.from(
      { length: STRIP_TILES }, (_, i) => make("span", { class: "tile" }, frame(position, i))))
      : text("span", "none", "no pictures of this one");
    return make("a", { class: "card", title: id, ...link(position) }, picture, text("span", "id", id),
      text("span", "quiet", remark || `motion ${motion}`));
  }

  // Four tiles a class: a frame of each of its first four videos, or more frames of fewer videos.
  function drawStrips(most) {
    const { classes } = page.data;
    at("strips").replaceChildren(...classes.slice(0, most).map(one => make("div", {},
      make("h3", {}, text("span", "id", one.name || "unlabelled"), text("span", "", count(one.count, "video"))),
      one.videos.length ? make("div", { class: "strip" }, ...tiles(one.videos)) : text("p", "quiet", "no pictures"))));
    if (classes.length > most) at("strips").append(
      button(`Show all ${count(classes.length, "class", "classes")}`, () => drawStrips(Infinity)));
    if (!classes.length) at("strips").append(text("p", "quiet", "The store holds no videos."));
  }
  function tiles(videos) {
    return Array.from({ length: STRIP_TILES }, (_, tile) => {
      const position = videos[Math.floor(tile * videos.length / STRIP_TILES)], id = known(position)[0];
      return make("a", { class: "tile", title: id, "aria-label": id, ...link(position) },
        frame(position, videos.length === STRIP_TILES ? 1 : tile));
    });
  }

  function drawSuspects() {
    const { kinds, examined, videos } = page.data, box = at("suspects");
    if (kinds.some(one => one.count))
      box.append(text("p", "quiet", "These are signs, not verdicts: look before you drop anything."));
    if (examined < videos) box.append(text("p", "quiet",
      `Black frames and logos were looked for in ${count(examined, "video")} of ${said(videos)}: those with the least `
      + "detail, and those whose motion stays in the same places."));
    for (const kind of kinds.filter(one => one.count)) {
      box.append(make("h3", {}, kind.title + " ", text("span", "", count(kind.count, "video"))),
        text("p", "quiet", kind.why),
        make("div", { class: "cards" }, ...kind.videos.map(one => card(one, remark(kind.name, one)))));
      if (kind.count > kind.videos.length) box.append(make("p", { class: "more" },
        button(`All ${count(kind.count, "video")} in the list`, () => page.showKind(kind.name))));
    }
    const none = kinds.filter(one => !one.count).map(one => one.title.toLowerCase());
    if (none.length) box.append(text("p", "quiet", `Nothing found of: ${none.join(", ")}.`));
  }
  function remark(kind, position) {
    if (kind === "cut") return page.data.cut[position];
    if (kind === "twin" && page.twinsOf.has(position))
      return `same frames as ${known(page.twinsOf.get(position)[0])[0]}`;
  }

  function drawFailures() {
    for (const { reason, count: number, videos } of page.data.failures) {
      const items = videos.map(([id, own, stage]) => make("li", {}, text("span", "id", id),
        text("span", "quiet", ` ${stage}${own === reason ? "" : `: ${own}`}`)));
      if (number > videos.length)
        items.push(text("li", "quiet", `and ${said(number - videos.length)} more in failures.csv`));
      at("reasons").append(make("details", {},
        make("summary", {}, text("b", "", count(number, "video")), `: ${reason}`), make("ul", {}, ...items)));
    }
    if (!page.data.failures.length)
      at("reasons").append(text("p", "quiet", "Every video that was tried is in the store."));
  }
})();
