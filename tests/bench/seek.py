"""The peer that reads clips from the source: PyAV, by a seek to the key frame before the clip."""

from pathlib import Path

import av
import numpy as np

from shared.clips.index import ClipGeometry


def pyav_seek(path: Path, start: int, clip: ClipGeometry) -> np.ndarray:
    """(L, H, W, 3) uint8 RGB of the clip's frames, from a file of constant frame rate."""
    wanted, frames = set(range(start, start + clip.span, clip.stride)), {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        first, step = stream.start_time or 0, 1 / (stream.average_rate * stream.time_base)
        container.seek(int(first + start * step), stream=stream)
        for frame in container.decode(stream):
            t = round((frame.pts - first) / step)
            if t in wanted:
                frames[t] = frame.to_ndarray(format="rgb24")
            if t >= max(wanted):
                break
    return np.stack(list(frames.values()))
