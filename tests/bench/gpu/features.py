"""Features and Grad-CAM on the GPU beside the CPU, and clips a second, on the store of the packs stage."""

import json
import sys

import numpy as np
from stage import Stage

NET = "random:r2plus1d_18"


def main():
    stage = Stage("features", __doc__)
    store, net = stage.work / f"store-{stage.device}", "random:r2plus1d_tiny" if stage.small else NET
    vectors = {}
    for device in dict.fromkeys((stage.device, "cpu")):
        out = stage.fresh(f"features-{device}")
        seconds, _ = stage.command("-m", "evaluate.embed", "--checkpoint", net, "--store", store, "--out", out, "--set",
                                   f"run.device={device}", "--set", "features.size=112", "--set", "features.clips=2")
        vectors[device] = np.load(out / "features.npy")
        stage.put(f"{device}.clips_a_second", 2 * len(vectors[device]) / seconds, "clips/s of the whole command")
    one, other = (vectors[device] / np.linalg.norm(vectors[device], axis=1, keepdims=True)
                  for device in (stage.device, "cpu"))
    stage.put("cosine_to_the_cpu.least", float((one * other).sum(1).min()))
    checkpoint = stage.work / "whole/last.pt"
    if checkpoint.exists():
        found = {}
        for device in dict.fromkeys((stage.device, "cpu")):
            out = stage.fresh(f"saliency-{device}")
            stage.command("-m", "evaluate.run", "--protocol", "saliency", "--checkpoint", checkpoint, "--store", store,
                          "--out", out, "--holdout", "0.5", "--set", f"run.device={device}", "--set",
                          "saliency.clips=8")
            found[device] = json.loads((out / "metrics.json").read_text())["metrics"]
        numbers = [name for name, value in found["cpu"].items() if isinstance(value, (int, float))]
        stage.put("saliency.largest_difference", max(
            abs(found[stage.device][name] - found["cpu"][name]) for name in numbers))


if __name__ == "__main__":
    sys.exit(main())
