"""The ablation: tables from hand-made scores, refusals before anything runs, and the command over a killed run."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from evaluate.ablation import __main__ as ablation
from evaluate.ablation import finding, report, runs, tables
from evaluate.ablation.children import Children, Command, Ended, last_line
from evaluate.ablation.plan import ROWS, UNTRAINED, Plan, Run
from evaluate.ablation.runs import Ablation
from evaluate.ablation.tables import Scores
from evaluate.features.encoders import open_encoder
from shared import cli
from shared.cli import RequestError
from shared.nn.checkpoint import load_backbone
from shared.pictures import figures
from shared.recipes.training import load_training

SMALL = ["--set", "batch=4", "--set", "bn_group=2", "--set", "queue=16", "--set", "run.workers=0",
         "--set-evaluation", "clips=2", "--set-evaluation", "run.device=cpu"]


@pytest.fixture
def plan(store, tmp_path):
    """plan(*more) -> the plan of a command line."""
    def make(*more, out="out"):
        return Plan(ablation.arguments(["--store", str(store), "--out", str(tmp_path / out), "--protocols", "linear",
                                        "--rows", "mcl", *SMALL, *more]))
    return make


@pytest.fixture
def scores():
    """Two columns; mcl has lost a seed, the second column knows no chance."""
    return Scores({"linear top1": {"seco": {0: 10.0, 1: 20.0}, "mcl": {0: 31.0}},
                   "saliency cam_corr": {"seco": {0: -3.0, 1: -5.0}, "mcl": {0: 4.0}}},
                  {"linear top1": 12.5}, (0, 1), {"seco": 77.98, "mcl": 81.91})


def recipes(*rows):
    return {row: load_training("seco" if row == UNTRAINED else row).recipe for row in rows}


def test_tables_from_scores(scores):
    one, two, pairs = tables.tables(scores, recipes("mcl", UNTRAINED, "seco"))
    assert one.columns == ["row", "TA", "SA", "L_t", "L_s", "L_st", "linear: top-1 accuracy, %",
                           "the paper's, %", "saliency: Grad-CAM: correlation with S-motion"]
    assert one.rows == [["untrained", "", "", "", "", "", None, None, None],
                        ["seco", "", "", "", "", "", "15.0 ± 7.1", "77.98", "-0.04 ± 0.01"],
                        ["mcl", "✓", "✓", "✓", "✓", "✓", "31.0 (1 of 2)", "81.91", "0.04 (1 of 2)"]]
    assert two.rows == [["mcl", "v3", "31.0 (1 of 2)", "81.91", "0.04 (1 of 2)"]]
    assert pairs.rows == [["mcl less seco", "+21.0; 1 of 1", "+0.07; 1 of 1"]]
    assert pairs.columns[1:] == ["linear: top-1 accuracy, points", "saliency: Grad-CAM: correlation with S-motion"]


def test_few_rows_stand_side_by_side(scores):
    """A line a metric, with chance; the paper's tables need more rows, or its numbers."""
    side, pairs = tables.tables(dataclasses.replace(scores, paper={}), recipes("seco", "mcl"))
    assert side.columns == ["score", "seco", "mcl", "chance"] and [row[0] for row in pairs.rows] == ["mcl less seco"]
    assert side.rows == [["linear: top-1 accuracy, %", "15.0 ± 7.1", "31.0 (1 of 2)", "12.5"],
                         ["saliency: Grad-CAM: correlation with S-motion", "-0.04 ± 0.01", "0.04 (1 of 2)", None]]


def test_many_columns_stand_in_several_tables(scores):
    """Every column once, the paper's beside its own."""
    more = {f"controls c_{i}": {"seco": {0: float(i)}, "mcl": {0: 0.5}} for i in range(8)}
    values = {"linear top1": scores.values["linear top1"]} | more
    made = tables.tables(dataclasses.replace(scores, values=values), recipes("seco", "mcl"))
    one = [table for table in made if table.title.startswith("Table 1")]
    assert [table.title for table in one[1:]] == ["Table 1, continued"] * 2
    assert [name for table in one for name in table.columns[6:]] == [
        "linear: top-1 accuracy, %", "the paper's, %", "controls: c 0, %", "controls: c 1, %",
        *(f"controls: c {i}, %" for i in range(2, 8))]
    assert one[2].rows[0] == ["seco", "", "", "", "", "", *(f"{i}.0 (1 of 2)" for i in (5, 6, 7))]
    assert sum(len(table.columns) - 1 for table in made if table.title.startswith("Diff")) == 9


def test_tables_say_what_each_row_has():
    empty = Scores({}, {}, (0,), {})
    one, two, beside = tables.tables(empty, recipes(*ROWS, "mcl-moco"))
    marks = {row[0]: "".join(mark or "." for mark in row[1:]) for row in one.rows}
    assert marks == {"untrained": ".....", "moco": ".....", "seco": ".....", "seco-ta": "✓....", "seco-sa": ".✓...",
                     "seco-ta-sa": "✓✓...", "mcl-t": "✓✓✓..", "mcl-s": "✓✓.✓.", "mcl-st": "✓✓..✓", "mcl": "✓✓✓✓✓"}
    assert two.rows == [["seco-ta-sa", "none"], ["mcl-v1", "v1"], ["mcl-v2", "v2"], ["mcl", "v3"]]
    assert [row[0] for row in beside.rows] == ["moco", "mcl-moco"]


def test_maclr_stands_beside_its_visual_pathway_alone(plan):
    """A table of its own; the untrained net is theirs; differences are taken between them."""
    made = plan("--rows", "maclr,maclr-visual,untrained,maclr-flow", "--seeds", "2")
    assert [run.row for run in made.runs[:4]] == ["untrained", "maclr-visual", "maclr", "maclr-flow"]
    assert made.trainings[made.runs[0]].recipe.model.backbone == "slow_tiny"
    assert made.evaluation(made.runs[0], "linear")[:2] == ["features.clip=4x4", "features.size=48"]
    recipes = {run.row: training.recipe for run, training in made.trainings.items()}
    values = {"linear top1": {"maclr": {0: 3.0, 1: 5.0}, "maclr-visual": {0: 2.0, 1: 6.0}}}
    table, pairs = tables.tables(Scores(values, {}, (0, 1), {}), recipes)
    assert table.columns == ["row", "terms", "input", "width", "top-1 accuracy, %"]
    assert table.rows == [["untrained", "", "", "", None], ["maclr-visual", "vv", "", "", "4.0 ± 2.8"],
                          ["maclr", "vv, vm, mv", "edges", "4", "4.0 ± 1.4"],
                          ["maclr-flow", "vv, vm, mv", "flow", "4", None]]
    assert pairs.rows == [["maclr less maclr-visual", "+0.0 ± 1.4; 1 of 2"]]


def test_the_papers_numbers_are_those_of_its_tables():
    """Every number that pipelines.yaml quotes beside a row is the one of the table."""
    for row in tables.PAPER["r2plus1d_50"]:
        if row != UNTRAINED:
            assert f"SVM {tables.PAPER['r2plus1d_50'][row]:.2f}" in load_training(row).about
    for net in ("s3d", "r2d_50", "i2d"):
        for row, value in tables.PAPER[net].items():
            assert f"{net} {value:.2f}" in load_training(row).about


def motion(dense, energy, seeds=(0,)):
    """Scores of `controls` alone, of the rows that are given by name."""
    knn, background = ({row: dict.fromkeys(of_seeds, percent) for row, of_seeds in dense.items()}
                       for percent in (9.5, 99.6))
    values = {"dense": dense, "energy": energy, "knn": knn, "background_r@1": background}
    chance = {"controls dense": 0.0, "controls energy": 0.0, "controls knn": 12.5, "controls background_r@1": 48.4}
    return Scores({f"controls {name}": rows for name, rows in values.items()}, chance, seeds, {})


def test_what_was_shown_is_said_of_the_rows_that_show_it():
    dense, energy = {"seco": {0: 30.04}, "mcl": {0: 70.06}}, {"seco": {0: 81.0}, "mcl": {0: -3.0}}
    shown, rest = finding.sentences(motion(dense, energy), ["seco", "mcl", "moco"])
    assert shown.startswith("Shown: mcl says best where things move in test videos (correlation with the true motion: "
                            "seco 0.30, mcl 0.70; by chance 0), and seco says best which moments of a video move most "
                            "(rank correlation: seco 0.81, mcl -0.03; by chance 0).")
    assert rest.startswith("Not shown: which kind of motion it is (named by the nearest neighbours in seco 9.5, mcl "
                           "9.5 % of the videos; by chance 12.5 %), that features leave the background aside (with mcl "
                           "the nearest video shares it in 100 %; by chance 48 %), ")
    assert "One seed does not show" in rest
    several = motion({"seco": {0: 80.0, 1: 20.0}, "mcl": {0: 40.0, 1: 70.0}}, energy, (0, 1))
    shown, rest = finding.sentences(several, ["seco", "mcl"])
    assert "no row says clearly best where" in shown and "seco 0.50, mcl 0.55;" in shown and "One seed" not in rest
    shown, _ = finding.sentences(motion({"seco": {0: 70.0}, "mcl": {0: 76.0}}, energy), ["seco", "mcl"])
    assert "no row says clearly best where" in shown and "seco says best which moments" in shown      # one seed, 0.06
    assert finding.sentences(motion(dense, energy), ["seco", "moco"]) == []       # nothing to compare with
    assert finding.sentences(Scores({"controls knn": dense}, {}, (0,), {}), ["seco", "mcl"]) == []


def test_what_a_row_is_in_words():
    made = recipes(*ROWS) | recipes("maclr", "maclr-visual")
    words = {row: finding.meaning(row, recipe) for row, recipe in made.items()}
    assert words[UNTRAINED] == "random weights" and words["moco"] == words["seco"] == words["maclr-visual"] == \
        "contrast alone"
    assert words["seco-ta"] == "contrast, clips chosen by motion"
    assert words["mcl-v1"] == "contrast, clips chosen by motion, crops chosen by motion, features aligned with " \
        "motion maps"
    assert words["maclr"] == "contrast, a second network that sees motion"


def test_the_figure_holds_what_is_missing_and_negative(scores, tmp_path):
    figures.save(tables.figure(scores, ["untrained", "seco", "mcl"]), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_rows_are_all_of_both_tables(store, tmp_path):
    args = ablation.arguments(["--store", str(store), "--out", str(tmp_path)])
    assert args.rows == ["untrained", "moco", "seco", "seco-ta", "seco-sa", "seco-ta-sa", "mcl-t", "mcl-s", "mcl-st",
                         "mcl", "mcl-v1", "mcl-v2"]
    assert args.seeds == 5 and args.protocols == ["linear", "controls", "saliency"]
    assert ablation.arguments(["--store", str(store), "--out", str(tmp_path), "--family", "full"]).protocols == \
        ["linear"]


@pytest.mark.parametrize("more, message", [
    (["--rows", "mcl,sec"], "--rows 'sec' is unknown; did you mean 'seco'"),
    (["--protocols", "linera"], "--protocols 'linera' is unknown; did you mean 'linear'"),
    (["--seeds", "0"], "--seeds 0; expected 1 or more"), (["--jobs", "0"], "--jobs 0; expected 1 or more"),
    (["--set", "seed=1"], "that is what tells rows or seeds apart"),
    (["--set", "alignment.variant=v1"], "that is what tells rows or seeds apart"),
    (["--set", "alignment.wieght=1"], "did you mean 'alignment.weight'"),
    (["--set-evaluation", "clps=1"], "'clps' is no setting; did you mean 'clips'"),
    (["--set-evaluation", "c=-1.0"], "linear.c is -1.0"),
    (["--protocols", "retrieval", "--set-evaluation", "c=2.0"], "c: retrieval does not read it, linear, controls"),
    (["--test-split", "no"], "--test-split 'no': .* has no such split"),
    (["--split", "trian"], "--split 'trian': .* has no such split"),
    (["--protocols", "controls", "--leave-out", "group"], "--leave-out group does not apply to controls"),
    (["--rows", "maclr,seco"], "rows of MaCLR and seco have other clips and nets"),
    (["--family", "large"], "invalid choice: 'large'"),
    (["--rows", "seco,mcl-t", "--set", "backbone=i2d"], "row mcl-t: .* only L_s applies .* leave it out"),
])
def test_requests_that_cannot_be(plan, more, message):
    with pytest.raises(RequestError, match=message):
        plan(*more)


def test_evaluation_settings_go_to_the_protocols_that_have_them(plan):
    made = plan("--protocols", "linear,retrieval", "--set-evaluation", "c=2.0", "--set-evaluation", "block=4", "--rows",
                "seco", "--set", "size=40")
    run = made.runs[0]
    view = ["features.clip=8x2", "features.size=40", "clips=2", "run.device=cpu"]
    assert made.evaluation(run, "linear") == [*view, "c=2.0"]
    assert made.evaluation(run, "retrieval") == [*view, "block=4"]
    assert made.splits("linear", run) == {"train": ["train"], "test": ["test"], "leave_out": None}


def test_a_seed_of_all_rows_after_the_other(plan):
    made = plan("--rows", "seco,mcl,untrained", "--seeds", "2", "--first-seed", "7")
    assert [run.name for run in made.runs] == ["untrained-seed7", "seco-seed7", "mcl-seed7", "untrained-seed8",
                                               "seco-seed8", "mcl-seed8"]
    assert made.trainings[Run("mcl", 8)].recipe.optimise.seed == 8 and made.trainings[Run("mcl", 8)].name == "mcl-tiny"
    assert 0 < made.cost(Run("untrained", 7)) < made.cost(Run("seco", 7)) == made.cost(Run("mcl", 7))


@pytest.mark.parametrize("more, devices, number, processes, visible", [
    ([], [], 0, 1, None), (["--jobs", "2"], [], 1, 1, None), (["--processes", "2"], [], 0, 2, None),
    (["--family", "full"], list("01234567"), 0, 8, "0,1,2,3,4,5,6,7"),
    (["--family", "full", "--jobs", "2"], list("01234567"), 1, 4, "4,5,6,7"),
    (["--family", "tiny", "--jobs", "3"], ["4", "6"], 2, 1, "4"),
])
def test_jobs_share_the_machine(plan, monkeypatch, more, devices, number, processes, visible):
    monkeypatch.setattr(runs, "_devices", lambda: devices)
    slot = Ablation(plan(*more)).slot(number)
    assert slot.processes == processes and slot.environment.get("CUDA_VISIBLE_DEVICES") == visible
    assert bool(slot.training) == ("--jobs" in more)
    assert slot.environment["PYTHONPATH"].split(os.pathsep)[0] == str(runs.HOME)


def test_what_is_finished_is_not_done_again(plan):
    """After the training its record; then only the evaluations that are missing, all of them in one process."""
    made = Ablation(plan("--rows", "mcl", "--seeds", "1", "--protocols", "linear,retrieval"))
    run, = made.plan.runs
    made.folder(run).mkdir(parents=True)
    (made.folder(run) / "last.pt").write_bytes(b"weights")
    trained, evaluated = drive(made.work(run)(0), Ended(0, "done"), Ended(3, "stopped: no space left"))
    assert evaluated.argv[evaluated.argv.index("--protocol") + 1] == "linear,retrieval"
    assert evaluated.argv[evaluated.argv.index("--out") + 1] == str(made.out / "results/mcl-seed0")
    found = {"protocol": "linear", "metrics": {"top1": 50.0}, "spread": {"top1": None}, "chance": {"top1": 12.5},
             "settings": {**made.plan.used(run, "linear"), "view": {}}, "splits": made.plan.splits("linear", run),
             "checkpoint": made.checkpoint(run), "store": {"index": made.plan.generations[1]}}
    made.result(run, "linear").mkdir(parents=True)
    again = f"999999-{made.plan.generations[1].rpartition('-')[2]}"          # preprocess.run with nothing to do
    made.plan.generations = again, again
    for change, missing in (({}, "retrieval"), ({"splits": {}}, "linear,retrieval"),
                            ({"checkpoint": {**found["checkpoint"], "sha256": "other"}}, "linear,retrieval"),
                            ({"settings": {}}, "linear,retrieval"), ({"store": {"index": "x"}}, "linear,retrieval")):
        (made.result(run, "linear") / "metrics.json").write_text(json.dumps(found | change))
        made.troubles.clear()
        evaluated, = drive(made.work(run)(0), Ended(3, "stopped: no space left"))
        assert evaluated.argv[evaluated.argv.index("--protocol") + 1] == missing, change
    (made.folder(run) / "last.pt").unlink()                          # a checkpoint that is gone is made again
    assert made.checkpoint(run) is None


def drive(work, *ends):
    """A work's commands, each answered with the next of `ends`."""
    commands, ended = [], None
    for answer in (*ends, None):
        try:
            commands.append(work.send(ended))
        except StopIteration:
            return commands
        ended = answer
    raise AssertionError(f"more than {len(ends)} commands: {commands[-1].argv}")


def test_what_stops_a_row_ends_nothing_else(plan):
    made = Ablation(plan("--rows", "mcl,untrained", "--seeds", "1"))
    untrained, mcl = made.plan.runs
    trained, = drive(made.work(mcl)(0), Ended(1, "stopped: step 7 is not finite, before the update"))
    assert trained.argv[1:3] == ["-m", "torch.distributed.run"] and "--resume" in trained.argv
    assert any(word.endswith("train/main.py") for word in trained.argv)
    evaluated, = drive(made.work(untrained)(0), Ended(-9, "Killed"))
    assert evaluated.argv[evaluated.argv.index("--checkpoint") + 1] == "random:r2plus1d_tiny:0"
    assert made.troubles == {mcl: "step 7 is not finite, before the update", untrained: "Killed"}
    page = report.write(made).read_text()
    assert "mcl, seed 0: step 7 is not finite, before the update." in page
    document = json.loads((made.out / "ablation.json").read_text())
    assert {row["row"]: row["status"] for row in document["runs"]} == {
        "mcl": "step 7 is not finite, before the update", "untrained": "Killed"}


def test_a_wrong_request_ends_it_all(plan):
    made = Ablation(plan("--rows", "mcl", "--seeds", "1"))
    with pytest.raises(RequestError, match="mcl-seed0: the store has no 8x2 clips .*mcl-seed0.log"):
        drive(made.work(made.plan.runs[0])(0), Ended(1, "error: the store has no 8x2 clips"))


def test_a_folder_is_one_ablations(plan, tmp_path):
    made = Ablation(plan("--rows", "untrained", "--seeds", "1"))
    with pytest.raises(AssertionError):
        drive(made.work(made.plan.runs[0])(0))                       # the record is there, the evaluation is not
    assert not made.finished(made.plan.runs[0])
    other = Ablation(plan("--rows", "untrained", "--seeds", "1", "--set", "steps=9"))
    with pytest.raises(RequestError, match="of another ablation: recipe.optimise.steps: stored 400, asked 9; use its"):
        other.finished(other.plan.runs[0])
    lock = runs.claim(tmp_path / "locked")
    with pytest.raises(RequestError, match=f"in use by process {os.getpid()}; wait for its end"):
        runs.claim(tmp_path / "locked")
    os.ftruncate(lock, 0)                                            # as of one that was killed: what it left ends
    threading.Timer(1, lambda: os.close(lock)).start()
    os.close(runs.claim(tmp_path / "locked"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="holds something else"):
        runs.claim(tmp_path / "file")


def script(log, text):
    return Command([sys.executable, "-S", "-c", text], log)


def test_children_run_side_by_side_and_say_how_they_ended(tmp_path):
    said = {}

    def work(name, codes):
        def steps(slot):
            for code in codes:
                ended = yield script(tmp_path / f"{name}.log", f"print('line {code}'); raise SystemExit({code})")
                said.setdefault(name, []).append((slot, ended.code, ended.said))
        return steps

    Children(2).run([work("a", [0, 3]), work("b", [4]), work("c", [0])], lambda: None)
    assert [one[1:] for one in said["a"]] == [(0, "line 0"), (3, "line 3")] and len({one[0] for one in said["a"]}) == 1
    assert said["b"][0][1:] == (4, "line 4") and said["c"][0][1:] == (0, "line 0")
    assert (tmp_path / "a.log").read_text().count("$ ") == 2


def test_children_end_with_what_stops_us(tmp_path):
    def work(slot):
        yield script(tmp_path / "log", f"open({str(tmp_path / 'pid')!r}, 'w').write('there')\n"
                                       "import time; time.sleep(600)")

    def interrupt():
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt("interrupted")

    children = Children(1)
    running = []
    start = children._go_on
    children._go_on = lambda *args: (start(*args), running.extend(child.process for child in children.children))
    with pytest.raises(KeyboardInterrupt):
        children.run([work], interrupt, every_s=0.05)
    assert running[0].returncode == -signal.SIGTERM


def test_children_end_with_us_even_when_we_are_killed(tmp_path):
    text = f"""
from pathlib import Path
from evaluate.ablation.children import Children, Command
def work(slot):
    yield Command(["sh", "-c", "echo $$ > {tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid; exec sleep 600"],
                  Path("{tmp_path}/log"))
Children(1).run([work], lambda: None)
"""
    us = subprocess.Popen([sys.executable, "-c", text], start_new_session=True)
    deadline = time.monotonic() + 120
    try:
        while not (tmp_path / "pid").exists():
            assert us.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        us.kill()
        us.wait()
    child = int((tmp_path / "pid").read_text())
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid):
    """Whether a process runs; a zombie, which nobody has collected, does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("text, line", [
    ("a\nstopped: disk\nTraceback\nsomething\n", "stopped: disk"), ("error: x\n\n", "error: x"), ("", ""),
    ("one\ntwo\n\n", "two"),
])
def test_the_line_that_a_log_ends_in(tmp_path, text, line):
    (tmp_path / "log").write_text("error: of an earlier command\n" + text)
    assert last_line(tmp_path / "log", 29) == line


@pytest.mark.slow
def test_killed_and_run_again_it_ends_in_the_tables(store, tmp_path, capsys):
    """A learning rate of almost nothing: the untrained row must be where the training of the same seed starts."""
    out = tmp_path / "out"
    argv = ["--store", str(store), "--out", str(out), "--rows", "mcl,untrained", "--seeds", "1", "--first-seed", "3",
            "--protocols", "linear", *SMALL, "--set", "steps=12", "--set", "lr=1e-30", "--set", "checkpoint_steps=2"]
    process = subprocess.Popen([sys.executable, "-m", "evaluate.ablation", *argv], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    log, deadline = out / "runs/mcl-seed3/metrics.jsonl", time.monotonic() + 300
    try:
        while not log.exists() or log.read_bytes().count(b"\n") < 2:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    os.close(runs.claim(out))                                 # what it has left running has ended
    trainings = 1 if (out / "runs/mcl-seed3.json").exists() else 2     # unless it was over before the kill
    there = 1 + (out / "results/mcl-seed3/linear/metrics.json").exists()
    assert ablation.main(argv) == cli.DONE
    said = capsys.readouterr().out
    assert f"{there} there before" in said and "Side by side" in said and "mcl less untrained" in said
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 13))
    assert (out / "logs/mcl-seed3.log").read_text().count("train/main.py --pipeline mcl-tiny") == trainings
    document = json.loads((out / "ablation.json").read_text())
    assert [row["status"] for row in document["runs"]] == ["done", "done"]
    assert document["metrics"]["untrained/linear/top1"] == 100 and document["spread"]["mcl/linear/top1"] is None
    assert document["runs"][1]["training"]["steps"] == 12
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 1 and "Side by side" in page and "Small nets" in page
    start, (trained, _) = open_encoder("random:r2plus1d_tiny:3").net, load_backbone(out / "runs/mcl-seed3/last.pt")
    assert all(torch.allclose(value, trained.get_parameter(name), rtol=0, atol=1e-20)
               for name, value in start.named_parameters())
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.log")}
    assert ablation.main(argv) == cli.DONE                             # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.log")} == before
    assert "2 there before" in capsys.readouterr().out
