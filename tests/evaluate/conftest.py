"""Small stores with classes, groups and splits, whose pixels are what the test says; and a checkpoint."""

import numpy as np
import pytest

from shared.clips.index import ClipGeometry, ClipIndexer
from shared.motion import t_motion
from shared.recipes.preprocessing import load_pipeline, pack_recipe_hash, recipe_hash
from shared.store.index import publish
from shared.store.packs import PackWriter
from shared.store.record import write_json_atomic
from shared.store.tables import VideoRow

FRAME = 64, 80
RECIPE = load_pipeline("folder", None, ["backend=cpu", "geometries=8x2"]).recipe.to_dict()


@pytest.fixture(scope="session")
def write_store():
    """write_store(path, {id: VideoRow fields, `rgb` (T, 64, 80, 3) uint8, perhaps `maps` (T, 8, 10) float32}, classes)
    -> path. Without maps all of the frame moves alike."""
    def write(path, videos, classes=("a", "b")):
        geometry = ClipGeometry.parse("8x2")
        writer = PackWriter(path, "pack0", FRAME, geometries=[geometry],
                            attributes={"backend": "cpu", "recipe_hash": pack_recipe_hash(RECIPE)})
        for name, fields in videos.items():
            rgb = fields.pop("rgb")
            maps = fields.pop("maps", np.full((len(rgb), FRAME[0] // 8, FRAME[1] // 8), 0.25, np.float32))
            indexer = ClipIndexer(geometry, 4)
            indexer.append(maps, t_motion(maps))
            writer.begin_video()
            writer.append(rgb, maps, t_motion(maps))
            writer.end_video(VideoRow(name, f"{name}.mp4", fps=25.0, **fields), {"8x2": indexer.finish()})
        row, rows = writer.commit()
        publish(path, [row], rows)
        write_json_atomic(path / "store.json", {"format": 1, "dataset": "made-up", "classes": list(classes),
                                                "recipe": RECIPE, "recipe_hash": recipe_hash(RECIPE)})
        return path
    return write


@pytest.fixture(scope="session")
def make_video():
    """make_video(frames, seed, colour) -> (frames, 64, 80, 3) uint8: coarse noise, which JPEG keeps, about a colour."""
    def make(frames, seed, colour=(0, 0, 0)):
        rng = np.random.default_rng(seed)
        noise = rng.integers(-25, 26, (frames, FRAME[0] // 16, FRAME[1] // 16, 3)).repeat(16, 1).repeat(16, 2)
        return np.clip(128 + np.asarray(colour) + noise, 0, 255).astype(np.uint8)
    return make


@pytest.fixture(scope="session")
def store(tmp_path_factory, write_store, make_video):
    """18 videos of 3 classes that differ in colour, in 3 groups; 9 + 9 in train and test, 6 + 6 of them also in train2
    and test2; video a5 is shorter than a clip."""
    colours = {"a": (60, -60, -60), "b": (-60, 60, -60), "c": (-60, -60, 60)}
    videos = {}
    for label, (name, colour) in enumerate(colours.items()):
        for i in range(6):
            split = "train" if i % 2 else "test"
            other = ("test2" if split == "train" else "train2",) if i < 4 else ()
            frames = 9 if (name, i) == ("a", 5) else 24 + i
            videos[f"{name}{i}"] = dict(rgb=make_video(frames, 10 * label + i, colour), label=label, class_name=name,
                                        group=f"g{i % 3}", splits=(split, *other))
    return write_store(tmp_path_factory.mktemp("evaluate") / "store", videos, ("a", "b", "c"))


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory):
    """make_checkpoint(pipeline, *settings) -> last.pt of that pipeline, in a folder of its own, as if after 20 steps
    with BN statistics that training would have moved."""
    import torch

    from shared.nn import checkpoint
    from shared.nn.backbones import build_backbone
    from shared.recipes.training import load_training

    def make(pipeline, *settings):
        run, recipe = tmp_path_factory.mktemp("evaluate") / "run", load_training(pipeline, settings).recipe
        run.mkdir()
        torch.manual_seed(7)
        net = build_backbone(recipe.model.backbone, recipe.model.width)
        with torch.no_grad():
            for _ in range(20):
                net(torch.randn(8, 3, recipe.sampling.geometry.length, 48, 48))
        state = dict.fromkeys(checkpoint.KEYS)
        state |= {"format": checkpoint.FORMAT, "pipeline": pipeline, "recipe": recipe.to_dict(), "step": 20, "epoch": 1,
                  "learner": {f"query.backbone.{name}": value for name, value in net.state_dict().items()},
                  "provenance": {"stores": [{"dataset": "made-up", "split": "train2"}], "init": None}}
        checkpoint.save(run / "last.pt", state)
        return run / "last.pt"
    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint):
    """A checkpoint of mcl-tiny, beside the metrics of its training, whose last line is torn."""
    path = make_checkpoint("mcl-tiny")
    (path.parent / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0, "in_batch_accuracy": 0.1}\n'
                                               '{"step": 2, "loss": 2.0, "in_batch_accuracy": 0.4}\n{"step": 3, "lo')
    return path


@pytest.fixture(scope="session")
def film():
    """film(path, frames (T, H, W, 3) uint8, rate=8, codec="libx264") -> path: a video file of these frames."""
    import av

    options = {"libx264": {"qp": "12", "preset": "ultrafast"}, "libvpx": {"crf": "8", "b": "4M", "threads": "1"}}

    def write(path, frames, rate=8, codec="libx264"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate, options=options[codec])
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        return path
    return write


@pytest.fixture(scope="session")
def pack():
    """pack(dataset, videos, annotations, store) -> store: preprocess.run in this process, at its fastest."""
    from preprocess import run

    def preprocess(dataset, videos, annotations, store):
        code = run.main(["--dataset", dataset, "--videos", str(videos), "--annotations", str(annotations), "--store",
                         str(store), "--engine", "serial", "--flow", "cpu", "--set", "preset=fast", "--set",
                         "geometries=8x2", "--set", "threads=1"])
        assert code == 0
        return store
    return preprocess


@pytest.fixture(scope="session")
def make_moving(tmp_path_factory, write_store, make_video):
    """make_moving(name, motion_seed) -> a store whose videos each have a blob of motion of their own: 8 in train, 10 in
    test, of two classes and three groups. The pixels are always the same."""
    def make(name, motion_seed=0):
        rng, videos = np.random.default_rng(motion_seed), {}
        rows, columns = np.mgrid[:8, :10]
        for i in range(18):
            y, x, strength = rng.uniform(1, 7), rng.uniform(2, 8), rng.uniform(0.1, 1)
            blob = strength * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 2)
            videos[f"v{i:02d}"] = dict(
                rgb=make_video(24, i), maps=(blob * rng.uniform(0.5, 1.5, (24, 1, 1))).astype(np.float32), label=i % 2,
                class_name="slide" if i % 2 else "spin", group=f"g{i // 8}", splits=("train" if i < 8 else "test",))
        return write_store(tmp_path_factory.mktemp(name) / "store", videos, ("spin", "slide"))
    return make


@pytest.fixture(scope="session")
def moving(make_moving):
    return make_moving("moving")


@pytest.fixture(scope="session")
def contrastive(tmp_path_factory):
    """A whole checkpoint of mcl-tiny whose two encoders and statistics have moved apart."""
    import torch

    from shared.nn import checkpoint
    from shared.nn.backbones import build_backbone
    from shared.recipes.training import load_training
    from train.moco import Learner

    torch.manual_seed(11)
    training = load_training("mcl-tiny")
    learner = Learner(lambda: build_backbone("r2plus1d_tiny"), training.recipe)
    with torch.no_grad():
        for parameter in learner.key.parameters():
            parameter.add_(0.1 * parameter.std(correction=0) * torch.randn_like(parameter))
        for _ in range(20):
            for encoder in (learner.query, learner.key):
                encoder(torch.randn(8, 3, 8, 48, 48), ["inter"])
    path = tmp_path_factory.mktemp("contrastive") / "last.pt"
    state = dict.fromkeys(checkpoint.KEYS) | {
        "format": checkpoint.FORMAT, "pipeline": "mcl-tiny", "recipe": training.recipe.to_dict(), "step": 20,
        "epoch": 1, "learner": learner.state_dict(), "provenance": {"stores": [], "init": None, "bn_group": 8}}
    checkpoint.save(path, state)
    return path


@pytest.fixture(autouse=True)
def results_keep_the_contract(monkeypatch):
    """Every Result that a test makes a protocol give, a new protocol's too, is what evaluate/protocol.py promises."""
    from evaluate.protocol import find_protocol
    from evaluate.report import results

    summarise = results.summarise

    def checked(protocol, runs, settings, *more):
        assert {*settings} <= {*find_protocol(protocol).sections, "view"}
        for result in (run.result for run in runs):
            assert result.metrics and all(-100 <= value <= 100 for value in result.metrics.values())   # no NaN either
            assert {*result.chance, *result.trials} <= {*result.metrics}
            assert all({*scores} <= {*result.metrics} for scores in result.beside.values())
            assert all(figure.path.read_bytes().startswith(b"\x89PNG") and figure.caption.endswith(".")
                       for figure in result.figures)
            assert all(len(row) == len(table.columns) for table in result.tables for row in table.rows)
            assert all(note.endswith(".") for note in result.notes)
        return summarise(protocol, runs, settings, *more)
    monkeypatch.setattr(results, "summarise", checked)
