"""Fixtures of all tests."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, however slow the machine: what fails once fails always.
settings.register_profile("house", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

DATA = Path(__file__).resolve().parents[2] / "shared/data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real and broken videos and flow ground truth, kept beside the repository; tests skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip("no ../shared/data beside the repository: tests on real videos need it")
    return DATA


@pytest.fixture(scope="session")
def gpu():
    """torch's first GPU, without TF32, so that the CPU is an oracle; skips where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda")


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory) -> Path:
    """Twelve synthetic videos of 64x80 pixels and 40 frames in class folders, with annotations.csv and truth files."""
    from preprocess.synthetic import make_videos

    root = tmp_path_factory.mktemp("small") / "videos"
    make_videos(root, videos=12, seed=3, backgrounds=3, textures=4, frames=40, height=64, width=80)
    return root


@pytest.fixture
def quiet_torch():
    """The commands set torch's threads and determinism for their process: here they come back."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def run_line(quiet_torch):
    """run_line(words) -> exit code: `python -m MODULE ARGUMENTS` of ours in this process, as the current folder stands,
    since starting Python for each would take most of the time."""
    from importlib import import_module
    from importlib.util import find_spec

    def run(words):
        assert words[1] == "-m", words
        package = find_spec(words[2]).submodule_search_locations is not None
        return import_module(words[2] + ".__main__" * package).main(words[3:])
    return run


@pytest.fixture(scope="session")
def s3_server():
    """A real S3 server (moto's) on loopback, in a thread of this process; AWS_* in the environment lead to it."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
    server.stop()


@pytest.fixture
def count_requests():
    """count_requests(path): a list that grows by one (operation, range) for every HTTP request of its S3 client."""
    def count(path):
        seen = []

        def note(request, event_name, **_):
            seen.append((event_name.rpartition(".")[2], request.headers.get("Range")))
        path.fs.exists(str(path))  # connects
        path.fs.s3.meta.events.register("before-send.s3", note)
        return seen
    return count


@pytest.fixture
def bucket(s3_server) -> str:
    """The URL of a new, empty S3 bucket."""
    import uuid

    import s3fs

    name = f"test-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"
