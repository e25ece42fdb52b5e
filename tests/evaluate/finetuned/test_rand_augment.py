"""Every operation against PIL on 8-bit images, as the released code applies them."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import torch

from evaluate.finetuned.rand_augment import RANGES, apply, rand_augment

AFFINE = PIL.Image.AFFINE
ENHANCE = {"colour": PIL.ImageEnhance.Color, "contrast": PIL.ImageEnhance.Contrast,
           "brightness": PIL.ImageEnhance.Brightness, "sharpness": PIL.ImageEnhance.Sharpness}


def with_pil(image, name, v):
    """The operation on one image of 40x40; cut out about (10, 30)."""
    if name in ENHANCE:
        return ENHANCE[name](image).enhance(1 - v)
    if name in ("autocontrast", "equalize", "invert"):
        return getattr(PIL.ImageOps, name)(image)
    if name == "posterize":
        return PIL.ImageOps.posterize(image, 4 - int(v))
    if name == "solarize":
        return PIL.ImageOps.solarize(image, 256 - v)
    if name == "solarize_add":
        pixels = np.asarray(image).astype(int)
        return PIL.Image.fromarray(np.where(pixels < 128, np.minimum(pixels + v, 255), pixels).astype(np.uint8))
    if name == "rotate":
        return image.rotate(v)
    if name == "cutout":
        left, top = int(10 - v * 20), int(30 - v * 20)
        image = image.copy()
        box = left, top, int(left + v * 40), int(min(40, top + v * 40))
        PIL.ImageDraw.Draw(image).rectangle(box, (125, 123, 114))
        return image
    shift = {"shear_x": (1, v, 0, 0, 1, 0), "shear_y": (1, 0, 0, v, 1, 0), "translate_x": (1, 0, 40 * v, 0, 1, 0),
             "translate_y": (1, 0, 0, 0, 1, 40 * v)}[name]
    return image.transform((40, 40), AFFINE, shift)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("magnitude", [9, 23])
def test_an_operation_equals_pils(name, magnitude):
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((5, 5, 1))) + rng.integers(-9, 10, (40, 40, 3))
    image = np.clip(image, 0, 255).astype(np.uint8)
    frames = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    most, signed = RANGES[name]
    for sign in (1, -1) if signed else (1,):
        value = sign * most * magnitude / 30
        found = apply(frames, name, value, (0.25, 0.75))[0].permute(1, 2, 0).numpy() * 255
        wrong = np.abs(found - np.asarray(with_pil(PIL.Image.fromarray(image), name, value))) > 2
        assert wrong.mean() < 0.005, (name, value)       # a pixel in a thousand lies between two when turned


def test_a_clip_is_changed_alike_in_all_its_frames():
    frame = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    clip, kinds = frame.expand(3, 4, 32, 32), set()
    for seed in range(60):
        out, again = (rand_augment(clip, np.random.default_rng(seed), 1, 23) for _ in range(2))
        assert torch.equal(out, again) and out.shape == clip.shape
        assert 0 <= float(out.min()) and float(out.max()) <= 1
        assert torch.equal(out, out[:, :1].expand_as(out))
        kinds.add(round(float(out.double().sum()), 3))
    assert len(kinds) > 12
    assert torch.equal(rand_augment(clip, np.random.default_rng(0), 0, 23), clip)
    with pytest.raises(ValueError, match="'blur' is no operation"):
        apply(clip.transpose(0, 1), "blur", 1.0)
