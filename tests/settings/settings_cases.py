"""Settings of the tests, changed."""

import copy

import pytest
import tiny

from zpruner.errors import InvalidSettingError
from zpruner.settings.reading import check_params


def changed(where="", **values):
    """Return the tiny settings with `values` set at the dotted path `where`."""
    params = copy.deepcopy(tiny.PARAMS)
    found = params
    for part in where.split(".") if where else ():
        found = found[part]
    found.update(values)
    return params


def refused(params, error=InvalidSettingError):
    with pytest.raises(error) as caught:
        check_params(params, "params.yaml")
    return str(caught.value)
