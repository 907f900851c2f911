"""Any mix of options and sizes, drawn by Hypothesis: values, gradients, and laws of an LSTM."""

import torch
from cases import DTYPES, Case, check
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fused_lstm

sizes = st.integers(1, 12)
cases = st.builds(
    Case,
    T=st.integers(1, 12),
    B=sizes,
    I=sizes,
    H=st.integers(4, 40),
    P=st.integers(0, 3),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    batch_first=st.booleans(),
    bidirectional=st.booleans(),
    hx=st.booleans(),
    kind=st.sampled_from(["dense", "packed", "unbatched"]),
    dtype=st.sampled_from(DTYPES),
)
# derandomize: the same examples on every run. The fixtures only set up the whole test.
fixed = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@fixed
@given(case=cases)
def test_any_case(extension, case):
    torch.manual_seed(hash_of(case))
    check(case)


@fixed
@given(case=cases, cut=st.floats(0, 1))
def test_a_sequence_may_be_cut_anywhere(extension, case, cut):
    """Running the parts one after the other, the state handed on, is running the whole."""
    case = case.with_(
        kind="dense", bidirectional=False, batch_first=False, dtype=torch.float64, T=case.T + 1
    )
    torch.manual_seed(hash_of(case))
    _, ours = case.modules()
    x, hx = case.pack(case.sequences()), case.state()
    k = 1 + int(cut * (case.T - 2))
    with torch.no_grad():
        whole, whole_hx = ours(x, hx)
        first, middle = ours(x[:k], hx)
        second, last = ours(x[k:], middle)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last, whole_hx)


@fixed
@given(case=cases)
def test_packed_is_each_sequence_alone(extension, case):
    """Packing changes how it is computed, not what."""
    case = case.with_(kind="packed", dtype=torch.float64)
    torch.manual_seed(hash_of(case))
    _, ours = case.modules()
    sequences, (h0, c0) = case.sequences(), case.state()
    with torch.no_grad():
        y, (h_n, c_n) = ours(case.pack(sequences), (h0, c0))
        padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(y)
        for b, sequence in enumerate(sequences):
            alone, (h, c) = ours(sequence, (h0[:, b], c0[:, b]))  # unbatched
            torch.testing.assert_close(padded[: lengths[b], b], alone)
            torch.testing.assert_close((h_n[:, b], c_n[:, b]), (h, c))


@fixed
@given(case=cases)
def test_the_second_direction_is_the_first_on_reversed_time(extension, case):
    case = case.with_(
        kind="dense", layers=1, bidirectional=True, batch_first=False, dtype=torch.float64
    )
    torch.manual_seed(hash_of(case))
    _, ours = case.modules()
    x, (h0, c0) = case.pack(case.sequences()), case.state()
    with torch.no_grad():
        both, (h_n, c_n) = ours(x, (h0, c0))
        for k, weights in enumerate(ours.all_weights):
            turn = (lambda t: t.flip(0)) if k else (lambda t: t)
            one, (h, c) = fused_lstm.lstm(turn(x), (h0[k : k + 1], c0[k : k + 1]), [weights])
            torch.testing.assert_close(turn(one), both.chunk(2, 2)[k])
            torch.testing.assert_close((h, c), (h_n[k : k + 1], c_n[k : k + 1]))


def hash_of(case: Case) -> int:
    """A seed that depends on the case and on nothing else."""
    return sum(ord(char) * (k + 1) for k, char in enumerate(repr(case)))
