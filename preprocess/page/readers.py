"""Reading many videos of a store side by side."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from shared.cli import Progress
from shared.store.index import Index
from shared.store.object_path import PARALLEL
from shared.store.reader import StoreReader


def of_each(index: Index, function: Callable, positions: Sequence[int], label: str) -> dict:
    """{position: function(reader, position)} with a progress line; threads, each with a pack of its own at a time.

    Decoding releases the interpreter's lock, and storage that is far away answers several requests at once. The first
    exception is raised.
    """
    packs, found, lock = defaultdict(list), {}, threading.Lock()
    for position in positions:
        packs[index.pack[position]].append(position)
    progress = Progress(label, len(positions))

    def run(pack: str) -> None:
        reader = StoreReader(index.store, max_open=1, index=index)
        for position in packs[pack]:
            result = function(reader, position)
            with lock:
                found[position] = result
                progress.update(len(found))
        reader.close()

    with ThreadPoolExecutor(PARALLEL) as pool, closing(pool.map(run, packs)) as ended:
        for _ in ended:
            pass
    progress.close()
    return found
