"""Rows whose inputs are gathered are called so."""

from zpruner.report.data import VariantSpec


def test_n_m_of_gathered_inputs_is_not_called_n_m_as_it_lies():
    assert VariantSpec("ria", "s24", "2:4", gathers=True).pattern_text == "2:4 of gathered inputs"
    assert VariantSpec("ria", "s24", "2:4").pattern_text == "2:4"
    assert VariantSpec("ria", "s50", "0.5", gathers=True).pattern_text == "50 %"
