import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpruner.errors import InvalidPatternError
from zpruner.patterns import SparsityPattern, StructuredPattern, StructureKind, parse_pattern


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("neurons:0.25", "neurons:0.25"),
        (" groups:1/3 neurons:0.125 ", "neurons:0.125 groups:0.3333333333333333"),
        ("multiple:64 neurons:0.25", "neurons:0.25 multiple:64"),
        ("neurons:0.25 multiple:1", "neurons:0.25"),
        ("experts:0.5  blocks:.2", "blocks:0.2 experts:0.5"),
    ],
)
def test_structures_are_written_one_way(value, text):
    pattern = parse_pattern(value)
    assert isinstance(pattern, StructuredPattern)
    assert str(pattern) == text
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize("value", [0.5, "0.5", "2:4", "2of4"])
def test_ratios_and_n_of_m_are_what_they_were(value):
    assert parse_pattern(value) == SparsityPattern.parse(value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("neuron:0.25", "got 'neuron:0.25', expected a structure.*Did you mean 'neurons'"),
        ("heads:0.25", "Known|Did you mean"),
        ("neurons:0.25 neurons:0.5", "neurons twice"),
        ("neurons:0", "a share between 0 and 1"),
        ("neurons:1", "a share between 0 and 1"),
        ("neurons:1/0", "a share between 0 and 1"),
        ("neurons:nan", "a share between 0 and 1"),
        ("neurons:", "a share between 0 and 1"),
        ("neurons:0.25 multiple:0", "a whole number above 0"),
        ("neurons:0.25 multiple:6.4", "a whole number above 0"),
        ("multiple:64", "multiple beside neurons"),
        ("groups:0.5 multiple:64", "multiple beside neurons"),
        ("neurons:0.25,groups:0.25", "a share between 0 and 1"),
    ],
)
def test_what_is_wrong_is_told(value, told):
    with pytest.raises(InvalidPatternError, match=told):
        parse_pattern(value)


def structures(value: str) -> StructuredPattern:
    found = parse_pattern(value)
    assert isinstance(found, StructuredPattern)
    return found


@pytest.mark.parametrize(
    ("value", "kind", "count", "kept"),
    [
        ("neurons:0.25", "neurons", 1536, 1152),
        ("neurons:0.125", "neurons", 1536, 1344),
        ("neurons:0.3 multiple:64", "neurons", 1536, 1088),  # 1075.2: 17 x 64 is nearer than 16 x 64
        ("groups:1/3", "groups", 3, 2),
        ("groups:0.25", "groups", 3, 2),
        ("groups:0.5", "groups", 3, 2),  # 1.5: the tie goes to more
        ("blocks:0.1", "blocks", 30, 27),
        ("experts:0.5", "experts", 8, 4),
    ],
)
def test_how_many_stay(value, kind, count, kept):
    assert structures(value).kept(StructureKind(kind), count, "model") == kept


@pytest.mark.parametrize(
    ("value", "kind", "count", "told"),
    [
        ("groups:0.25", "groups", 1, "got 1 groups, of which 0.25 is none"),
        ("groups:0.9", "groups", 2, "is all"),
        ("neurons:0.25 multiple:64", "neurons", 48, "in multiples of 64 is none|is all"),
    ],
)
def test_a_share_that_takes_none_or_all_is_refused(value, kind, count, told):
    with pytest.raises(InvalidPatternError, match=told):
        structures(value).kept(StructureKind(kind), count, "model")


@given(
    st.dictionaries(st.sampled_from(StructureKind), st.floats(0.001, 0.999), min_size=1),
    st.integers(1, 256),
)
def test_what_is_written_is_read_again(shares, multiple):
    neurons = StructureKind.NEURONS in shares
    pattern = StructuredPattern(
        tuple((kind, shares[kind]) for kind in StructureKind if kind in shares), multiple if neurons else 1
    )
    assert parse_pattern(str(pattern)) == pattern
