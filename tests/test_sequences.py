"""Lengths, resets, cells and gates: values and gradients against sequences run one by one."""

import itertools

import oracle
import pytest
import torch
from cases import Case, leaves
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_lstm

LENGTHS = torch.tensor([3, 5, 0, 1])
MASK = torch.zeros(5, 4, dtype=torch.bool)
MASK[[0, 2, 3, 4, 1, 4, 3], [1, 0, 0, 1, 1, 0, 3]] = True
CASE = Case(T=5, B=4, I=3, H=6, dtype=torch.float64)
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 0.1,
    torch.float16: 1e-2,
}


def cut(T, B, lengths, reset):
    """The pieces ``(row, begin, end)`` of rows with lengths, cut before each marked step."""
    pieces = []
    for b in range(B):
        end = T if lengths is None else int(lengths[b])
        marks = [] if reset is None else [t for t in range(1, end) if reset[t, b]]
        edges = [0, *marks, end] if end else []
        pieces += [(b, s, e) for s, e in itertools.pairwise(edges)]
    return pieces


def exact(x, hx, params, bidirectional, lengths=None, reset=None, reset_hx=None):
    """Each piece by itself, in float64: output ``[T, B, D*P]``, h_n and c_n."""
    T, B = x.shape[:2]
    pieces = cut(T, B, lengths, reset)
    if reset_hx is None:
        reset_hx = tuple(torch.zeros_like(s[:, :1]) for s in hx)
    begins, ends = {}, {}  # pieces that begin with hx and end with h_n, of each direction and row
    for k, (b, s, e) in enumerate(pieces):
        if s == 0 and not (reset is not None and reset[0, b]):
            begins[0, b] = k
        if all(p[0] != b or p[2] <= e for p in pieces):
            begins[1, b] = ends[0, b] = k
        if s == 0:
            ends[1, b] = k
    directions = 2 if bidirectional else 1

    def first(state, fresh):
        rows = []
        for g in range(state.shape[0]):
            d = g % directions
            rows.append(
                torch.stack(
                    [
                        state[g, b] if begins.get((d, b)) == k else fresh[g, b % fresh.shape[1]]
                        for k, (b, _, _) in enumerate(pieces)
                    ]
                )
            )
        return torch.stack(rows)

    states = [first(s, f) for s, f in zip(hx, reset_hx, strict=True)]
    ys, h_n, c_n = oracle.lstm([x[s:e, b] for b, s, e in pieces], *states, params, bidirectional)
    y = torch.zeros(T, B, ys[0].shape[1], dtype=torch.float64)
    for (b, s, e), part in zip(pieces, ys, strict=True):
        y = y.index_put((torch.arange(s, e), torch.tensor(b)), part)
    finals = []
    for of_pieces, given in ((h_n, hx[0]), (c_n, hx[1])):
        rows = [
            torch.stack(
                [
                    of_pieces[g, ends[g % directions, b]]
                    if (g % directions, b) in ends
                    else given[g, b].double()
                    for b in range(B)
                ]
            )
            for g in range(given.shape[0])
        ]
        finals.append(torch.stack(rows))
    return y, *finals


def compare(case, seed=0, **options):
    """Values and gradients of a call against those of the pieces."""
    torch.manual_seed(seed)
    _, module = case.modules()
    groups = case.layers * (2 if case.bidirectional else 1)
    x = torch.randn(case.T, case.B, case.I, dtype=case.dtype)
    hx = case.state()
    fresh = []
    if options.pop("learned", False):
        rows = options.pop("learned_rows", 1)
        fresh = [torch.randn(groups, rows, s.shape[2], dtype=case.dtype) for s in hx]
    inputs = leaves([x, *hx, *fresh])
    exact_inputs = leaves([t.double() for t in (x, *hx, *fresh)])
    names = [name for name, _ in module.named_parameters()]
    params = leaves([p.double() for p in module.parameters()])
    named = dict(zip(names, params, strict=True))
    grouped = [[named[name] for name in group] for group in module._all_weights]

    def call(x, h0, c0, *fresh):
        x = x.transpose(0, 1) if case.batch_first else x
        masks = dict(options)
        if case.batch_first and masks.get("reset") is not None:
            masks["reset"] = masks["reset"].t()
        if fresh:
            masks["reset_hx"] = fresh
        y, (h_n, c_n) = module(x, (h0, c0) if case.hx else None, **masks)
        return y.transpose(0, 1) if case.batch_first else y, h_n, c_n

    ours = call(*inputs)
    wanted = exact(
        exact_inputs[0],
        exact_inputs[1:3],
        grouped,
        case.bidirectional,
        options.get("lengths"),
        options.get("reset"),
        exact_inputs[3:] or None,
    )
    weights = [torch.randn_like(t) for t in wanted]

    def loss(outputs):
        return sum((t.double() * w).sum() for t, w in zip(outputs, weights, strict=True))

    ours_in = [*inputs[:1], *(inputs[1:] if case.hx else inputs[3:]), *module.parameters()]
    exact_in = [*exact_inputs[:1], *(exact_inputs[1:] if case.hx else exact_inputs[3:]), *params]
    found = [*ours, *torch.autograd.grad(loss(ours), ours_in)]
    right = [*wanted, *torch.autograd.grad(loss(wanted), exact_in, materialize_grads=True)]
    for k, (a, b) in enumerate(zip(found, right, strict=True)):
        assert a.dtype == case.dtype
        bound = TOLERANCE[case.dtype] * max(1.0, b.abs().max().item())
        assert (a.double() - b).abs().max() <= bound, (k, (a.double() - b).abs().max())


OPTIONS = {
    "lengths": dict(lengths=LENGTHS),
    "reset": dict(reset=MASK),
    "reset_to_a_state": dict(reset=MASK, learned=True),
    "reset_to_states_of_rows": dict(reset=MASK, learned=True, learned_rows=4),
    "lengths_and_reset": dict(lengths=LENGTHS, reset=MASK, learned=True),
    "all_reset": dict(reset=torch.ones_like(MASK)),
    "no_step": dict(lengths=torch.zeros(4, dtype=torch.long)),
}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("P", [0, 2], ids=["plain", "projected"])
@pytest.mark.parametrize("name", [n for n in OPTIONS if n != "no_step"])
def test_values_and_gradients(name, P, bidirectional, layers):
    case = CASE.with_(P=P, bidirectional=bidirectional, layers=layers)
    compare(case, **OPTIONS[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hx", [False, True])
def test_other_types(dtype, hx):
    case = CASE.with_(dtype=dtype, hx=hx, bidirectional=True, batch_first=True, bias=False)
    compare(case, lengths=LENGTHS, reset=MASK, learned=hx)


@pytest.mark.parametrize("plan", ["units=2", "rows=2", "directions=2", "fold=0 chunk=2", "chunk=3"])
def test_other_plans(extension, plan):
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        extension.request_cpu_plan(plan)
        both = plan == "directions=2"
        compare(
            CASE.with_(H=37, P=34, I=20, bidirectional=both),
            lengths=LENGTHS,
            reset=MASK,
            learned=True,
        )
        compare(CASE.with_(H=37, bidirectional=both), lengths=LENGTHS)
    finally:
        extension.request_cpu_plan("")
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_nothing_but_initial_states(bidirectional):
    case = CASE.with_(bidirectional=bidirectional)
    _, module = case.modules()
    h0, c0 = leaves(list(case.state()))
    y, (h_n, c_n) = module(torch.randn(5, 4, 3).double(), (h0, c0), lengths=torch.zeros(4).int())
    assert not y.any()
    assert torch.equal(h_n, h0)
    assert torch.equal(c_n, c0)
    grads = torch.autograd.grad((h_n * 2).sum() + (c_n * 3).sum(), [h0, c0])
    assert all((g == k).all() for g, k in zip(grads, (2, 3), strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_lengths_of_any_integer_type(dtype):
    _, module = CASE.modules()
    x = torch.randn(5, 4, 3).double()
    assert torch.equal(module(x, lengths=LENGTHS.to(dtype))[0], module(x, lengths=LENGTHS)[0])


def test_what_lies_beyond_a_length_is_never_read():
    _, module = CASE.with_(bidirectional=True).modules()
    x = torch.randn(5, 4, 3).double()
    x[3:, 0] = float("nan")
    x.requires_grad_()
    for run in (module, reference_of(module)):
        y, (h_n, c_n) = run(x, lengths=LENGTHS.clamp(max=3))
        grads = torch.autograd.grad(y.sum() + h_n.sum() + c_n.sum(), [x, *module.parameters()])
        assert all(t.isfinite().all() for t in (y, h_n, c_n, *grads))
        assert not grads[0][3:].any()


def reference_of(module):
    """The layer, computed by the reference."""

    def run(*args, **options):
        from fused_lstm import sequences

        unavailable = sequences.unavailable
        sequences.unavailable = lambda x: "the test wants the reference"
        try:
            return module(*args, **options)
        finally:
            sequences.unavailable = unavailable

    return run


@pytest.mark.filterwarnings("ignore::fused_lstm.FusedLSTMWarning")
@pytest.mark.parametrize("P", [0, 2])
def test_the_reference_is_the_same(P):
    _, module = CASE.with_(P=P, bidirectional=True, layers=2).modules()
    x = torch.randn(5, 4, 3).double().requires_grad_()
    fresh = leaves([torch.randn(4, 1, P or 6).double(), torch.randn(4, 1, 6).double()])
    options = dict(
        lengths=LENGTHS, reset=MASK, reset_hx=fresh, return_cells=True, return_gates=True
    )
    found = []
    for run in (module, reference_of(module)):
        y, (h_n, c_n), cells, gates = run(x, **options)
        loss = y.sin().sum() + h_n.sum() + c_n.cos().sum() + cells.sin().sum()
        inputs = [x, *fresh, *module.parameters()]
        found.append([y, h_n, c_n, cells, gates, *torch.autograd.grad(loss, inputs)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_lengths_are_packing():
    """As nn.LSTM on packed input, h_n and all, with rows in any order."""
    case = CASE.with_(B=7, layers=2, bidirectional=True, dtype=torch.float32)
    theirs, ours = case.modules()
    x = torch.randn(5, 7, 3)
    lengths = torch.tensor([2, 5, 1, 4, 5, 3, 2])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, (h_n, c_n) = theirs(packed)
    found = ours(x, lengths=lengths)
    padded = pad_packed_sequence(y, total_length=5)[0]
    torch.testing.assert_close(found, (padded, (h_n, c_n)))


@pytest.mark.parametrize("P", [0, 2])
def test_cells_are_the_last_of_every_prefix(P):
    case = CASE.with_(P=P, bidirectional=True)
    _, module = case.modules()
    hx = case.state()
    x = torch.randn(5, 4, 3).double()
    y, _, cells, gates = module(x, hx, return_cells=True, return_gates=True)
    params = module.all_weights
    for t in range(5):
        prefix = oracle.lstm(list(x[: t + 1].unbind(1)), *hx, params, True)[2]
        suffix = oracle.lstm(list(x[t:].unbind(1)), *hx, params, True)[2]
        torch.testing.assert_close(cells[t], torch.cat([prefix[0], suffix[1]], 1))
    i, f, g, o = gates.view(5, 4, 2, 4, 6).unbind(3)
    c = cells.view(5, 4, 2, 6)
    if not P:
        torch.testing.assert_close(y.view(5, 4, 2, 6), o * c.tanh())
    torch.testing.assert_close(c[1:, :, 0], (f * torch.cat([c[:1], c[:-1]]) + i * g)[1:, :, 0])
    assert not gates.requires_grad


@pytest.mark.parametrize("kind", ["dense", "packed", "unbatched"])
def test_forms_of_cells(kind):
    case = CASE.with_(kind=kind, batch_first=True, layers=2, bidirectional=True, P=2)
    _, module = case.modules()
    x = case.pack(case.sequences())
    y, _, cells, gates = module(x, return_cells=True, return_gates=True)
    sizes = [t.data.shape if kind == "packed" else t.shape for t in (y, cells, gates)]
    assert [s[:-1] for s in sizes] == [sizes[0][:-1]] * 3
    assert [s[-1] for s in sizes] == [4, 12, 48]
    with torch.no_grad():
        again = module(x, return_cells=True)[2]
    assert type(again) is type(cells)
    for a, b in zip(again, cells, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_gradients_into_cells_of_packed_rows():
    case = CASE.with_(kind="packed", bidirectional=True)
    _, module = case.modules()
    sequences = leaves(case.sequences())
    cells = module(case.pack(sequences), return_cells=True)[2]
    weights = list(module.parameters())
    ours = torch.autograd.grad(cells.data.sin().sum(), [*sequences, *weights])
    loss = sum(module(s, return_cells=True)[2].sin().sum() for s in sequences)
    for a, b in zip(ours, torch.autograd.grad(loss, [*sequences, *weights]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("P", [0, 2])
def test_gradcheck(P):
    case = CASE.with_(T=3, B=3, I=2, H=3, P=P, bidirectional=True)
    _, module = case.modules()
    x, *hx = leaves([torch.randn(3, 3, 2).double(), *case.state()])
    fresh = leaves([torch.randn(2, 1, P or 3).double(), torch.randn(2, 3, 3).double()])
    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]
    mask = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 0, 1]]).bool()
    groups = [weights[: len(weights) // 2], weights[len(weights) // 2 :]]

    def run(x, h0, c0, h, c, *weights):
        params = [weights[: len(groups[0])], weights[len(groups[0]) :]]
        y, (h_n, c_n), cells = fused_lstm.lstm(
            x, (h0, c0), params, bidirectional=True, lengths=torch.tensor([3, 2, 0]), reset=mask,
            reset_hx=(h, c), return_cells=True,
        )  # fmt: skip
        return y, h_n, c_n, cells

    inputs = (x, *hx, *fresh, *weights)
    assert torch.autograd.gradcheck(run, inputs)
    if not P:
        assert torch.autograd.gradgradcheck(run, inputs)


def test_transforms_go_through_the_reference():
    _, module = CASE.modules()
    x = torch.randn(2, 5, 4, 3).double()

    def loss(x):
        y, _, cells = module(x, lengths=LENGTHS, reset=MASK, return_cells=True)
        return (y.sin() * cells).sum()

    together = torch.func.vmap(torch.func.grad(loss))(x)
    for one, grad in zip(leaves(list(x)), together, strict=True):
        torch.testing.assert_close(grad, torch.autograd.grad(loss(one), one)[0])
    _, slope = torch.func.jvp(loss, (x[0],), (torch.ones_like(x[0]),))
    torch.testing.assert_close(slope, together[0].sum())


@pytest.mark.parametrize("recompute", [0, 2])
def test_forward_mode_over_a_backward_pass_that_was_recorded_before(recompute):
    """Its tangents are the gradients of the doubled loss less those of the loss."""
    _, module = CASE.modules()
    module.recompute = recompute
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    options = {} if recompute else dict(lengths=LENGTHS, reset=MASK)
    loss = module(x, **options)[0].sin().sum()
    inputs = [x, *module.parameters()]
    expected = torch.autograd.grad(loss, inputs, retain_graph=True)
    with torch.autograd.forward_ad.dual_level():
        scale = torch.autograd.forward_ad.make_dual(torch.ones_like(loss), torch.ones_like(loss))
        grads = torch.autograd.grad(loss, inputs, scale)
        tangents = [torch.autograd.forward_ad.unpack_dual(g).tangent for g in grads]
    torch.testing.assert_close(tangents, [*expected])


def test_resets_stop_gradients_and_begin_anew():
    """What the loop with one call per step gives, which people write today."""
    _, module = CASE.with_(layers=2).modules()
    theirs = torch.nn.LSTM(3, 6, 2).double()
    theirs.load_state_dict(module.state_dict())
    x = torch.randn(5, 4, 3).double().requires_grad_()
    hx = tuple(leaves(list(CASE.with_(layers=2).state())))
    state, ys = hx, []
    for t in range(5):
        state = tuple(torch.where(MASK[t, :, None], 0.0, s) for s in state)
        y, state = theirs(x[t : t + 1], state)
        ys.append(y)
    ours = module(x, hx, reset=MASK)
    torch.testing.assert_close(ours, (torch.cat(ys), state))
    wanted = torch.autograd.grad(torch.cat(ys).sum(), [x, *hx, *theirs.parameters()])
    found = torch.autograd.grad(ours[0].sum(), [x, *hx, *module.parameters()])
    torch.testing.assert_close(found, wanted)
    assert not found[1][:, 1].any()  # reset before step 0


def test_states_that_lie_anyhow():
    """Slices and transposes of other tensors are what dense ones are."""
    _, module = CASE.with_(bidirectional=True).modules()
    x = torch.randn(5, 4, 3).double()
    states = [torch.randn(2, 4, 6).double() for _ in range(4)]
    anyhow = [s.permute(2, 0, 1).contiguous().permute(1, 2, 0) for s in states]
    anyhow[1] = torch.stack([states[1]] * 2, 2)[:, :, 1]
    assert not any(s.is_contiguous() for s in anyhow)
    found = [
        module(x, given[:2], lengths=LENGTHS, reset=MASK, reset_hx=given[2:])
        for given in (states, anyhow)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)
