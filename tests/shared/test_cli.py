"""What every command says and takes alike."""

import pytest

from shared import cli
from shared.cli import RequestError, plural


@pytest.mark.parametrize("number, words, said", [
    (0, ["video"], "0 videos"), (1, ["video"], "1 video"), (2, ["video"], "2 videos"),
    (1234, ["frame"], "1,234 frames"),
    (1, ["class", "classes"], "1 class"), (1_000_000, ["class", "classes"], "1,000,000 classes"),
    (1, ["video is", "videos are"], "1 video is"), (0, ["video is", "videos are"], "0 videos are")])
def test_plural(number, words, said):
    assert plural(number, *words) == said


@pytest.fixture
def parser():
    parser = cli.Arguments(prog="show")
    parser.add_argument("store")
    parser.add_argument("--video")
    parser.add_argument("--drop", nargs="+", default=[])
    parser.add_argument("--list", nargs="?", const="")
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--plan", action="store_true")
    return parser


@pytest.mark.parametrize("video", ["-_abc", "--07WQ2iBlw_000001", "-", "-k8x", "-1", "-a/-b.mp4", "a=b", "-a=b"])
def test_an_id_that_begins_with_a_dash_is_a_value(parser, video):
    for words in (["--video", video], [f"--video={video}"]):
        for line in (["s", *words, "--plan"], ["--plan", *words, "s"]):
            args = parser.parse_args(line)
            assert (args.video, args.store, args.plan) == (video, "s", True)
    assert parser.parse_args(["s", "--drop", "a", video, "b", "--plan"]).drop == ["a", video, "b"]
    assert parser.parse_args(["s", "--list", video]).list == video


def test_flags_stay_flags(parser):
    args = parser.parse_args(["s", "--list", "--plan", "-k", "8"])
    assert (args.list, args.plan, args.k) == ("", True, 8)
    assert parser.parse_args(["s", "-k8"]).k == 8 and parser.parse_args(["--", "-s"]).store == "-s"


@pytest.mark.parametrize("line, words", [
    (["s", "--video", "--plan"], "argument --video: expected one argument"),
    (["s", "--video", "--plam"], "argument --video: expected one argument"),
    (["s", "--drop", "a", "--vidoe", "x"], "unrecognized arguments: --vidoe x; did you mean '--video'?"),
    (["s", "-z"], "unrecognized arguments: -z"),
    (["s", "-k", "--x9"], "argument -k: invalid int value: '--x9'"),
])
def test_what_is_no_value_is_refused(parser, line, words):
    with pytest.raises(RequestError) as caught:
        parser.parse_args(line)
    assert words in str(caught.value) and "\0" not in str(caught.value)
