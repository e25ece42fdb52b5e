"""Results as sentences, and their intervals against simulation."""

import numpy as np
import pytest

from evaluate.protocol import PROTOCOLS
from evaluate.report.results import interval
from evaluate.report.words import MEASURES, headline, measure, sentence


def document(value=33.3, chance=33.3, interval=(10, 70), runs=1, protocol="linear", name="top1", spread=None):
    return {"protocol": protocol, "metrics": {name: value}, "spread": {name: spread}, "chance": {name: chance},
            "interval": {name: interval} if interval else {}, "runs": [{}] * runs, "counts": {"test_videos": 6}}


@pytest.mark.parametrize("given, said", [
    (document(), "Top-1 accuracy: 33.3 % on 6 test videos, 95 % 10 to 70: not distinguishable from chance, which is "
                 "33.3 %."),
    (document(90, interval=(60, 98)), "Top-1 accuracy: 90.0 % on 6 test videos, 95 % 60 to 98: above chance, which is "
                                      "33.3 %."),
    (document(5, interval=(1, 9), runs=3), "Top-1 accuracy: 5.0 % on 6 test videos, mean of 3 runs, 95 % 1 to 9: below "
                                           "chance, which is 33.3 %."),
    (document(12.3, 0, None, 1, "saliency", "cam_own_minus_other"),
     "Grad-CAM: own clip less others: 0.12 on 6 test videos; chance is 0.00."),
    (document(12.3, 0, None, 2, "saliency", "cam_own_minus_other", 4.0),
     "Grad-CAM: own clip less others: 0.12 on 6 test videos, mean of 2 runs, ± 0.04 over the runs; chance is 0.00."),
])
def test_a_result_is_a_sentence(given, said):
    assert sentence(given) == said


def test_every_measure_says_what_it_asks():
    assert all(one.words and one.asks.endswith((".", "?")) for one in MEASURES.values())
    assert measure("something_new").words == "something new" and measure("cam_corr").say(-0.2) == "0.00"
    assert measure("background_r@1").words == "nearest video: same background"      # of `controls`, not of `background`
    assert headline({"protocol": "controls", "metrics": {"knn": 1.0}}) == "knn"
    assert set(PROTOCOLS) >= {"saliency", "controls"}


def test_the_interval_covers_seeds_and_videos():
    """Means over runs that share their videos: the interval holds the truth about as often as it says."""
    rng, held, runs, videos = np.random.default_rng(0), 0, 4, 40
    for _ in range(400):
        hard = rng.beta(4, 2, videos)                                    # how likely a run has this video right
        shares = [100 * float((rng.random(videos) < np.clip(hard + rng.normal(0, 0.05), 0, 1)).mean())
                  for _ in range(runs)]
        low, high = interval(shares, videos)
        held += low <= 100 * 2 / 3 <= high
    assert 0.93 <= held / 400 <= 1
    assert interval([50.0], 10) == interval([50.0, 50.0], 10)
    narrow, wide = interval([50.0, 50.0], 10), interval([30.0, 70.0], 10)
    assert wide[0] < narrow[0] and narrow[1] < wide[1]
