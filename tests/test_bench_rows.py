"""The benchmark's rows, the work in them, and what limits a row."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("rich")

import bench_fakes
from bench_fakes import TINY

from bench import (
    floor,
    limits,
    machine,
    options,
)
from bench.providers import BASELINE, FUSED, PROVIDERS
from bench.watch import UNWATCHED
from bench.workloads import (
    BFLOAT16,
    DENSE,
    INFERENCE,
    PACKED,
    PROJECTION,
    TRAINING,
    Workload,
    cpu_workloads,
    cuda_workloads,
    grid_workloads,
    quick_workloads,
)
from fused_lstm import _ops

BOTH = [PROVIDERS[BASELINE], PROVIDERS[FUSED]]


# Rows


def test_every_row_has_a_name_of_its_own_and_a_source():
    rows = cpu_workloads() + grid_workloads()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert all(row.source for row in rows)
    assert {row.name for row in quick_workloads()} < set(names)


def test_published_workloads_are_there():
    names = " ".join(row.name for row in cpu_workloads())
    for name in ("rl_resets", "atari", "demucs", "pyannet", "hydrology", "awd_lstm", "predictor"):
        assert name in names
    for name in ("rnnt_layernorm", "vad", "fastrnns", "long", "cell", "one core busy"):
        assert name in names


def test_rows_that_leave_something_out_say_so():
    notes = {row.name: row.note for row in cpu_workloads()}
    for name in ("rl_resets", "awd_lstm", "rnnt_layernorm", "long", "vad"):
        assert notes[name]


def test_a_last_step_row_has_its_all_step_row():
    rows = {row.name: row for row in cpu_workloads()}
    last, every = rows["hydrology"], rows["hydrology, all steps"]
    assert last.last_step
    assert not every.last_step
    assert (last.shape, last.modes) == (every.shape, every.modes)


def test_bfloat16_rows_go_from_batch_1_to_64_and_from_128_to_1024_units():
    rows = [row for row in cpu_workloads() if row.group == BFLOAT16]
    assert {row.batch for row in rows} >= {1, 8, 32, 64}
    assert {row.hidden[0] for row in rows} >= {128, 256, 512, 1024}


def test_gpu_grid_is_complete_and_names_differ():
    rows = cuda_workloads()
    assert len({row.name for row in rows}) == len(rows)
    grid = {(row.hidden[0], row.batch, row.group) for row in rows if row.name.startswith("H=")}
    assert len(grid) == 8 * 5 * 4


# Work


def test_flops_of_one_layer_leave_out_the_product_with_a_zero_state():
    row = Workload("row", DENSE, 2, 3, 5, (7,))
    assert row.flops(INFERENCE) == 2 * (4 * 7) * (2 * 3 * 5 + 2 * 2 * 7)
    assert row.flops(TRAINING) == 3 * row.flops(INFERENCE)


def test_flops_of_calls_with_a_state_leave_out_the_first_ones_product():
    row = Workload("row", DENSE, 2, 1, 5, (7,), calls=10)
    assert 10 * row.flops(INFERENCE) == pytest.approx(2 * (4 * 7) * 2 * (10 * 5 + 9 * 7))


def test_flops_of_members_leave_out_the_gradient_of_the_input():
    row = Workload("row", DENSE, 4, 3, 5, (7,), members=2)
    forward, of_x = row.flops(INFERENCE), 2 * 4 * 3 * 28 * 5
    assert forward == replace(row, members=0).flops(INFERENCE)
    assert row.flops(TRAINING) == 3 * forward - of_x


def test_flops_of_projection_directions_and_layers():
    row = Workload("row", PROJECTION, 1, 2, 5, (7,), layers=2, bidirectional=True, proj=3)
    first = 2 * 2 * (2 * 28 * 5 + 28 * 3 + 2 * 7 * 3)
    second = 2 * 2 * (2 * 28 * 6 + 28 * 3 + 2 * 7 * 3)
    assert row.flops(INFERENCE) == first + second


def test_flops_of_packed_input_count_live_rows():
    packed = Workload("row", PACKED, 8, 50, 4, (4,), packed=True)
    rows = sum(packed.lengths())
    assert packed.flops(INFERENCE) == 2 * 16 * 4 * (rows + rows - 8)
    assert len(set(packed.lengths())) > 1
    assert max(packed.lengths()) == 50


@pytest.mark.parametrize("shortest", [0.0, 0.5, 1.0])
def test_packed_input_is_at_least_as_long_as_the_row_says(shortest):
    lengths = Workload("row", PACKED, 200, 50, 4, (4,), packed=True, shortest=shortest).lengths()
    least = max(1, 50 * shortest)
    assert min(lengths) >= least
    assert sum(lengths) / 200 == pytest.approx((least + 50) / 2, rel=0.1)


# Limits


@pytest.fixture
def fake_machine(monkeypatch):
    """100 multiply-adds a ns and core; 64 kB of L1 for both, 2 MiB of L2, 16 MiB shared."""
    monkeypatch.setattr(_ops, "extension", bench_fakes.Extension())
    monkeypatch.setattr(
        machine, "watch", lambda threads: UNWATCHED
    )  # that of real cores may be kept
    machine.machine.cache_clear()
    yield
    machine.machine.cache_clear()


@pytest.mark.usefixtures("fake_machine")
def test_many_rows_are_limited_by_multiply_adds():
    row = Workload("row", DENSE, 64, 50, 512, (512,))
    limit = limits.limit_of(row, INFERENCE, 2, "cpu")
    assert limit.by == "multiply-adds"
    assert limit.seconds == pytest.approx(row.flops(INFERENCE) / 400e9)


@pytest.mark.usefixtures("fake_machine")
def test_one_row_is_limited_by_reading_the_weights_in_every_step():
    row = Workload("row", DENSE, 1, 200, 512, (512,))  # W_hh is 4 MiB, 2 MiB beyond both L2
    limit = limits.limit_of(row, INFERENCE, 2, "cpu")
    assert limit.by == "shared cache"
    beyond = (199 + 1) * (4 * 2**20 - 2 * 2**20)  # W_ih is as large and read once
    assert limit.seconds == pytest.approx(beyond / 40e9)
    assert limits.limit_of(row, TRAINING, 2, "cpu").seconds > 2 * limit.seconds


@pytest.mark.usefixtures("fake_machine")
@pytest.mark.parametrize(("size", "held"), [("16K", 2**15), ("48K", 3 * 2**15), ("", 2**18)])
def test_what_l1_holds_is_read_from_nowhere_else(monkeypatch, tmp_path, size, held):
    """As the system says how large it is; where it does not, as large as any."""
    caches = (("0", "2", "Data", "8K"), ("1", "1", "Instruction", "8K"), ("2", "1", "Data", size))
    for index, *facts in caches:
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, fact in zip(("level", "type", "size"), facts, strict=True):
            (folder / name).write_text(f"{fact}\n")
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    row = Workload("row", DENSE, 1, 100, 64, (64,))  # W_hh and W_ih are 64 KiB each
    rest = max(0, 100 * 4 * (64 + 64) - held)  # of input and output
    limit = limits.limit_of(row, INFERENCE, 2, "cpu")
    assert limit.bytes == (99 + 1) * max(0, 2**16 - held) + rest


def test_an_unknown_l1_is_as_large_as_any(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CACHES", tmp_path / "none")
    assert machine.l1_bytes() >= 128 * 1024


@pytest.mark.usefixtures("fake_machine")
def test_weights_beyond_every_cache_come_from_memory():
    row = Workload("row", DENSE, 1, 50, 2048, (2048,))
    assert limits.limit_of(row, INFERENCE, 2, "cpu").by == "memory"


@pytest.mark.usefixtures("fake_machine")
def test_the_rate_of_memory_is_measured_beyond_every_cache(monkeypatch):
    asked = []

    def read_rate(size, threads):
        asked.append((size, threads))
        return 7.0

    monkeypatch.setattr(_ops.extension, "read_rate", read_rate)
    facts = machine.machine("float32", 2)
    assert facts.memory_rate == 7e9
    ((size, threads),) = asked
    assert size >= 3 * facts.shared_bytes  # so much that most of it is found in no cache again
    assert threads == 2


@pytest.mark.usefixtures("fake_machine")
def test_bfloat16_may_use_matrix_units():
    row = Workload("row", BFLOAT16, 64, 50, 512, (512,), dtype=torch.bfloat16)
    limit = limits.limit_of(row, INFERENCE, 2, "cpu")
    assert limit.seconds == pytest.approx(row.flops(INFERENCE) / 1000e9)


@pytest.mark.usefixtures("fake_machine")
def test_layers_and_directions_add_up():
    one = Workload("row", DENSE, 64, 50, 512, (512,))
    limit = limits.limit_of(one, TRAINING, 2, "cpu").seconds
    two = replace(one, layers=2)
    assert limits.limit_of(two, TRAINING, 2, "cpu").seconds == pytest.approx(2 * limit)
    both = replace(one, bidirectional=True)
    assert limits.limit_of(both, TRAINING, 2, "cpu").seconds == pytest.approx(2 * limit)


@pytest.mark.usefixtures("fake_machine")
def test_brgemm_is_measured_on_the_rows_own_panels(monkeypatch):
    asked = []

    def rate(rows, columns, depth, panels, dtype, threads, trials):
        asked.append((rows, columns, depth, panels, dtype, threads))
        return rows

    monkeypatch.setattr(_ops.extension, "brgemm_rate", rate)
    assert machine.brgemm_of(Workload("row", DENSE, 64, 50, 128, (512,)), 2) == 64
    assert sorted(asked) == [(32, 64, 512, 32, "float32", 2), (64, 64, 512, 16, "float32", 2)]


def test_a_machine_that_cannot_be_measured_has_no_limit(monkeypatch):
    monkeypatch.setattr(_ops, "extension", None)
    machine.machine.cache_clear()
    assert limits.limit_of(TINY, INFERENCE, 2, "cpu") is None
    assert machine.brgemm_of(TINY, 2) is None
    machine.machine.cache_clear()


def test_floor_of_a_step():
    small = Workload("row", BFLOAT16, 1, 10, 64, (64,), dtype=torch.bfloat16)
    products = 2 * 256 * (64 + 64 * 9 / 10)
    assert floor.step_floor(small, INFERENCE) == pytest.approx(products / 790e12)
    large = Workload("row", BFLOAT16, 1, 10, 1024, (1024,), dtype=torch.bfloat16)
    products = large.flops(INFERENCE) / large.steps / 790e12
    assert floor.step_floor(large, INFERENCE) == pytest.approx(products + floor.EXCHANGE)
    assert floor.step_floor(large, TRAINING) == pytest.approx(3 * products + 2 * floor.EXCHANGE)
    tf32 = replace(large, dtype=torch.float32, tf32=True)
    products = large.flops(INFERENCE) / large.steps / 395e12
    assert floor.step_floor(tf32, INFERENCE) == pytest.approx(products + floor.EXCHANGE)
    limit = limits.limit_of(large, INFERENCE, 2, "cuda").seconds
    assert limit == pytest.approx(10 * floor.step_floor(large, INFERENCE))
    assert floor.steps_of(Workload("row", DENSE, 2, 7, 5, (3, 3), layers=2)) == 28


@pytest.mark.parametrize("name", options.DTYPES)
def test_every_dtype_has_a_floor_on_a_gpu(name):
    for row in options.in_dtype(cuda_workloads(), name):
        assert limits.limit_of(row, TRAINING, 2, "cuda").seconds > 0
