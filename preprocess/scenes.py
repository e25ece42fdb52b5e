"""Drawing of the synthetic videos: a textured object with a motion, a still distractor, a background, a camera.

T frames, HxW pixels. A scene is a function of a few numbers: any frame, mask and flow can be drawn alone, so nothing
grows with T. Points are (x, y); affine maps are 3x3. Lengths are given in px of a 128 px short side and scale with it.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ("bounce", "circle", "left_right", "rotate", "still", "up_down", "wave", "zoom")
FORMAT = 1        # of what is drawn: another number, other videos
PAN_SHARE = 0.4   # of the videos whose object moves; in `still` the camera always pans
REACH = 44        # px, the furthest that a camera swings
BACKGROUND, TEXTURE, ORDER, VIDEO = range(4)  # streams of random numbers


@dataclass(frozen=True)
class Dials:
    """What is generated: counts, length in frames, sizes in px, frames a second, seed; lookalikes: motions of a set of
    preprocess/lookalikes.py, 0 for videos by themselves."""

    videos: int
    backgrounds: int
    textures: int
    frames: int
    height: int
    width: int
    fps: int
    seed: int
    lookalikes: int = 0

    @property
    def unit(self) -> float:
        return min(self.height, self.width) / 128

    def random(self, stream: int, *index: int) -> np.random.Generator:
        """The random numbers of one background, texture or video: they depend on the seed and on nothing else."""
        return np.random.default_rng([self.seed, stream, *(index or (0,))])


@dataclass(frozen=True)
class Camera:
    """A pan that swings out and back along a line: bounded, and so is the canvas, however long the video."""

    way: np.ndarray  # (2,) px
    rate: float      # radians a frame
    phase: float

    @classmethod
    def draw(cls, rng: np.random.Generator, unit: float, pans: bool) -> "Camera":
        angle, phase = rng.uniform(0, 2 * math.pi), rng.uniform(-0.5, 0.5)
        reach, speed = rng.uniform(24, REACH) * unit, rng.uniform(1, 2) * unit  # px and px/frame at its fastest
        way = reach * np.array([math.cos(angle), math.sin(angle)]) * pans
        return cls(way, 2 * speed / reach, phase)

    def at(self, t: float) -> np.ndarray:
        """What the screen's origin shows, in px from what it shows at frame 0: (2,)."""
        return self.way * (math.cos(self.phase) - math.cos(self.phase + self.rate * t)) / 2


@dataclass(frozen=True)
class Motion:
    """The object's pose over time: rest, `active` frames of the class's motion, rest.

    start: (2,) px; radius, reach: px (zoom: share, wave: radians); rate: radians a frame (bounce: bounces a frame);
    drift: px/frame; turn: radians; side: -1 or 1, the direction.
    """

    label: str
    start: np.ndarray
    radius: float
    begin: float
    active: float
    reach: float
    rate: float
    drift: float
    turn: float
    side: float

    @classmethod
    def draw(cls, rng: np.random.Generator, label: str, start, radius: float, unit: float, frames: int) -> "Motion":
        active = rng.uniform(0.45, 0.65) * frames
        begin, drift = rng.uniform(0, frames - active), rng.uniform(-0.8, 0.8) * unit
        reach = rate = 0.0
        if label in ("left_right", "up_down"):
            reach = rng.uniform(24, 44) * unit
            rate = 2 * rng.uniform(2, 4) * unit / reach
        elif label == "circle":
            reach = rng.uniform(10, 18) * unit
            rate = rng.uniform(2, 3.5) * unit / reach
        elif label == "bounce":
            reach, rate = rng.uniform(18, 28) * unit, 1 / rng.uniform(18, 24)
        elif label == "zoom":
            reach, rate = rng.uniform(0.45, 0.7), rng.uniform(0.2, 0.32)
        elif label == "wave":
            reach, rate = rng.uniform(0.5, 0.7), rng.uniform(0.22, 0.32)
        elif label == "rotate":
            rate = rng.uniform(0.09, 0.16)
        return cls(label, start, radius, begin, active, reach, rate, drift, rng.uniform(0, 2 * math.pi),
                   rng.choice((-1.0, 1.0)))

    def at(self, t: float) -> np.ndarray:
        """Object (px from its centre) -> world, which is the screen of frame 0: (3, 3) float64."""
        moving = min(max(t - self.begin, 0.0), self.active)
        theta = self.rate * moving
        swing = (1 - math.cos(theta)) / 2
        offset, angle, scale = np.zeros(2), self.turn, 1.0
        if self.label == "left_right":
            offset[0] = self.side * self.reach * swing
        elif self.label == "up_down":
            offset[1] = self.side * self.reach * swing
        elif self.label == "circle":
            a, b = self.turn, self.turn + self.side * theta
            offset[:] = self.reach * (math.cos(b) - math.cos(a)), self.reach * (math.sin(b) - math.sin(a))
        elif self.label == "bounce":
            u = theta % 1.0
            offset[:] = self.drift * moving, self.side * self.reach * 4 * u * (1 - u)
        elif self.label == "zoom":
            scale = (1 + self.reach * swing) ** self.side
        elif self.label == "rotate":
            angle += self.side * theta
        elif self.label == "wave":  # about a point on its rim, as an arm does
            lean = self.reach * self.side * math.sin(theta)
            pivot = self.radius * np.array([math.cos(self.turn), math.sin(self.turn)])
            c, s = math.cos(lean), math.sin(lean)
            offset[:] = pivot - np.array([[c, -s], [s, c]]) @ pivot
            angle += lean
        c, s = scale * math.cos(angle), scale * math.sin(angle)
        x, y = self.start + offset
        return np.array([[c, -s, x], [s, c, y], [0, 0, 1]])


class Scene:
    """One video: frame(t), mask(t), flow(t)."""

    def __init__(self, dials: Dials, number: int, label: str, background: int, texture: int):
        self.dials = dials
        rng, unit = dials.random(VIDEO, number), dials.unit
        radius, distractor = rng.uniform(13, 20, 2) * unit
        self.camera, self.motion = _fit(rng, dials, label, radius)
        self.patch = new_patch(rng, dials, texture, radius)
        others = [t for t in range(dials.textures) if t != texture] or [texture]
        self.distractor = new_patch(rng, dials, int(rng.choice(others)), distractor)
        self.distractor_at = rng.uniform(0, 1, 2) * (dials.width, dials.height)
        self.canvas = new_canvas(dials, background)
        self.origin = margin(dials) + rng.uniform(-4, 4, 2)

    def frame(self, t: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        size = (self.dials.width, self.dials.height)
        camera = self.camera.at(t)
        image = cv2.warpAffine(self.canvas, self.seen(_shift(-self.origin - camera))[:2], size, flags=cv2.INTER_LINEAR)
        for patch, place in ((self.distractor, self.seen(_shift(self.distractor_at - camera))),
                             (self.patch, self.object_map(t))):
            layer = self._warp(patch, place)
            image = image * (1 - layer[..., 3:]) + layer[..., :3]
        return np.clip(self.coloured(image) + 0.5, 0, 255).astype(np.uint8)

    def mask(self, t: int) -> np.ndarray:
        """(H, W) bool: where the object covers at least half of the pixel, moving or not."""
        return self._warp(self.patch[..., 3], self.object_map(t)) >= 0.5

    def flow(self, t: int) -> np.ndarray:
        """(2, H, W) float32 px/frame from t to t+1, camera included; the last frame repeats the one before."""
        t = min(t, self.dials.frames - 2)
        flow = np.empty((2, self.dials.height, self.dials.width), np.float32)
        flow[:] = (self.camera.at(t) - self.camera.at(t + 1))[:, None, None]
        y, x = np.nonzero(self.mask(t))
        step = self.object_map(t + 1) @ np.linalg.inv(self.object_map(t)) - np.eye(3)
        flow[:, y, x] = step[:2] @ np.stack([x, y, np.ones_like(x)])
        return flow

    def object_map(self, t: int) -> np.ndarray:
        """Object (px from its centre) -> screen at frame t: (3, 3) float64."""
        return self.seen(_shift(-self.camera.at(t)) @ self.motion.at(t))

    def seen(self, place: np.ndarray) -> np.ndarray:
        """An affine map to the screen, (3, 3), as another camera would have it."""
        return place

    def coloured(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) float32 RGB, 0 to 255, in other colours."""
        return image

    def _warp(self, patch: np.ndarray, to_screen: np.ndarray) -> np.ndarray:
        centre = (np.array(patch.shape[1::-1]) - 1) / 2
        return cv2.warpAffine(patch, (to_screen @ _shift(-centre))[:2], (self.dials.width, self.dials.height),
                              flags=cv2.INTER_LINEAR)


def _shift(by: np.ndarray) -> np.ndarray:
    return np.array([[1, 0, by[0]], [0, 1, by[1]], [0, 0, 1]])


def margin(dials: Dials) -> int:
    return math.ceil(REACH * dials.unit) + 8


def _fit(rng: np.random.Generator, dials: Dials, label: str, radius: float) -> tuple[Camera, Motion]:
    """A camera and a motion that keep the object's centre on the screen.

    The start is drawn first, uniformly, and the rest until it fits: drawing all anew would favour the frame's middle.
    """
    size, edge = np.array([dials.width, dials.height]), radius / 2
    pans = label == "still" or rng.random() < PAN_SHARE
    times = np.linspace(0, dials.frames - 1, min(dials.frames, 128))
    for attempt in range(10_000):
        if attempt % 200 == 0:
            start = rng.uniform(edge, size - edge)
        camera = Camera.draw(rng, dials.unit, pans)
        motion = Motion.draw(rng, label, start, radius, dials.unit, dials.frames)
        centres = np.array([motion.at(t)[:2, 2] - camera.at(t) for t in times])
        if (centres >= edge / 2).all() and (centres <= size - edge / 2).all():
            return camera, motion
    raise RuntimeError(f"no {label} fits {dials.width}x{dials.height}")


def _noise(rng: np.random.Generator, height: int, width: int, sigma: float) -> np.ndarray:
    """(H, W) float32 smooth noise of zero mean and unit deviation; sigma in px."""
    noise = cv2.GaussianBlur(rng.standard_normal((height, width), np.float32), (0, 0), sigma)
    return (noise - noise.mean()) / noise.std()


def new_canvas(dials: Dials, background: int) -> np.ndarray:
    """A smooth background of low contrast, wider than the screen by the camera's swing: (H+2m, W+2m, 3) float32."""
    rng, beyond, unit = dials.random(BACKGROUND, background), margin(dials), dials.unit
    height, width = dials.height + 2 * beyond, dials.width + 2 * beyond
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = rng.uniform(80, 175, 3)
    for sigma, amplitude in ((24, 12), (8, 8), (rng.uniform(2, 4), 7)):
        canvas += amplitude * _noise(rng, height, width, sigma * unit)[..., None] * rng.uniform(0.5, 1.3, 3)
    return canvas.astype(np.float32)


def new_texture(dials: Dials, texture: int) -> np.ndarray:
    """(128, 128, 3) float32 of high contrast: two colours in stripes, checks, dots or blobs, and a soft third."""
    rng, side = dials.random(TEXTURE, texture), 128
    y, x = np.mgrid[:side, :side].astype(np.float32)
    angle, period = rng.uniform(0, math.pi), rng.uniform(22, 38)
    a = 2 * math.pi / period * (x * math.cos(angle) + y * math.sin(angle))
    b = 2 * math.pi / period * (y * math.cos(angle) - x * math.sin(angle))
    # Wavy, for straight stripes hide the motion along them.
    stripes = np.sin(a + 0.9 * _noise(rng, side, side, 9))
    pattern = (stripes, np.sin(a) * np.sin(b) * 2, np.cos(a) + np.cos(b) - 0.4, _noise(rng, side, side, 7))[texture % 4]
    share = np.clip(pattern * 2 + 0.5, 0, 1)[..., None]
    dark, light = rng.uniform(0, 110, 3), rng.uniform(145, 255, 3)
    shade = _noise(rng, side, side, 10)[..., None] * rng.uniform(-18, 18, 3)
    return np.clip(dark * (1 - share) + light * share + shade, 0, 255).astype(np.float32)


def new_patch(rng: np.random.Generator, dials: Dials, texture: int, radius: float) -> np.ndarray:
    """A lobed object with a soft edge: (P, P, 4) float32, RGB times alpha, alpha in 0-1."""
    side = 2 * math.ceil(1.35 * radius) + 5
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    angle, outline = np.arctan2(y, x), np.full((side, side), radius)
    for lobes in (2, 3, 4):
        outline += 0.1 * radius * rng.uniform(0.3, 1) * np.cos(lobes * angle + rng.uniform(0, 2 * math.pi))
    alpha = np.clip((outline - np.hypot(x, y)) / 1.5 + 0.5, 0, 1)[..., None]
    colour = cv2.resize(new_texture(dials, texture), (side, side), interpolation=cv2.INTER_AREA)
    return np.concatenate([colour * alpha, alpha], axis=2).astype(np.float32)
