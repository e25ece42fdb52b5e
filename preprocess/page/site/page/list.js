"use strict";
// The list of all videos. By id its rows come page by page; sorting and searching read every shard once.
(() => {
  const { at, make, text, button, said, count, link } = page;
  const ROWS = 50, SIDE_BY_SIDE = 8, PAUSE_MS = 150;
  const COLUMNS = [
    { name: "id", title: "Video" }, { name: "class", title: "Class", wide: true },
    { name: "splits", title: "Splits", wide: true }, { name: "frames", title: "Frames", number: true },
    { name: "seconds", title: "Seconds", number: true, wide: true }, { name: "motion", title: "Motion", number: true },
    { name: "kinds", title: "Suspicious", wide: true }];
  const shards = [], loading = new Map();
  // order: positions in the store; null: all of them, by id. turn: counts changes, so that a late answer is left out.
  const list = { words: "", kind: "", column: "id", down: false, number: 0, order: null, turn: 0 };

  page.rows = (number, columns) => { shards[number] = columns; };
  page.shardOf = position => shard(Math.floor(position / page.data.shard));
  page.cell = (column, position) =>
    shards[Math.floor(position / page.data.shard)][column][position % page.data.shard];
  page.className = position => page.data.classes[page.cell("class", position)].name || "unlabelled";
  page.kindsOf = position => page.data.kinds.filter((_, bit) => page.cell("kinds", position) >> bit & 1)
    .map(kind => kind.title.toLowerCase()).join(", ");
  page.seconds = position => page.cell("seconds", position) ? said(page.cell("seconds", position)) : "";
  page.splits = position => page.cell("splits", position).replaceAll(";", ", ");
  page.showKind = kind => {
    at("words").value = "";
    at("kind").value = kind;
    change({ words: "", kind });
    location.hash = "#list";
  };

  function shard(number) {
    if (!loading.has(number)) loading.set(number, page.load(`data/rows-${number}.js`));
    return loading.get(number);
  }

  page.startList = () => {
    at("kind").append(
      make("option", { value: "" }, "all videos"), make("option", { value: "pictures" }, "with pictures"),
      ...page.data.kinds.filter(kind => kind.count).map(kind =>
        make("option", { value: kind.name }, `${kind.title.toLowerCase()} (${said(kind.count)})`)));
    for (const { name, title, number, wide } of COLUMNS) {
      const largestFirst = Boolean(number) || name === "kinds", style = `${wide ? "wide" : ""} ${number ? "n" : ""}`;
      at("heads").append(make("th", { scope: "col", id: `head-${name}`, class: style },
        button(title, () => change({ column: name, down: list.column === name ? !list.down : largestFirst }))));
    }
    let pause;
    at("words").oninput = () => {
      clearTimeout(pause);
      pause = setTimeout(() => change({ words: at("words").value.trim().toLowerCase() }), PAUSE_MS);
    };
    at("filter").onsubmit = event => event.preventDefault();
    at("kind").onchange = () => change({ kind: at("kind").value });
    at("first").onclick = () => turnTo(0);
    at("before").onclick = () => turnTo(list.number - 1);
    at("after").onclick = () => turnTo(list.number + 1);
    at("last").onclick = () => turnTo(Infinity);
    at("number").onchange = () => turnTo((parseInt(at("number").value, 10) || 1) - 1);
    change({});
  };
  const turnTo = number => show(Object.assign(list, { number }).turn).catch(page.trouble);

  function change(wish) {
    Object.assign(list, wish, { number: 0 });
    const turn = ++list.turn;
    for (const { name } of COLUMNS) at(`head-${name}`).setAttribute("aria-sort",
      name !== list.column ? "none" : list.down ? "descending" : "ascending");
    arrange(turn).then(() => show(turn)).catch(page.trouble);
  }
  async function arrange(turn) {
    if (!list.words && !list.kind && list.column === "id") {
      list.order = null;
      return;
    }
    const all = Math.ceil(page.data.videos / page.data.shard);
    for (let first = 0; first < all; first += SIDE_BY_SIDE) {
      await Promise.all(Array.from({ length: Math.min(SIDE_BY_SIDE, all - first) }, (_, i) => shard(first + i)));
      if (turn === list.turn && all > SIDE_BY_SIDE)
        at("count").textContent = `reading the rows of all videos, ${Math.round(100 * first / all)} %`;
    }
    if (turn === list.turn) list.order = sorted(matching(list.words, list.kind), list.column, list.down ? -1 : 1);
  }
  function matching(words, kind) {
    const { kinds, classes, videos, shard: size } = page.data, out = [];
    const bit = kinds.findIndex(one => one.name === kind);
    const wanted = classes.map(one => (one.name || "unlabelled").toLowerCase().includes(words));
    for (let position = 0; position < videos; position++) {
      const part = shards[Math.floor(position / size)], i = position % size;
      if (bit >= 0 && !(part.kinds[i] >> bit & 1) || kind === "pictures" && !page.pictureOf.has(position)) continue;
      if (wanted[part.class[i]] || ["id", "splits", "group", "note"].some(name =>
        part[name][i].toLowerCase().includes(words))) out.push(position);
    }
    return out;
  }
  function sorted(positions, column, sign) {
    const names = page.data.classes.map((one, i) => [one.name, i]).sort((a, b) => a[0] < b[0] ? -1 : 1);
    const place = new Map(names.map(([, i], place) => [i, place]));
    const values = new Array(page.data.videos);
    for (const one of positions) values[one] = column === "id" ? one
      : column === "class" ? place.get(page.cell(column, one)) : page.cell(column, one);
    return positions.sort((a, b) => values[a] < values[b] ? -sign : values[a] > values[b] ? sign : a - b);
  }

  async function show(turn) {
    if (turn !== list.turn) return;
    const { videos } = page.data, total = list.order ? list.order.length : videos;
    const last = Math.max(Math.ceil(total / ROWS) - 1, 0), number = Math.min(Math.max(list.number, 0), last);
    list.number = number;
    const first = number * ROWS, positions = Array.from({ length: Math.min(ROWS, total - first) }, (_, i) =>
      list.order ? list.order[first + i] : list.down ? videos - 1 - first - i : first + i);
    await Promise.all(positions.map(page.shardOf));
    if (turn !== list.turn || number !== list.number) return;
    at("rows").replaceChildren(...positions.map(row));
    at("count").textContent = !total ? "No video is like that."
      : `${said(first + 1)} to ${said(first + positions.length)} of ${count(total, "video")}`;
    at("number").value = number + 1;
    at("numbers-of").textContent = `of ${said(last + 1)}`;
    at("first").disabled = at("before").disabled = number === 0;
    at("last").disabled = at("after").disabled = number === last;
  }
  function row(position) {
    const kinds = page.kindsOf(position), name = page.className(position);
    return make("tr", {},
      make("td", {}, make("a", { class: "id", ...link(position) }, page.cell("id", position)),
        make("div", { class: "narrow quiet" }, text("span", "id", name), " ", text("span", "flag", kinds))),
      text("td", "wide id", name), text("td", "wide id", page.splits(position)),
      text("td", "n", said(page.cell("frames", position))), text("td", "wide n", page.seconds(position)),
      text("td", "n", page.cell("motion", position)), text("td", "wide flag", kinds));
  }
})();
