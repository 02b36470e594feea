"""The example `examples/md_rmsd`: its mathematics, its reading and measuring, and a whole run."""

from __future__ import annotations

import importlib.util
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

EXAMPLE = Path(__file__).parents[2] / "examples" / "md_rmsd"


def load(name: str) -> ModuleType:
    """Import one file of the example, which is no package, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"md_rmsd_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses and pickle look the module up.
    spec.loader.exec_module(module)
    return module


rmsd = load("rmsd")
trajectories = load("trajectories")

# RMSD is the root of a difference of squares: 1e-16 of those is 1e-8 of it.
CLOSE = 1e-6


def matrix(frames):
    return rmsd.rmsd_rows(rmsd.centred(frames), 0, len(frames))


def random_frames(seed=0, frames=7, atoms=20):
    return np.random.default_rng(seed).normal(size=(frames, atoms, 3))


def rotation(quaternion):
    """Return the rotation matrix of a quaternion that need not have unit length."""
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def superposed_rmsd(a, b):
    """The textbook way: centre, find the rotation (Kabsch), turn, measure."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    u, _, vt = np.linalg.svd(a.T @ b)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return np.sqrt(((a @ turn - b) ** 2).sum(axis=1).mean())


class TestRmsd:
    def test_equals_explicit_superposition(self):
        frames = random_frames()
        expected = [[superposed_rmsd(a, b) for b in frames] for a in frames]
        np.testing.assert_allclose(matrix(frames), expected, atol=CLOSE)

    def test_no_rotation_does_better(self):
        a, b = (frame - frame.mean(axis=0) for frame in random_frames(frames=2))
        best = matrix(np.stack([a, b]))[0, 1]
        for quaternion in np.random.default_rng(1).normal(size=(500, 4)):
            assert np.sqrt(((a @ rotation(quaternion) - b) ** 2).sum(axis=1).mean()) >= best

    @given(
        quaternion=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
        shift=st.tuples(*[st.floats(-100, 100)] * 3),
    )
    def test_moving_one_frame_changes_nothing(self, quaternion, shift):
        frames = random_frames(frames=3)
        moved = frames.copy()
        moved[1] = frames[1] @ rotation(quaternion).T + shift
        np.testing.assert_allclose(matrix(moved), matrix(frames), atol=CLOSE)
        assert matrix(np.stack([frames[1], moved[1]]))[0, 1] < CLOSE

    def test_is_symmetric_and_zero_for_the_same_frame(self):
        result = matrix(random_frames())
        np.testing.assert_allclose(result, result.T, atol=CLOSE)
        assert result.diagonal().max() < CLOSE

    def test_a_mirror_image_is_another_shape(self):
        frame = random_frames(frames=1)[0]
        assert matrix(np.stack([frame, frame * [1, 1, -1]]))[0, 1] > 0.1

    @pytest.mark.parametrize(("frames", "count"), [(7, 1), (7, 3), (7, 7), (300, 20)])
    def test_strips_cover_every_row_once(self, frames, count):
        strips = rmsd.strips(frames, count)
        assert len(strips) == count
        assert [row for start, stop in strips for row in range(start, stop)] == list(range(frames))
        assert max(b - a for a, b in strips) - min(b - a for a, b in strips) <= 1

    def test_strips_are_rows_of_the_matrix(self):
        structures = rmsd.centred(random_frames())
        rows = [rmsd.rmsd_rows(structures, *strip) for strip in rmsd.strips(7, 3)]
        np.testing.assert_allclose(np.concatenate(rows), matrix(random_frames()), atol=CLOSE)


NOT_COORDINATES = {
    "two dimensions": (np.zeros((5, 3)), r"shape \(5, 3\); \(frames, atoms, 3\) is needed"),
    "last is not 3": (np.zeros((5, 4, 2)), r"shape \(5, 4, 2\); \(frames, atoms, 3\) is needed"),
    "one frame": (np.zeros((1, 4, 3)), "2 frames of 3 atoms are the least"),
    "complex": (np.zeros((5, 4, 3), dtype=complex), "type complex128; real numbers are needed"),
    "text": (np.full((5, 4, 3), "1.0"), "real numbers are needed"),
    "not a number": (np.where(np.arange(60).reshape(5, 4, 3) == 40, np.nan, 0.0), "in frame 3"),
    "objects": (np.full((5, 4, 3), None), "not a readable .npy file"),
}


class TestData:
    @pytest.mark.parametrize(("array", "problem"), NOT_COORDINATES.values(), ids=NOT_COORDINATES)
    def test_an_array_that_is_no_coordinates_is_refused(self, array, problem, tmp_path):
        path = tmp_path / "frames.npy"
        np.save(path, array)
        with pytest.raises(trajectories.DataError, match=problem) as caught:
            trajectories.from_file(path)
        assert caught.value.path == path
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_a_file_that_is_no_array_is_refused(self, tmp_path):
        with pytest.raises(trajectories.DataError, match="no such file"):
            trajectories.from_file(tmp_path / "absent.npy")
        with pytest.raises(trajectories.DataError, match="not a readable"):
            trajectories.from_file(tmp_path)
        (tmp_path / "text.npy").write_text("ATOM      1  N   MET A   1")
        with pytest.raises(trajectories.DataError, match="not a readable"):
            trajectories.from_file(tmp_path / "text.npy")
        np.savez(tmp_path / "many.npz", a=np.zeros(3))
        with pytest.raises(trajectories.DataError, match="archive"):
            trajectories.from_file(tmp_path / "many.npz")

    def test_integers_and_single_precision_are_taken(self, tmp_path):
        for dtype in ("int16", "float32"):
            np.save(tmp_path / "mine.npy", np.ones((5, 4, 3), dtype=dtype))
            paths = trajectories.from_file(tmp_path / "mine.npy")
            assert paths.coordinates.dtype == np.float64
            assert (paths.lengths, paths.unit) == ({"mine": 5}, None)

    def test_thinning_is_done_path_by_path(self):
        frames = np.arange(7.0).reshape(7, 1, 1) * np.ones((1, 4, 3))
        thin = trajectories.Paths(frames, {"a": 4, "b": 3}, "Å").thinned(2)
        assert thin.coordinates[:, 0, 0].tolist() == [0, 2, 4, 6]
        assert thin.lengths == {"a": 2, "b": 2}

    def test_the_three_paths_start_alike_and_end_alike(self):
        pytest.importorskip("MDAnalysis")
        pytest.importorskip("MDAnalysisTests")
        paths = trajectories.adenylate_kinase()
        assert paths.coordinates.shape == (300, 3338, 3)
        assert sum(paths.lengths.values()) == 300
        ends = np.cumsum([0, *paths.lengths.values()])
        first, last = ends[:-1], ends[1:] - 1
        among = matrix(paths.coordinates[[*first, *last]])
        assert among[:3, :3].max() < 2, "all begin closed"
        assert among[3:, 3:].max() < 2.5, "all end open"
        assert among[:3, 3:].min() > 6


@pytest.mark.skipif(sys.platform != "linux", reason="reads the Linux kernel's counters")
class TestMeasuring:
    @pytest.fixture
    def measure(self):
        pytest.importorskip("psutil")
        return load("measure")

    def test_bytes_between_two_ends_in_this_process_count_once(self, measure):
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as client,
            server.accept()[0] as peer,
        ):
            client.sendall(bytes(5_000))
            assert len(peer.recv(5_000, socket.MSG_WAITALL)) == 5_000
            with measure.measured(set(), memory=1) as cost:
                client.sendall(bytes(20_000))
                assert len(peer.recv(20_000, socket.MSG_WAITALL)) == 20_000
                peer.sendall(bytes(300))
                assert len(client.recv(300, socket.MSG_WAITALL)) == 300
        assert cost.traffic == 20_300

    def test_a_connection_made_meanwhile_counts(self, measure):
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            measure.measured(set(), memory=1) as cost,
        ):
            client = socket.create_connection(server.getsockname())
            peer = server.accept()[0]
            client.sendall(bytes(20_000))
            assert len(peer.recv(20_000, socket.MSG_WAITALL)) == 20_000
        client.close()
        peer.close()
        assert 20_000 <= cost.traffic <= 20_002, "the kernel may count the handshake"

    def test_memory_is_told_apart_by_side(self, measure):
        program = "x = b'1' * int(input()); print(len(x), flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as worker:
            with measure.measured({worker.pid}, memory=1) as cost:
                ours = np.ones(40_000_000, dtype=np.uint8)
                print(90_000_000, file=worker.stdin, flush=True)
                assert worker.stdout.readline() == "90000000\n"
            print(file=worker.stdin, flush=True)
        # A few pages of something else may be given back meanwhile.
        assert 0.99 * len(ours) <= cost.submit_memory < 60_000_000
        assert 89_000_000 <= cost.worker_memory < 110_000_000


def run_example(*arguments, **options):
    pytest.importorskip("distributed")
    pytest.importorskip("parsl")
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    return subprocess.run(
        [sys.executable, EXAMPLE / "main.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        **options,
    )


@pytest.fixture
def frames(tmp_path):
    """A path whose every third frame is, together, larger than any threshold."""
    path = tmp_path / "frames.npy"
    np.save(path, random_frames(frames=60, atoms=3000).astype(np.float32))
    return path


class TestProgram:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--data", "absent.npy"], "--data: absent.npy: no such file"),
            (["--blocks", "0"], "must be a whole number from 1 on, not '0'"),
            (["--data", "frames.npy", "--blocks", "61"], "61 tasks for 60 frames"),
            (["--data", "frames.npy", "--output", "absent/x.png"], "absent is not a directory"),
        ],
    )
    def test_a_wrong_option_gets_a_message_not_a_traceback(
        self, arguments, complaint, frames, tmp_path
    ):
        done = run_example(*arguments, cwd=tmp_path)
        assert done.returncode != 0
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.dask
    @pytest.mark.parsl
    def test_all_four_runs_agree_and_are_shown(self, frames, tmp_path):
        before = set(tmp_path.iterdir())
        done = run_example(
            "--quick", "--data", frames, "--blocks", 4, "--output", "out.png", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""

        cells = {
            row[0]: row[1:]
            for line in done.stdout.splitlines()
            if line.startswith("│")
            for row in [[cell.strip() for cell in line.strip("│").split("│")]]
        }
        size = 20 * 3000 * 3 * 8 / 1e6
        for framework in ("Dask", "Parsl"):
            plain, ours = cells[framework], cells[f"{framework} + proxystore"]
            assert megabytes(plain[1]) > 4 * size, "every task is sent a copy"
            assert megabytes(ours[1]) < size, "no task is"
        assert "All 4 matrices" in done.stdout

        assert "Heat map: out.png" in done.stdout
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
        assert set(tmp_path.iterdir()) - before == {tmp_path / "out.png"}, "nothing else is left"


def megabytes(cell):
    number, unit = cell.split()
    assert unit == "MB"
    return float(number.replace(",", ""))
