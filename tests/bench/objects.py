"""Clips from object storage at a distance, ours and zarr-python's: `python tests/bench/objects.py [--delay-ms 20]`.

An S3 server (moto's) runs on loopback in a process of its own, behind a proxy that counts requests and holds every one
back for a while, as a network would. Wall time, medians of interleaved rounds. A clip is 16 frames at stride 2 with its
ST-motion. Packs are open: their arrays' metadata and, in our reader, shard indices have been read.
"""

import argparse
import asyncio
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import s3fs
import zarr
from floors import tell
from store import CLIP, load, sources, table, write

import shared.store.codecs  # noqa: F401
from shared.store.lock import store_lock
from shared.store.place import as_place
from shared.store.reader import StoreReader

VIDEOS = 3  # in the store: this server reads a whole object to answer for a range of it
REQUEST = re.compile(rb"^(GET|HEAD|PUT|POST|DELETE) \S+ HTTP/1\.1\r\n", re.MULTILINE)
SERVER = """
import logging, sys, time
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()   # until our end is closed
"""


class Proxy:
    """Forwards TCP to a port of this machine; holds back every request by `delay_s` and counts them in `requests`."""

    def __init__(self, target: int):
        self.target, self.delay_s, self.requests, self.received = target, 0.0, 0, 0
        self.loop, started = asyncio.new_event_loop(), threading.Event()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        started.wait()

    def _run(self, started) -> None:
        server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self.loop.run_forever()

    async def _serve(self, reader, writer) -> None:
        there, out = await asyncio.open_connection("127.0.0.1", self.target)

        async def up():
            while data := await reader.read(1 << 16):
                count = len(REQUEST.findall(data))
                self.requests += count
                if count:
                    await asyncio.sleep(self.delay_s)
                out.write(data)
                await out.drain()
            out.close()

        async def down():
            while data := await there.read(1 << 16):
                self.received += len(data)
                writer.write(data)
                await writer.drain()
            writer.close()
        await asyncio.gather(up(), down(), return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=10, help="clips a round")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="added to every request")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores; Python {platform.python_version()}, zarr {zarr.__version__}, "
          f"s3fs {s3fs.__version__}, {args.delay_ms:g} ms added to every request\n")
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        proxy = Proxy(int(server.stdout.readline()))
        os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "AWS_ACCESS_KEY_ID": "bench",
                       "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
        s3fs.S3FileSystem().mkdir("bench")
        store = as_place("s3://bench/store")
        with tempfile.TemporaryDirectory() as folder:
            videos = sources(Path(folder))[:VIDEOS]
            with store_lock(store):
                ids = write(store, [load(path) for path in videos], videos)
        table("clip read from S3", reading(store, ids, proxy, args))
    finally:
        server.stdin.close()
        server.wait()


def reading(store, ids, proxy: Proxy, args) -> list[tuple[str, str, str, str]]:
    reader, rng = StoreReader(store), np.random.default_rng(1)
    clips = []
    for _ in range(args.clips):
        row = reader.index.row(str(rng.choice(ids)))
        clips.append((row, int(rng.integers(0, row.frames - CLIP.span + 1))))
    arrays = {}
    for row in reader.index.pack_rows():
        group = zarr.open_group(zarr.storage.FsspecStore.from_url(str(store / row.path)), mode="r")
        arrays[row.pack] = group["rgb"], group["st_motion"]

    def ours(row, start):
        return reader.clip(row.id, start, CLIP)

    def by_zarr(row, start):
        rgb, motion = arrays[row.pack]
        a = row.first_frame + start
        return rgb[a:a + CLIP.span:2], motion[a:a + CLIP.span:2]

    def whole_ranges(row, start):
        """The floor: the same two ranges, fetched and thrown away."""
        for shard, chunks in ((reader._open(row.pack).shards["rgb"], np.arange(start, start + CLIP.span, 2)),
                              (reader._open(row.pack).shards["st_motion"], None)):
            rows = row.first_frame + chunks if chunks is not None else np.arange(
                (row.first_frame + start) // 16, (row.first_frame + start + CLIP.span - 1) // 16 + 1)
            first = int(shard.offset[rows].min())
            floor.cat_file(str(shard.path), start=first, end=int((shard.offset[rows] + shard.nbytes[rows]).max()))

    floor = fsspec.filesystem("s3")
    for row, start in clips:
        for mine, theirs in zip(ours(row, start), by_zarr(row, start)):
            assert np.array_equal(mine, theirs)
    peers, found = {"this reader": ours, "zarr-python, same objects": by_zarr, "the two ranges alone": whole_ranges}, {}
    proxy.delay_s = args.delay_ms / 1e3
    for number in range(args.rounds):
        for name in list(peers)[number % 3:] + list(peers)[:number % 3]:
            requests, received, began = proxy.requests, proxy.received, time.perf_counter()
            for row, start in clips:
                peers[name](row, start)
            found.setdefault(name, []).append(((time.perf_counter() - began) / len(clips),
                                               (proxy.requests - requests) / len(clips),
                                               (proxy.received - received) / len(clips)))
    proxy.delay_s = 0
    medians = {name: [statistics.median(values) for values in zip(*rounds)] for name, rounds in found.items()}
    mine = medians["this reader"][0]
    tell("objects: requests a clip", medians["this reader"][1])
    return [(name, f"{1e3 * seconds:.1f} ms/clip", f"{seconds / mine:.2f}",
             f"{requests:.1f} requests, {count / 1e3:.0f} kB a clip")
            for name, (seconds, requests, count) in medians.items()]


if __name__ == "__main__":
    main()
