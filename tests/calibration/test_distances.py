"""How far blocks turn the hidden state, against forward passes written out."""

import tiny
import torch

from zpruner.calibration import BlockDistances
from zpruner.calibration.distances import DISTANCE_WINDOWS
from zpruner.execution import WholeRunner
from zpruner.model import take_inventory

WINDOWS = torch.randint(0, tiny.VOCABULARY, (DISTANCE_WINDOWS + 3, 6), generator=torch.Generator().manual_seed(2))


def written_out(layers):
    model = tiny.build("llama")
    model.model.layers = torch.nn.ModuleList(model.model.layers[index] for index in layers)
    before = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, args, out: before.append((args[0].double(), out.double())))
    with torch.no_grad():
        model.model(input_ids=WINDOWS[:DISTANCE_WINDOWS], use_cache=False)
    return [float((1 - torch.cosine_similarity(given, out, dim=-1)).mean()) for given, out in before]


def test_distances_are_those_of_the_model_without_the_blocks_that_go():
    model = tiny.build("llama")
    distances = BlockDistances(WholeRunner(model), take_inventory(model), WINDOWS, 4)
    for keep in ([True, True, True], [True, False, True]):
        found = distances(torch.tensor(keep))
        there = [index for index, stays in enumerate(keep) if stays]
        torch.testing.assert_close(found[there], torch.tensor(written_out(there), dtype=torch.float64))
        assert found[~torch.tensor(keep)].isinf().all()
