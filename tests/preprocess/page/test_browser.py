"""The page in Chromium without a window: as a file, by keyboard, on a phone, with hostile names and 240,000 rows."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from preprocess.page import write
from preprocess.page.choice import by_class
from preprocess.page.numbers import VideoNumbers
from preprocess.page.summary import summarise
from preprocess.page.suspects import Suspects
from shared.pictures.overview import StorePicture
from shared.store.index import Index
from shared.store.reader import StoreReader

spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
browsers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(browsers)
COUNT = "document.getElementById('count').textContent"
FOCUS = "document.activeElement"
LISTED = "[...document.querySelectorAll('#rows a')].map(a => a.textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (program := browsers.find()):
        pytest.skip(f"no browser here (none of {', '.join(browsers.NAMES)}): the page's script is not run")
    browser = browsers.Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def opened(browser, page):
    """The page, freshly opened, at 1200 pixels; nothing may be asked of a network, nor reported on the console."""
    browser.size(1200, 900)
    browser.console.clear(), browser.asked.clear()
    browser.open("about:blank")
    browser.open(page.as_uri() + "/index.html")
    browser.until("document.querySelectorAll('#rows tr').length")
    yield browser
    assert not browser.console
    assert {url.split(":")[0] for url in browser.asked} <= {"file", "data"}


def seen(id):
    """The id as a browser gives it back: what is no text is a replacement character."""
    return id.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shown(browser, id):
    """Wait until the video is open and drawn; returns how many pictures it shows."""
    browser.until(f"document.getElementById('video').open && {json.dumps(id)} === "
                  "document.getElementById('video-title').textContent && document.querySelector('#video .space')")
    return browser.value("document.querySelectorAll('#video svg image').length")


def test_names_are_text(opened, page_store, ids):
    store = Index.load(page_store)
    assert opened.value("document.title") == "store: dataset folder"
    assert list(map(seen, opened.value(LISTED))) == list(map(seen, store.id))
    position = store.id.index(ids["evil"])
    opened.value(f"location.hash = '#video={position}'")
    assert shown(opened, ids["evil"]) == 6 + 6 + 1 + 1 + 3
    assert opened.value("document.title") == "store: dataset folder"
    assert opened.value("[...document.querySelectorAll('img, script')].every(one => "
                        "/^(page|data|videos)/.test(one.getAttribute('src')))")
    for box in ("facts", "strips", "suspects", "reasons", "rows", "video-body"):
        assert "<img src=x" not in opened.value(f"document.getElementById('{box}').innerHTML"), box


def test_pictures_are_there(opened, page_store, ids):
    opened.value(f"location.hash = '#video={Index.load(page_store).id.index(ids['moving'])}'")
    shown(opened, ids["moving"])
    sizes = opened.value("""Promise.all([...document.querySelectorAll('#video svg image')].map(async one => {
        const image = new Image(); image.src = one.getAttribute('href'); await image.decode();
        return [image.naturalWidth, image.naturalHeight]; }))""")
    assert set(map(tuple, sizes)) == {(6 * 160, 128), (7 * 20, 16)}
    opened.until("document.querySelector('#video img.whole').naturalWidth === 640")
    clips = StoreReader(page_store).clips(ids["moving"], "16x2")
    text = opened.value("document.getElementById('video-body').textContent")
    assert f"Its most moving clip: frames {clips.start[clips.score.argmax()]} to" in text
    assert "same frames aswalk/moving (copy).mp4, run/start of moving.mp4" in text


def test_by_keyboard(opened, page_store, ids):
    store = Index.load(page_store)
    opened.press("/")
    assert opened.value(f"{FOCUS}.id") == "words"
    opened.press(*"RUN/")
    opened.until(f"{COUNT} === '1 to 5 of 5 videos'")
    runs = [id for id in store.id if id.startswith("run/")]
    opened.press("Tab", "Tab")   # past the choice of kinds
    assert opened.value(f"{FOCUS}.textContent") == "Video"
    opened.press("Enter")
    opened.until(f"document.getElementById('head-id').getAttribute('aria-sort') === 'descending' && {LISTED}[0] === "
                 f"{json.dumps(runs[-1])}")
    for _ in range(20):
        opened.press("Tab")
        if opened.value(f"{FOCUS}.textContent") == runs[-1]:
            break
    opened.press("Enter")
    shown(opened, runs[-1])
    opened.press("ArrowRight")
    shown(opened, runs[-2])
    opened.press("ArrowLeft", "ArrowLeft")
    shown(opened, runs[-1])
    opened.press("Escape")
    opened.until("!document.getElementById('video').open && !location.hash")
    assert opened.value(f"{FOCUS}.textContent") == runs[-1]


def test_sorted_by_every_column(opened, page_store):
    reader = StoreReader(page_store)
    store = reader.index
    motion = [float(f"{reader.t_motion(id).mean():.4g}") for id in store.id]
    for name, values in {"motion": motion, "frames": store.frames, "class": store.class_name}.items():
        for down in ((False, True) if name == "class" else (True, False)):   # numbers: the largest first
            opened.value(f"document.querySelector('#head-{name} button').click()")
            order = sorted(range(12), key=lambda i: values[i], reverse=down)
            opened.until(f"{LISTED}.join() === {json.dumps([store.id[i] for i in order])}.join()")
            assert opened.value(f"document.getElementById('head-{name}').getAttribute('aria-sort')") == (
                "descending" if down else "ascending")


@pytest.mark.parametrize("width", [1200, 500, 390])
def test_nothing_is_wider_than_the_window(opened, page_store, ids, width):
    opened.size(width, 844)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert opened.value(wide) == 0
    opened.value(f"location.hash = '#video={Index.load(page_store).id.index(ids['evil'])}'")
    shown(opened, ids["evil"])
    assert opened.value("document.getElementById('video').scrollWidth - "
                        "document.getElementById('video').clientWidth") == 0
    assert opened.value("document.querySelector('#video svg').getBoundingClientRect().width") > width / 8


def test_a_page_without_its_folder_says_so(browser, page, tmp_path):
    for name in ("index.html", "page", "data"):
        (tmp_path / name).symlink_to(page / name)
    browser.open((tmp_path / "index.html").as_uri() + "#video=0")
    browser.until("document.getElementById('trouble').textContent.includes('videos/')"
                  " && !document.getElementById('trouble').hidden")


def test_240_000_videos_page_sort_and_search(browser, tmp_path):
    count, classes = 240_000, 400
    names = [f"class {i * classes // count:03}" for i in range(count)]
    ids = [f"{name}/{i:06}.mp4" for i, name in enumerate(names)]
    plain = [ids, ids, ["p"] * count, ["0"] * count, ["60"] * count, ["0"] * count, names, [""] * count,
             ["train"] * count, ["30.0"] * count, ["256"] * count, ["340"] * count, [""] * count]
    packs = [["p"], ["packs/8x8/p"], ["60"], ["1"], ["cpu"], ["zarr.json:1:00000000"]]
    index = Index(Path("k400"), "000001-00000000", plain, packs)
    numbers, found = VideoNumbers(index, None), Suspects()
    numbers.motion[:] = np.random.default_rng(0).permutation(count) % 9999   # the page keeps four digits
    fastest = np.argsort(-numbers.motion, kind="stable")
    found.kinds["still"] = list(range(0, count, 1000))
    groups = by_class(index, numbers.motion)
    empty = np.zeros(0, np.float32)
    census = StorePicture("k400", [], empty, empty, index.frames, 31, [], [], [], [])
    shutil.copytree(write.SITE, tmp_path, dirs_exist_ok=True)
    (tmp_path / "data").mkdir()
    write.write_rows(tmp_path / "data", index, numbers.motion, found, list(groups))
    write.script(tmp_path / "data/store.js", "store",
                 summarise(index, census, [], found, numbers, groups, [], write.SHARD))

    browser.size(390, 844)
    browser.asked.clear()
    browser.open(tmp_path.as_uri() + "/index.html")
    browser.until(f"{COUNT} === '1 to 50 of 240,000 videos'")
    browser.value("document.getElementById('last').click()")
    browser.until(f"{COUNT} === '239,951 to 240,000 of 240,000 videos'")
    assert browser.value(LISTED)[-1] == ids[-1]
    assert len([url for url in browser.asked if "/rows-" in url]) == 2   # of 120: pages by id read only their own rows
    browser.value("document.querySelector('#head-motion button').click()")
    browser.until(f"{COUNT}.startsWith('1 to 50 of') && {LISTED}[0] === '{ids[fastest[0]]}'")
    browser.value("document.getElementById('number').value = 2400; document.getElementById('number').onchange()")
    browser.until(f"{COUNT}.startsWith('119,951 ')")
    assert browser.value(LISTED) == [ids[i] for i in fastest[119_950:120_000]]
    browser.value("document.getElementById('kind').value = 'still'; document.getElementById('kind').onchange()")
    browser.until(f"{COUNT} === '1 to 50 of 240 videos'")
    browser.value("document.getElementById('words').value = ' CLASS 39 '; document.getElementById('words').oninput()")
    browser.until(f"{COUNT} === '1 to 6 of 6 videos'")
