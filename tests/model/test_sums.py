"""The residual stream, followed through the sums of a forward pass."""

import torch

from zpruner.model.products import Products, memory_of


def watched(run, hidden, *weights):
    """Run with sums of the stream watched; return the indices of the weights, and what each was added to."""
    found = []

    def added(matrix, stream):
        found.append((next(i for i, w in enumerate(weights) if w.data_ptr() == matrix.data_ptr()), stream.clone()))

    with Products({memory_of(weight) for weight in weights}, lambda *_: None, added=added) as products:
        products.begin(hidden)
        run()
        products.forget()
    return found


linear = torch.nn.functional.linear
HIDDEN, ONE, TWO = torch.randn(2, 3, 4), torch.randn(4, 4), torch.randn(4, 4)


def indices(found):
    return [index for index, _ in found]


def test_a_sum_is_the_stream_for_what_comes_after():
    middle = HIDDEN + linear(HIDDEN, ONE)
    found = watched(lambda: linear(s := HIDDEN + linear(HIDDEN, ONE), TWO) + s, HIDDEN, ONE, TWO)
    assert indices(found) == [0, 1]
    assert torch.equal(found[0][1], HIDDEN)
    assert torch.equal(found[1][1], middle)


def test_outputs_added_up_before_and_biases_belong_to_all():
    bias = torch.randn(4)
    found = watched(lambda: (linear(HIDDEN, ONE) + bias) + linear(HIDDEN, TWO) + HIDDEN, HIDDEN, ONE, TWO)
    assert sorted(indices(found)) == [0, 1]
    assert all(torch.equal(stream, HIDDEN) for _, stream in found)


def test_a_sum_in_place_shows_the_stream_as_it_was():
    stream = HIDDEN.clone()
    found = watched(lambda: stream.add_(linear(HIDDEN, ONE)), stream, ONE)
    assert torch.equal(found[0][1], HIDDEN)


def test_other_sums_are_none_of_the_stream():
    def run():
        up = linear(HIDDEN, ONE)
        up + 0.044 * up**3  # an activation
        up * 2 + HIDDEN  # scaled
        torch.nn.functional.layer_norm(up, (4,)) + HIDDEN
        up + torch.ones_like(up)
        torch.add(HIDDEN, up, alpha=2)

    assert watched(run, HIDDEN, ONE) == []
