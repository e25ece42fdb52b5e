"""What every command says alike."""

import pytest

from shared.cli import plural


@pytest.mark.parametrize("number, words, said", [
    (0, ["video"], "0 videos"), (1, ["video"], "1 video"), (2, ["video"], "2 videos"),
    (1234, ["frame"], "1,234 frames"),
    (1, ["class", "classes"], "1 class"), (1_000_000, ["class", "classes"], "1,000,000 classes"),
    (1, ["video is", "videos are"], "1 video is"), (0, ["video is", "videos are"], "0 videos are")])
def test_plural(number, words, said):
    assert plural(number, *words) == said
