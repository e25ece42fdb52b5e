"""A collection of 240,000 videos in 2,400 tar shards: seconds and memory of its catalog, its plan,
its index and its status.

    python tests/bench/sources.py [shards] [videos a shard] [videos planned]

The shards are links to one, so that the disk holds 100 videos; each of them is listed, and as many as asked probed.
The index has a row for each of those, as a run of that plan would write it; the packs themselves are not made.
"""

import os
import resource
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from preprocess import status
from preprocess.cost import FILES_PER_PACK
from preprocess.plan import make_plan
from preprocess.synthetic import make_videos
from shared.datasets.archives import Fields
from shared.datasets.catalog import open_catalog
from shared.datasets.headers import keep_headers, read_headers
from shared.datasets.sources import open_sources
from shared.recipes.preprocessing import load_pipeline, recipe_hash
from shared.store.index import Index, publish
from shared.store.record import write_json_atomic
from shared.store.tables import PackRow, VideoRow
from shared.videos.isolate import ChildProcess


def main(shards: int = 2400, videos: int = 100, planned: int = 240_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, began = Path(folder), time.perf_counter()

        def say(what: str) -> None:
            nonlocal began
            seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"{what:40} {seconds:8.1f} s   peak {peak:.2f} GB", flush=True)
            began = time.perf_counter()

        make_videos(root / "videos", videos=2, backgrounds=1, textures=2, frames=24, height=48, width=48, seed=1)
        file = next((root / "videos").glob("*/*.mp4"))
        with tarfile.open(root / "shard.tar", "w") as out:
            for number in range(videos):
                out.add(file, f"class{number % 10}/{number:06}.mp4")
        (root / "shards").mkdir()
        for number in range(shards):
            os.link(root / "shard.tar", root / f"shards/{number:06}.tar")
        say(f"{shards:,} shards of {videos} videos made")
        pattern = f"{root}/shards/{{000000..{shards - 1:06}}}.tar"
        catalog = open_catalog("folder", open_sources([pattern]))
        say(f"catalog of {len(catalog.videos):,} videos")
        store = root / "store"
        store.mkdir()
        keep_headers(store, Fields(), catalog.scan.headers)
        say(f"kept: {(store / 'records/archives.json').stat().st_size / 1e6:.1f} MB")
        catalog = open_catalog("folder", open_sources([pattern]), known=read_headers(store)[1])
        say("catalog again, headers known")
        recipe, reader = load_pipeline("folder", settings=["clips.geometries=8x2"]).recipe, ChildProcess()
        plan = make_plan(catalog, recipe, {video.id for video in catalog.videos[:planned]}, reader=reader)
        reader.close()
        say(f"plan of {len(plan.probes):,} videos in {len(plan.packs):,} packs")
        files = {f"file{number}": (1 << 20, number) for number in range(FILES_PER_PACK)}
        paths = {video.id: video.path for video in catalog.videos}
        rows = [VideoRow(video, paths[video], pack.name, 24 * number, 24, number % 10, f"class{number % 10}",
                         fps=25.0, source_height=48, source_width=48)
                for pack in plan.packs for number, video in enumerate(pack.videos)]
        write_json_atomic(store / "store.json", {
            "format": 1, "dataset": "folder", "classes": [f"class{number}" for number in range(10)],
            "recipe": recipe.to_dict(), "recipe_hash": recipe_hash(recipe.to_dict())})
        publish(store, [PackRow(pack.name, f"packs/48x48/{pack.name}", 24 * len(pack.videos), len(pack.videos), "cpu",
                                files) for pack in plan.packs], rows)
        say(f"index of {len(rows):,} videos published")
        Index.load(store)
        say("index opened")
        status.main([str(store)])
        say("status")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
