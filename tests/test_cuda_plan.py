"""The CUDA planner: whatever it plans fits the device it plans for. Needs no GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch

KIB = 1024


@dataclass(frozen=True)
class Limits:
    """From the CUDA programming guide's table of compute capabilities."""

    multiprocessors: int
    shared_per_block: int
    shared_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    cluster: int
    registers_per_sm: int = 65536

    def resident(self, threads: int, registers: int, shared: int) -> int:
        """Blocks of one kernel that an SM holds at once; 1 KiB of each is the system's."""
        return min(
            self.blocks_per_sm,
            self.threads_per_sm // threads,
            self.registers_per_sm // (threads * -(-registers // 8) * 8),
            self.shared_per_sm // (shared + KIB),
        )


DEVICES = {
    "cuda:sm_80": Limits(108, 163 * KIB, 164 * KIB, 2048, 32, 1),
    "cuda:sm_86": Limits(84, 99 * KIB, 100 * KIB, 1536, 16, 1),
    "cuda:sm_89": Limits(128, 99 * KIB, 100 * KIB, 1536, 24, 1),
    "cuda:sm_90": Limits(132, 227 * KIB, 228 * KIB, 2048, 32, 8),
    "cuda:sm_100": Limits(148, 227 * KIB, 228 * KIB, 2048, 32, 8),
    "cuda:sm_120": Limits(188, 99 * KIB, 100 * KIB, 1536, 24, 8),
}
# dtype, allow_tf32, bytes of an element, bytes of a sum
ARITHMETICS = {
    "fp32": ("float32", False, 4, 4),
    "tf32": ("float32", True, 4, 4),
    "fp64": ("float64", False, 8, 8),
    "bf16": ("bfloat16", False, 2, 4),
    "fp16": ("float16", True, 2, 4),
}
HIDDEN = [1, 3, 8, 17, 20, 64, 65, 96, 112, 128, 160, 168, 192, 256, 384, 450, 512, 640, 768]
HIDDEN += [1000, 1024, 1150, 1500, 1536, 1900, 2048, 3000, 4096, 10000]
BATCHES = [1, 7, 16, 17, 64, 100, 256, 1000, 20000]


@pytest.fixture
def plan(extension):
    def plan(device="cuda:sm_90", arithmetic="bf16", hidden=512, batch=16, steps=100, **options):
        dtype, allow_tf32, *_ = ARITHMETICS[arithmetic]
        return extension.plan(
            steps=steps,
            batch=batch,
            input_size=options.pop("input_size", hidden),
            hidden_size=hidden,
            dtype=dtype,
            device=device,
            allow_tf32=allow_tf32,
            training=options.pop("training", True),
            **options,
        )

    return plan


def passes(facts: dict) -> list[dict]:
    """The facts of the forward and of the backward pass, under the same names."""
    backward = {k.removeprefix("backward_"): v for k, v in facts.items() if k[:8] == "backward"}
    return [facts, backward]


def check_fits(
    one: dict, limits: Limits, arithmetic: str, hidden: int, batch: int, directions: int
):
    """One pass's launch against the device's limits and against what it has to hold."""
    _, _, element, _ = ARITHMETICS[arithmetic]
    unit_tiles, row_tiles = -(-hidden // 8), -(-batch // 16)
    weights_per_unit_tile = -(-hidden * element // 32) * 1024
    assert one["threads"] % 32 == 0
    assert 0 < one["threads"] <= 1024
    assert one["registers"] <= 255
    assert one["threads"] * one["registers"] <= limits.registers_per_sm
    assert one["shared_bytes"] <= limits.shared_per_block
    resident = limits.resident(one["threads"], one["registers"], one["shared_bytes"])
    assert resident >= 1

    if one["algorithm"] == "block":
        assert one["blocks"] == row_tiles
        assert one["threads"] == 32 * unit_tiles
        in_registers = one["reg_tiles"] * unit_tiles * 1024
        assert one["shared_bytes"] + in_registers >= unit_tiles * weights_per_unit_tile
        return
    # Whole k tiles of 32 bytes are shared out: of 16-bit types that may be one unit tile more.
    shared_out = -(-(-(-hidden * element // 32) * 32 // element) // 8)
    assert unit_tiles <= shared_out <= unit_tiles + 1
    assert one["unit_tiles"] * one["slices"] >= shared_out
    assert one["unit_tiles"] * (one["slices"] - 1) < shared_out, "a block without units"
    cells = 128 * one["unit_tiles"]
    assert cells % one["threads"] == 0 or cells < one["threads"], "threads with unlike work"
    assert 1 <= one["groups"] <= row_tiles, "a group without rows"
    assert one["blocks"] == one["slices"] * one["groups"]
    assert one["unit_tiles"] % one["unit_parts"] == 0
    warp_tiles = one["unit_tiles"] // one["unit_parts"]
    in_registers = one["reg_tiles"] * one["threads"] // 32 * warp_tiles * 1024
    assert one["shared_bytes"] + in_registers >= one["unit_tiles"] * weights_per_unit_tile
    if one["algorithm"] == "cluster":
        assert one["cluster"] == one["slices"] <= limits.cluster
        assert limits.cluster > 1
    else:
        assert one["cluster"] == 1
        assert one["blocks"] * directions <= resident * limits.multiprocessors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_every_plan_fits_its_device(plan, device, arithmetic):
    limits, seen = DEVICES[device], set()
    for hidden in HIDDEN:
        for batch in BATCHES:
            for directions in (1, 2):
                facts = plan(device, arithmetic, hidden, batch, directions=directions)
                assert facts["arithmetic"] == arithmetic
                for one in passes(facts):
                    seen.add(one["algorithm"])
                    assert one["why"]
                    if one["algorithm"] != "steps":
                        check_fits(one, limits, arithmetic, hidden, batch, directions)
    assert {"block", "grid", "steps"} <= seen
    assert "cluster" in seen or limits.cluster == 1


@pytest.mark.parametrize("device", DEVICES)
def test_every_other_algorithm_has_its_reason(plan, device):
    for hidden in HIDDEN:
        for one in passes(plan(device, hidden=hidden)):
            others = {"block", "cluster", "grid", "steps"} - {one["algorithm"]}
            named = [reason.split(": ", 1) for reason in one["rejected"]]
            assert {name for name, _ in named} == others - (
                {"steps"} if one["algorithm"] == "steps" else set()
            )
            assert all("\n" not in reason and len(reason) > 10 for _, reason in named)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_no_estimate_is_below_the_floor(plan, device, arithmetic):
    for hidden in HIDDEN:
        for batch in BATCHES:
            facts = plan(device, arithmetic, hidden, batch)
            assert 0 < facts["floor_us"] <= facts["step_us"], (hidden, batch, facts)


def test_few_steps_are_not_worth_a_loop(plan):
    assert plan(steps=1)["algorithm"] == "steps"
    assert plan(steps=1000)["algorithm"] == "grid"


def test_small_layers_stay_in_one_block(plan):
    assert plan(hidden=64)["algorithm"] == "block"


def test_projection_runs_step_by_step(plan):
    facts = plan(proj_size=32)
    assert facts["algorithm"] == facts["backward_algorithm"] == "steps"
    assert all("projection" in reason for reason in facts["rejected"])


def test_nothing_to_compute(plan):
    assert plan(steps=0)["algorithm"] == plan(batch=0)["algorithm"] == "steps"


def test_packed_input_is_planned_by_its_rows(plan):
    dense = plan(steps=100, batch=256, hidden=2048)
    packed = plan(batch_sizes=[256] + [1] * 99, hidden=2048)
    assert packed["step_us"] < dense["step_us"]


def test_inference_plans_no_backward(plan):
    assert not [name for name in plan(training=False) if name.startswith("backward")]


def test_unknown_device(extension):
    with pytest.raises(ValueError, match=r"cuda:sm_70.*expected one of cuda:sm_80"):
        extension.plan(steps=1, batch=1, input_size=1, hidden_size=1, device="cuda:sm_70")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_present(plan):
    """On a GPU the limits are read from it; they must agree with the table where it is listed."""
    major, minor = torch.cuda.get_device_capability()
    limits = DEVICES.get(f"cuda:sm_{major}{minor}")
    facts = plan("cuda")
    if limits is not None:
        check_fits(facts, limits, "bf16", 512, 16, 1)


def test_the_gpu_tests_ask_for_what_fits(plan):
    """A size that an H100 does not take would make those tests fail for nothing."""
    from test_cuda_gpu import sizes

    names = {dtype: name for name, (dtype, *_) in ARITHMETICS.items() if name != "tf32"}
    for algorithm, dtype, hidden in sizes():
        facts = plan(arithmetic=names[dtype], hidden=hidden, batch=19, request=algorithm)
        for one in passes(facts):
            assert one["algorithm"] == algorithm, f"{dtype} H={hidden}: {one['unmet']}"
            assert "unmet" not in one
    for algorithm, hidden in (("block", 128), ("cluster", 256), ("grid", 500)):
        for directions in (1, 2):
            facts = plan(hidden=hidden, batch=70, directions=directions, request=algorithm)
            assert {one["algorithm"] for one in passes(facts)} == {algorithm}


@pytest.mark.parametrize("arithmetic", ["bf16", "fp16"])
def test_a_cluster_holds_256_hidden_units_of_16_bits(plan, arithmetic):
    for hidden in range(233, 257):
        for batch in (1, 16, 64):
            facts = plan(arithmetic=arithmetic, hidden=hidden, batch=batch, request="cluster")
            for one in passes(facts):
                assert one["algorithm"] == "cluster"
                check_fits(one, DEVICES["cuda:sm_90"], arithmetic, hidden, batch, 1)


def test_a_request_for_unit_tiles_and_groups(plan):
    for unit_tiles in (1, 2, 4):
        for groups in (1, 2, 4):
            request = f"grid,unit_tiles={unit_tiles},groups={groups}"
            facts = plan(hidden=256, batch=64, request=request)
            for one in passes(facts):
                assert (one["algorithm"], one["unit_tiles"], one["groups"]) == (
                    "grid", unit_tiles, groups,
                )  # fmt: skip
    facts = plan(hidden=128, batch=64, request="cluster,groups=2")
    assert [(one["algorithm"], one["groups"]) for one in passes(facts)] == [("cluster", 2)] * 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden": 512, "request": "block"}, "64 KiB|threads"),
        ({"hidden": 512, "request": "cluster"}, "a cluster has 8"),
        ({"hidden": 4096, "request": "grid"}, "blocks at once|shared memory"),
        ({"hidden": 64, "request": "grid,unit_tiles=3"}, "no variant"),
        ({"hidden": 64, "request": "grid,groups=7"}, "no variant"),
        ({"hidden": 64, "proj_size": 8, "request": "grid"}, "projection"),
        ({"hidden": 64, "device": "cuda:sm_80", "request": "cluster"}, "no thread-block"),
    ],
    ids=str,
)
def test_what_was_asked_for_and_cannot_run(plan, options, reason):
    for one in passes(plan(**options)):
        assert one["algorithm"] == "steps"
        assert re.search(reason, one["unmet"]), one["unmet"]
        assert "cannot run" in one["why"]


@pytest.mark.parametrize(
    "text", ["gird", "block,groups=1", "grid,groups=0", "grid,unit_tiles", "grid,groups=-1"]
)
def test_a_request_that_is_none(plan, text):
    with pytest.raises(ValueError, match="expected block, cluster, grid or steps"):
        plan(request=text)


def test_a_second_wave_of_clusters_is_charged(plan):
    """15 clusters of 8 blocks are resident on an H100; the others begin when those have ended."""
    request = "cluster,unit_tiles=2,groups={}"
    one, two = (
        plan(hidden=128, batch=16 * tiles, request=request.format(tiles))["step_us"]
        for tiles in (15, 16)
    )
    assert two > 1.9 * one


def test_hops_of_row_tiles_overlap(plan):
    """While the h of one row tile travels, the block computes another one."""
    request = "grid,unit_tiles=2,groups=1"
    one, two = (plan(hidden=512, batch=16 * tiles, request=request)["step_us"] for tiles in (1, 2))
    assert two < 1.6 * one


def test_the_cost_table_can_be_replaced(plan, extension):
    before = extension.cuda_latencies()
    estimate = plan(request="grid")["step_us"]
    try:
        extension.cuda_set_latencies({**before, "l2_hop_us": before["l2_hop_us"] + 1})
        assert plan(request="grid")["step_us"] == pytest.approx(estimate + 1)
    finally:
        extension.cuda_set_latencies(before)
    assert plan(request="grid")["step_us"] == estimate
