"""What a backbone is given: clips of a video's frames, scaled, cropped and normalised (docs/method.md, 1.7).

T frames of HxW pixels, L frames at stride S of a clip, SxS pixels of a view.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from shared.clips.index import ClipGeometry
from shared.clips.resampling import normalise, resize

EDGE = 256 / 224      # short edge over view


@dataclass(frozen=True)
class Transform:
    """Frames of a video -> input of a network: `clips` clips, spread evenly over the video, of frames whose short side
    is scaled to `short_edge` pixels, the `size` pixels square in their middle.

    step: frames from one clip's start to the next, instead of `clips` (0: as many as `clips`).
    """

    clips: int
    geometry: ClipGeometry
    size: int
    short_edge: int
    step: int = field(default=0, kw_only=True)

    def __call__(self, video: np.ndarray | Tensor, clips: int = 0) -> Tensor:
        """(T, H, W, 3) uint8 RGB -> (clips, 3, L, S, S) float32, on the device of the frames.

        clips: another number of clips than the transform's own. A single clip lies in the middle; a video shorter than
        a clip is looped until it is one. Raises ValueError for frames of another shape or type.
        """
        video = torch.as_tensor(video)
        if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != torch.uint8 or not video.numel():
            raise ValueError(f"frames of shape {tuple(video.shape)}, {video.dtype}; expected (T, H, W, 3), torch.uint8")
        distinct, places, weights = self.frames(len(video), clips=clips)
        seen = video[torch.from_numpy(distinct).to(video.device)][:, *self.crop(*video.shape[1:3])]
        places = torch.from_numpy(np.repeat(places, weights, axis=0)).to(video.device)
        return self.images(seen)[:, places].transpose(0, 1).contiguous()

    def to_dict(self) -> dict:
        document = {"clips": self.clips, "clip": str(self.geometry), "size": self.size, "short_edge": self.short_edge}
        return document | ({"step": self.step} if self.step else {})

    def frames(self, count: int, first: int = 0, stop: int | None = None,
               clips: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which frames of a video of `count` frames: (n,) distinct ones; (u, L) places among those, of the distinct
        clips; (u,) how many of `clips` each stands for. A single clip lies in the middle; a video shorter than a clip
        is looped until it is one.

        first, stop: the clips lie in these frames, or, where those are fewer than a clip's, about their middle."""
        span, clips = self.geometry.span, clips or self.clips
        last = (count if stop is None else stop) - span
        if last < first:
            first = last = max(0, min((first + last) // 2, count - span))
        if self.step:
            starts = np.arange(first, last + 1, self.step)
        else:
            starts = np.linspace(first, last, clips) if clips > 1 else np.array([(first + last) / 2])
            starts = starts.round().astype(np.int64)
        starts, weights = np.unique(starts, return_counts=True)
        numbers = (starts[:, None] + self.geometry.stride * np.arange(self.geometry.length)) % count
        distinct, places = np.unique(numbers, return_inverse=True)
        return distinct, places.reshape(numbers.shape), weights

    def side(self, height: int, width: int) -> int:
        """Pixels of a frame that a crop of `size` pixels shows: size / short_edge of the short side."""
        return max(1, min(height, width, round(min(height, width) * self.size / self.short_edge)))

    def crop(self, height: int, width: int) -> tuple[slice, slice]:
        """The part of a frame that is looked at: the square in its middle."""
        side = self.side(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return slice(top, top + side), slice(left, left + side)

    def images(self, frames: Tensor) -> Tensor:
        """(n, h, w, 3) uint8 -> (3, n, S, S) float32: scaled to the view, less ImageNet's mean, over its deviation."""
        return normalise(resize(frames, self.size))
