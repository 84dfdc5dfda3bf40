"""What is recalled of an earlier pass, and what is not."""

import torch
from counting import Counting
from torch.nn.functional import linear

from zpruner.calibration.recall import Recall

ROWS, WEIGHT = torch.randn(5, 4), torch.randn(3, 4)


def passed(recall, batch=0, note=True, close=False):
    """What two products give, and how many were carried out."""
    with Counting() as counting, recall.passing(batch, note) as known:
        first = linear(ROWS, WEIGHT)
        if close:
            known.close()
        return first, linear(first, WEIGHT[:, :3]), counting.count


def test_a_second_pass_computes_nothing_anew():
    recall = Recall(1000)
    first, second, count = passed(recall)
    assert count == 2
    again = passed(recall)
    assert again[0] is first
    assert again[1] is second
    assert again[2] == 0
    assert passed(recall, batch=1)[2] == 2
    recall.forget(0)
    assert passed(recall)[2] == 2


def test_what_comes_after_a_weight_that_changes_is_not_noted():
    recall = Recall(1000)
    passed(recall, close=True)
    assert passed(recall, note=False)[2] == 1
    assert passed(recall)[2] == 1
    assert passed(recall)[2] == 0


def test_a_result_that_was_changed_in_place_is_computed_anew():
    recall = Recall(1000)
    first, second, _ = passed(recall)
    before = first.clone()
    first.add_(1.0)
    again, last, count = passed(recall)
    assert count == 1
    assert torch.equal(again, before)
    assert torch.equal(last, second)


def test_no_more_is_held_than_there_is_room_for():
    recall = Recall(5 * 3 * 4)
    passed(recall)
    assert passed(recall)[2] == 1
    assert passed(recall, batch=1)[2] == 2
    recall.forget_all()
    passed(recall, batch=1)
    assert passed(recall, batch=1)[2] == 1
