"""The truth that lies beside a synthetic video: which pixels are the object, and how everything moves.

T frames, HxW pixels. preprocess.synthetic writes it, evaluate reads it.
"""

from pathlib import Path

import numpy as np


def truth_path(video_path: Path) -> Path:
    """`<stem>.truth.npz` beside the video."""
    return Path(video_path).with_suffix(".truth.npz")


def load_truth(video_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The true mask and flow of a video of preprocess.synthetic.

    Returns mask (T, H, W) bool, the pixels of the object that defines the class, moving or not; flow (T, 2, H, W)
    float32, px/frame, channel 0 right, 1 down, camera included: flow[t] takes t to t+1, the last one repeats. Stored
    as float16, so within 0.004 px up to 8 px/frame. Raises FileNotFoundError where the video has no truth beside it.
    """
    with np.load(truth_path(video_path)) as truth:
        flow = truth["flow"].astype(np.float32)
        return np.unpackbits(truth["mask"], axis=-1, count=flow.shape[-1]).astype(bool), flow
