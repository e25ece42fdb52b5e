"""--family real: a pre-training for every group that is left out, and what the tables say of the groups."""

import json

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student

from evaluate.ablation import __main__ as ablation
from evaluate.ablation import finding, groups, report
from evaluate.ablation.children import Ended
from evaluate.ablation.plan import REAL, Plan, Run
from evaluate.ablation.runs import Ablation
from evaluate.ablation.tables import Scores
from evaluate.motion.map_pictures import Compared, compared_figure, keep_compared
from shared import cli
from shared.cli import RequestError

SMALL = ["--set", "batch=4", "--set", "bn_group=2", "--set", "queue=16", "--set", "run.workers=0",
         "--set-evaluation", "clips=2", "--set-evaluation", "run.device=cpu"]


@pytest.fixture
def plan(store, tmp_path):
    """plan(*more) -> the plan of a command line."""
    def make(*more):
        argv = ["--family", "real", "--store", str(store), "--out", str(tmp_path / "out"), *SMALL, *more]
        return Plan(ablation.arguments(argv))
    return make


def drive(work, *ends):
    """A work's commands, each answered with the next of `ends`, as text."""
    commands, ended = [], None
    for answer in (*ends, None):
        try:
            commands.append(" ".join(work.send(ended).argv))
        except StopIteration:
            return commands
        ended = answer
    raise AssertionError(f"more than {len(ends)} commands: {commands[-1]}")


def test_every_group_is_pre_trained_without(plan):
    made = plan("--leave-out", "group", "--seeds", "2", "--first-seed", "5")
    assert made.groups == ["g0", "g1", "g2"] and made.args.rows == list(REAL)
    assert [run.name for run in made.runs if run.row in ("mcl", "mean-image")] == [
        "g0/mean-image-seed5", "g0/mcl-seed5", "g1/mean-image-seed5", "g1/mcl-seed5", "g2/mean-image-seed5",
        "g2/mcl-seed5", "g0/mcl-seed6", "g1/mcl-seed6", "g2/mcl-seed6"]          # what no seed changes is asked once
    run = Run("mcl", 6, "g1")
    assert made.trainings[run].recipe.sampling.leave_out == ("g1",)
    assert made.splits("linear", run) == {"train": ["leave-out group g1: train"], "test": ["leave-out group g1: test"],
                                          "leave_out": None}
    nets = {row: made.trainings[Run(row, 5, "g0")].recipe.model.backbone for row in REAL}
    assert {nets[row] for row in ("untrained", "mcl", "supervised")} == {"r2plus1d_tiny"}
    assert {nets[row] for row in ("untrained-maclr", "maclr", "maclr-vm")} == {"slow_tiny"}
    assert plan("--leave-out", "group=g2").groups == ["g2"]


def test_the_commands_leave_the_group_out(plan):
    made = Ablation(plan("--leave-out", "group=g1", "--seeds", "1", "--rows", "mcl,motion-history,supervised"))
    work = {run.row: made.work(run)(0) for run in made.plan.runs}
    trained, = drive(work["mcl"], Ended(1, "stopped: x"))
    assert '--set seed=0 --set leave_out=["g1"]' in trained
    evaluated, = drive(work["motion-history"], Ended(1, "stopped: x"))
    assert "--checkpoint motion-history" in evaluated and "--leave-out group=g1 --out" in evaluated
    assert "features.clip" not in evaluated                      # its own view
    labelled, = drive(work["supervised"], Ended(1, "stopped: x"))
    for part in ("--protocol finetune --checkpoint random:r2plus1d_tiny:0", "--leave-out group=g1 --out",
                 "--set finetune.steps=400", "--set finetune.batch=4", "--set features.clip=8x2", "run.device=cpu"):
        assert part in labelled


def test_what_asks_networks_alone_leaves_the_baselines_out(plan):
    made = Ablation(plan("--leave-out", "group=g1", "--seeds", "1", "--rows", "mean-image,moco", "--protocols",
                         "linear,saliency"))
    work = {run.row: made.work(run)(0) for run in made.plan.runs}
    evaluated, = drive(work["mean-image"], Ended(1, "stopped: x"))
    assert "--protocol linear --checkpoint mean-image" in evaluated
    assert {run.row: made.plan.protocols(run) for run in made.plan.runs}["moco"] == ["linear", "saliency"]
    alone = Ablation(plan("--leave-out", "group=g1", "--rows", "mean-image,moco", "--protocols", "saliency"))
    assert drive(alone.work(alone.plan.runs[0])(0)) == [] and alone.finished(alone.plan.runs[0])


@pytest.mark.parametrize("more, message", [
    (["--leave-out", "group", "--rows", "mean-image", "--protocols", "saliency"], "saliency asks networks, and these"),
    ([], "pre-trains once for every group that is left out; say --leave-out group"),
    (["--leave-out", "group=g7"], "no labelled video of .* is of that group"),
    (["--leave-out", "group", "--set", "leave_out=g1"], "choose the groups with --leave-out group=NAME"),
    (["--leave-out", "group", "--test-split", "test"], "and no --train-split nor --test-split"),
    (["--leave-out", "group", "--rows", "suprevised"], "did you mean 'supervised'"),
])
def test_requests_that_cannot_be(plan, more, message):
    with pytest.raises(RequestError, match=message):
        plan(*more)


def test_intervals_over_seeds_and_over_videos():
    values = np.array([20.0, 26.0, 23.0, 31.0])
    expected = student.interval(0.95, 3, values.mean(), values.std(ddof=1) / 2)
    np.testing.assert_allclose(groups.over_seeds(values), expected)
    assert groups.over_seeds(values[:1]) is None
    # The bootstrap of a share of M videos is a binomial, whose percentiles are known.
    low, high = groups.over_videos(np.repeat([0.0, 1.0], [70, 30]))
    np.testing.assert_allclose([low, high], binom.ppf([0.025, 0.975], 100, 0.3) / 100, atol=0.011)


def test_rows_are_paired_within_a_seed_and_a_video():
    """Both rows are right in half of all cases; the difference lies in single videos, the spread in single seeds."""
    videos = [f"v{i}" for i in range(4)]

    def right(*seeds):
        return {seed: {video: bool(int(bit)) for video, bit in zip(videos, bits)} for seed, bits in enumerate(seeds)}

    asked = groups.Asked("Group A", {
        "untrained": right("0000", "1000"), "motion-history": {0: right("0110")[0]},
        "moco-ta-sa": right("1100", "1000"), "mcl-v1": right("1110", "1111")}, 25.0, "4 videos, ")
    accuracies, gaps = groups.tables([asked])
    assert accuracies.title == "Group A left out: 4 videos, chance 25.0 %"
    assert [row[:2] + row[4:] for row in accuracies.rows] == [
        ["untrained", "12.5 ± 17.7", "0.0 / 25.0"], ["motion-history", "50.0", "50.0"],
        ["moco-ta-sa", "37.5 ± 17.7", "50.0 / 25.0"], ["mcl-v1", "87.5 ± 17.7", "75.0 / 100.0"]]
    assert [row[:3] for row in gaps.rows] == [
        ["moco-ta-sa less untrained", "+25.0 ± 35.4", "1 of 2"], ["mcl-v1 less untrained", "+75.0 ± 0.0", "2 of 2"],
        ["mcl-v1 less moco-ta-sa", "+50.0 ± 35.4", "2 of 2"], ["mcl-v1 less motion-history", "+37.5 ± 17.7", "2 of 2"]]
    low, high = map(float, gaps.rows[2][4].split(" to "))
    assert 0 <= low < 50 < high <= 100                 # of 0, 50, 100 and 50 points


def test_all_groups_together_ask_every_video_once():
    """Of two groups of unequal size; the second has one seed less of one row and lacks another."""
    def said(group, *seeds):
        return {seed: {f"{group}{i}": bit == "1" for i, bit in enumerate(bits)} for seed, bits in enumerate(seeds)}

    one = groups.Asked("Group A", {"untrained": said("a", "000000", "000000"), "mcl-v1": said("a", "111000", "111111"),
                             "moco": said("a", "111111")}, 10.0)
    other = groups.Asked("Group B", {"untrained": said("b", "01", "10"), "mcl-v1": said("b", "11")}, 50.0)
    accuracies, gaps, *each = groups.tables([one, other])
    assert accuracies.title == "2 groups left out: each in turn, 8 videos; chance 20.0 %"
    assert [[row[0], row[4]] for row in accuracies.rows] == [["untrained", "12.5 / 12.5"], ["mcl-v1", "62.5"]]
    assert gaps.title.startswith("2 groups: ") and gaps.rows[0][:3] == ["mcl-v1 less untrained", "+50.0", "1 of 1"]
    assert [table.title.partition(" left")[0] for table in each[::2]] == ["Group A", "Group B"]


def test_what_other_protocols_say_of_a_group():
    values = {"linear top1 of group A": {"mcl": {0: 10.0}},
              "retrieval r@1 of group A": {"untrained": {0: 5.0, 1: 25.0}, "mean-image": {0: 12.0},
                                           "mcl": {0: 20.0, 1: 30.0}},
              "saliency cam_own_minus_other of group A": {"untrained": {0: -4.0, 1: 0.0}, "mcl": {0: 31.0}},
              "retrieval r@1 of group AA": {"mcl": {0: 50.0}}}
    chance = {"retrieval r@1 of group A": 8.3}
    own, gaps = groups.other_scores(Scores(values, chance, (0, 1), {}), "A")
    half = student.ppf(0.975, 1)                              # of two seeds: half their distance, times this
    assert own.columns == ["row", "retrieval: R@1 of group A, %", "95 % over seeds",
                           "saliency: Grad-CAM: own clip less others of group A", "95 % over seeds"]
    assert own.rows == [
        ["untrained", "15.0 ± 14.1", f"{15 - 10 * half:.1f} to {15 + 10 * half:.1f}", "-0.02 ± 0.03",
         f"{-0.02 - 0.02 * half:.2f} to {-0.02 + 0.02 * half:.2f}"],
        ["mean-image", "12.0", None, None, None],
        ["mcl", "25.0 ± 7.1", f"{25 - 5 * half:.1f} to {25 + 5 * half:.1f}", "0.31 (1 of 2)", None],
        ["chance", "8.3", None, None, None]]
    assert gaps.rows == [
        ["mcl less untrained", "+10.0 ± 7.1; 2 of 2", f"{10 - 5 * half:.1f} to {10 + 5 * half:.1f}", "+0.35; 1 of 1",
         None],
        ["mcl less mean-image", "+13.0 ± 7.1; 2 of 2", f"{13 - 5 * half:.1f} to {13 + 5 * half:.1f}", None, None]]
    assert groups.other_scores(Scores(dict([*values.items()][:1]), {}, (0, 1), {}), "A") == []


def test_where_nets_look_stands_side_by_side(plan, monkeypatch):
    """Of the first seed, of rows that were asked of the same clips; a frame is in none."""
    drawn = []
    monkeypatch.setattr(finding, "compared_figure", lambda *given: drawn.append(given) or compared_figure(*given))
    made = Ablation(plan("--leave-out", "group=g1", "--seeds", "2", "--protocols", "saliency", "--rows",
                         "untrained,moco,mcl-v1,seco-ta-sa"))
    rng = np.random.default_rng(0)
    motion, kept = rng.random((3, 6, 6)), {}
    for run in made.plan.runs[:4]:
        made._keep(run, f"random:r2plus1d_tiny:{run.seed}")
        folder = made.result(run, "saliency")
        (folder / "runs/00").mkdir(parents=True)
        seen = motion if run.row in ("untrained", "moco") else rng.random((3, 6, 6))
        kept[run.row] = [Compared(f"class {i}", None, [seen[i], *rng.random((2, 6, 6))]) for i in range(3)]
        keep_compared(folder / "runs/00/saliency.npz", kept[run.row])
        document = {"protocol": "saliency", "chance": {}, "spread": {}, "checkpoint": made.checkpoint(run),
                    "metrics": {"aligned_own_minus_other": 20.0, "cam_own_minus_other": 12.0},
                    "settings": {**made.plan.used(run, "saliency"), "view": {}},
                    "splits": made.plan.splits("saliency", run), "store": {"index": made.plan.generations[1]},
                    "figures": [{"file": "runs/00/saliency.png"}, {"file": "store.png"}]}
        (folder / "metrics.json").write_text(json.dumps(document))
    scores, _ = report.collect(made)
    recipes = {run.row: training.recipe for run, training in made.plan.trainings.items()}
    shown, = finding.pictures(made, scores, recipes)
    assert shown.path.name == "saliency-g1.png" and shown.path.read_bytes().startswith(b"\x89PNG")
    assert "3 test videos of group g1" in shown.caption and "untrained: random weights; moco: contrast" in shown.caption
    assert "Seed 0. Not shown, of other clips or without kept maps: seco-ta-sa, mcl-v1." in shown.caption
    (clips, motion_head, says), = drawn
    assert motion_head == "S-motion" and says == [("untrained", "Grad-CAM 0.12"), ("moco", "Grad-CAM 0.12"),
                                                  ("untrained", "aligned 0.20"), ("moco", "aligned 0.20")]
    for i, clip in enumerate(clips):
        expected = [motion[i], *(kept[row][i].maps[place] for place in (1, 2) for row in ("untrained", "moco"))]
        np.testing.assert_array_equal(clip.maps, expected)


@pytest.mark.slow
def test_the_report_says_each_group_by_itself(store, tmp_path, capsys):
    """Colours are the classes, and groups say nothing: the mean image is always right."""
    out = tmp_path / "out"
    argv = ["--family", "real", "--store", str(store), "--out", str(out), "--rows", "mean-image,mcl-v1", "--seeds", "1",
            "--leave-out", "group=g1", *SMALL, "--set", "steps=2"]
    assert ablation.main(argv) == cli.DONE
    assert "Group g1 left out: 6 videos, learnt from 12 others; chance 33.3 %" in capsys.readouterr().out
    document = json.loads((out / "ablation.json").read_text())
    assert document["metrics"]["mean-image/g1/linear/top1"] == 100
    assert [(row["row"], row["group"], row["status"]) for row in document["runs"]] == [
        ("mean-image", "g1", "done"), ("mcl-v1", "g1", "done")]
    assert document["recipes"]["mcl-v1"]["sampling"]["leave_out"] == ["g1"]
    page = (out / "report.html").read_text()
    assert "Neither pre-training nor the probe has seen a video of the group" in page
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.log")}
    assert ablation.main(argv) == cli.DONE and before == {path: path.stat().st_mtime_ns for path in out.rglob("*.log")}
