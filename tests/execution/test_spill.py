"""Hidden states on disk."""

import pytest
import torch

from zpruner.errors import ArtifactError
from zpruner.execution import Spill


def test_values_come_back_and_altered_ones_are_refused(tmp_path):
    spill = Spill(tmp_path / "hidden")
    values = torch.arange(60.0).reshape(3, 20)
    tensor = values.clone()
    spill.store(7, tensor)
    assert tensor.untyped_storage().nbytes() == 0
    spill.restore(7, tensor)
    assert torch.equal(tensor, values)
    spill.store(7, tensor)
    file = next((tmp_path / "hidden").iterdir())
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{file.name}: got altered hidden states"):
        spill.restore(7, tensor)
