"""Files that call themselves finetuned.pt or training.pt and hold anything: taken, or refused in one line."""

import copy
import itertools
import math

import pytest
import torch

from evaluate import export, run
from evaluate.finetuned import job
from shared.cli import RequestError, Stopped
from shared.nn.checkpoint import load_backbone, load_finetuned
from tests.evaluate.finetuned.test_finetune import arguments

WRONG = (None, "x", -1, 10 ** 12, 1.5, math.nan, [], {}, [None], {"x": 1}, b"x", True, torch.zeros(3),
         torch.tensor(math.nan), [[1]], 10 ** 400)
MANY = "backbone", "head", "classifier", "state"     # tables of many alike: two of each


def places(value, path=()):
    """Keys down to all that a dictionary or list holds."""
    if path:
        yield path, value
    if isinstance(value, (dict, list)):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in itertools.islice(inside, 2 if path and path[-1] in MANY else None):
            yield from places(inner, (*path, key))


def forged(state, every):
    """One copy in `every` of those in which one thing is lacking or wrong, with what is."""
    number = itertools.count()
    for path, value in places(state):
        odd = (value.to(torch.complex64), value.to_sparse(), value.to("meta"), value[:0]) \
            if isinstance(value, torch.Tensor) and value.dim() else ()
        for wrong in (*WRONG, *odd, "lacking"):
            if next(number) % every:
                continue
            made = copy.copy(state)
            inner = made
            for key in path[:-1]:
                inner[key] = inner = copy.copy(inner[key])
            if isinstance(wrong, str) and wrong == "lacking":
                del inner[path[-1]]
            else:
                inner[path[-1]] = wrong
            yield (path, str(wrong)[:40]), made


def looked_at(path, state, every, *uses):
    """How many of the forged files were refused, each in a line that names the file."""
    refused = 0
    for what, made in forged(state, every):
        torch.save(made, path)
        for use in uses:
            try:
                use()
            except RequestError as error:
                assert "\n" not in str(error) and len(str(error)) < 900, what
                refused += 1
            except Stopped:
                pass
            except Exception as error:
                raise AssertionError(f"{what} in {path.name}") from error
    return refused


@pytest.fixture(scope="module")
def fine_tuned(store, tmp_path_factory):
    """The command line, the folder, and what training.pt and finetuned.pt hold after one update of two, and two."""
    out = tmp_path_factory.mktemp("forged") / "out"
    argv = arguments(store, out, steps=2, batch=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "CHECKPOINT_S", -1)
        patch.setattr(job.Job, "finish", lambda *_: (_ for _ in ()).throw(Stopped("before the end")))
        with pytest.raises(Stopped):
            run.main(argv)
    [path] = out.glob("runs/*/training.pt")
    training = torch.load(path, weights_only=True)
    assert training["step"] == 1 and run.main(argv) == 0
    return argv, path, training, torch.load(path.with_name("finetuned.pt"), weights_only=True)


@pytest.mark.slow
def test_classifiers(fine_tuned, tmp_path):
    path, target = tmp_path / "finetuned.pt", tmp_path / "net.safetensors"
    refused = looked_at(path, fine_tuned[3], 151, lambda: load_finetuned(path), lambda: load_backbone(path),
                        lambda: export.main(["--checkpoint", str(path), "--out", str(target)]))
    assert refused > 4


@pytest.mark.slow
def test_trainings(fine_tuned, monkeypatch):
    """Whatever is taken is not trained on: what is looked at is looked at before."""
    argv, path, training, done = fine_tuned
    path.with_name("finetuned.pt").unlink(missing_ok=True)

    def taken(*_):
        raise Stopped("taken")
    monkeypatch.setattr(job, "parallel", taken)
    assert looked_at(path, training, 97, lambda: run.main(argv)) > 4
    path.unlink()


@pytest.mark.slow
def test_results(fine_tuned):
    argv, path, _, done = fine_tuned
    assert looked_at(path.with_name("finetuned.pt"), done, 173, lambda: run.main(argv)) > 2
