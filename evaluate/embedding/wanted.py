"""Frames of a video file, read in a process that a damaged file may kill: it loads what this module imports, no torch.

HxW pixels, n frames.
"""

from collections.abc import Generator
from pathlib import Path

import numpy as np

from shared.videos.decode import open_video
from shared.videos.streams import VideoError


def wanted_frames(path: Path, settings: dict, first: int, limit: int, wanted: np.ndarray,
                  crop: tuple[slice, slice]) -> Generator[np.ndarray, None, int]:
    """Of a run of good frames those numbered `wanted` (n,), sorted, from the run's first, as (m, h, w, 3) uint8 of what
    `crop` leaves, some at a time; returns how many frames the run has.

    settings: of `open_video`; first: a frame of the file that is in the run; limit: the run's length where its end is
    known to be damage, else 0. Raises VideoError as `open_video` and `Decoder` do.
    """
    with open_video(path, first=first, wanted=set(wanted.tolist()), **settings) as decoder:
        try:
            for frames in decoder:
                yield np.ascontiguousarray(frames[:, *crop])
        except VideoError:
            if not limit or decoder.frames < limit:
                raise
        return decoder.frames
