"""The CPU planner, on the facts of machines that are not here: it is a pure function of them."""

from __future__ import annotations

import itertools

import pytest

from fused_lstm import _ops

pytestmark = pytest.mark.skipif(_ops.extension is None, reason="the extension is not built")

# Nanoseconds and bytes per nanosecond, see csrc/cpu/machine.h.
SERVER = {  # two AVX-512 multiply-adds a cycle at 2.9 GHz, a slow cache between 64 cores
    "threads": 64, "lanes": 16, "pair": 1, "vector_bytes": 64, "tile_rows": 6,
    "multiply_ns": 0.22, "gate_ns": 22, "gradient_ns": 12, "pack_ns": 1.8,
    "l2_bytes": 2 << 20, "shared_bytes": 120 << 20, "l2_rate": 120, "shared_rate": 21,
    "shared_rate_two": 21, "shared_rate_all": 8, "memory_rate": 4,
    "barrier_ns_two": 300, "barrier_ns_all": 3000, "fork_ns_two": 2000, "fork_ns_all": 15000,
    "most_threads": 64,
}  # fmt: skip
DESKTOP = {  # eight AVX2 cores at 4.5 GHz
    **SERVER, "threads": 8, "lanes": 8, "vector_bytes": 32, "tile_rows": 3, "multiply_ns": 0.13,
    "l2_bytes": 512 << 10, "shared_bytes": 32 << 20, "shared_rate": 60, "shared_rate_two": 55,
    "shared_rate_all": 30, "barrier_ns_two": 100, "barrier_ns_all": 250, "fork_ns_two": 700,
    "fork_ns_all": 1500, "most_threads": 8,
}  # fmt: skip
TWO_CORES = {**SERVER, "threads": 2, "most_threads": 2}
QUICK_SHARED_CACHE = {**TWO_CORES, "multiply_ns": 0.29, "l2_bytes": 1 << 20, "shared_rate": 90,
                      "shared_rate_two": 80, "shared_rate_all": 80}  # fmt: skip
MACHINES = {"server": SERVER, "desktop": DESKTOP, "two": TWO_CORES, "quick": QUICK_SHARED_CACHE}


def plan(machine: dict, steps: int, batch: int, input_size: int, hidden_size: int, **options):
    return _ops.extension.plan(
        steps=steps, batch=batch, input_size=input_size, hidden_size=hidden_size,
        machine=machine, **options,
    )  # fmt: skip


@pytest.mark.parametrize("machine", [SERVER, DESKTOP], ids=["server", "desktop"])
def test_weights_of_one_step_are_read_in_place(machine):
    """By one tile of rows, once; of pairs they have to be packed."""
    tile = machine["tile_rows"]

    def in_place(steps, batch, **facts):
        found = plan({**machine, **facts}, steps, batch, 64, 128, training=True)
        assert not found["in_place"]  # forward has other ways
        told = "weights read as they lie, each once" in found["backward_why"]
        assert told == found["backward_in_place"]
        return told

    assert in_place(1, 1)
    assert in_place(1, tile)
    assert not in_place(1, tile + 1)
    assert not in_place(2, 1)
    assert not in_place(1, 1, few_rows=0)
    times = [plan({**machine, "few_rows": few}, 1, 1, 512, 512, training=True) for few in (0, 1)]
    assert times[1]["backward_predicted_us"] < times[0]["backward_predicted_us"]


SHAPES = [
    (1, 1, 128, 128), (1, 64, 256, 256), (50, 1, 128, 128), (200, 1, 512, 512), (50, 8, 64, 128),
    (100, 32, 128, 256), (50, 64, 512, 512), (365, 256, 15, 20), (8192, 2, 4, 24), (5, 7, 3, 1000),
]  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_every_case_has_a_plan_that_fits(machine):
    sizes = [(1, 1), (1, 300), (7, 2), (500, 1), (65536, 2), (50, 64)]
    for (steps, batch), hidden, threads, directions, dtype in itertools.product(
        sizes,
        [1, 3, 17, 64, 1000],
        [1, 2, 3, 16, 61],
        [1, 2],
        ["float32", "float64", "bfloat16", "float16"],
    ):
        facts = {**machine, "threads": threads}
        found = plan(facts, steps, batch, 20, hidden,
                     directions=directions, dtype=dtype, training=True)  # fmt: skip
        for prefix in ("", "backward_"):
            groups = [found[prefix + name] for name in ("directions", "rows", "units")]
            assert found[prefix + "threads"] == groups[0] * groups[1] * groups[2] <= threads
            assert groups[0] <= directions
            assert groups[1] <= batch
            assert 1 <= found[prefix + "chunk"] <= steps
            assert found[prefix + "why"]
        assert found["algorithm"] in ("dot", "panels")


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("directions", [1, 2])
def test_a_thread_more_never_costs_time(machine, shape, directions):
    before = {}
    for threads in range(1, 65):
        found = plan({**machine, "threads": threads}, *shape, directions=directions, training=True)
        for name in ("predicted_us", "backward_predicted_us"):
            assert 0 < found[name] <= before.get(name, found[name])
            before[name] = found[name]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_thread_more_is_worth_fifteen_percent_a_doubling(shape):
    """A team is as large as it is because a smaller one would be slower by so much."""
    found = plan(SERVER, *shape)
    half = plan({**SERVER, "threads": max(1, found["threads"] // 2)}, *shape)
    if found["threads"] > 1:
        assert half["predicted_us"] >= 1.15 * found["predicted_us"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("vectors", [64, 32])
def test_no_fact_of_a_machine_changes_what_is_added_up_in_which_order(shape, vectors):
    """`dot` and the chunk of the backward pass change it: they rest on shape and vectors alone."""
    machines = [SERVER, TWO_CORES, QUICK_SHARED_CACHE, {**SERVER, "threads": 1, "pack_ns": 99}]
    lanes, rows = (16, 6) if vectors == 64 else (8, 3)
    found = {
        (one["algorithm"], one["backward_chunk"])
        for machine in machines
        for one in [
            plan({**machine, "vector_bytes": vectors, "lanes": lanes, "tile_rows": rows}, *shape,
                 training=True)
        ]
    }  # fmt: skip
    assert len(found) == 1


def test_one_step_of_one_row_reads_the_weights_as_they_lie():
    found = plan(SERVER, 1, 1, 128, 128)
    assert found["algorithm"] == "dot"
    assert plan({**SERVER, "fork_ns_two": 9000}, 1, 1, 128, 128)["threads"] == 1


def test_a_projection_is_always_packed():
    assert plan(SERVER, 1, 1, 128, 128, proj_size=64)["algorithm"] == "panels"


def test_a_large_batch_is_split_where_its_weights_are_quick_to_read():
    """By units, every member reads half of the weights; by rows, all of them, without barriers."""
    shape = (50, 64, 512, 512)
    assert plan(QUICK_SHARED_CACHE, *shape)["rows"] == 2
    slow = plan({**QUICK_SHARED_CACHE, "shared_rate_two": 8, "shared_rate_all": 8}, *shape)
    assert slow["units"] == 2
    assert "which meet at every step" in slow["why"]


def test_a_single_row_is_split_by_units_where_a_barrier_is_cheap_enough():
    found = plan(TWO_CORES, 200, 1, 512, 512)
    assert (found["units"], found["threads"]) == (2, 2)
    dear = {**TWO_CORES, "barrier_ns_two": 200_000, "barrier_ns_all": 200_000}
    assert plan(dear, 200, 1, 512, 512)["threads"] == 1


def test_a_server_gives_a_large_layer_all_its_cores_and_a_small_one_few():
    assert plan(SERVER, 50, 64, 512, 512)["threads"] == 64
    assert plan(SERVER, 50, 8, 64, 128)["threads"] < 64
    assert plan(SERVER, 50, 1, 128, 128)["threads"] <= 4


def test_input_projections_are_batched_where_folding_them_in_would_stream_their_weights():
    shape = (50, 64, 512, 512)
    assert not plan({**SERVER, "threads": 2}, *shape)["fold"]
    plenty = {**SERVER, "threads": 2, "l2_bytes": 64 << 20}
    assert plan(plenty, *shape)["fold"]


def test_both_directions_run_at_once():
    found = plan(QUICK_SHARED_CACHE, 100, 32, 128, 256, directions=2)
    assert found["directions"] == 2
    assert "both directions" in found["why"]


@pytest.mark.parametrize("shape", [(200, 16, 512, 512), (200, 16, 1024, 512)], ids=str)
def test_both_directions_do_not_crowd_a_cache_at_once(shape):
    """17 and 25 MB of weights: too much for 32 MB, and not for 120."""
    facts = {**QUICK_SHARED_CACHE, "barrier_ns_two": 45, "shared_bytes": 32 << 20}
    found = plan(facts, *shape, directions=2, training=True)
    assert found["directions"] == found["backward_directions"] == 1
    assert found["threads"] == 2
    roomy = plan({**facts, "shared_bytes": 120 << 20}, *shape, directions=2, training=True)
    assert roomy["directions"] == roomy["backward_directions"] == 2
    small = plan(facts, 100, 32, 128, 256, directions=2)
    assert small["directions"] == 2


def test_few_live_rows_make_less_work():
    """Sequences that end early leave too little for a second thread."""
    machine = {**TWO_CORES, "fork_ns_two": 15_000, "fork_ns_all": 15_000}
    assert plan(machine, 20, 16, 16, 32)["threads"] == 2
    sizes = [16] + [1] * 19
    assert plan(machine, 0, 0, 16, 32, batch_sizes=sizes)["threads"] == 1


def test_one_step_packs_a_panel_at_a_time():
    found = plan(TWO_CORES, 1, 64, 256, 256)
    assert found["algorithm"] == "panels"
    assert found["units"] == 2
    assert "each for its only use" in found["why"]


def test_a_plan_can_be_asked_for():
    request = "directions=2 rows=2 units=2 fold=1 chunk=3 algorithm=panels"
    found = plan({**SERVER, "threads": 8}, 9, 5, 20, 300,
                 directions=2, training=True, request=request)  # fmt: skip
    for prefix in ("", "backward_"):
        assert [found[prefix + k] for k in ("directions", "rows", "units", "chunk")] == [2, 2, 2, 3]
    assert found["fold"]
    assert plan(SERVER, 9, 5, 20, 300, request="fold=0")["fold"] is False


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ("rows=3", "does not fit: rows=3"),
        ("units=9", "does not fit: units=9"),
        ("directions=2", "does not fit: directions=2"),
        ("rows=2 units=2", "does not fit"),
        ("rows=0", "got 'rows=0'"),
        ("fold=2", "got 'fold=2'"),
        ("chunk=x", "got 'chunk=x'"),
        ("chunk=2x", "got 'chunk=2x'"),
        ("chunk=9223372036854775807", "got 'chunk=9223372036854775807'"),
        ("algorithm=fast", "got 'algorithm=fast'"),
        ("lanes=4", "got 'lanes=4'"),
        ("rows", "got 'rows'"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(request_, complaint):
    with pytest.raises(ValueError, match=complaint):
        plan({**SERVER, "threads": 2}, 9, 2, 20, 64, request=request_)


def test_dot_and_a_projection_do_not_go_together():
    with pytest.raises(ValueError, match="projection"):
        plan(SERVER, 1, 1, 128, 128, proj_size=64, request="algorithm=dot")


@pytest.mark.parametrize("bad", [{"dtype": "int8"}, {"device": "tpu"}, {"machine": {"speed": 1}}])
def test_unknown_names_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected|tpu|no fact 'speed'"):
        _ops.extension.plan(**{
            "steps": 1, "batch": 1, "input_size": 3, "hidden_size": 3, **bad,
        })  # fmt: skip


def test_this_machine_is_measured_once():
    first = _ops.extension.cpu_machine("float32", 2)
    assert _ops.extension.cpu_machine("float32", 2) == first
    assert all(value > 0 for value in first.values())
    assert first["threads"] == 2
    # What two threads get from the shared cache each is no more than a core gets from its own.
    assert first["l2_bytes"] < first["shared_bytes"]


MEASURED = {
    "threads": 8, "shared_rate": 30, "shared_rate_two": 28, "shared_rate_all": 20,
    "barrier_ns_two": 300, "barrier_ns_all": 900, "fork_ns_two": 2000, "fork_ns_all": 5000,
    "most_threads": 8,
}  # fmt: skip


def measured_again(extension, known, again):
    found = extension.measured_again(MEASURED | known, MEASURED | again)
    return {name: found[name] for name in MEASURED}


@pytest.mark.parametrize("disturbed", [{"shared_rate_two": 12}, {"barrier_ns_two": 2000}])
def test_teams_that_others_disturbed_are_measured_again(extension, disturbed):
    """A slow moment does not decide for as long as a process lives; one thread needs no team."""
    assert measured_again(extension, disturbed, {}) == MEASURED
    slower = {
        "shared_rate_all": 2,
        "barrier_ns_all": 9000,
        "fork_ns_two": 8000,
        "fork_ns_all": 9000,
    }
    assert measured_again(extension, disturbed | slower, {}) == MEASURED
    still = measured_again(extension, disturbed, disturbed | slower)  # the best of both
    assert still == MEASURED | disturbed
    alone = disturbed | {"threads": 1}
    assert measured_again(extension, alone, {}) == MEASURED | alone


def test_teams_that_nobody_disturbed_are_not_measured_again(extension):
    better = {"shared_rate_two": 40, "barrier_ns_two": 100, "fork_ns_two": 100}
    assert measured_again(extension, {}, better) == MEASURED
